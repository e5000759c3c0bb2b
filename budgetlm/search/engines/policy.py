"""One search on a table of finished runs: Optuna proposes, the ladder says where, the bowl says what it is worth at the target.

The bowl follows every run, because a fit takes milliseconds. The choice at the end has the least mean of what the bowl and the response
surface (`forecast/table.py`, a second or two) expect: where scales are many the surface is the better one, where they are few the bowl is.
"""

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from budgetlm.forecast.bowl import Bowl, BowlFrame, fit_bowl
from budgetlm.forecast.table import fit_columns
from budgetlm.search.engines.table import Purse, Table, too_little
from budgetlm.search.sampler import make_sampler

TOP_SHARE = 1 / 15
"""No run costs more than this share of the budget: a bowl needs many runs more than it needs dear ones."""
DEAREST, CHEAPEST = 1 / 12, 1 / 400
"""Shares of the target's cost between which scales are climbed: dearer ones buy too few runs, cheaper ones are too far away."""
FEWEST_SCALES = 3
"""So many scales where there are as many: with fewer a drift cannot be told from the optimum itself."""
MOST_LIKE_IT = 1 / 3
"""Of the scales within that window, so many are climbed: those whose tokens per parameter are nearest to the target's, as a miniature's are."""
FEWEST_RUNS = 8
"""Below so many the bowl alone chooses: so few runs say nothing of a law."""
DRAWS = 1000
"""Of the response surface, whose mean decides."""
OTHER = 2.0
"""How far apart two values of a text knob count, in spreads of the others."""


@dataclass(frozen=True)
class Outcome:
    """What one search came to."""

    row: int
    """The chosen row of the table, at the target."""
    trials: int
    spent: float
    """Target runs."""
    by_cost: dict[str, int]
    """Runs bought at each scale, by its cost in target runs, the dearest first."""
    bought: tuple[int, ...]
    """Rows of the table that were paid for, in their order."""


Judge = Literal["both", "surface", "bowl"]


def search_table(
    table: Table,
    losses: np.ndarray,
    budget: float,
    seed: int,
    sampler: str = "tpe",
    prior: str | None = None,
    judge: Judge = "both",
) -> Outcome:
    """Search until the budget is spent, and choose among the target's rows.

    Args:
        table: of finished runs.
        losses: of its rows; only those that are paid for are looked at, and of the target's none.
        budget: in target runs.
        seed: the same one gives the same outcome.
        sampler: a name that `make_sampler` knows.
        prior: `steplaw`, or None.
        judge: whose least expected loss is chosen.

    Raises:
        BudgetExhausted: it pays for no run.
        ConfigError: there is no such sampler.
    """
    frame, purse, space = table.frame(prior), Purse(losses, table, budget), _space(table)
    ladder = Ladder(table, purse, seed)
    bowl: Bowl | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a sampler's being experimental, or falling back to independent sampling
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=make_sampler(seed, sampler))
        while (cell := ladder.next_cell()) is not None:
            trial = study.ask(space)
            wanted = _recipe(table, trial.params)
            purse.buy(ladder.nearest(cell, wanted, bowl, frame))
            rows = np.array(purse.bought)
            bowl = fit_bowl(frame, table.scales[rows], table.knobs[rows], np.array(purse.seen), table.cells[rows])
            study.tell(trial, float(bowl.at_target(wanted[None])[0]))
    if bowl is None:
        raise too_little(table, budget)
    expected = bowl.at_target(table.knobs[table.choices])
    if judge != "bowl" and len(purse.bought) >= FEWEST_RUNS:
        wide = surface_says(table, purse, prior)
        expected = wide + expected if judge == "both" else wide
    chosen = table.choices[expected.argmin()]
    costs = Counter(f"{table.cost[row]:.3g}" for row in purse.bought)
    by_cost = {cost: costs[cost] for cost in sorted(costs, key=float, reverse=True)}
    return Outcome(int(chosen), len(purse.bought), budget - purse.left, by_cost, tuple(purse.bought))


def surface_says(table: Table, purse: Purse, prior: str | None) -> np.ndarray:
    """Expected log loss of the target's rows, (choices,), by the response surface of what was bought."""
    rows = np.array(purse.bought)
    runs = {name: column[rows] for name, column in table.columns.items()} | {"loss": np.array(purse.seen)}
    candidates = {name: column[table.choices] for name, column in table.columns.items()}
    surface, points, _ = fit_columns(runs, candidates, prior)
    expected: np.ndarray = np.log(surface.sample(points, DRAWS)[0].mean(axis=0))
    return expected


class Ladder:
    """Says at which of the cheaper scales the next recipe is tried: wherever least was spent so far.

    Args:
        table: of finished runs.
        purse: pays for them.
        seed: breaks ties.
    """

    def __init__(self, table: Table, purse: Purse, seed: int) -> None:
        self._table, self._purse = table, purse
        self._chance = np.random.default_rng(seed)
        self._spread = table.frame().spread * np.where(table.encoding.kinds.curved, 1.0, 1 / OTHER)
        top = min(DEAREST, TOP_SHARE * purse.left)
        cells = np.unique(table.cells[purse.affordable()])
        cost = {int(c): float(np.median(table.cost[table.cells == c])) for c in cells}
        # Scales within the window; where they are too few, those that are nearest to it.
        outside = {c: max(0.0, float(np.log(x / top)), float(np.log(CHEAPEST / x))) for c, x in cost.items()}
        ranked = sorted(outside, key=lambda c: (outside[c], -cost[c]))
        within = sorted((c for c in ranked if outside[c] == 0), key=self._unlike)
        enough = max(FEWEST_SCALES, math.ceil(MOST_LIKE_IT * len(within)))
        self._cells = within[:enough] if len(within) >= FEWEST_SCALES else ranked[:FEWEST_SCALES]
        self._spent = dict.fromkeys(self._cells, 0.0)
        self._cost = cost

    def _unlike(self, cell: int) -> float:
        """How far a scale's tokens per parameter are from the target's, as a logarithm; 0 where compute is the only axis."""
        away = self._table.scales[self._table.cells == cell].mean(axis=0) - self._table.target
        return abs(float(away[-1] - away[0]))

    def next_cell(self) -> int | None:
        """The scale of the next run; None when none of them can be paid for."""
        free = set(self._table.cells[self._purse.affordable()].tolist())
        open_ones = [c for c in self._cells if c in free]
        if not open_ones:
            return None
        tie = self._chance.random(len(open_ones))
        return min(zip(open_ones, tie, strict=True), key=lambda c: self._spent[c[0]] + c[1] * self._cost[c[0]])[0]

    def nearest(self, cell: int, wanted: np.ndarray, bowl: Bowl | None, frame: BowlFrame) -> int:
        """The row of a scale nearest to a recipe for the target, moved to where the optimum is thought to be there."""
        table = self._table
        rows = np.flatnonzero(self._purse.affordable() & (table.cells == cell))
        scale = table.scales[rows].mean(axis=0)
        there = wanted + (bowl.moved(scale) if bowl else frame.law_drift @ (scale - frame.target))
        away = (((table.knobs[rows] - there) / self._spread) ** 2).sum(axis=1)
        row = int(rows[away.argmin()])
        self._spent[cell] += float(table.cost[row])
        return row


def _space(table: Table) -> dict[str, BaseDistribution]:
    """What Optuna samples from: the range of the target's choices, and their values where a knob is text."""
    here = table.knobs[table.choices]
    space: dict[str, BaseDistribution] = {}
    for column, knobs in _by_column(table).items():
        if table.encoding.knobs[knobs[0]].value is None:
            space[column] = FloatDistribution(float(here[:, knobs[0]].min()), float(here[:, knobs[0]].max()))
        else:
            space[column] = CategoricalDistribution([table.encoding.names[i] for i in knobs if here[:, i].any()])
    return space


def _recipe(table: Table, parameters: Mapping[str, Any]) -> np.ndarray:
    """A trial's parameters as knobs."""
    return np.array(
        [parameters[k.column] if k.value is None else float(parameters[k.column] == k.name) for k in table.encoding.knobs]
    )


def _by_column(table: Table) -> dict[str, list[int]]:
    """The knobs of each column."""
    found: dict[str, list[int]] = {}
    for i, knob in enumerate(table.encoding.knobs):
        found.setdefault(knob.column, []).append(i)
    return found
