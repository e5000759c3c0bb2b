"""How good a study's forecast is: the runs of `bench_transfer` as a study's records, parts of them known, the targets' losses hidden.

python -m tests.benchmarks.bench_transfer results.jsonl --parts rank lr batch     # about an hour and a half
python -m tests.benchmarks.bench_study_forecast results.jsonl
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from budgetlm.forecast.fit import fit
from budgetlm.model.size import compute_parameters
from budgetlm.recipe.oracle import reach
from budgetlm.recipe.recipe import recipe_from
from budgetlm.records import RunRecord
from budgetlm.search.plan import Plan, load_plan
from budgetlm.train.config import run_config_from
from tests.conftest import record

RATIOS = (64, 16, 4)
Known = Callable[[str, int], bool]
Small = dict[tuple[str, int], RunRecord]
"""Runs of miniatures by recipe and ratio."""


def read(path: Path, plan: Plan, by_time: bool) -> tuple[dict[str, float], Small]:
    """Losses at the target by recipe, and of its miniatures by recipe and ratio."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    named = [(json.dumps(r["recipe"], sort_keys=True), r) for r in rows if r["seed"] == 0]
    small = {
        (name, r["ratio"]): record(
            0,
            RATIOS.index(r["ratio"]),
            plan.target_seconds / r["ratio"],
            r["bpb"],
            plan.target_seconds,
            recipe=r["recipe"],
            tokens=int(r["tokens"]),
            compute_parameters=compute_parameters(run_config_from(r["config"]).model),
            **({} if by_time else reach(recipe_from(r["recipe"]), plan.target_seconds, plan.world)),
        )
        for name, r in named
        if r["proxy"] == "miniature"
    }
    targets = {name: r["bpb"] for name, r in named if r["ratio"] == 1}
    return {name: bpb for name, bpb in targets.items() if (name, 16) in small and (name, 4) in small}, small


def ways(small: Small, names: list[str]) -> dict[str, Known]:
    """Which runs a study may have when it has to choose."""
    best = sorted(names, key=lambda n: small[n, 16].bpb)[:4]
    on_64 = [n for n in names if (n, 64) in small]
    half = sorted(on_64, key=lambda n: small[n, 64].bpb)[: len(on_64) // 2]
    return {
        "1/64": lambda _, ratio: ratio == 64,
        "1/16": lambda _, ratio: ratio == 16,
        "1/64, 1/16": lambda _, ratio: ratio > 4,
        "1/64, 1/16, best four at 1/4": lambda n, ratio: ratio > 4 or n in best,
        "1/64, half at 1/16, best two at 1/4": lambda n, ratio: (
            ratio == 64 or (ratio == 16 and n in half) or (ratio == 4 and n in best[:2])
        ),
        "1/64, 1/16, 1/4": lambda *_: True,
        "1/16, 1/4": lambda _, ratio: ratio < 64,
        "1/16, best four at 1/4": lambda n, ratio: ratio == 16 or (ratio == 4 and n in best),
    }


def known_records(small: Small, names: list[str], known: Known) -> list[RunRecord]:
    return [
        replace(small[name, ratio], trial=trial)
        for trial, name in enumerate(names)
        for ratio in RATIOS
        if (name, ratio) in small and known(name, ratio)
    ]


def table(path: Path, plan: Plan, by_time: bool) -> None:
    """Print how good the forecasts are that go by device time alone, or by parameters and tokens."""
    targets, small = read(path, plan, by_time)
    names = list(targets)
    truth = np.array([targets[name] for name in names])
    print(f"by {'device time' if by_time else 'parameters and tokens'}, {len(names)} recipes")
    print(f"{'known':50} Spearman  regret    bias  after it  80 % holds")
    rows = []
    for title, known in ways(small, names).items():
        forecasts = fit(known_records(small, names, known), plan.target_seconds)
        trials = sorted(forecasts)
        mean, true = np.array([forecasts[t].mean for t in trials]), truth[trials]
        bias = float(np.mean(mean - true))
        inside = [low <= t <= high for t, (low, high) in zip(true, (forecasts[n].interval for n in trials), strict=True)]
        row = (
            float(spearmanr(mean, true)[0]),
            float(true[mean.argmin()] - truth.min()),
            bias,
            float(np.mean(np.abs(mean - true - bias))),
            float(np.mean(inside)),
        )
        rows.append((*row[:2], abs(bias), *row[3:]))
        print(f"{title:50} {row[0]:8.2f} {row[1]:7.4f} {row[2]:+7.3f} {row[3]:9.3f} {row[4]:11.0%}")
    means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
    print(f"{'mean':50} {means[0]:8.2f} {means[1]:7.4f} {means[2]:7.3f} {means[3]:9.3f} {means[4]:11.0%}")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("transfer.jsonl"), help="of bench_transfer")
    results = parser.parse_args().results
    plan = load_plan(results.with_suffix(""))
    if plan is None or not results.exists():
        print(f"{results} is not there: run `python -m tests.benchmarks.bench_transfer {results}` first")
        return
    for by_time in (True, False):
        table(results, plan, by_time)


if __name__ == "__main__":
    main()
