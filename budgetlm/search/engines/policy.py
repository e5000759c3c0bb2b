"""One search on a table of finished runs: the run that tells most for its cost is bought next, until the budget is spent.

What it would tell is judged by the bowl (`forecast/bowl.py`, `forecast/telling.py`), which follows every run, because a fit takes milliseconds. By default
all runs compete; where one of Optuna's samplers proposes, at every scale only the run that is nearest to its proposal. The choice at the end has the least
mean of what the bowl and the response surface (`forecast/table.py`, a second or two) expect: where scales are many the surface is the better one, where
they are few the bowl is.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from budgetlm.forecast.bowl import Bowl, BowlFrame, fit_bowl
from budgetlm.forecast.table import fit_columns
from budgetlm.forecast.telling import tells
from budgetlm.search.engines.table import SAME, Purse, Table, too_little
from budgetlm.search.sampler import make_sampler

FORECAST = "forecast"
"""The proposer that is no sampler of Optuna's."""
STARTING, STARTS_COST, START_SHARE = 8, 1 / 3, 1 / 25
"""First runs of a search by forecast, each the best one in a draw of the bowl: so many, as far as they take no more than this share of the budget
together, at the cheapest scale or where a run costs less than this share of it."""
TOP_SHARE = 1 / 15
"""No run costs more than this share of the budget: a bowl needs many runs more than it needs dear ones."""
FEWEST_SCALES = 3
"""So many of the cheapest scales are open to dearer runs: with fewer a drift cannot be told from the optimum itself."""
FEW_SHARE = 1 / 3
"""Share of the budget that a run at one of these may cost."""
FEWEST_RUNS = 8
"""Below so many the bowl alone chooses: so few runs say nothing of a law."""
CLEARLY = 0.002
"""A believed law's own choice stands unless another one is expected to be better by more than this (a logarithm): single runs of one recipe are half as far apart."""
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
    sampler: str = FORECAST,
    prior: str | None = None,
    judge: Judge = "both",
    most: int | None = None,
) -> Outcome:
    """Search until the budget is spent, and choose among the target's rows.

    Args:
        table: of finished runs.
        losses: of its rows; only those that are paid for are looked at, and of the target's none.
        budget: in target runs.
        seed: the same one gives the same outcome.
        sampler: a name that `make_sampler` knows, or `forecast`.
        prior: `steplaw`, or None.
        judge: whose least expected loss is chosen.
        most: runs, if the budget should pay for more.

    Raises:
        BudgetExhausted: it pays for no run.
        ConfigError: there is no such sampler.
    """
    frame, purse = table.frame(prior), Purse(losses, table, budget)
    proposer = ByForecast(table, budget, seed) if sampler == FORECAST else BySampler(table, sampler, seed)
    chance = np.random.default_rng(seed)
    bowl = _fit(frame, table, purse)
    while len(purse.bought) != most and len(open_rows := window(table, purse, budget)):
        rows = proposer.propose(open_rows, bowl)
        told = tells(bowl, table.scales[rows], table.knobs[rows], table.cells[rows], table.knobs[table.choices], chance)
        purse.buy(int(rows[(told / table.cost[rows]).argmax()]))
        bowl = _fit(frame, table, purse)
        proposer.learn(bowl)
    if not purse.bought:
        raise too_little(table, budget)
    expected = bowl.at_target(table.knobs[table.choices])
    if judge != "bowl" and len(purse.bought) >= FEWEST_RUNS:
        wide = surface_says(table, purse, prior)
        expected = (wide + expected) / 2 if judge == "both" else wide
    best, by_law = (int(some.argmin()) for some in (expected, np.where(_nearest_to_law(table, frame), expected, np.inf)))
    chosen = table.choices[by_law if expected[by_law] - expected[best] < CLEARLY else best]
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


def _nearest_to_law(table: Table, frame: BowlFrame) -> np.ndarray:
    """Which of the choices are nearest to a believed law's best knobs, bool; where none is believed, all are."""
    away = ((table.knobs[table.choices] - frame.origin)[:, frame.lawful] ** 2).sum(axis=1)
    nearest: np.ndarray = away <= away.min() + 1e-9
    return nearest


def _fit(frame: BowlFrame, table: Table, purse: Purse) -> Bowl:
    rows = np.array(purse.bought, dtype=int)
    return fit_bowl(frame, table.scales[rows], table.knobs[rows], np.array(purse.seen), table.cells[rows])


def window(table: Table, purse: Purse, budget: float) -> np.ndarray:
    """The rows that may be bought next: none takes too much of the budget, unless hardly any scale is as cheap."""
    rows = np.flatnonzero(purse.affordable())
    cost, cells = table.cost[rows], table.cells[rows]
    cheapest = sorted(float(cost[cells == cell].min()) for cell in np.unique(cells))[:FEWEST_SCALES]
    few = [share for share in cheapest if share <= FEW_SHARE * budget]
    return rows[cost <= max([TOP_SHARE * budget, *cheapest[:1], *few]) * (1 + SAME)]


class ByForecast:
    """All rows compete, but for the first ones, which are spread by chance.

    Args:
        table: of finished runs.
        budget: of the search, target runs.
        seed: of the chance.
    """

    def __init__(self, table: Table, budget: float, seed: int) -> None:
        self._table, self._chance = table, np.random.default_rng((seed, 1))
        self._most, self._left, self._starts = START_SHARE * budget, STARTS_COST * budget, STARTING

    def propose(self, rows: np.ndarray, bowl: Bowl) -> np.ndarray:
        """Those of some rows that compete for the next purchase."""
        table, cost = self._table, self._table.cost[rows]
        cheap = rows[(cost <= max(self._most, cost.min() * (1 + SAME))) & (cost <= self._left)]
        if not self._starts or not len(cheap):
            return rows
        here = cheap[table.cells[cheap] == self._chance.choice(np.unique(table.cells[cheap]))]
        features = bowl.frame.features(*bowl.frame.place(table.scales[here], table.knobs[here]))
        row = here[(features @ bowl.draws(1, self._chance)[0]).argmin()]
        self._starts, self._left = self._starts - 1, self._left - float(table.cost[row])
        return np.array([row])

    def learn(self, bowl: Bowl) -> None:
        """Nothing: it is told with the next question."""


class BySampler:
    """At every scale the row competes that is nearest to a recipe of Optuna's for the target, moved to where the optimum is thought to be there.

    Args:
        table: of finished runs.
        name: of the sampler.
        seed: of its chance.
    """

    def __init__(self, table: Table, name: str, seed: int) -> None:
        self._table, self._space = table, _space(table)
        self._spread = table.frame().spread * np.where(table.encoding.kinds.curved, 1.0, 1 / OTHER)
        with _quiet():
            self._study = optuna.create_study(sampler=make_sampler(seed, name))

    def propose(self, rows: np.ndarray, bowl: Bowl) -> np.ndarray:
        """Those of some rows that compete for the next purchase."""
        table = self._table
        with _quiet():
            self._trial = self._study.ask(self._space)
        self._wanted = _recipe(table, self._trial.params)
        nearest = []
        for cell in np.unique(table.cells[rows]):
            here = rows[table.cells[rows] == cell]
            there = self._wanted + bowl.moved(table.scales[here].mean(axis=0))
            nearest.append(here[(((table.knobs[here] - there) / self._spread) ** 2).sum(axis=1).argmin()])
        return np.array(nearest)

    def learn(self, bowl: Bowl) -> None:
        """What the recipe is expected to come to at the target."""
        with _quiet():
            self._study.tell(self._trial, float(bowl.at_target(self._wanted[None])[0]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Optuna says of a sampler's being experimental, or falling back to independent sampling."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
