"""Recipes as numbers: what the forecast may explain differences between trials by."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEAST_SPREAD = 1e-9
"""A number that varies less than this is one that was not searched."""


def traits_of(recipes: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """What tells recipes from one another, each in units of its own spread among them.

    Numbers that are never 0 are taken by their logarithm; of words, there is an indicator for each but the first.

    Returns:
        Numbers, shape (recipes, numbers), and indicators, shape (recipes, words); what all recipes share is in neither.
    """
    numbers, words = [], []
    for name in sorted(set().union(*recipes)):
        values = [recipe.get(name) for recipe in recipes]
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            measured = _measure([float(v) for v in values if v is not None])
            numbers += [_scaled(measured)] if np.ptp(measured) > LEAST_SPREAD else []
        else:
            kinds = sorted({str(v) for v in values})[1:]
            words += [_scaled(np.array([float(str(v) == kind) for v in values])) for kind in kinds]
    return _columns(numbers, len(recipes)), _columns(words, len(recipes))


def _columns(columns: list[np.ndarray], count: int) -> np.ndarray:
    return np.stack(columns, axis=1) if columns else np.zeros((count, 0))


def _measure(values: list[float]) -> np.ndarray:
    return np.array([math.log(v) for v in values] if min(values) > 0 else values)


def _scaled(column: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = (column - column.mean()) / column.std()
    return scaled
