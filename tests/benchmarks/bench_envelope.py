"""One envelope against no search: `budgetlm run --hours H` beside the default recipe trained for all of H.

Both have the same processor time of one thread, so that they can work side by side, and both finals are measured on the whole
validation split. What the machine's calibration takes is in the time of `run`, and given to the default recipe for nothing.

    python -m tests.benchmarks.bench_envelope results.jsonl --hours 0.5 --seeds 1
"""

import argparse
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

from budgetlm.config import study_config
from budgetlm.data.batches import validation_sample
from budgetlm.envelope import enveloped, run_all
from budgetlm.model.export import load_model
from budgetlm.receipts import receipts
from budgetlm.train.evaluate import evaluate
from budgetlm.watch import Watcher
from tests.benchmarks.bench_ablation import tokens_of
from tests.benchmarks.bench_learning import WHOLE_SPLIT, ProcessorClock
from tests.benchmarks.bench_search import Contest
from tests.workers.inline import Inline


def by_run(hours: float, seed: int, cache: Path, kept: Path | None) -> dict:
    """What `budgetlm run` does, its rungs and its final in this process; its folder and report are `kept`, if anywhere."""
    torch.set_num_threads(1)
    clock = ProcessorClock()
    with tempfile.TemporaryDirectory() as folder:
        if kept:
            kept.mkdir(parents=True, exist_ok=True)
        os.chdir(kept or folder)
        settings = {
            "name": "envelope",
            "budget": {"hours": hours},
            "train": {"threads": 1, "device": "cpu"},
            "search": {"seed": seed},
        }
        config = enveloped(study_config(settings), hours)
        done = run_all(config, hours, cache, clock, Watcher, hire=lambda *_: Inline(clock))
        assert done.final
        network, _, _ = load_model(done.final.folder / "model")
        receipt = asdict(receipts([config.name]).finals[0])
    tokens = tokens_of("stdlib", network.config.vocab_size)
    windows = validation_sample(tokens, network.config.context_length, WHOLE_SPLIT)
    return {
        "bpb": evaluate(network, windows, tokens.bytes_V, micro_batch=8),
        "search_seconds": done.search_seconds,
        "final_seconds": done.final_seconds,
        "recipe": done.final.recipe,
        "stopped_because": done.stopped_because,
        "receipt": receipt,
    }


def by_default(hours: float, seed: int, cache: Path, _kept: Path | None) -> dict:
    """The default recipe for all of the time."""
    options = argparse.Namespace(seconds=3600 * hours, search=0.0, cache=str(cache))
    contest = Contest(options, seed)
    recipe = contest.plan.default
    bpb = contest.final(recipe, contest.plan, 3600 * hours)["bpb"]
    return {"bpb": bpb, "search_seconds": 0.0, "final_seconds": 3600 * hours, "recipe": recipe.summary()}


SIDES = {"run": by_run, "default": by_default}


def measure(side: str, hours: float, seed: int, cache: Path, keep: Path | None) -> dict:
    kept = keep / f"{hours:g}-{seed}" if keep else None
    return {"side": side, "hours": hours, "seed": seed, **SIDES[side](hours, seed, cache, kept)}


def main() -> None:
    """Train both sides of each seed that is not yet there, and print all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "bench_envelope.jsonl")
    parser.add_argument("--hours", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "bench_envelope_cache")
    parser.add_argument("--keep", type=Path, help="a folder for the studies and their reports")
    options = parser.parse_args()
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    known = {(r["side"], r["hours"], r["seed"]) for r in map(json.loads, lines)}
    todo = [(s, n) for n in range(options.seeds) for s in SIDES if (s, options.hours, n) not in known]
    tokens_of("stdlib", 4096)
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        runs = [pool.submit(measure, side, options.hours, seed, options.cache, options.keep) for side, seed in todo]
        for done in as_completed(runs):
            with options.results.open("a") as file:
                file.write(json.dumps(done.result()) + "\n")
    print(options.results.read_text())


if __name__ == "__main__":
    main()
