"""What this device does fastest, measured in a few seconds: precision, micro-batch, attention, and the speed of a few shapes.

Measured once per machine and kind of model, remembered in the cache, charged to the study that measured it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from budgetlm.budget.clock import Clock
from budgetlm.files import digest, read_json, write_json
from budgetlm.model.footprint import training_memory
from budgetlm.model.size import ModelConfig, flops_per_token
from budgetlm.model.transformer import build
from budgetlm.passport import Passport
from budgetlm.train.choices import choose_products, made_up_rows
from budgetlm.train.config import PRECISIONS, Matmul, OptimizerConfig, Precision, RunConfig
from budgetlm.train.heap import set_heap
from budgetlm.train.step import Stepper
from budgetlm.train.throughput import Calibration, SpeedPoint

MICRO_BATCH_TOKENS = (1_024, 4_096, 16_384, 65_536)
"""Tokens in one forward pass that are tried."""
MOST_ON_A_CPU = 4_096
SECONDS_A_MEASUREMENT = 0.25
BUDGET_SHARE = 1 / 400
"""Of the search's budget, the most that one of about ten measurements may take beyond its first two steps."""
FORMAT = 6


def calibrate(
    shapes: Sequence[ModelConfig],
    passport: Passport,
    optimizers: Sequence[str],
    clock: Clock,
    cache: Path,
    *,
    budget_seconds: float,
    rung_seconds: float = 0.0,
    wanted_precision: str = "auto",
    wanted_attention: str = "auto",
    matmul: Matmul = "auto",
    tick: Callable[[], None] | None = None,
) -> Calibration:
    """Measure, or remember, how this machine trains models like `shapes`, as far as they fit its memory.

    Args:
        shapes: models to time, small to large; the second one decides precision, micro-batch and attention.
        optimizers: names of those that the search may use; each is timed.
        budget_seconds: of the search, which must not be eaten up by this.
        rung_seconds: the longest rung, of which choices with a usual answer may take a small share (`train/choices.py`).
        wanted_precision: `auto` measures; any other settles it.
        wanted_attention: `auto` measures on a CPU and is fused on a GPU; `fused` or `products` settles it.
        matmul: how exactly the runs will multiply fp32 matrices.
    """
    started = clock.now()
    key = digest(
        [
            FORMAT,
            passport.id,
            passport.allocator,
            passport.memory_bytes,
            [dataclasses.asdict(s) for s in shapes],
            sorted(optimizers),
            wanted_precision,
            wanted_attention,
            matmul,
        ]
    )
    path = cache / "calibrations" / f"{key}.json"
    if path.exists():
        kept = read_json(path)
        points = [SpeedPoint(ModelConfig(**p.pop("model")), **p) for p in kept.pop("points")]
        return Calibration(points=points, **{**kept, "seconds": 0.0})

    set_heap(passport.device)  # as the runs will have it
    bf16_is_fast = passport.bf16_gflops > passport.fp32_gflops
    seconds = min(SECONDS_A_MEASUREMENT, BUDGET_SHARE * budget_seconds)
    ceiling = 1e9 * max(passport.fp32_gflops, passport.bf16_gflops)

    def affordable(shape: ModelConfig, most: float) -> int:
        """Tokens that one step may take within `most` seconds; whole sequences, at least one."""
        tokens = int(most * 0.5 * ceiling / flops_per_token(shape))
        return max(1, tokens // shape.context_length) * shape.context_length

    usual = shapes[1]  # like a miniature, of which there will be many
    sizes = [
        size
        for size in MICRO_BATCH_TOKENS
        if (passport.device == "cuda" or size <= MOST_ON_A_CPU)
        and size <= affordable(usual, 4 * seconds)
        and _fits(shapes[-1], size, passport.memory_bytes)
    ] or [max(usual.context_length, MICRO_BATCH_TOKENS[0])]

    up_to = 0

    def speed(shape: ModelConfig, precision: Precision, micro: int, optimizer: str = "adamw") -> float:
        if tick:
            tick()
        sequences = max(1, micro // shape.context_length)
        run = _run_of(shape, precision, matmul, sequences, optimizer, passport.device, bf16_is_fast)
        return _measure(replace(run, products_up_to=up_to), clock, seconds)

    precision: Precision = next((p for p in PRECISIONS if p == wanted_precision), "fp32")
    by_size = {size: speed(usual, precision, size) for size in sizes}
    micro = max(by_size, key=lambda size: by_size[size])
    # An emulated bf16 can be a hundred times slower: where even a bare matrix product loses, a whole step is not tried.
    if wanted_precision == "auto" and bf16_is_fast and speed(usual, "bf16", micro) > by_size[micro]:
        precision = "bf16"
    up_to = usual.context_length if wanted_attention == "products" else 0
    if wanted_attention == "auto" and passport.device == "cpu":
        if tick:
            tick()
        run = _run_of(usual, precision, matmul, 1, "adamw", passport.device, bf16_is_fast)
        up_to = choose_products(run, passport, clock, cache, rung_seconds)
    points = [
        SpeedPoint(shape, tokens, tokens, name, speed(shape, precision, tokens, name))
        for name in sorted(set(optimizers))
        for shape in (shapes if name == "adamw" or "adamw" not in optimizers else shapes[:: len(shapes) - 1])
        for tokens in [min(micro, affordable(shape, seconds))]
        if _fits(shape, tokens, passport.memory_bytes)
    ]
    result = Calibration(precision, bf16_is_fast, micro, points, clock.now() - started, up_to)
    write_json(path, dataclasses.asdict(result))
    return result


def _fits(shape: ModelConfig, micro_batch_tokens: int, memory_bytes: int) -> bool:
    """Whether a measurement is safe on a device that others may be using as well."""
    counted = training_memory(
        shape,
        micro_batch_sequences=max(1, micro_batch_tokens // shape.context_length),
        optimizer="adamw",
        precision="fp32",
        checkpoint_activations=False,
        accumulates=False,
    )
    return counted.peak < 0.6 * memory_bytes


def _run_of(
    shape: ModelConfig,
    precision: Precision,
    matmul: Matmul,
    sequences: int,
    optimizer: str,
    device: str,
    bf16_is_fast: bool,
) -> RunConfig:
    """A run whose steps are one pass of so many sequences."""
    return RunConfig(
        model=shape,
        optimizer=OptimizerConfig(name=optimizer),  # type: ignore[arg-type]  # checked by OptimizerConfig
        batch_sequences=sequences,
        micro_batch_sequences=sequences,
        steps=1,
        precision=precision,
        matmul=matmul,
        bf16_is_fast=bf16_is_fast,
        device=device,
    )


def _measure(config: RunConfig, clock: Clock, seconds: float) -> float:
    """Tokens per second of optimisation steps of one micro-batch, after one step to warm up; 0 if it does not fit."""
    shape = config.model
    rows = made_up_rows(shape, config.batch_sequences)
    try:
        stepper = Stepper(config, build(shape, 0, config.device))
        stepper.step(rows, lr=1e-4)
        times: list[float] = []
        while not times or (sum(times) < seconds and len(times) < 20):
            before = clock.now()
            stepper.step(rows, lr=1e-4)
            times.append(max(1e-9, clock.now() - before))
    except (MemoryError, RuntimeError) as error:  # PyTorch has a name of its own for it on a GPU only
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            return 0.0
        raise
    return rows[:, :-1].size / float(np.median(times))
