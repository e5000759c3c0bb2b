"""Learning per second: bits per byte after minutes of one thread, of budgetlm's default recipe and of what people do without it.

Everybody trains in budgetlm's loop until the same deadline, in processor time of one thread, on a core each, and is measured on the whole
validation split afterwards. GPT-2's architecture has the shape, vocabulary and batch of the default recipe, AdamW and a cosine, at the best of four
rates (`--rates`): all of them at the first horizon, the best two of these (`--best`) at later ones, and other seeds at the best of a horizon.
nanoGPT's published configuration for a CPU (README of nanoGPT: 4 layers, 4 heads, width 128, context 64, 12 sequences a step, 1e-3, no dropout)
reads bytes where it read characters; its schedule is stretched to the deadline, which it was not made for and which favours it. budgetlm trains
in the precision that its calibration takes, the others in the one in which a step of theirs is faster here. What measuring the machine takes is in nobody's time.

    python -m tests.benchmarks.bench_learning results.jsonl --texts stdlib docs/ --minutes 2 10 --ours 2 4 10
"""

import argparse
import json
import os
import statistics
import time
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor, nn

from budgetlm.budget.clock import Clock, Meter
from budgetlm.config import study_config
from budgetlm.data.batches import validation_sample
from budgetlm.model.size import ModelConfig
from budgetlm.passport import Passport, take_passport
from budgetlm.recipe.scale import at_target
from budgetlm.search.plan import Plan, make_plan
from budgetlm.search.sizing import suited_vocabulary
from budgetlm.train import loop
from budgetlm.train.calibrate import calibrate
from budgetlm.train.choices import made_up_rows
from budgetlm.train.config import OptimizerConfig, RunConfig, as_dict, run_config_from
from budgetlm.train.evaluate import evaluate
from budgetlm.train.heap import set_heap
from budgetlm.train.schedule import ScheduleConfig
from budgetlm.train.step import warm_up
from tests.benchmarks.bench_ablation import LABEL, pool, read, run, stepper_of, tokens_of
from tests.benchmarks.precision import computed_in, precision_of
from tests.benchmarks.trainers import Reference

OURS, GPT2, NANOGPT = "budgetlm", "GPT-2, AdamW, cosine", "nanoGPT's CPU configuration"
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
STEPS_TIMED = 6
"""Of a peer in either precision, the first of them to warm up."""
LITTLE, WHOLE_SPLIT = 2_048, 2**24
"""Tokens of the loop's own evaluation, which is not used, and at most of the one after it."""


class ProcessorClock(Clock):
    """Seconds that this process has worked, and the compilers that it has called: on one thread, what a clock shows where nobody else is."""

    def now(self) -> float:
        times = os.times()
        return time.process_time() + times.children_user + times.children_system


class ReferenceModel(nn.Module):
    """GPT-2's architecture as the loop wants a model."""

    def __init__(self, config: ModelConfig, heads: int) -> None:
        super().__init__()
        self.config, self.model = config, Reference(config)
        self.model.attend_by_products = lambda _up_to: None  # it leaves attention to PyTorch
        for block in self.model.blocks:
            block.heads = heads

    def loss(self, ids: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(self.model.logits(ids).flatten(0, 1), targets.flatten(), reduction=reduction)


def plan_for(text: str, seconds: float, passport: Passport) -> Plan:
    """What budgetlm would settle for a target of so many seconds on one thread."""
    vocabulary = suited_vocabulary(seconds, passport)
    budget = {"hours": 16 * seconds / 3600, "target_hours": seconds / 3600}
    config = study_config({"budget": budget, "data": {"source": text}, "train": {"threads": 1}})
    with TemporaryDirectory() as cache:

        def measure(shapes, optimizers):
            return calibrate(shapes, passport, optimizers, Clock(), Path(cache), rung_seconds=16 * seconds)

        return make_plan(config, passport, tokens_of(text, vocabulary), measure)[0]


def settle(text: str, seconds: float) -> dict:
    """budgetlm's default recipe as a run of so many seconds."""
    torch.set_num_threads(1)
    plan = plan_for(text, seconds, take_passport("cpu"))
    print(f"{Path(text).name}, {seconds:.0f} s: {plan.default.summary()}", flush=True)
    return as_dict(at_target(plan.default, seconds, plan.world))


def gpt2(ours: RunConfig, rate: float) -> RunConfig:
    optimizer = OptimizerConfig(name="adamw", peak_lr=rate)
    # Compiling is worth 2 to 5 % to the peers (`bench_train`), which these horizons do not pay back.
    return replace(ours, optimizer=optimizer, schedule=ScheduleConfig(shape="cosine", floor=0.1), ema=0.0, compile=False)


def nanogpt(seconds: float) -> RunConfig:
    return RunConfig(
        model=ModelConfig(vocab_size=257, depth=4, width=128, context_length=64),
        optimizer=OptimizerConfig(name="adamw", peak_lr=1e-3, beta2=0.99),
        schedule=ScheduleConfig(shape="cosine", floor=0.1),
        batch_sequences=12,
        micro_batch_sequences=12,
        seconds=seconds,
    )


def faster_here(config: RunConfig, heads: int) -> RunConfig:
    """A peer's run in the precision in which its steps are faster on this machine; bf16 is tried where its products are."""
    if precision_of("auto") == "fp32":
        return replace(config, precision="fp32")
    rows = made_up_rows(config.model, config.batch_sequences)
    runs = [computed_in(config, precision) for precision in ("fp32", "bf16")]
    steppers = [stepper_of(run, ReferenceModel(run.model, heads)) for run in runs]
    clock, times = ProcessorClock(), [[], []]
    for _ in range(STEPS_TIMED):
        for stepper, took in zip(steppers, times, strict=True):
            before = clock.now()
            stepper.step(rows, 1e-4)
            took.append(clock.now() - before)
    return min(zip(runs, times, strict=True), key=lambda pair: statistics.median(pair[1][1:]))[0]


def measure(side: str, text: str, seconds: float, rate: float, seed: int, settled: dict | None) -> dict:
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1  # no helpers that outlive a compilation, so that all its time is counted
    set_heap("cpu")
    warm_up()
    config = run_config_from(settled) if settled else nanogpt(seconds)
    config = gpt2(config, rate) if side == GPT2 else config
    config = replace(config, eval_tokens=LITTLE, seed=seed)
    heads = 4 if side == NANOGPT else config.model.heads
    ours, _, window = side.partition(", window ")
    config = replace(config, model=replace(config.model, window=int(window or 0)))
    config = config if ours == OURS else faster_here(config, heads)
    tokens = tokens_of(text, config.model.vocab_size)
    own = loop.build

    def build(model: ModelConfig, of_seed: int, *device) -> nn.Module:
        torch.manual_seed(of_seed)
        return own(model, of_seed, *device) if ours == OURS else ReferenceModel(model, heads)

    with mock.patch.object(loop, "build", side_effect=build):
        trained = loop.train(config, LABEL, tokens, Meter(ProcessorClock()))
    windows = validation_sample(tokens, config.model.context_length, WHOLE_SPLIT)
    bpb = evaluate(trained.network, windows, tokens.bytes_V, micro_batch=8)
    facts = {"tokens": trained.record.tokens, "bpb": bpb, "config": as_dict(config)}
    return {"side": side, "text": text, "seconds": seconds, "rate": rate, "seed": seed, **facts}


def best_rates(results: list[dict], text: str, seconds: float, count: int) -> list[float]:
    """The best of GPT-2's rates at a horizon."""
    tried = [r for r in results if (r["side"], r["text"], r["seconds"]) == (GPT2, text, seconds)]
    return [r["rate"] for r in sorted(tried, key=lambda r: r["bpb"])[:count]]


def first_runs(options: argparse.Namespace, _: list[dict]) -> list[tuple]:
    """All but GPT-2 at later horizons: what depends on no result. The longest come first."""
    seeds, texts = range(options.seeds), options.texts
    sides = [OURS, *(f"{OURS}, window {window}" for window in options.windows)]
    runs = [
        (side, text, 60 * minutes, 0.0, seed)
        for side in sides
        for minutes in options.ours
        for seed in seeds
        for text in texts
    ]
    runs += [
        (NANOGPT, text, 60 * minutes, 0.0, seed)
        for minutes in options.nanogpt or options.minutes
        for seed in seeds
        for text in texts
    ]
    runs += [(GPT2, text, 60 * min(options.minutes), rate, 0) for text in texts for rate in options.rates]
    return sorted(runs, key=lambda run: -run[2])


def later_runs(options: argparse.Namespace, results: list[dict]) -> list[tuple]:
    """GPT-2 at later horizons, at the rates that were best at the first."""
    first, *later = sorted(options.minutes)
    return [
        (GPT2, text, 60 * minutes, rate, 0)
        for minutes in later
        for text in options.texts
        for rate in best_rates(results, text, 60 * first, options.best)
    ]


def repeats(options: argparse.Namespace, results: list[dict]) -> list[tuple]:
    """GPT-2 with other seeds, at the rate that was the best at each horizon."""
    return [
        (GPT2, text, 60 * minutes, rate, seed)
        for minutes in sorted(options.minutes, reverse=True)
        for text in options.texts
        for rate in best_rates([r for r in results if r["seed"] == 0], text, 60 * minutes, 1)
        for seed in range(1, options.seeds)
    ]


def work(options: argparse.Namespace) -> None:
    """Run what is not in the results yet."""
    with pool() as workers:
        settled: dict[tuple[str, float], dict] = {}
        for stage in (first_runs, later_runs, repeats):
            results = read(options.results)
            settled |= {(r["text"], r["seconds"]): r["config"] for r in results if r["side"] == OURS}
            done = {(r["side"], r["text"], r["seconds"], r["rate"], r["seed"]) for r in results}
            left = [run for run in stage(options, results) if run not in done]
            new = dict.fromkeys(run[1:3] for run in left if run[0] != NANOGPT and run[1:3] not in settled)
            settled |= dict(zip(new, workers.map(settle, *zip(*new, strict=True)), strict=True)) if new else {}
            runs = [(*run, None if run[0] == NANOGPT else settled[run[1:3]]) for run in left]
            for future in as_completed([workers.submit(measure, *run) for run in runs]):
                with options.results.open("a") as file:
                    file.write(json.dumps(future.result()) + "\n")


def table(results: list[dict]) -> None:
    """A line for every side, text and horizon, GPT-2 at its best rate."""
    kinds = sorted({(r["text"], r["seconds"], r["side"]) for r in results})
    for text, seconds, side in kinds:
        rows = [r for r in results if (r["text"], r["seconds"], r["side"]) == (text, seconds, side)]
        by_rate = {rate: [r["bpb"] for r in rows if r["rate"] == rate] for rate in {r["rate"] for r in rows}}
        rate, bits = min(by_rate.items(), key=lambda item: statistics.fmean(item[1]))
        tried = f", best of {len(by_rate)} rates: {rate:g}" if rate else ""
        values = ", ".join(f"{value:.4f}" for value in bits)
        one = next(r for r in rows if r["rate"] == rate)
        config = run_config_from(one["config"])
        print(
            f"{Path(text).name:>8} {seconds / 60:4.0f} min  {side:<28} {values} (n = {len(bits)}); {config.model.depth} x "
            f"{config.model.width}, vocabulary {config.model.vocab_size}, context {config.model.context_length}, batch "
            f"{config.batch_tokens}, {config.precision}, {one['tokens'] / 1e6:.2f} M tokens{tried}"
        )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 10], help="horizons of GPT-2 and nanoGPT")
    parser.add_argument(
        "--nanogpt", type=float, nargs="+", help="horizons of nanoGPT's configuration, if others than --minutes"
    )
    parser.add_argument(
        "--windows", type=int, nargs="+", default=[], help="sliding windows to try beside the default recipe"
    )
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="GPT-2's")
    parser.add_argument("--best", type=int, default=2, help="how many of them are taken to later horizons")
    parser.add_argument("--ours", type=float, nargs="+", default=[2, 4, 10], help="horizons of budgetlm")
    run(parser, work, table)


if __name__ == "__main__":
    main()
