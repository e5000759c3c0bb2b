"""Recipes as numbers: what the forecast may explain differences between trials by."""

from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

LEAST_SPREAD = 1e-9
"""A number that varies less than this is one that was not searched."""


def traits_of(
    recipes: Sequence[Mapping[str, Any]],
    known: Sequence[Mapping[str, Any]] | None = None,
    beside: Collection[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """What tells recipes from one another, each in units of its own spread among them.

    Numbers that are never 0 are taken by their logarithm; of words, there is an indicator for each but the first.

    Args:
        recipes: whose traits are wanted.
        known: whose spread is the unit, and whose words are the words; the same recipes if left out.
        beside: names that are no traits.

    Returns:
        Numbers, shape (recipes, numbers), and indicators, shape (recipes, words); what all known recipes share is in neither.
    """
    known = recipes if known is None else known
    numbers, words = [], []
    for name, values in _by_name(known):
        if name in beside:
            continue
        if values.count(values[0]) == len(values):  # most: told at once, for a search asks at the end of every run
            continue
        wanted = values if recipes is known else [recipe.get(name) for recipe in recipes]
        if all(issubclass(kind, int | float) and kind is not bool for kind in set(map(type, values))):
            unit, asked = (np.array([float(v) for v in many if v is not None]) for many in (values, wanted))
            if unit.min() > 0:
                unit, asked = np.log(unit), np.log(np.maximum(asked, unit.min()))
            numbers += [_scaled(asked, unit)] if np.ptp(unit) > LEAST_SPREAD else []
        else:
            for kind in sorted({str(v) for v in values})[1:]:
                unit, asked = (np.array([float(str(v) == kind) for v in many]) for many in (values, wanted))
                words.append(_scaled(asked, unit))
    return _columns(numbers, len(recipes)), _columns(words, len(recipes))


def _by_name(recipes: Sequence[Mapping[str, Any]]) -> list[tuple[str, Sequence[Any]]]:
    """What recipes say of each name that one of them knows, in the order of the names; None where one says nothing."""
    names = sorted(set().union(*recipes))
    try:
        rows = list(map(itemgetter(*names, *names[:1]), recipes))  # twice the first, so that it is a row also of one name
    except (KeyError, TypeError):
        rows = [tuple(recipe.get(name) for name in names) for recipe in recipes]
    return list(zip(names, zip(*rows, strict=True), strict=False))


def _columns(columns: list[np.ndarray], count: int) -> np.ndarray:
    return np.stack(columns, axis=1) if columns else np.zeros((count, 0))


def _scaled(column: np.ndarray, unit: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = (column - unit.mean()) / unit.std()
    return scaled
