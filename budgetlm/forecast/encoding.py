"""The columns of a table of runs as knobs: logarithms of what is positive, indicators of text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from budgetlm.forecast.points import Centre, Kinds

STEP_LAW = {"lr": (0.578, -0.713, 0.307), "batch_tokens": (-0.556, 0.0, 0.571)}
"""Logarithm of the best knob: a constant, per log of parameters without embeddings, per log of tokens (Step Law, arXiv:2503.04715)."""

ROLES = {
    "rate": ("lr", "learning_rate", "max_lr", "peak_lr", "lr_peak"),
    "batch": ("batch", "batch_size", "batch_tokens", "batch_seqs"),
}
"""Columns of which something is known that no table has to show (`forecast/bowl.py`), by their names."""

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
    role: str = ""
    """As in `Kinds`."""

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
    def of(runs: Columns, others: Columns, names: Sequence[str], ratios: Sequence[str] = ()) -> "Encoding":
        """The knobs of some columns that two tables have: those that vary among the runs, and text that varies among all.

        Args:
            runs: what is learned from.
            others: what is forecast.
            names: of the columns.
            ratios: columns that are one already, such as tokens per parameter.
        """
        knobs: list[Knob] = []
        roles = dict.fromkeys(ratios, "ratio") | {column: role for role, columns in ROLES.items() for column in columns}
        for name in names:
            both = np.concatenate([runs[name], others[name]])
            if both.dtype.kind not in "fiu":
                values = sorted(set(both.astype(str)))
                knobs += [Knob(name, value) for value in values if len(values) > 1]
            elif (distinct := len(np.unique(runs[name]))) > 1:
                knobs.append(Knob(name, None, bool(both.min() > 0), distinct > 2, roles.get(name.lower(), "")))
        return Encoding(knobs)

    @property
    def names(self) -> list[str]:
        """Of the knobs."""
        return [knob.name for knob in self.knobs]

    @property
    def kinds(self) -> Kinds:
        """What they are."""
        curved, logged = (np.array([getattr(k, name) for k in self.knobs], dtype=bool) for name in ("curved", "logged"))
        return Kinds(curved, logged, np.array([k.role for k in self.knobs], dtype=str))

    def values(self, table: Columns) -> np.ndarray:
        """The knobs of a table's rows, (rows, knobs)."""
        rows = len(next(iter(table.values())))
        return np.stack([knob.of(table) for knob in self.knobs], axis=1) if self.knobs else np.zeros((rows, 0))

    def step_law(self) -> Centre:
        """The published law of the optimum; NaN for knobs that it does not know."""
        unknown = (math.nan,) * 3
        table = np.array([STEP_LAW.get(k.name, unknown) if k.logged else unknown for k in self.knobs]).reshape(-1, 3)
        return Centre(table[:, 0], table[:, 1:])
