"""Searches of a table of finished runs replayed in seconds, many seeds of them: what their choices lost against the best there was."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from budgetlm.errors import ConfigError
from budgetlm.search.engines.policy import FORECAST, Judge, search_table
from budgetlm.search.engines.table import Table, Target, open_table


@dataclass(frozen=True)
class Replayed:
    """One search."""

    seed: int
    regret: float
    """Per cent of the best row's loss."""
    trials: int
    spent: float
    """Target runs."""
    by_cost: dict[str, int]
    """Runs at each scale, by its cost in target runs."""
    line: int
    """Of the table's file, where the chosen row stands."""
    chosen: dict[str, float | str]
    """The chosen row."""
    loss: float


@dataclass(frozen=True)
class TableReplay:
    """Many searches of one table."""

    sampler: str
    prior: str | None
    budget: float
    """Target runs."""
    choices: int
    """Rows at the target."""
    mean: float
    """Of the regret, per cent."""
    median: float
    p90: float
    searches: list[Replayed]

    def summary(self) -> str:
        """For people."""
        rows = [
            f"{len(self.searches)} searches with {self.sampler}{f' and {self.prior}' if self.prior else ''}, {self.budget:g} target "
            f"runs each, among {self.choices} rows at the target",
            f"regret    mean {self.mean:.3f} %, median {self.median:.3f} %, 90th percentile {self.p90:.3f} %",
        ]
        for s in self.searches:
            runs = ", ".join(f"{n} x {cost}" for cost, n in s.by_cost.items())
            chosen = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in s.chosen.items())
            rows.append(f"seed {s.seed:<4} {s.regret:6.3f} %  line {s.line}: {chosen}  ({s.trials} runs: {runs})")
        return "\n".join(rows)


def replay_table(
    path: Path, target: str, budget: float, seeds: int = 30, sampler: str = FORECAST, prior: str | None = None
) -> TableReplay:
    """Replay searches on a table of finished runs.

    Args:
        path: a CSV file with `params`, `tokens`, `loss`, perhaps `seed`, and knobs; a run costs 6·params·tokens.
        target: `params=…,tokens=…`, or `flops=…` where the split between the two is a knob as well.
        budget: of each search, in runs of the target.
        seeds: how many searches.
        sampler: who proposes the runs: the forecast, or one of Optuna's samplers.
        prior: `steplaw` for a published law of the best lr and batch; None for none.

    Raises:
        DataError, ConfigError, BudgetExhausted: the message says what to do.
    """
    check(budget, seeds)
    table, losses = open_table(path, Target.read(target), prior)
    return replay_rows(table, losses, budget, range(seeds), sampler, prior)


def check(budget: float, seeds: int) -> None:
    """Refuse what cannot be replayed.

    Raises:
        ConfigError: the message says what.
    """
    if not (0 < budget < math.inf):
        raise ConfigError(f"a budget of {budget:g} target runs pays for nothing. Give `--budget` above 0, e.g. 0.25.")
    if seeds < 1:
        raise ConfigError(f"{seeds} searches show nothing. Give `--seeds` 1 or more.")


def replay_rows(
    table: Table,
    losses: np.ndarray,
    budget: float,
    seeds: Sequence[int],
    sampler: str = FORECAST,
    prior: str | None = None,
    judge: Judge = "both",
) -> TableReplay:
    """The same on a table that is read already."""
    best = float(losses[table.choices].min())
    searches = []
    for seed in seeds:
        found = search_table(table, losses, budget, seed, sampler, prior, judge)
        loss = float(losses[found.row])
        regret = 100 * (loss / best - 1)
        told = table.told(found.row)
        searches.append(Replayed(seed, regret, found.trials, found.spent, found.by_cost, found.row + 2, told, loss))
    regrets = np.array([s.regret for s in searches])
    mean, median, p90 = float(regrets.mean()), float(np.median(regrets)), float(np.quantile(regrets, 0.9))
    return TableReplay(sampler, prior, budget, len(table.choices), mean, median, p90, searches)
