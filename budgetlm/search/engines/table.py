"""A table of finished runs as something to search on: cells of one scale, knobs as numbers, and losses that have to be paid for."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from budgetlm.errors import BudgetExhausted, DataError
from budgetlm.forecast.bowl import Frame, Law

SCALES = ("params", "tokens")
NOT_KNOBS = (*SCALES, "loss", "seed")
STEP_LAW = {"lr": (0.578, -0.712, 0.307), "batch_tokens": (-0.556, 0.0, 0.571)}
"""Logarithm of the best knob: a constant, and for each logarithm of parameters (without embeddings) and tokens (arXiv:2503.04715)."""
PRIORS = ("steplaw",)
SAME = 0.03
"""Runs whose parameters and tokens differ by less than this (a logarithm) are of one scale."""
SAME_COMPUTE = 0.22
"""Runs whose compute differs by less are of one scale where the target is a compute."""


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

    names: list[str]
    """Of the knobs, `column=value` for indicators."""
    scales: np.ndarray  # (rows, axes) logarithms
    knobs: np.ndarray  # (rows, knobs)
    curved: np.ndarray  # (knobs,) bool
    logged: np.ndarray  # (knobs,) bool
    groups: dict[str, list[int]]
    """Column with text -> its indicators among the knobs."""
    cells: np.ndarray  # (rows,)
    cost: np.ndarray  # (rows,) in target runs
    target: np.ndarray  # (axes,)
    choices: np.ndarray  # rows of the target
    rows: pd.DataFrame = field(repr=False)
    """The table without its losses."""

    def frame(self, prior: str | None = None) -> Frame:
        """The coordinates that a bowl is fitted in."""
        law = None
        if prior:
            known = [STEP_LAW.get(name, (math.nan,) * 3) for name in self.names]
            law = Law(np.array([k[0] for k in known]), np.array([k[1:] for k in known]))
        return Frame.of(self.target, self.knobs[self.choices], self.curved, self.logged, law)

    def told(self, row: int) -> dict[str, float | str]:
        """A row's knobs and scale, for people."""
        return {str(k): v for k, v in self.rows.iloc[row].to_dict().items()}


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
    return make_table(_read(path), target, str(path), prior)


def make_table(
    rows: pd.DataFrame, target: Target, path: str = "the table", prior: str | None = None
) -> tuple[Table, np.ndarray]:
    """A frame of `params`, `tokens`, `loss`, perhaps `seed`, and knobs as a table around a target, and the losses of its rows."""
    _check(rows, path, prior, target)
    losses = rows["loss"].to_numpy(dtype=float)
    both = np.log(rows[list(SCALES)].to_numpy(dtype=float))
    knobs = rows.drop(columns=[c for c in NOT_KNOBS if c in rows])
    if target.flops:
        scales, wanted, same = both.sum(axis=1, keepdims=True) + math.log(6), np.log([target.flops]), SAME_COMPUTE
        knobs = knobs.assign(tokens_per_parameter=np.exp(both[:, 1] - both[:, 0]))
    else:
        scales, wanted, same = both, np.log([target.params, target.tokens]), SAME
    here = (np.abs(scales - wanted) < same).all(axis=1)
    if not here.any():
        raise DataError(
            f"{path} has no run at {target.summary()}. The nearest: {_nearest(scales, wanted)}. Name one of these."
        )
    names, values, curved, logged, groups = _numbers(knobs)
    if not names:
        raise DataError(
            f"no knob varies in {path}: there is nothing to search. It needs a column beside {', '.join(NOT_KNOBS)}."
        )
    cells = np.unique(np.round((scales - wanted) / same / 2), axis=0, return_inverse=True)[1].ravel()
    cost = np.exp(both.sum(axis=1) + math.log(6) - math.log(target.cost))
    shown = rows.drop(columns="loss")
    table = Table(names, scales, values, curved, logged, groups, cells, cost, wanted, np.flatnonzero(here), shown)
    return table, losses


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, skipinitialspace=True)
    except (OSError, EOFError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}. Give a .csv or .csv.gz file.") from error


def _check(rows: pd.DataFrame, path: str, prior: str | None, target: Target) -> None:
    for name in (*SCALES, "loss"):
        if name not in rows:
            raise DataError(f"{path} has no column {name!r}; it has {', '.join(map(str, rows))}. Add or rename it.")
        numbers = pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=float)
        bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
        if len(bad):
            raise DataError(
                f"{path}, line {bad[0] + 2}: {name} is {rows[name].iloc[bad[0]]!r}, and has to be a positive number"
                f"{f' ({len(bad)} such lines)' if len(bad) > 1 else ''}. Correct the row, or leave it out."
            )
    for name in rows.columns.difference(list(NOT_KNOBS)):
        if rows[name].isna().any():
            line = int(np.flatnonzero(rows[name].isna())[0]) + 2
            raise DataError(f"{path}, line {line}: {name} is empty. Fill it in, or leave the row or the column out.")
    if prior is not None and prior not in PRIORS:
        raise DataError(f"there is no prior {prior!r}; known: {', '.join(PRIORS)}. Leave it out to use none.")
    if prior and target.flops:
        raise DataError("Step Law needs parameters and tokens: give `--target params=…,tokens=…`, or leave `--prior` out.")


def _numbers(knobs: pd.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, dict[str, list[int]]]:
    """Knobs that vary, as numbers: logarithms of what is positive, indicators of text."""
    names: list[str] = []
    columns: list[np.ndarray] = []
    kinds: list[tuple[bool, bool]] = []
    groups: dict[str, list[int]] = {}
    for name in map(str, knobs):
        values = knobs[name]
        kinds_of = sorted({str(v) for v in values})
        if len(kinds_of) < 2:
            continue
        if pd.api.types.is_numeric_dtype(values):
            positive = bool((values > 0).all())
            names.append(name)
            columns.append(np.log(values.to_numpy(dtype=float)) if positive else values.to_numpy(dtype=float))
            kinds.append((True, positive))
            continue
        groups[name] = list(range(len(names), len(names) + len(kinds_of)))
        names += [f"{name}={kind}" for kind in kinds_of]
        columns += [(values.astype(str) == kind).to_numpy(dtype=float) for kind in kinds_of]
        kinds += [(False, False)] * len(kinds_of)
    curved, logged = (np.array([kind[i] for kind in kinds], dtype=bool) for i in (0, 1))
    return names, np.stack(columns, axis=1) if columns else np.zeros((len(knobs), 0)), curved, logged, groups


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
