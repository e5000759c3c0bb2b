"""Bits per byte of each choice at equal device time, on several texts and horizons.

Time on a shared machine wanders by more than most choices are worth. So a variant's step is first timed against the base's, step by step
in one process (the median ratio), and a variant then gets as many steps as that ratio leaves of the base's: the comparison is at equal
time, and no clock decides when a run ends. A variant that loses by `--hopeless` on every text at the first horizon is not run at later ones.

    python -m tests.benchmarks.bench_ablation results.jsonl --texts stdlib docs/      # goes on where results.jsonl ends
    python -m tests.benchmarks.bench_ablation results.jsonl --table
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

from budgetlm.budget.clock import Clock, Meter
from budgetlm.config import study_config
from budgetlm.data.batches import Batches
from budgetlm.data.tokens import Tokens
from budgetlm.model.transformer import LanguageModel, build
from budgetlm.search.study import prepare
from budgetlm.train import loop
from budgetlm.train.config import Label, Precision, RunConfig
from budgetlm.train.heap import set_heap
from budgetlm.train.schedule import PIECES
from budgetlm.watch import Watcher
from tests.benchmarks.precision import add_precision, computed_in, precision_of
from tests.benchmarks.variants import BASE, VARIANTS, Variant

LABEL = Label(run="bench", kind="rung", trial=0, rung=0, recipe={}, target_seconds=1.0)
BY_NAME = {variant.name: variant for variant in VARIANTS}
PAIRS = 21


@lru_cache(8)
def tokens_of(text: str, vocab_size: int) -> Tokens:
    cache = Path(os.environ.get("BUDGETLM_CACHE") or Path.home() / ".cache" / "budgetlm")
    config = study_config({"budget": {"hours": 1}, "data": {"source": text, "vocab_size": vocab_size}})
    return prepare(config, vocab_size, cache, Watcher())


def network_of(variant: Variant, config: RunConfig, seed: int) -> LanguageModel:
    torch.manual_seed(seed)  # for weights that only a variant has
    network = build(config.model, seed)
    variant.network(network)
    return network


def config_of(variant: Variant, precision: Precision) -> RunConfig:
    """The run that a variant makes of the base."""
    return computed_in(variant.config(BASE), precision)


def stepper_of(config: RunConfig, network: nn.Module) -> loop.Stepper:
    """Steps of a network by the loss of its own, as in the loop."""
    stepper = loop.Stepper(config, network)
    stepper.loss = lambda trained, ids, targets: trained.loss(ids, targets)
    return stepper


def step_of(variant: Variant, text: str, precision: Precision, pieces: int = 1):
    """A function that makes a step, and how many tokens that is."""
    config = config_of(variant, precision)
    tokens = tokens_of(text, config.model.vocab_size)
    rows = Batches(tokens.split("train"), config.model.context_length, 0).take(0, config.batch_sequences)
    stepper = stepper_of(config, network_of(variant, config, 0))
    stepper.pieces = pieces

    def step() -> float:
        before = time.thread_time()
        stepper.step(rows, 1e-4)
        return time.thread_time() - before

    return step, config.batch_tokens


def time_ratio(variant: Variant, text: str, precision: Precision) -> float:
    """Seconds a token, as a multiple of the base's."""
    short = variant.config(BASE).schedule.short_sequences
    parts = ((1 - short, 1), (short, PIECES))
    return sum(share * _paired(variant, text, precision, pieces) for share, pieces in parts if share)


def _paired(variant: Variant, text: str, precision: Precision, pieces: int) -> float:
    base, base_tokens = step_of(BY_NAME["base"], text, precision)
    other, tokens = step_of(variant, text, precision, pieces)
    for step in (base, other, base, other):
        step()
    ratios = []
    for pair in range(PAIRS):
        if pair % 2:
            mine, its = base(), other()
        else:
            its, mine = other(), base()
        ratios.append((its / tokens) / (mine / base_tokens))
    return statistics.median(ratios)


def bits(variant: Variant, text: str, tokens: float, ratio: float, seed: int, precision: Precision) -> tuple[float, float]:
    """Bits per byte after what takes the time of so many of the base's tokens; and processor seconds."""
    config = config_of(variant, precision)
    steps = max(1, round(tokens / ratio / config.batch_tokens))
    config = replace(config, steps=steps, seed=seed)
    build_variant = mock.patch.object(loop, "build", side_effect=lambda *_, **__: network_of(variant, config, seed))
    with build_variant:
        before = time.thread_time()
        record = loop.train(config, LABEL, tokens_of(text, config.model.vocab_size), Meter(Clock())).record
    return record.bpb or float("nan"), time.thread_time() - before


def measure(name: str, text: str, tokens: float, ratio: float | None, seed: int, precision: Precision) -> dict:
    torch.set_num_threads(1)
    set_heap("cpu")
    variant = BY_NAME[name]
    ratio = ratio or (1.0 if variant.same_step else time_ratio(variant, text, precision))
    bpb, seconds = bits(variant, text, tokens, ratio, seed, precision)
    facts = {"ratio": ratio, "bpb": bpb, "seconds": seconds, "precision": precision}
    return {"name": name, "text": text, "tokens": tokens, "seed": seed, **facts}


def _on_a_core(cores) -> None:
    os.sched_setaffinity(0, {cores.get()})


def pool() -> ProcessPoolExecutor:
    """Processes, each on a processor of its own: all of those that this one may use."""
    context = get_context("spawn")
    cores, allowed = context.Queue(), sorted(os.sched_getaffinity(0))
    for core in allowed:
        cores.put(core)
    return ProcessPoolExecutor(len(allowed), context, _on_a_core, (cores,))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def precision_in(result: dict) -> str:
    """What a run was computed in; of results from before that was a choice, fp32."""
    return result.get("precision", "fp32")


def base_bits(results: list[dict], text: str, tokens: float) -> list[float]:
    return [r["bpb"] for r in results if (r["name"], r["text"], r["tokens"]) == ("base", text, tokens)]


def gains(results: list[dict], name: str, tokens: float) -> dict[str, float]:
    """By how much a variant is better than the base, in bits per byte, for each text."""
    mine = [r for r in results if r["name"] == name and r["tokens"] == tokens]
    texts = dict.fromkeys(r["text"] for r in mine)
    return {
        text: statistics.fmean(base_bits(results, text, tokens))
        - statistics.fmean(r["bpb"] for r in mine if r["text"] == text)
        for text in texts
        if base_bits(results, text, tokens)
    }


def hopeless(results: list[dict], name: str, options: argparse.Namespace, index: int) -> bool:
    """Whether a variant lost clearly on every text at a horizon."""
    earlier = gains(results, name, options.tokens[index]) if name != "base" else {}
    return bool(earlier) and max(earlier.values()) < -options.hopeless


def work(options: argparse.Namespace) -> None:
    """Run what is not in the results yet, on all processors that this process may use."""
    results, precision = read(options.results), precision_of(options.precision)
    if others := {precision_in(r) for r in results} - {precision}:
        raise SystemExit(
            f"{options.results} holds runs in {', '.join(others)}, which are not to be compared with {precision}. Give another file, or --precision."
        )
    done = {(r["name"], r["text"], r["tokens"], r["seed"]) for r in results}
    names = [v.name for v in VARIANTS if not options.variants or v.name in options.variants or v.name == "base"]
    for text in options.texts:
        for size in {BY_NAME[name].config(BASE).model.vocab_size for name in names}:
            tokens_of(text, size)
    with pool() as workers:
        for index, tokens in enumerate(options.tokens):
            hopeful = [name for name in names if not index or not hopeless(results, name, options, index - 1)]
            for text in options.texts:  # one after the other: the first measures the ratios of time for all
                ratios = {r["name"]: r["ratio"] for r in results}
                seeds = {name: range(options.base_seeds if name == "base" else options.seeds) for name in hopeful}
                wanted = [(name, text, tokens, ratios.get(name), seed) for name in hopeful for seed in seeds[name]]
                left = [each for each in wanted if (*each[:3], each[4]) not in done]
                futures = [workers.submit(measure, *each, precision) for each in left]
                for future in as_completed(futures):
                    results.append(future.result())
                    with options.results.open("a") as file:
                        file.write(json.dumps(results[-1]) + "\n")


def table(results: list[dict]) -> None:
    """Gains over the base, best first."""
    horizons = sorted({r["tokens"] for r in results})
    texts = list(dict.fromkeys(r["text"] for r in results))
    for tokens in horizons:
        for text in texts:
            base = base_bits(results, text, tokens)
            if base:
                spread = f", seeds {min(base):.3f} to {max(base):.3f}" if len(base) > 1 else ""
                print(
                    f"base, {Path(text).name}, {tokens:,.0f} tokens: {statistics.fmean(base):.4f}{spread} (n = {len(base)})"
                )
    cells = [(tokens, text) for tokens in horizons for text in texts]
    computed = ", ".join(sorted({precision_in(r) for r in results}))
    print(f"gain in bits per byte x 1000 at equal time, in {computed}; seconds a token against the base's")
    print(f"{'':>58}" + "".join(f"{Path(text).name[:8]:>9} {tokens / 1e6:.2g}M" for tokens, text in cells) + "   seconds")
    names = [name for name in dict.fromkeys(r["name"] for r in results) if name != "base"]

    def row(name: str) -> list[float]:
        return [gains(results, name, tokens).get(text, float("nan")) for tokens, text in cells]

    for name in sorted(names, key=lambda name: -np.nanmean(row(name))):
        ratio = statistics.fmean(r["ratio"] for r in results if r["name"] == name)
        print(f"{name:>58}" + "".join(f"{1000 * gain:>14.0f}" for gain in row(name)) + f"{ratio:>10.2f}")


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], None],
    table: Callable[[list[dict]], None],
) -> None:
    """Do what is not in the results yet, and print them: the command of a benchmark that goes on where its results end."""
    parser.add_argument("results", type=Path, nargs="?", default=Path("results.jsonl"))
    parser.add_argument("--texts", nargs="+", default=["stdlib"], help="`stdlib`, or a folder or file of text")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print what the results hold")
    options = parser.parse_args()
    if not options.table:
        work(options)
    table(read(options.results))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=float, nargs="+", default=[2.5e5, 1e6], help="tokens that the base reads")
    parser.add_argument("--variants", nargs="+", help="only these; all if left out")
    parser.add_argument("--base-seeds", type=int, default=3)
    parser.add_argument("--hopeless", type=float, default=0.03)
    add_precision(parser)
    run(parser, work, table)


if __name__ == "__main__":
    main()
