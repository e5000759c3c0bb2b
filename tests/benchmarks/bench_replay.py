"""Searches replayed on others' finished runs: regret against budget, for our policy with each of Optuna's samplers and for what people do.

A search may spend 0.25, 0.5 or 1 run of the target, on runs cheaper than the target, and names one of the target's rows; regret is its
loss above the best of them, in %. Intervals are bootstrapped over searches (95 %). Compared with

    proxies    random runs at about 1/30 of the target's cost; the best one's knobs used unchanged
    proxy top  the same at about 1/10
    halving    successive halving: a third of the configurations goes on to the next dearer scale, from the cheapest; the best one unchanged
    middle     the configuration in the middle of what may be chosen, nothing spent
    ... alone  ours, but the bowl or the response surface alone chooses among the target's rows
    Step Law   itself (arXiv:2503.04715), nothing spent; it was fitted to runs like these

Ours are named by who proposes the runs: the forecast, or one of Optuna's samplers (a sampler that is not installed is left out with a word).
With `--trials 20 60 200` searches end after so many runs instead, with three target runs to spend, and the bowl alone chooses.

    python -m tests.benchmarks.bench_replay [--seeds 30] [--samplers forecast tpe gp cmaes qmc random] [--only NAME ...] [--rows NAME ...] [--trials N ...]
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd

from budgetlm.errors import ConfigError
from budgetlm.forecast.encoding import STEP_LAW
from budgetlm.search.engines.policy import FORECAST, Judge, search_table
from budgetlm.search.engines.table import Purse, Table, Target, make_table
from budgetlm.search.sampler import SAMPLERS, make_sampler
from tests.benchmarks.bench_forecast import read

BUDGETS = (0.25, 0.5, 1.0)
AMPLE = 3.0
"""Target runs, where the number of runs is what ends a search."""
FEWEST_SCALES = 4
"""A target needs so many scales at 1/12 of its cost or less."""
MOST_TARGETS = 5


@dataclass(frozen=True)
class Task:
    """A data set seen from one target."""

    name: str
    table: Table
    losses: np.ndarray
    lawful: tuple[Table, np.ndarray] | None = None


def tasks(only: list[str]) -> Iterator[Task]:
    for name, frame, targets in data_sets():
        if only and not any(part in name for part in only):
            continue
        columns = {c: frame[c].to_numpy() for c in frame}
        for target in targets:
            lawful = make_table(columns, target, prior="steplaw") if "lr" in columns else None
            yield Task(name, *make_table(columns, target), lawful)


def data_sets() -> Iterator[tuple[str, pd.DataFrame, list[Target]]]:
    names = {"N": "params", "D": "tokens"}
    for name in ("scalebench_lr_bs_small", "steplaw_dense_small"):
        table = read(name).rename(columns=names).dropna(subset=["smooth_loss"])
        table = table.assign(
            batch_tokens=2048.0 * table.batch_seqs, loss=table.smooth_loss, params=table.params.astype(float)
        )
        yield name, table[["params", "tokens", "lr", "batch_tokens", "loss"]], largest(table)
    farseer = read("farseer_small").rename(columns=names)[["params", "tokens", "loss"]]
    yield "farseer (N and D at a compute)", farseer, at_compute(farseer)
    isoflops = read("isoflops_public")
    for experiment, table in isoflops[~isoflops.outlier].groupby("experiment"):
        if len(table) >= 60 and "raw" not in str(experiment):
            runs = table[["params", "tokens", "loss"]]
            yield f"isoflops {experiment}", runs, at_compute(runs)
    marin = read("marin_speedrun_finals")
    marin = marin.assign(recipe=marin.run_name.str.rsplit("/", n=1).str[0], size=marin.run_name.str.rsplit("/", n=1).str[1])
    params = marin["size"].map({"130m": 1.3e8, "300m": 3e8, "520m": 5.2e8, "1_2b": 1.2e9, "1.2b": 1.2e9})
    marin = marin.assign(params=params, tokens=20 * params, loss=marin.eval_paloma_c4_en_bpb).dropna(subset=["params"])
    complete = marin.groupby("recipe").params.transform("nunique") == 4
    yield "marin speed runs (recipes)", marin[complete][["params", "tokens", "recipe", "loss"]], [Target(1.2e9, 24e9)]


def largest(table: pd.DataFrame) -> list[Target]:
    """The dearest scales with 30 rows and enough cheaper scales."""
    scales = [
        (float(p) * float(d), float(p), float(d)) for (p, d), rows in table.groupby(["params", "tokens"]) if len(rows) >= 30
    ]
    dear = sorted(scales, reverse=True)
    enough = [Target(p, d) for c, p, d in dear if sum(x[0] <= c / 12 for x in scales) >= FEWEST_SCALES]
    return (enough or [Target(p, d) for _, p, d in dear[:2]])[:MOST_TARGETS]


def at_compute(table: pd.DataFrame) -> list[Target]:
    """The dearest computes that have at least 5 runs."""
    log = np.log(6 * table.params.to_numpy() * table.tokens.to_numpy())
    found: list[float] = []
    for value in np.sort(log)[::-1]:
        near = log[np.abs(log - value) < 0.03]
        if len(near) >= 5 and all(abs(value - f) > 0.5 for f in found) and (log < value - math.log(12)).sum() >= 20:
            found.append(float(np.median(near)))
    return [Target(flops=math.exp(v)) for v in found[:MOST_TARGETS]]


# --- what people do ------------------------------------------------------------------------------------------------


def unchanged(table: Table, row: int) -> int:
    """The row of the target whose knobs are nearest to another row's."""
    spread = table.frame().spread
    here = table.knobs[table.choices]
    return int(table.choices[(((here - table.knobs[row]) / spread) ** 2).sum(axis=1).argmin()])


def scale_near(table: Table, free: np.ndarray, share: float) -> int:
    """The affordable scale whose cost is nearest to a share of the target's."""
    cells = np.unique(table.cells[free])
    cost = np.array([table.cost[table.cells == c].mean() for c in cells])
    return int(cells[np.abs(np.log(cost / share)).argmin()])


def proxies(share: float) -> Callable[[Task, float, int], int]:
    def search(task: Task, budget: float, seed: int) -> int:
        table, purse, chance = task.table, Purse(task.losses, task.table, budget), np.random.default_rng(seed)
        cell = scale_near(table, purse.affordable(), min(share, budget))
        while (rows := np.flatnonzero(purse.affordable() & (table.cells == cell))).size:
            purse.buy(int(chance.choice(rows)))
        return unchanged(table, purse.bought[int(np.argmin(purse.seen))])

    return search


def halving(task: Task, budget: float, seed: int) -> int:
    table, purse, chance = task.table, Purse(task.losses, task.table, budget), np.random.default_rng(seed)
    ladder = list(dict.fromkeys(scale_near(table, purse.affordable(), share) for share in (1 / 100, 1 / 30, 1 / 10)))
    cost = [float(table.cost[table.cells == c].mean()) for c in ladder]
    first = np.flatnonzero(purse.affordable() & (table.cells == ladder[0]))
    count = min(len(first), max(1, int(budget / sum(c / 3**k for k, c in enumerate(cost)))))
    alive = [int(r) for r in chance.choice(first, count, replace=False)]
    spread, best = table.frame().spread, alive[0]
    for k, cell in enumerate(ladder):
        bought = []
        for row in alive:
            free = np.flatnonzero(purse.affordable() & (table.cells == cell))
            if free.size:
                away = ((table.knobs[free] - table.knobs[row]) / spread) ** 2
                here = int(free[away.sum(axis=1).argmin()])
                bought.append((purse.buy(here), here))
        if not bought:
            break
        best = min(bought)[1]
        alive = [row for _, row in sorted(bought)[: max(1, len(bought) // 3)]] if k + 1 < len(ladder) else []
    return unchanged(table, best)


def middle(task: Task, _budget: float, _seed: int) -> int:
    here = task.table.knobs[task.table.choices]
    away = ((here - np.median(here, axis=0)) / task.table.frame().spread) ** 2
    return int(task.table.choices[away.sum(axis=1).argmin()])


def law(task: Task, _budget: float, _seed: int) -> int:
    table = task.table
    best = np.array([STEP_LAW[n][0] + np.array(STEP_LAW[n][1:]) @ table.target for n in table.encoding.names])
    return int(table.choices[((table.knobs[table.choices] - best) ** 2).sum(axis=1).argmin()])


def ours(sampler: str, prior: str | None = None, judge: Judge = "both") -> Callable[[Task, float, int], int]:
    def search(task: Task, budget: float, seed: int) -> int:
        table, losses = task.lawful if prior and task.lawful else (task.table, task.losses)
        return search_table(table, losses, budget, seed, sampler, prior, judge).row

    return search


def ours_of(sampler: str) -> Callable[[Task, float, int], int]:
    return lambda task, trials, seed: (
        search_table(task.table, task.losses, AMPLE, seed, sampler, None, "bowl", int(trials)).row
    )


def installed(samplers: list[str]) -> Iterator[str]:
    """Those that can be used; of the others a line."""
    for name in samplers:
        try:
            yield name if name == FORECAST or make_sampler(0, name) else FORECAST
        except ConfigError as error:
            print(f"left out: {error}", flush=True)


def regret(task: Task, row: int) -> float:
    return 100 * (float(task.losses[row]) / float(task.losses[task.table.choices].min()) - 1)


def told(values: list[float]) -> str:
    """Mean and its 95 % bootstrap interval."""
    chance = np.random.default_rng(0)
    means = chance.choice(values, (1000, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{np.mean(values):.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=30)
    options.add_argument("--samplers", nargs="*", default=[FORECAST, *SAMPLERS])
    options.add_argument("--only", nargs="*", default=[], help="data sets whose names hold one of these")
    options.add_argument("--rows", nargs="*", default=[""], help="policies whose names hold one of these")
    options.add_argument("--trials", type=int, nargs="*", default=[], help="ends of searches, in runs; budgets if left out")
    given = options.parse_args()
    samplers = list(installed(given.samplers))
    if given.trials:
        policies = {f"budgetlm, {s}, by runs": ours_of(s) for s in samplers}
    else:
        policies = {f"budgetlm, {s}": ours(s) for s in samplers}
        policies |= {f"budgetlm, {s}, --prior steplaw": ours(s, "steplaw") for s in samplers[:1]}
        alone: tuple[Judge, ...] = ("bowl", "surface")
        policies |= {f"budgetlm, {s}, {j} alone": ours(s, judge=j) for s in samplers[:1] for j in alone}
        policies |= {"proxies": proxies(1 / 30), "proxy top": proxies(1 / 10), "halving": halving}
        policies |= {"middle": middle, "Step Law": law}
    policies = {who: policy for who, policy in policies.items() if any(part in who for part in given.rows)}
    ends = given.trials or BUDGETS
    for name, group in groupby(tasks(given.only), key=lambda task: task.name):
        members = list(group)
        told_of = "runs" if given.trials else "target runs"
        print(
            f"\n{name}: {len(members)} targets, {given.seeds} searches of each, after {', '.join(map(str, ends))} {told_of}",
            flush=True,
        )
        for who, policy in policies.items():
            if members[0].lawful is None and "law" in who.lower():
                continue
            seeds = range(1 if who in ("middle", "Step Law") else given.seeds)
            found = [[regret(t, policy(t, b, s)) for t in members for s in seeds] for b in ends]
            print(f"  {who:36} {'   '.join(f'{told(f):>18}' for f in found)}", flush=True)


if __name__ == "__main__":
    main()
