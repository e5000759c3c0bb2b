"""The columns of a table of runs as knobs: logarithms of what is positive, indicators of text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from budgetlm.forecast.points import Centre, Kinds

STEP_LAW = {"lr": (0.578, -0.713, 0.307), "batch_tokens": (-0.556, 0.0, 0.571)}
"""Logarithm of the best knob: a constant, per log of parameters without embeddings, per log of tokens (Step Law, arXiv:2503.04715)."""

Columns = Mapping[str, np.ndarray]
"""Column name -> values: floats, or text where one of them is none."""


@dataclass(frozen=True)
class Knob:
    """One number that tells runs apart."""

    column: str
    value: str | None = None
    """Of the column, where it holds text: the knob is 1 there and 0 elsewhere."""
    logged: bool = False
    curved: bool = False
    """Whether it may have a best value between others."""
    steady: bool = False
    """Whether that value hardly drifts with scale."""

    @property
    def name(self) -> str:
        """For people, and to find it again."""
        return self.column if self.value is None else f"{self.column}={self.value}"

    def of(self, table: Columns) -> np.ndarray:
        """Its values, (rows,)."""
        column = table[self.column]
        if self.value is not None:
            column = column.astype(str) == self.value
        values: np.ndarray = np.log(column) if self.logged else column.astype(float)
        return values


@dataclass(frozen=True)
class Encoding:
    """How the columns of a table become knobs."""

    knobs: list[Knob]

    @staticmethod
    def of(runs: Columns, others: Columns, names: Sequence[str], steady: Sequence[str] = ()) -> "Encoding":
        """The knobs of some columns that two tables have: those that vary among the runs, and text that varies among all.

        Args:
            runs: what is learned from.
            others: what is forecast.
            names: of the columns.
            steady: columns that are ratios already, such as tokens per parameter.
        """
        knobs: list[Knob] = []
        for name in names:
            both = np.concatenate([runs[name], others[name]])
            if both.dtype.kind not in "fiu":
                values = sorted(set(both.astype(str)))
                knobs += [Knob(name, value) for value in values if len(values) > 1]
            elif (distinct := len(np.unique(runs[name]))) > 1:
                knobs.append(Knob(name, None, bool(both.min() > 0), distinct > 2, name in steady))
        return Encoding(knobs)

    @property
    def names(self) -> list[str]:
        """Of the knobs."""
        return [knob.name for knob in self.knobs]

    @property
    def kinds(self) -> Kinds:
        """What they are."""
        table = np.array([(k.curved, k.logged, k.steady) for k in self.knobs], dtype=bool).reshape(-1, 3)
        return Kinds(*table.T)

    def values(self, table: Columns) -> np.ndarray:
        """The knobs of a table's rows, (rows, knobs)."""
        rows = len(next(iter(table.values())))
        return np.stack([knob.of(table) for knob in self.knobs], axis=1) if self.knobs else np.zeros((rows, 0))

    def step_law(self) -> Centre:
        """The published law of the optimum; NaN for knobs that it does not know."""
        unknown = (math.nan,) * 3
        table = np.array([STEP_LAW.get(k.name, unknown) if k.logged else unknown for k in self.knobs]).reshape(-1, 3)
        return Centre(table[:, 0], table[:, 1:])
