"""Every optimizer at several learning rates: bits per byte after the same steps, and what its update costs beside AdamW's.

Rates are in AdamW's measure, as in a recipe: an optimizer whose scale (`LR_SCALE`) is right has its best rate near AdamW's. Its best
rate may not lie at an end of the row; if it does, give more rates.

    python -m tests.benchmarks.bench_optimizers --steps 300 --rates 0.0025 0.005 0.01 0.02 0.04
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch

from budgetlm.budget.clock import Clock, Meter
from budgetlm.config import study_config
from budgetlm.data.tokens import Tokens
from budgetlm.model.size import ModelConfig
from budgetlm.model.transformer import build
from budgetlm.search.study import prepare
from budgetlm.train.config import OPTIMIZERS, Label, OptimizerConfig, RunConfig
from budgetlm.train.loop import train
from budgetlm.train.optim import build_optimizers
from budgetlm.train.schedule import ScheduleConfig
from budgetlm.watch import Watcher

CONTEXT = 128
TIMED = ModelConfig(vocab_size=4096, depth=4, width=256, context_length=CONTEXT)
LABEL = Label(run="bench", kind="rung", trial=0, rung=0, recipe={}, target_seconds=1.0)
UPDATES = 15


def bits(model: ModelConfig, name: str, rate: float, steps: int, tokens: Tokens, seed: int) -> float:
    config = RunConfig(
        model=model,
        optimizer=OptimizerConfig(name=name, peak_lr=rate),
        schedule=ScheduleConfig(shape="constant" if name == "schedulefree" else "linear"),
        batch_sequences=16,
        micro_batch_sequences=16,
        steps=steps,
        seed=seed,
    )
    return train(config, LABEL, tokens, Meter(Clock())).record.bpb or float("nan")


def update_seconds(names: list[str]) -> dict[str, list[float]]:
    """Seconds of updates of a middling model, interleaved."""
    every = {}
    for name in names:
        network = build(TIMED, 0)
        every[name] = network, build_optimizers(network, OptimizerConfig(name=name), bf16_is_fast=False)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(UPDATES):
        for name, (network, optimizers) in every.items():
            for weight in network.parameters():
                weight.grad = torch.randn_like(weight)
            before = time.perf_counter()
            for optimizer in optimizers:
                optimizer.step()
            seconds[name].append(time.perf_counter() - before)
    return seconds


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS))
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0025, 0.005, 0.01, 0.02, 0.04])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds = update_seconds(["adamw", *(name for name in options.optimizers if name != "adamw")])
    print(f"an update, as a multiple of AdamW's {1e3 * statistics.median(seconds['adamw'][2:]):.1f} ms, n = {UPDATES - 2}:")
    for name, row in seconds.items():
        print(f"{name:>13} {statistics.median(a / b for a, b in zip(row[2:], seconds['adamw'][2:], strict=True)):.2f}")
    cache = Path(os.environ.get("BUDGETLM_CACHE") or Path.home() / ".cache" / "budgetlm")
    tokens = prepare(study_config({"budget": {"hours": 1}, "data": {"vocab_size": 512}}), 512, cache, Watcher())
    model = ModelConfig(vocab_size=512, depth=options.depth, width=options.width, context_length=CONTEXT)
    read, shape = options.steps * 16 * CONTEXT, f"depth {options.depth} x width {options.width}"
    print(f"bits per byte after {options.steps} steps, {read:,} tokens ({shape}), mean of {options.seeds}:")
    print(f"{'peak lr':>13}" + "".join(f"{rate:>9g}" for rate in options.rates))
    for name in options.optimizers:
        print(f"{name:>13}", end="")
        for rate in options.rates:
            results = [bits(model, name, rate, options.steps, tokens, seed) for seed in range(options.seeds)]
            print(f"{statistics.fmean(results):9.3f}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
