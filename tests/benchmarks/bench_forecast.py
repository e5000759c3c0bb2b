"""The forecast on others' data: real training results at scales that it has not seen, beside what people do today.

Of every data set the dearest runs are the target (those within a factor 1.25 of a compute 6·N·D), and the runs that are 10,
30 or 100 times cheaper are all that is known. Which of the target's configurations is picked, how far off is the loss
that was forecast for them, does the 80 % interval hold it, and are pairs that differ by more than 0.1 % ordered right? Compared with

    proxy       the best of the dearest runs that are known, its knobs and tokens per parameter used unchanged
    Chinchilla  L = E + A/N^a + B/D^b on the best run of each (N, D), least Huber loss in log L from many starts (arXiv:2203.15556)
    nearest     the loss of the nearest run known, in logarithms of N, D and knobs
    law         where there is a grid of lr and batch: the configuration nearest to Step Law's (arXiv:2503.04715)

    python -m tests.benchmarks.bench_forecast [--only NAME ...] [--each] [--alone]
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import logsumexp

from budgetlm.forecast.encoding import STEP_LAW
from budgetlm.forecast.table import fit_columns

DATA = Path(__file__).parents[2].parent / "shared" / "data"
RATIOS = (10, 30, 100)
FEWEST_RUNS, FEWEST_SCALES = 6, 2
NOISE = 1e-3
"""Pairs of runs that differ by less are not judged."""
TARGETS = 3
"""So many targets of a data set without a grid: the dearest runs, and what is left when all above a third or a tenth is hidden too."""


@dataclass(frozen=True)
class Task:
    name: str
    ratio: int
    known: pd.DataFrame
    target: pd.DataFrame
    knobs: list[str]


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(DATA / f"{name}.csv.gz")


def data_sets() -> Iterator[tuple[str, pd.DataFrame]]:
    """Name and table: params, tokens, loss, knobs."""
    names = {"N": "params", "D": "tokens"}
    for name, loss in (("scalebench_lr_bs_small", "smooth_loss"), ("steplaw_dense_small", "smooth_loss")):
        table = read(name).rename(columns=names)
        table["batch_tokens"] = table.batch_seqs * 2048
        table["loss"] = table[loss]
        yield f"grid {name}", table[["params", "tokens", "lr", "batch_tokens", "loss"]]
    yield "farseer", read("farseer_small").rename(columns=names)[["params", "tokens", "loss"]]
    isoflops = read("isoflops_public")
    for name, table in isoflops[~isoflops.outlier].groupby("experiment"):
        if name != "llama_3__raw_loss":  # the other one's logarithm
            yield f"isoflops {name}", table[["params", "tokens", "loss"]]
    formll = read("formll_isoflop_refinedweb")
    for key, table in formll.groupby(["hparams", "warmup", "decay", "param_count", "loss_kind"]):
        yield f"formll {'/'.join(key)}", table[["params", "tokens", "loss"]]
    for name, table in read("gadre_overtrain_small").groupby("train_set"):
        yield f"gadre {name}", table.rename(columns=names | {"loss_c4_val": "loss"})[["params", "tokens", "loss"]]
    yield "data_constrained", read("scalebench_data_constrained")[["params", "tokens", "unique_tokens", "loss"]]
    olmo = read("olmo_ladder_small_curves").sort_values("step").groupby("run").tail(1)
    olmo = olmo[olmo.tokens > 0.98 * olmo.tokens_total]
    yield "olmo ladder", olmo.rename(columns={"N_nonemb": "params", "val_c4_en": "loss"})[["params", "tokens", "loss"]]
    gemstones = read("gemstones_small_curves").query("set == 'cooldown_end'").rename(columns={"N": "params"})
    yield "gemstones", gemstones[["params", "tokens", "width", "depth", "loss"]]


def tasks(only: list[str]) -> Iterator[Task]:
    for name, every in data_sets():
        if only and not any(part in name for part in only):
            continue
        table = every.dropna().reset_index(drop=True)
        knobs = [c for c in table if c not in ("params", "tokens", "loss")]
        compute = 6.0 * table.params.astype(float) * table.tokens.astype(float)
        grid = name.startswith("grid")
        tops = [compute.max() / 3.0**k for k in range(TARGETS)]
        if grid:  # every cell; N and D are rounded differently here and there
            tops = sorted(set(compute.map("{:.3e}".format).astype(float)))
        for top, ratio in product(tops, RATIOS):
            near = compute.between(top / (1.002 if grid else 1.25), top * 1.002)
            known = table[compute <= (compute[near].min() if near.any() else 0) / ratio * 1.0001]
            scales = len(known[["params", "tokens"]].drop_duplicates())
            if near.sum() >= 2 and len(known) >= FEWEST_RUNS and scales >= FEWEST_SCALES:
                yield Task(name, ratio, known, table[near], knobs)


@dataclass(frozen=True)
class Judged:
    who: str
    task: Task
    regret: float
    error: float | None = None
    bias: float | None = None
    coverage: float | None = None
    width: float | None = None
    ranked: float | None = None


def judge(who: str, task: Task, scores: np.ndarray, mean: np.ndarray | None, interval: np.ndarray | None = None) -> Judged:
    """`scores` order the target's configurations, least first; `mean` are losses in nats, where there are any."""
    loss = task.target.loss.to_numpy()
    regret = 100 * (loss[np.argmin(scores)] / loss.min() - 1)
    apart = loss[:, None] < loss * (1 - NOISE)
    right = (scores[:, None] < scores) + 0.5 * (scores[:, None] == scores)
    ranked = float(right[apart].mean()) if apart.any() else None
    if mean is None:
        return Judged(who, task, regret, ranked=ranked)
    off = 100 * (mean / loss - 1)
    found = Judged(who, task, regret, float(abs(off).mean()), float(off.mean()), ranked=ranked)
    if interval is None:
        return found
    low, high = interval
    inside, width = float(((low < loss) & (loss < high)).mean()), float(100 * ((high - low) / loss).mean())
    return Judged(who, task, regret, found.error, found.bias, inside, width, ranked)


def surface(prior: str | None) -> Callable[[Task], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    def run(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        runs, wanted = ({c: t[c].to_numpy() for c in t} for t in (task.known, task.target.drop(columns="loss")))
        fitted, points, _ = fit_columns(runs, wanted, prior)
        truth, shown = fitted.sample(points, 1000)
        return truth.mean(axis=0), truth.mean(axis=0), np.quantile(shown, (0.1, 0.9), axis=0)

    return run


def proxy(task: Task) -> np.ndarray:
    compute = task.known.params.astype(float) * task.known.tokens
    dearest = task.known[compute >= compute.max() / 1.25]
    best = dearest.loc[dearest.loss.idxmin()]
    away = np.log((task.target.tokens / task.target.params) / (best.tokens / best.params)) ** 2
    for knob in task.knobs:
        away = away + np.log(task.target[knob] / best[knob]) ** 2
    return away.to_numpy()


def nearest(task: Task) -> np.ndarray:
    columns = ["params", "tokens", *task.knobs]
    here, there = np.log(task.known[columns].to_numpy(float)), np.log(task.target[columns].to_numpy(float))
    spread = np.maximum(here.std(axis=0), 1e-9)
    return task.known.loss.to_numpy()[(((there[:, None] - here) / spread) ** 2).sum(axis=2).argmin(axis=1)]


def chinchilla(task: Task) -> np.ndarray:
    best = task.known.loc[task.known.groupby(["params", "tokens"]).loss.idxmin()]
    scale, loss = np.log(best[["params", "tokens"]].to_numpy(float)), np.log(best.loss.to_numpy())

    def predict(p: np.ndarray, s: np.ndarray) -> np.ndarray:
        terms = [np.full(len(s), p[0]), p[1] - p[3] * s[:, 0], p[2] - p[4] * s[:, 1]]
        return logsumexp(terms, axis=0)

    def huber(p: np.ndarray) -> float:
        off, delta = np.abs(predict(p, scale) - loss), 1e-3
        return float(np.where(off < delta, off**2 / 2, delta * (off - delta / 2)).sum())

    starts = product((-1.0, 0.5), (2.0, 8.0), (2.0, 8.0), (0.2, 0.5))
    fits = [minimize(huber, np.array([e, a, b, x, x]), method="L-BFGS-B") for e, a, b, x in starts]
    found = min(fits, key=lambda f: f.fun)
    return np.exp(predict(found.x, np.log(task.target[["params", "tokens"]].to_numpy(float))))


def law(task: Task) -> np.ndarray:
    away = np.zeros(len(task.target))
    for knob, (constant, per_n, per_d) in STEP_LAW.items():
        best = constant + per_n * np.log(task.target.params) + per_d * np.log(task.target.tokens)
        away += (np.log(task.target[knob]) - best).to_numpy() ** 2
    return away


def judged(task: Task) -> Iterator[Judged]:
    grid = task.name.startswith("grid")
    yield judge("budgetlm", task, *surface(None)(task))
    if grid:
        yield judge("budgetlm --prior steplaw", task, *surface("steplaw")(task))
        yield judge("law", task, law(task), None)
    yield judge("proxy", task, proxy(task), None)
    yield judge("nearest", task, nearest(task), nearest(task))
    predicted = chinchilla(task)
    yield judge("Chinchilla", task, predicted, predicted)


def told(values: list[float | None], form: str = "{:.2f}") -> str:
    known = [v for v in values if v is not None]
    return form.format(statistics.fmean(known)) if known else "-"


def line(title: str, rows: list[Judged]) -> str:
    regrets = [r.regret for r in rows]
    return (
        f"{title:44} n {len(rows):3}  regret {told(regrets):>5} (median {statistics.median(regrets):.2f}, most {max(regrets):.2f}) %  "
        f"error {told([r.error for r in rows]):>5} (bias {told([r.bias for r in rows]):>5}) %  "
        f"coverage {told([r.coverage for r in rows])}  width {told([r.width for r in rows]):>5} %  ranked {told([r.ranked for r in rows])}"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="*", default=[], help="data sets whose names hold one of these")
    options.add_argument("--each", action="store_true", help="a line for every task")
    options.add_argument("--alone", action="store_true", help="budgetlm alone")
    given = options.parse_args()
    rows: list[Judged] = []
    for task in tasks(given.only):
        new = [judge("budgetlm", task, *surface(None)(task))] if given.alone else list(judged(task))
        rows += new
        for row in new if given.each else []:
            print(line(f"{task.name[:24]} 1/{task.ratio} of {len(task.known)} {row.who[:12]}", [row]), flush=True)
    groups: dict[str, list[Judged]] = defaultdict(list)
    for row in rows:
        kind = "grids" if row.task.name.startswith("grid") else "scaling"
        groups[f"{row.task.name}, {row.who}"].append(row)
        groups[f"ALL {kind} 1/{row.task.ratio}, {row.who}"].append(row)
        groups[f"ALL {kind}, {row.who}"].append(row)
    for title, members in sorted(groups.items(), key=lambda item: item[0].startswith("ALL")):
        print(line(title, members))


if __name__ == "__main__":
    main()
