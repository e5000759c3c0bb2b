"""What trunks save a search of truncated proxies, and whether a run that began from one comes out as a straight one does.

    pairs    recipes drawn at random, all warmup-stable-decay: a rung of 1/16 of the target, then one of 1/4, straight and from the trunk
    search   whole searches, of the default space, of one with that schedule alone, and of one in which nothing varies but the cool-down: what
             was inherited, of what was charged

    small    searches in which nothing varies but the cool-down, of seconds on a clock that only training moves

In processor time of one thread, so that who else computes does not matter.

    taskset -c 1 python -m tests.benchmarks.bench_trunk --parts pairs search
"""

import argparse
import contextlib
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from budgetlm.budget.clock import Clock, Meter
from budgetlm.budget.ledger import SEARCH
from budgetlm.config import study_config
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.scale import truncated
from budgetlm.recipe.space import Fixed, Range, recipe_of
from budgetlm.records import RunRecord, read_records
from budgetlm.search.engines.modelled import random_recipes
from budgetlm.search.plan import Plan
from budgetlm.search.study import search
from budgetlm.studies import ledger_of
from budgetlm.train.config import Label
from budgetlm.train.loop import Checkpoints, train
from budgetlm.train.step import warm_up
from budgetlm.watch import Watcher
from tests.benchmarks.bench_ablation import tokens_of
from tests.benchmarks.bench_learning import ProcessorClock
from tests.benchmarks.bench_transfer import settle
from tests.conftest import install_clock, sentences, study_of
from tests.workers.inline import Inline

PLATEAU = {"schedule": "wsd", "warmup": {"low": 0.01, "high": 0.1}, "cooldown": {"low": 0.2, "high": 0.6}}
FIXED = {
    "depth": 2,
    "width": 64,
    "batch_tokens": 2048,
    "peak_lr": 0.01,
    "optimizer": "muon",
    "weight_decay": 0.1,
    "warmup": 0.02,
}
SPACES = {"default": {}, "plateau": PLATEAU, "cool-down": {**PLATEAU, **FIXED}}
LOW, HIGH = 16, 4
"""The two rungs, one in so many of the target."""


def recipes_of(plan: Plan, count: int) -> list[Recipe]:
    """Random recipes whose rate has a plateau."""
    space = plan.space | {
        "schedule": Fixed("wsd"),
        "warmup": Range(low=0.01, high=0.1),
        "cooldown": Range(low=0.2, high=0.6),
    }
    found = [recipe_of(values, space) for values in random_recipes(space, count, 0)]
    return [recipe for recipe in found if recipe]


def climb(recipe: Recipe, plan: Plan, seed: int, folder: Path) -> tuple[RunRecord, RunRecord]:
    """A recipe's record on the upper rung, trained straight and from the trunk of the lower one."""

    def run(ratio: int, name: str, trunks: Path | None) -> RunRecord:
        config = truncated(recipe, plan.target_seconds / ratio, plan.target_seconds, plan.world, seed)
        label = Label(run=name, kind="rung", trial=0, rung=0, recipe={}, target_seconds=plan.target_seconds)
        kept = Checkpoints(folder=folder / name, trunks=trunks)
        tokens = tokens_of("stdlib", config.model.vocab_size)
        return train(config, label, tokens, Meter(ProcessorClock()), checkpoints=kept).record

    run(LOW, "low", folder / "trunks")
    return run(HIGH, "straight", None), run(HIGH, "branched", folder / "trunks")


def pairs(options: argparse.Namespace) -> None:
    """Straight and branched, side by side."""
    plan = settle(options.folder, options.seconds, "stdlib")
    recipes = recipes_of(plan, options.recipes)
    print(f"rungs of {plan.target_seconds / LOW:g} and {plan.target_seconds / HIGH:g} s of processor time")
    print(
        f"{'seed':>4} {'recipe':>6} {'cool-down':>9} {'warm-up':>8} {'straight':>9} {'branched':>9} {'change':>8} {'saved':>6}"
    )
    found: dict[int, list[tuple[float, float]]] = {}
    saved = []
    for seed, (number, recipe) in itertools.product(range(options.seeds), enumerate(recipes)):
        with TemporaryDirectory() as name:
            straight, branched = climb(recipe, plan, seed, Path(name))
        if straight.bpb is None or branched.bpb is None:
            print(f"{seed:4} {number:6} {straight.state} {branched.state}")
            continue
        saved.append(branched.inherited_seconds / branched.planned_seconds)
        found.setdefault(seed, []).append((straight.bpb, branched.bpb))
        print(
            f"{seed:4} {number:6} {recipe.cooldown:9.2f} {recipe.warmup:8.3f} {straight.bpb:9.4f} {branched.bpb:9.4f} "
            f"{branched.bpb / straight.bpb - 1:+8.2%} {saved[-1]:6.1%}",
            flush=True,
        )
    changes = [b / s - 1 for pair in found.values() for s, b in pair]
    print(f"saved of a rung: {spread(saved)}; change of bits per byte: {spread(changes)}")
    for seed, pair in found.items():
        straight, branched = np.array(pair).T
        same = "the same" if straight.argmin() == branched.argmin() else "another"
        print(f"seed {seed}: rank correlation {spearmanr(straight, branched)[0]:.3f}, {same} recipe is best")
    full = [pair for pair in found.values() if len(pair) == len(recipes)]
    if len(full) > 1:
        noise = np.log(np.array(full)[:, :, 0]).std(axis=0, ddof=1)
        print(f"standard deviation of straight runs over seeds: {np.sqrt((noise**2).mean()):.2%} (n = {len(full)})")


def spread(values: Sequence[float]) -> str:
    """Mean and range."""
    if not values:
        return "none"
    return f"{statistics.fmean(values):+.2%} ({min(values):+.2%} to {max(values):+.2%}, n = {len(values)})"


def searches(options: argparse.Namespace) -> None:
    """What whole searches take over."""
    hours = options.search_seconds / 3600
    for name in options.spaces:
        for seed in range(options.seeds):
            with TemporaryDirectory() as folder, contextlib.chdir(folder):
                config = study_config(
                    {
                        "name": "trunks",
                        "budget": {"hours": hours, "target_hours": options.seconds / 3600},
                        "train": {"threads": 1, "compile": "off", "device": "cpu"},
                        "search": {
                            "proxy": "truncate",
                            "seed": seed,
                            "stop_early": False,
                            "least_rung_seconds": options.least,
                        },
                        "space": SPACES[name],
                    }
                )
                clock: Clock = ProcessorClock()
                search(config, options.cache, clock, Watcher(), lambda _, clock, stop: Inline(clock, stop))
                records = read_records(config.folder)
                charged = ledger_of("trunks").balance(SEARCH).charged_seconds
            heirs = [r for r in records if r.inherited_from and r.state == "done"]
            inherited = sum(r.inherited_seconds for r in heirs)
            climbs = [r for r in records if r.rung > 0 and "repeat" not in r.run and r.state == "done"]
            with_plateau = sum(r.recipe["schedule"] == "wsd" for r in climbs)
            print(
                f"{name}, seed {seed}: {len(records)} runs, {len(climbs)} climbs, {with_plateau} of them wsd; {len(heirs)} from a trunk; "
                f"{inherited:.1f} s inherited, {charged:.1f} s charged: {inherited / charged:.1%}",
                flush=True,
            )


def small(options: argparse.Namespace) -> None:
    """What tiny searches take over where trials share trunks on one rung."""
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        corpus, clock = Path(name) / "corpus", install_clock(patch)
        corpus.mkdir()
        for number, text in enumerate(sentences(300)):
            (corpus / f"{number:03d}.txt").write_text(text)
        space = {**FIXED, "depth": 1, "width": 32, "batch_tokens": 128, "schedule": "wsd", "short_sequences": 0.0}
        space["cooldown"] = PLATEAU["cooldown"]
        for seed in range(options.seeds):
            folder = Path(name) / str(seed)
            folder.mkdir()
            with contextlib.chdir(folder):
                settings = {"least_rung_seconds": 0.05, "proxy": "truncate", "stop_early": False, "seed": seed}
                config = study_of(corpus, 8.0, space=space, search=settings)
                search(config, Path(name) / "cache", clock, Watcher())
                heirs = [r for r in read_records(config.folder) if r.inherited_from and r.state == "done"]
                charged = ledger_of(config.name).balance(SEARCH).charged_seconds
            inherited = sum(r.inherited_seconds for r in heirs)
            print(
                f"seed {seed}: {inherited:.2f} s inherited, {charged:.2f} s charged: {inherited / charged:.1%}", flush=True
            )


def main() -> None:
    """Print both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("pairs", "search", "small"), default=["pairs", "search"])
    parser.add_argument("--folder", type=Path, default=Path("trunks"), help="where the plan is kept")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "budgetlm")
    parser.add_argument("--seconds", type=float, default=80.0, help="the target")
    parser.add_argument("--search-seconds", type=float, default=150.0)
    parser.add_argument("--least", type=float, default=1.0, help="seconds of the cheapest rung, at least")
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument("--recipes", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    if "pairs" in options.parts:
        pairs(options)
    if "search" in options.parts:
        searches(options)
    if "small" in options.parts:
        small(options)


if __name__ == "__main__":
    main()
