"""Compression under a limit of size, in real training: the best that a search finds with it against the best dense model that fits.

    compressed   the options of `--options` are searched with everything else
    dense        `compression = "none"`: smaller shapes are the only way to keep the limit

Both have the same limit, device time for search and final, vocabulary and seeds, and begin with the same default recipe. What is scored is the
final's artefact read back from the disk, on the whole validation split. With `--front` there is no limit: one study of loss and size, its
front, and finals of the picks. All time is processor time of one thread. `--pages` keeps the report of every study, which carries its records.

    python -m tests.benchmarks.bench_size_limit results.jsonl --megabytes 2 --seconds 300 --search 2 --seeds 2      # goes on where it ended
    python -m tests.benchmarks.bench_size_limit results.jsonl --front --seconds 300 --search 4 --picks smallest best
    python -m tests.benchmarks.bench_size_limit results.jsonl --table
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from budgetlm.compress.artefact import load_artefact
from budgetlm.config import StudyConfig, study_config
from budgetlm.data.batches import validation_sample
from budgetlm.final import final
from budgetlm.records import read_records
from budgetlm.report.write import report
from budgetlm.search.plan import load_plan
from budgetlm.search.study import SearchResult, prepare, search
from budgetlm.train.evaluate import evaluate
from budgetlm.train.heap import set_heap
from budgetlm.train.step import warm_up
from budgetlm.watch import Watcher
from tests.benchmarks.bench_learning import ProcessorClock
from tests.workers.inline import Inline

OPTIONS = ("none", "int8", "int4-qat", "prune+int8")


class Bench:
    """What all studies share."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        set_heap("cpu")
        warm_up()
        self.options, self.clock = options, ProcessorClock()
        self.cache = Path(options.cache).resolve()

    def study(self, name: str, seed: int, compression: tuple[str, ...], **search: object) -> StudyConfig:
        target = self.options.seconds
        hours = {"hours": self.options.search * target / 3600, "target_hours": target / 3600}
        return study_config(
            {
                "name": name,
                "budget": hours,
                "train": {"threads": 1, "device": "cpu"},
                "search": {"seed": seed, "stop_early": False, "least_rung_seconds": min(4.0, target / 16), **search},
                "space": {"compression": list(compression)},
            }
        )

    def search(self, config: StudyConfig) -> SearchResult:
        return search(config, self.cache, self.clock, Watcher(), hire=lambda *_: Inline(self.clock))

    def final(self, config: StudyConfig, which: str = "best") -> dict:
        """Train a pick; its artefact on the whole validation split."""
        done = final(config.name, self.cache, self.clock, Watcher(), config=config, which=which)
        plan = load_plan(config.folder)
        assert plan
        tokens = prepare(config, plan.world.vocab_size, self.cache, Watcher())
        network, _, _ = load_artefact(done.folder / "model")
        windows = validation_sample(tokens, plan.world.context_length, 2**24)
        bpb = evaluate(network, windows, tokens.bytes_V, micro_batch=8)
        facts = {"trial": done.record.trial, "bytes": done.record.artefact_bytes, "recipe": done.recipe, "size": done.size}
        forecast = [done.forecast.mean, *done.forecast.interval] if done.forecast else None
        return {"bpb": bpb, "sample": done.record.bpb, "dense_bpb": done.record.dense_bpb, "forecast": forecast, **facts}

    def keep_page(self, config: StudyConfig) -> None:
        """The study's report, where those are to be kept: its folder is not."""
        if self.options.pages:
            limit = "" if self.options.front else f"{self.options.megabytes:g}mb-"
            pages, asked = self.options.pages, f"{limit}{self.options.seconds:g}s"
            pages.mkdir(parents=True, exist_ok=True)
            shutil.copy(report(config.name), pages / f"{config.name}-{asked}.html")


def contest(bench: Bench, arm: str, seed: int) -> dict:
    """One arm and seed under the limit."""
    options = bench.options
    compression = tuple(options.options) if arm == "compressed" else ("none",)
    config = bench.study(f"{arm}{seed}", seed, compression, max_model_mb=options.megabytes)
    result = bench.search(config)
    records = read_records(config.folder)
    trials = {r.trial: r.recipe["compression"] for r in records}
    told = {"trials": len(trials), "runs": len(records), "compressed_trials": sum(c != "none" for c in trials.values())}
    asked = {"arm": arm, "seed": seed, "seconds": options.seconds, "search": options.search, "megabytes": options.megabytes}
    done = bench.final(config)
    bench.keep_page(config)
    return {**asked, **told, "why": result.stopped_because, **done}


def pareto(bench: Bench) -> dict:
    """A study of loss and size, its front, and finals of the picks."""
    options = bench.options
    config = bench.study("front", 0, tuple(options.options), objectives="loss,size")
    result = bench.search(config)
    assert result.choice
    compression = {r.trial: r.recipe["compression"] for r in read_records(config.folder)}
    front = [{**asdict(point), "compression": compression[point.trial]} for point in result.choice.front]
    picks = {which: bench.final(config, which) for which in options.picks}
    bench.keep_page(config)
    asked = {"arm": "front", "seed": 0, "seconds": options.seconds, "search": options.search, "megabytes": 0.0}
    return {**asked, "trials": len(compression), "front": front, "picks": picks}


def table(results: list[dict]) -> None:
    """What there is of each arm, pairs of seeds compared, and the fronts."""
    groups = sorted({(r["megabytes"], r["seconds"], r["search"]) for r in results if r["arm"] != "front"})
    for group in groups:
        rows = [r for r in results if (r["megabytes"], r["seconds"], r["search"]) == group and r["arm"] != "front"]
        print(f"limit {group[0]:g} MB, target {group[1]:g} s of one thread, search {group[2]:g} targets")
        for r in sorted(rows, key=lambda r: (r["seed"], r["arm"])):
            print(
                f"  seed {r['seed']} {r['arm']:10} {r['bpb']:.4f} bits per byte, {r['bytes'] / 1e6:.3f} MB, {r['trials']} trials: {r['recipe']}"
            )
        by = {(r["arm"], r["seed"]): r["bpb"] for r in rows}
        ratios = [by["compressed", s] / by["dense", s] for arm, s in by if arm == "dense" and ("compressed", s) in by]
        if ratios:
            print(
                f"  compressed / dense: {statistics.fmean(ratios):.4f}, n = {len(ratios)} ({', '.join(f'{r:.4f}' for r in ratios)})"
            )
    for r in (r for r in results if r["arm"] == "front"):
        print(f"front of {r['trials']} trials, target {r['seconds']:g} s, search {r['search']:g} targets")
        for p in r["front"]:
            print(
                f"  trial {p['trial']:3} {p['megabytes']:.3f} MB {p['compression']:12} forecast {p['bpb']:.4f} ({p['low']:.4f} to {p['high']:.4f})"
            )
        for which, f in r["picks"].items():
            print(
                f"  final --pick {which}: trial {f['trial']}, {f['bpb']:.4f} bits per byte, {f['bytes'] / 1e6:.3f} MB; {f['recipe']}"
            )


def main() -> None:
    """Measure what is not yet there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "bench_size_limit.jsonl")
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=300.0, help="processor time of the target")
    parser.add_argument("--search", type=float, default=2.0, help="time of a search, in targets")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--options", nargs="+", default=OPTIONS, help="compressions that are searched")
    parser.add_argument("--front", action="store_true", help="a study of loss and size in place of a limit")
    parser.add_argument("--picks", nargs="+", default=("smallest", "best"))
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "bench_size_limit_cache"))
    parser.add_argument("--pages", type=Path, help="a folder for the reports")
    parser.add_argument("--table", action="store_true", help="print what is there")
    options = parser.parse_args()
    options.pages = options.pages and options.pages.resolve()  # before the folder is changed
    path = options.results.resolve()
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not options.table:
        arms = ["front"] if options.front else ["compressed", "dense"]
        seen = {(r["arm"], r["seed"], r["seconds"], r["search"], r["megabytes"]) for r in known}
        for seed in range(1 if options.front else options.seeds):
            for arm in arms:
                megabytes = 0.0 if options.front else options.megabytes
                if (arm, seed, options.seconds, options.search, megabytes) in seen:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    os.chdir(folder)
                    bench = Bench(options)
                    row = pareto(bench) if options.front else contest(bench, arm, seed)
                    os.chdir("/")
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                known.append(row)
    table(known)


if __name__ == "__main__":
    main()
