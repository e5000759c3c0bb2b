"""Does what is best in a cheap run stay best at the target? Learning rate, batch, and the order of recipes.

One default recipe for a target of `--seconds` on one thread, and runs of a share of that: miniatures by the rule (`recipe/scale.py`), or
truncated ones, which have the target's shape, batch and rate in less time. Every run has the optimisation steps that the throughput model
foresees for its time, as measured once and kept beside the results, so no clock decides what comes out.

    rank    a Latin hypercube of recipes (depth, width, batch, rate): the order at shares 1/4, 1/16, 1/64 beside that at the target
    lr      the best rate of miniatures at 1/16, 1/4, 1, in steps of 2, going on while the best is at an end
    batch   likewise the best batch
    adamw   likewise the best rate of AdamW
    deep    likewise, of a recipe of three times the default's depth, so that blocks become fewer down the ladder, too

    taskset -c 1 python -m tests.benchmarks.bench_transfer results.jsonl --parts rank lr batch adamw deep   # goes on where it ends
    python -m tests.benchmarks.bench_transfer results.jsonl --table [--plot FOLDER]    # the sweeps as pictures: FOLDER/transfer-adamw.svg
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.stats import qmc, spearmanr

from budgetlm.budget.clock import Meter
from budgetlm.config import study_config
from budgetlm.model.size import body_parameters, compute_parameters, round_width
from budgetlm.passport import take_passport
from budgetlm.recipe.oracle import expected_tokens
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.scale import BATCH_BY_TOKENS, miniature, truncated
from budgetlm.recipe.space import default_space
from budgetlm.search.plan import Plan, load_plan, make_plan
from budgetlm.search.sizing import suited_vocabulary
from budgetlm.train.calibrate import calibrate
from budgetlm.train.config import RunConfig, as_dict, run_config_from
from budgetlm.train.heap import set_heap
from budgetlm.train.loop import train
from budgetlm.train.step import warm_up
from tests.benchmarks.bench_ablation import LABEL, read, tokens_of
from tests.benchmarks.bench_learning import ProcessorClock

SCALE = {"miniature": miniature, "truncate": truncated}
SHARES = (4, 16, 64)
"""A rung's share of the target, one in so many."""
GRID = (0.5, 1.0, 2.0, 4.0, 8.0)
BATCH_SWEPT_AT = 3.0
"""Multiple of the default recipe's rate at which batches are compared: about what the part lr found best."""
DEEPER = 3
"""So many times the default's blocks has the recipe of the part deep, narrower for it, with about as many parameters."""
MOST_STEPS_OUT = 3
"""How often a grid is gone on with beyond its end."""
EVALUATED = 2**15
"""Tokens of the validation sample, the same for all; not in a run's time."""


@dataclass(frozen=True)
class Run:
    """A recipe at a share of its target."""

    recipe: Recipe
    ratio: int
    proxy: str
    seed: int

    @property
    def key(self) -> str:
        return json.dumps([dataclasses.asdict(self.recipe), self.ratio, self.proxy if self.ratio > 1 else "", self.seed])


def settle(folder: Path, seconds: float, text: str) -> Plan:
    """The plan that all runs of a results file share."""
    if plan := load_plan(folder):
        return plan
    passport = take_passport("cpu")
    train_settings = {"threads": 1, "eval_tokens": 2048, "compile": "off"}
    budget = {"hours": 16 * seconds / 3600, "target_hours": seconds / 3600}
    settings = {
        "budget": budget,
        "data": {"source": text},
        "train": train_settings,
        "search": {"least_rung_seconds": seconds / 64},
    }

    def measure(shapes, optimizers):
        with TemporaryDirectory() as cache:
            return calibrate(shapes, passport, optimizers, ProcessorClock(), Path(cache), rung_seconds=1000 * seconds)

    tokens = tokens_of(text, suited_vocabulary(seconds, passport))
    folder.mkdir(parents=True, exist_ok=True)
    plan, _ = make_plan(study_config(settings), passport, tokens, measure)
    plan.save(folder)
    return plan


def configure(run: Run, plan: Plan) -> tuple[RunConfig, float]:
    """The run by its steps, and the tokens that these are."""
    target = plan.target_seconds
    config = SCALE[run.proxy](run.recipe, target / run.ratio, target, plan.world, seed=run.seed)
    tokens = expected_tokens(run.recipe, config.model, config.batch_tokens, config.seconds, plan.world)
    steps = max(1, round(tokens / config.batch_tokens))
    return replace(config, seconds=0.0, steps=steps, eval_tokens=EVALUATED), steps * config.batch_tokens


def measure(run: Run, plan: Plan, text: str) -> dict:
    config, tokens = configure(run, plan)
    before = time.process_time()
    record = train(config, LABEL, tokens_of(text, config.model.vocab_size), Meter(ProcessorClock())).record
    seconds = time.process_time() - before
    facts = {"bpb": record.bpb, "tokens": tokens, "seconds": seconds, "config": as_dict(config)}
    return {"key": run.key, **dataclasses.asdict(run), "proxy": run.proxy if run.ratio > 1 else "", **facts}


# --- what is run ------------------------------------------------------------------------------------------------------

Results = dict[str, dict]
"""By the key of the run."""


def recipes(plan: Plan, count: int) -> list[Recipe]:
    """The default recipe, and others of the default space: depth, width, batch and rate spread evenly, the rest as it is."""
    space = default_space(plan.default, plan.world)
    names = ("depth", "width", "batch_tokens", "peak_lr")
    points = qmc.LatinHypercube(len(names), rng=0).random(count - 1)
    found = [plan.default]
    for point in points:
        values = {}
        for name, share in zip(names, point, strict=True):
            low, high = space[name].low, space[name].high
            value = low * (high / low) ** share
            if name == "width":
                value = round(value / space[name].step) * space[name].step
            if name == "batch_tokens":
                value = max(1, round(value / plan.world.context_length)) * plan.world.context_length
            values[name] = float(f"{value:.3g}") if name == "peak_lr" else round(value)
        found.append(replace(plan.default, **values))
    return found


def rank_runs(plan: Plan, seed: int, count: int, _results: Results) -> Iterator[Run]:
    for recipe in recipes(plan, count):
        for ratio in reversed(SHARES):
            yield from (Run(recipe, ratio, proxy, seed) for proxy in SCALE)
        yield Run(recipe, 1, "miniature", seed)


def sweep(name: str, optimizer: str, plan: Plan, ratio: int, seed: int, factor: float, deeper: int = 1) -> Run:
    """The default recipe, as deep or deeper, with one thing multiplied."""
    default = replace(
        plan.default, depth=deeper * plan.default.depth, width=round_width(plan.default.width / math.sqrt(deeper))
    )
    base = replace(default, optimizer=optimizer, peak_lr=default.peak_lr * (1 if optimizer == "muon" else 0.25))
    value = getattr(base, name) * factor
    return Run(replace(base, **{name: type(getattr(base, name))(value)}), ratio, "miniature", seed)


def grid_runs(
    name: str, optimizer: str, plan: Plan, seed: int, _count: int, results: Results, *, deeper: int = 1
) -> Iterator[Run]:
    """Five values at each share, and more on the side where the best one lies at an end."""
    for ratio in (16, 4, 1):
        at = partial(sweep, name, optimizer, plan, ratio, seed, deeper=deeper)
        factors = list(GRID)
        for _ in range(MOST_STEPS_OUT + 1):
            yield from map(at, factors)
            known = {f: results[at(f).key]["bpb"] for f in factors if at(f).key in results}
            usable = {f: bpb for f, bpb in known.items() if bpb}
            best = min(usable, key=lambda f: usable[f]) if usable else 1.0
            if best == min(factors):
                factors.insert(0, best / 2)
            elif best == max(factors):
                factors.append(best * 2)
            else:
                break


def batch_runs(plan: Plan, seed: int, _count: int, _results: Results) -> Iterator[Run]:
    """Whole sequences at every share, in the batch that a recipe has whose miniature has just those."""
    for ratio in (16, 4, 1):
        tokens, whole = (configure(Run(plan.default, r, "miniature", seed), plan)[1] for r in (ratio, 1))
        for sequences in (4, 8, 16, 2, 32, 1):  # those in the middle first
            batch = round(sequences * plan.world.context_length * (whole / tokens) ** BATCH_BY_TOKENS)
            recipe = replace(plan.default, batch_tokens=batch, peak_lr=BATCH_SWEPT_AT * plan.default.peak_lr)
            yield Run(recipe, ratio, "miniature", seed)


PARTS: dict[str, Callable[[Plan, int, int, Results], Iterator[Run]]] = {
    "rank": rank_runs,
    "lr": partial(grid_runs, "peak_lr", "muon"),
    "batch": batch_runs,
    "adamw": partial(grid_runs, "peak_lr", "adamw"),
    "deep": partial(grid_runs, "peak_lr", "adamw", deeper=DEEPER),
}


def work(options: argparse.Namespace) -> None:
    """Run what is not in the results yet, one after the other."""
    torch.set_num_threads(1)
    set_heap("cpu")
    warm_up()
    plan = settle(options.results.with_suffix(""), options.seconds, options.text)
    results = results_of(options.results)
    for seed in range(options.seeds):
        for part in options.parts:
            for run in PARTS[part](plan, seed, options.recipes, results):
                wanted = run.ratio in options.ratios and (run.ratio == 1 or run.proxy in options.proxies)
                if run.key not in results and wanted:
                    results[run.key] = measure(run, plan, options.text)
                    with options.results.open("a") as file:
                        file.write(json.dumps(results[run.key]) + "\n")


def results_of(path: Path) -> Results:
    return {r["key"]: r for r in read(path)}


# --- what came out ----------------------------------------------------------------------------------------------------


def bits(runs: Iterable[Run], results: Results) -> float:
    """Mean bits per byte over seeds; infinite where one diverged, NaN where there is none."""
    values = [results[run.key]["bpb"] for run in runs if run.key in results]
    return statistics.fmean(math.inf if v is None else v for v in values) if values else math.nan


def rank_table(plan: Plan, options: argparse.Namespace, results: Results) -> None:
    """Rank correlation with the target, and what is lost by taking a proxy's winner."""
    chance = np.random.default_rng(0)

    def column(ratio: int, proxy: str) -> np.ndarray:
        runs = [[Run(r, ratio, proxy, seed) for seed in range(options.seeds)] for r in recipes(plan, options.recipes)]
        return np.array([bits(each, results) for each in runs])

    target = column(1, "miniature")
    known = np.isfinite(target)
    if known.sum() < 3:
        return
    truth = target[known]
    print(f"rank: {len(truth)} recipes, {truth.min():.4f} to {truth.max():.4f} bits per byte at the target")
    print("share   proxy       Spearman (80 % of bootstraps)   regret of its winner, of the best of its first 3")
    for ratio in SHARES:
        drawn = chance.integers(len(truth), size=(2000, len(truth)))
        correlations = {}
        for proxy in SCALE:
            rung = column(ratio, proxy)[known]
            correlations[proxy] = np.array([spearmanr(rung[k], truth[k]).statistic for k in drawn])
            low, high = np.nanquantile(correlations[proxy], [0.1, 0.9])
            lost = truth[np.argsort(rung)] - truth.min()
            print(
                f"1/{ratio:<4}  {proxy:<10} {spearmanr(rung, truth).statistic:6.2f} ({low:.2f} to {high:.2f})"
                f"            {lost[0]:.4f}, {lost[:3].min():.4f}"
            )
        better = np.mean(correlations["miniature"] > correlations["truncate"])
        print(f"        miniatures order better in {better:.0%} of the bootstraps")


@dataclass(frozen=True)
class Best:
    """Where a sweep has its best at a share of the target."""

    raw: float
    """In the run's own coordinates, not the recipe's."""
    facts: dict[str, float]
    """Of the run next to it: what rules go by."""


def lowest(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Where the parabola through the least value and its neighbours has its least, in log x; the end's x at an end."""
    k = int(np.argmin(ys))
    if not 0 < k < len(xs) - 1 or not np.isfinite(ys[k - 1 : k + 2]).all():
        return xs[k]
    a, b, _ = np.polyfit(np.log(xs[k - 1 : k + 2]), ys[k - 1 : k + 2], 2)
    return float(np.exp(-b / (2 * a)))


def facts_of(row: dict) -> dict[str, float]:
    config = run_config_from(row["config"])
    model = config.model
    return {
        "N": compute_parameters(model),
        "body": body_parameters(model),
        "D": row["tokens"],
        "B": config.batch_tokens,
        "W": model.width,
        "L": model.depth,
        "peak_lr": config.optimizer.peak_lr,
        "batch_tokens": config.batch_tokens,
    }


RULES: dict[str, dict[str, Callable[[dict[str, float]], float]]] = {
    "lr": {
        "no change": lambda _: 1.0,
        "Step Law, N with the head (budgetlm)": lambda f: f["N"] ** -0.712 * f["D"] ** 0.307,
        "Step Law as published, N without": lambda f: f["body"] ** -0.712 * f["D"] ** 0.307,
        "nanochat: sqrt(batch)": lambda f: f["B"] ** 0.5,
        "CompleteP, AdamW's matrices: 1 / width": lambda f: 1 / f["W"],
        "CompleteP, residuals not divided by depth: 1 / width / depth": lambda f: 1 / f["W"] / f["L"],
        "CompleteP, Muon in AdamW's measure: width^-0.5": lambda f: f["W"] ** -0.5,
        "Complete(d)P: sqrt(batch / tokens)": lambda f: (f["B"] / f["D"]) ** 0.5,
        "Complete(d)P: sqrt(batch / tokens) / width": lambda f: (f["B"] / f["D"]) ** 0.5 / f["W"],
        "Complete(d)P, Muon: sqrt(batch / tokens / width)": lambda f: (f["B"] / f["D"] / f["W"]) ** 0.5,
    },
    "batch": {
        "no change": lambda _: 1.0,
        "Step Law: tokens^0.571 (budgetlm)": lambda f: f["D"] ** 0.571,
        "Power Lines, nanochat: tokens^0.383": lambda f: f["D"] ** 0.383,
        "as many steps: tokens": lambda f: f["D"],
    },
}
"""How the best value goes with what a run is, up to a factor. Step Law: arXiv:2503.04715; CompleteP: 2505.01618; Complete(d)P: 2512.22382;
Power Lines: 2505.13738. Muon's update has the spectral norm of rate x sqrt(width) here (`train/optim.py`), and is to have a constant one."""


def sweep_table(part: str, plan: Plan, options: argparse.Namespace, results: Results) -> None:
    """Bits per byte over a sweep, its best at every share, and how far that drifts in the coordinates of each rule."""
    name = "batch_tokens" if part == "batch" else "peak_lr"
    print(f"{part}: bits per byte by {name} of the recipe; the best of each seed, of their mean, and of the run itself")
    found = []
    for ratio in (1, 4, 16):
        by_seed = []
        for seed in range(options.seeds):
            tried = [
                run for run in PARTS[part](plan, seed, options.recipes, results) if run.ratio == ratio and run.key in results
            ]
            by_seed.append({getattr(run.recipe, name): run for run in tried})
        values = sorted(value for value in by_seed[0] if all(value in seed for seed in by_seed if seed))
        seeds = [seed for seed in by_seed if len(values) > 2 and seed]
        if not seeds:
            continue
        means = [bits([seed[v] for seed in seeds], results) for v in values]
        each = [lowest(values, [bits([seed[v]], results) for v in values]) for seed in seeds]
        best = lowest(values, means)
        near = min(values, key=lambda v: abs(math.log(v / best)))
        facts = facts_of(results[seeds[0][near].key])
        found.append(Best(best * facts[name] / near, facts))
        curve = ", ".join(f"{v:.4g}: {m:.4f}" for v, m in zip(values, means, strict=True))
        print(f"1/{ratio:<3} {curve}; {', '.join(f'{x:.3g}' for x in each)}; {best:.3g}; {found[-1].raw:.3g}")
    if len(found) < 2:
        return
    print("rule, and the largest best value over the least in its coordinates")
    for rule, value in RULES["batch" if part == "batch" else "lr"].items():
        places = [best.raw / value(best.facts) for best in found]
        print(f"{rule:>50} {max(places) / min(places):6.2f}   " + ", ".join(f"{p / places[0]:.2f}" for p in places))


# --- as a picture -----------------------------------------------------------------------------------------------------

COLOURS = {1: "#b2182b", 4: "#2166ac", 16: "#888888"}
WIDE, HIGH, EDGE = 300, 240, 50


def plot(part: str, plan: Plan, options: argparse.Namespace, results: Results) -> str:
    """A sweep as SVG: loss above the least of its share, by what is swept in the recipe, and in the run itself. Lines that fall on one another transfer."""
    name = "batch_tokens" if part == "batch" else "peak_lr"
    found: dict[int, list[tuple[float, float, float]]] = {}
    for ratio in COLOURS:
        runs = [run for run in PARTS[part](plan, 0, options.recipes, results) if run.ratio == ratio]
        rows = {getattr(run.recipe, name): results[run.key] for run in runs if run.key in results}
        known = {value: row for value, row in sorted(rows.items()) if row["bpb"]}
        least = min((row["bpb"] for row in known.values()), default=0.0)
        found[ratio] = [(value, facts_of(row)[name], row["bpb"] - least) for value, row in known.items()]
    drawn = [_panel(k, title, found) for k, title in enumerate((f"{name} of the recipe", f"{name} of the run"))]
    shares = [
        f'<text x="{EDGE + 110 * k}" y="{HIGH + 70}" fill="{colour}">{f"1/{ratio} of the target" if ratio > 1 else "target"}</text>'
        for k, (ratio, colour) in enumerate(COLOURS.items())
    ]
    size = f'viewBox="0 0 {2 * (WIDE + EDGE) + 20} {HIGH + 80}" font-family="sans-serif" font-size="12"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *drawn, *shares, "</svg>", ""])


def _panel(which: int, title: str, found: dict[int, list[tuple[float, float, float]]]) -> str:
    points = [point for line in found.values() for point in line]
    if not points:
        return ""
    left, most = EDGE + which * (WIDE + EDGE), max(p[2] for p in points) or 1.0
    low, high = (math.log(edge(p[which] for p in points)) for edge in (min, max))

    def place(point: tuple[float, float, float]) -> tuple[float, float]:
        share = (math.log(point[which]) - low) / (high - low or 1.0)
        return left + 10 + (WIDE - 20) * share, HIGH + 10 - (HIGH - 20) * point[2] / most

    parts = [f'<path d="M{left} 10V{HIGH + 10}H{left + WIDE}" fill="none" stroke="#444"/>']
    parts.append(f'<text x="{left + WIDE / 2}" y="{HIGH + 45}" text-anchor="middle">{title}</text>')
    for value in (math.exp(low), math.exp((low + high) / 2), math.exp(high)):
        x = place((value, value, 0.0))[0]
        parts.append(f'<text x="{x:.0f}" y="{HIGH + 26}" text-anchor="middle">{value:.3g}</text>')
    parts += [
        f'<text x="{left - 4}" y="{place((1.0, 1.0, loss))[1] + 4:.0f}" text-anchor="end">{loss:.2f}</text>'
        for loss in (0.0, most / 2, most)
    ]
    for ratio, line in found.items():
        at = [place(point) for point in sorted(line, key=lambda p: p[which])]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{COLOURS[ratio]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[ratio]}"/>' for x, y in at]
    return "\n".join(parts)


def table(options: argparse.Namespace) -> None:
    """What the results hold."""
    plan, results = settle(options.results.with_suffix(""), options.seconds, options.text), results_of(options.results)
    if "rank" in options.parts:
        rank_table(plan, options, results)
    for part in options.parts:
        if part != "rank":
            sweep_table(part, plan, options, results)
            if options.plot:
                options.plot.mkdir(parents=True, exist_ok=True)
                (options.plot / f"transfer-{part}.svg").write_text(plot(part, plan, options, results))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("transfer.jsonl"))
    parser.add_argument("--text", default="stdlib", help="`stdlib`, or a folder or file of text")
    parser.add_argument("--seconds", type=float, default=80, help="the target")
    parser.add_argument("--recipes", type=int, default=14, help="of the part rank")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--ratios", type=int, nargs="+", default=[1, *SHARES], help="run only these: one in so many of the target"
    )
    parser.add_argument("--proxies", nargs="+", choices=SCALE, default=list(SCALE), help="run only these")
    parser.add_argument("--quick", action="store_true", help="a target of 2 s, 4 recipes: does it work?")
    parser.add_argument("--plot", type=Path, help="a folder for the sweeps as pictures")
    parser.add_argument("--table", action="store_true", help="only print what the results hold")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.recipes = 2, 4
    if not options.table:
        work(options)
    table(options)


if __name__ == "__main__":
    main()
