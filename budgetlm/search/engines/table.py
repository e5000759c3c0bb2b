"""A table of finished runs as something to search on: cells of one scale, knobs as numbers, and losses that have to be paid for."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from budgetlm.errors import BudgetExhausted, DataError
from budgetlm.forecast.bowl import BowlFrame
from budgetlm.forecast.encoding import Columns, Encoding
from budgetlm.forecast.table import NOT_KNOBS, PRIORS, SCALES, read_table

SAME = 0.03
"""Runs whose parameters and tokens, or compute, differ by less than this (a logarithm) are of one scale."""
RATIO = "tokens_per_parameter"
"""The knob that splits a compute."""


@dataclass(frozen=True)
class Target:
    """The scale that is searched for: parameters and tokens, or the compute 6·N·D alone, whose split is then a knob."""

    params: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0

    @staticmethod
    def read(text: str) -> "Target":
        """From `params=1.07e9,tokens=1e11` or `flops=6e20`.

        Raises:
            DataError: it says something else.
        """
        try:
            values = {key.strip(): float(value) for key, value in (part.split("=") for part in text.split(","))}
        except ValueError:
            values = {}
        if set(values) not in ({"params", "tokens"}, {"flops"}) or not all(0 < v < math.inf for v in values.values()):
            raise DataError(
                f"the target {text!r} is no scale. Give `--target params=1.07e9,tokens=1e11`, or `--target flops=6e20`."
            )
        return Target(**values)

    @property
    def cost(self) -> float:
        """Of one run, FLOPs."""
        return self.flops or 6 * self.params * self.tokens

    def summary(self) -> str:
        """In words."""
        return f"flops={self.flops:.3g}" if self.flops else f"params={self.params:.4g}, tokens={self.tokens:.4g}"


@dataclass(frozen=True)
class Table:
    """Finished runs around a target; what they lost is not here (`Purse`)."""

    encoding: Encoding
    knobs: np.ndarray  # (rows, knobs)
    scales: np.ndarray  # (rows, axes) logarithms
    cells: np.ndarray  # (rows,) the same number for runs of one scale
    cost: np.ndarray  # (rows,) in target runs
    target: np.ndarray  # (axes,)
    choices: np.ndarray  # rows of the target
    columns: Columns
    """As they were read, the losses left out."""

    def frame(self, prior: str | None = None) -> BowlFrame:
        """The coordinates that a bowl is fitted in."""
        law = self.encoding.step_law() if prior else None
        here = self.knobs[self.choices]
        return BowlFrame.of(self.target, here.mean(axis=0), here.std(axis=0), self.encoding.kinds, law)

    def told(self, row: int) -> dict[str, float | str]:
        """A row's knobs and scale, for people."""
        return {name: column[row].item() for name, column in self.columns.items()}


class Purse:
    """The only way to a loss: it is paid for, once, and never one of the target's.

    Args:
        losses: of all rows of a table.
        table: says what each costs.
        budget: in target runs.
    """

    def __init__(self, losses: np.ndarray, table: Table, budget: float) -> None:
        self._losses, self._table = losses, table
        self._forbidden = table.cost >= 1
        self._forbidden[table.choices] = True
        self.left = budget
        self.bought: list[int] = []
        self.seen: list[float] = []

    def affordable(self) -> np.ndarray:
        """Rows that can still be bought, bool."""
        free: np.ndarray = ~self._forbidden & (self._table.cost <= self.left)
        return free

    def buy(self, row: int) -> float:
        """The loss of a row."""
        assert not self._forbidden[row]
        assert self._table.cost[row] <= self.left
        self._forbidden[row] = True
        self.left -= float(self._table.cost[row])
        self.bought.append(row)
        self.seen.append(float(self._losses[row]))
        return self.seen[-1]


def open_table(path: Path, target: Target, prior: str | None = None) -> tuple[Table, np.ndarray]:
    """A CSV file as a table around a target, and the losses of its rows.

    Raises:
        DataError: a file, a column or a value that cannot be used, or a target that is not in it; the message says which.
    """
    return make_table(read_table(path, (*SCALES, "loss")), target, str(path), prior)


def make_table(runs: Columns, target: Target, path: str = "the table", prior: str | None = None) -> tuple[Table, np.ndarray]:
    """Columns `params`, `tokens`, `loss`, perhaps `seed`, and knobs as a table around a target, and the losses of its rows."""
    if prior is not None and prior not in PRIORS:
        raise DataError(f"there is no prior {prior!r}; known: {', '.join(PRIORS)}. Leave it out to use none.")
    if prior and target.flops:
        raise DataError("Step Law needs parameters and tokens: give `--target params=…,tokens=…`, or leave `--prior` out.")
    both = np.log(np.stack([np.asarray(runs[name], dtype=float) for name in SCALES], axis=1))
    knobs = {name: column for name, column in runs.items() if name not in NOT_KNOBS}
    if target.flops:
        scales, wanted = both.sum(axis=1, keepdims=True) + math.log(6), np.log([target.flops])
        knobs[RATIO] = np.exp(both[:, 1] - both[:, 0])
    else:
        scales, wanted = both, np.log([target.params, target.tokens])
    here = (np.abs(scales - wanted) < SAME).all(axis=1)
    if not here.any():
        raise DataError(
            f"{path} has no run at {target.summary()}. The nearest: {_nearest(scales, wanted)}. Name one of these."
        )
    encoding = Encoding.of(knobs, knobs, list(knobs), ratios=[RATIO])
    if not encoding.knobs:
        raise DataError(
            f"no knob varies in {path}: there is nothing to search. It needs a column beside {', '.join(NOT_KNOBS)}."
        )
    cells = np.unique(np.round((scales - wanted) / SAME / 2), axis=0, return_inverse=True)[1].ravel()
    cost = np.exp(both.sum(axis=1) + math.log(6) - math.log(target.cost))
    shown = {name: column for name, column in runs.items() if name != "loss"}
    table = Table(encoding, encoding.values(knobs), scales, cells, cost, wanted, np.flatnonzero(here), shown)
    return table, np.asarray(runs["loss"], dtype=float)


def _nearest(scales: np.ndarray, wanted: np.ndarray, most: int = 3) -> str:
    distinct = np.unique(np.round(scales, 3), axis=0)
    order = np.abs(distinct - wanted).sum(axis=1).argsort()[:most]
    names = SCALES if len(wanted) == 2 else ("flops",)
    return "; ".join(",".join(f"{n}={np.exp(v):.4g}" for n, v in zip(names, distinct[i], strict=True)) for i in order)


def too_little(table: Table, budget: float) -> BudgetExhausted:
    """A budget that pays for no run."""
    cheaper = table.cost[table.cost < 1]
    least = f"the cheapest costs {cheaper.min():.3g}" if len(cheaper) else "all runs cost as much as the target or more"
    return BudgetExhausted(f"a budget of {budget:g} target runs pays for no run of this table: {least}. Raise `--budget`.")
