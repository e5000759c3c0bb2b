"""What this device does fastest, measured in a few seconds: precision, micro-batch, attention, compiling, and the speed of a few shapes.

Measured once per machine and kind of model, remembered in the cache, charged to the study that measured it. All of it may take 3 % of the
longest rung: what has no time left is taken as it is known to be elsewhere (docs/LOG.md), and a study learns from its runs in any case.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from budgetlm.budget.clock import Clock
from budgetlm.files import digest, read_json, write_json
from budgetlm.model.footprint import training_memory
from budgetlm.model.size import ModelConfig, flops_per_token
from budgetlm.model.transformer import build
from budgetlm.passport import Passport
from budgetlm.train.choices import UTILISATION, choose_compilation, choose_copies, choose_products, made_up_rows
from budgetlm.train.compilation import Compilation, expected
from budgetlm.train.config import PRECISIONS, Matmul, OptimizerConfig, Precision, RunConfig
from budgetlm.train.heap import set_heap
from budgetlm.train.memory import is_want_of_memory
from budgetlm.train.step import Stepper
from budgetlm.train.throughput import Calibration, SpeedPoint

MICRO_BATCH_TOKENS = (1_024, 4_096, 16_384, 65_536)
"""Tokens in one forward pass that are tried."""
USUAL_MICRO_BATCH = {"cpu": 4_096, "cuda": 16_384}
"""What is taken where there is no time to try others. On a CPU also the most."""
SECONDS_A_MEASUREMENT = 0.25
WAYS_SHARE, SPEEDS_SHARE = 0.003, 0.005
"""Of the longest rung, the most that may go to measuring which precision and micro-batch are fastest, and then to the speeds of shapes."""
MEASUREMENTS = 6
"""As many as there may be of each, about."""
FORMAT = 8


def calibrate(
    shapes: Sequence[ModelConfig],
    passport: Passport,
    optimizers: Sequence[str],
    clock: Clock,
    cache: Path,
    *,
    rung_seconds: float,
    wanted_precision: str = "auto",
    wanted_attention: str = "auto",
    matmul: Matmul = "auto",
    tick: Callable[[], None] | None = None,
) -> Calibration:
    """Measure, or remember, how this machine trains models like `shapes`, as far as they fit its memory.

    Args:
        shapes: models to time, small to large; the second one decides precision, micro-batch, attention and what compiling is worth.
        optimizers: names of those that the search may use; each is timed.
        rung_seconds: the longest rung, of which this may take a small share.
        wanted_precision: `auto` measures; any other settles it.
        wanted_attention: `auto` measures on a CPU and is fused on a GPU; `fused` or `products` settles it.
        matmul: how exactly the runs will multiply fp32 matrices.
    """
    started = clock.now()
    asked = [[dataclasses.asdict(s) for s in shapes], sorted(optimizers), wanted_precision, wanted_attention, matmul]
    machine = [passport.id, passport.allocator, passport.memory_bytes]
    path = cache / "calibrations" / f"{digest([FORMAT, *machine, *asked])}.json"
    if path.exists():
        kept = read_json(path)
        points = [SpeedPoint(ModelConfig(**p.pop("model")), **p) for p in kept.pop("points")]
        compilation = Compilation(**kept.pop("compilation"))
        return Calibration(points=points, compilation=compilation, **{**kept, "seconds": 0.0})

    set_heap(passport.device)  # as the runs will have it
    speeds = _Speeds(passport, matmul, clock, tick)
    usual = shapes[1]  # like a miniature, of which there will be many
    presumed: Precision = "bf16" if speeds.bf16_is_fast else "fp32"
    precision = next((p for p in PRECISIONS if p == wanted_precision), presumed)
    speeds.up_to = usual.context_length if wanted_attention == "products" else 0
    if wanted_attention == "auto" and passport.device == "cpu":
        known = speeds.usual_attention(usual, precision)
        speeds.up_to = choose_products(speeds.run(usual, precision, 1), passport, clock, cache, rung_seconds, known)
    speeds.give(WAYS_SHARE * rung_seconds)
    micro = speeds.micro_batch(usual, shapes[-1], precision)
    if wanted_precision == "auto":
        precision = speeds.precision(usual, micro)
        if precision == "bf16" and choose_copies(speeds.run(usual, "bf16", micro), passport, clock, cache, rung_seconds):
            precision = "bf16-master"
    run = speeds.run(usual, precision, micro)
    compilation = choose_compilation(run, passport, clock, cache, rung_seconds, expected(passport.device, precision))
    speeds.give(SPEEDS_SHARE * rung_seconds)
    points = speeds.points(shapes, precision, micro, optimizers)
    result = Calibration(precision, speeds.bf16_is_fast, micro, points, clock.now() - started, speeds.up_to, compilation)
    write_json(path, dataclasses.asdict(result))
    return result


class _Speeds:
    """Measures speeds, as long as there is time."""

    up_to = 0
    """Length of the longest sequences whose attention is by plain products."""

    def __init__(self, passport: Passport, matmul: Matmul, clock: Clock, tick: Callable[[], None] | None) -> None:
        self.passport, self.matmul, self.clock, self.tick = passport, matmul, clock, tick
        self.bf16_is_fast = passport.bf16_gflops > passport.fp32_gflops

    def give(self, seconds: float) -> None:
        """From now on, there is so much time."""
        self.ends, self.each = self.clock.now() + seconds, min(SECONDS_A_MEASUREMENT, seconds / MEASUREMENTS)

    def run(self, shape: ModelConfig, precision: Precision, tokens: int, optimizer: str = "adamw") -> RunConfig:
        """A run whose steps are one pass of so many tokens, in whole sequences."""
        sequences = max(1, tokens // shape.context_length)
        return RunConfig(
            model=shape,
            optimizer=OptimizerConfig(name=optimizer),  # type: ignore[arg-type]  # checked by OptimizerConfig
            batch_sequences=sequences,
            micro_batch_sequences=sequences,
            steps=1,
            precision=precision,
            matmul=self.matmul,
            products_up_to=self.up_to,
            bf16_is_fast=self.bf16_is_fast,
            device=self.passport.device,
        )

    def usual_attention(self, shape: ModelConfig, precision: Precision) -> int:
        """What `up_to` is where there is no time to try: by products where they are in bf16, which is fast there, and fused in fp32."""
        return shape.context_length if precision != "fp32" and self.bf16_is_fast else 0

    def precision(self, shape: ModelConfig, micro: int) -> Precision:
        """The fastest. An emulated bf16 can be a hundred times slower: where even a bare product loses, a whole step is not tried."""
        if not self.bf16_is_fast:
            return "fp32"
        ways: tuple[Precision, ...] = ("bf16", "fp32")
        tokens = min(micro, self.affordable(shape, "fp32"))
        speeds = {way: self.speed(shape, way, tokens) or 0.0 for way in ways}
        return max(ways, key=lambda way: speeds[way])

    def micro_batch(self, shape: ModelConfig, largest: ModelConfig, precision: Precision) -> int:
        """Tokens of a forward pass with which a shape is fastest, of those with which the largest one fits."""
        device = self.passport.device
        sizes = [
            size
            for size in MICRO_BATCH_TOKENS
            if (device == "cuda" or size <= USUAL_MICRO_BATCH["cpu"]) and _fits(largest, size, self.passport.memory_bytes)
        ]
        if not sizes:
            return max(shape.context_length, MICRO_BATCH_TOKENS[0])
        by_size = {size: self.speed(shape, precision, size) for size in sizes if size <= self.affordable(shape, precision)}
        known = {size: speed for size, speed in by_size.items() if speed}
        usual = max(size for size in sizes if size <= max(USUAL_MICRO_BATCH[device], sizes[0]))
        return max(known, key=lambda size: known[size]) if len(known) > 1 else usual

    def points(
        self, shapes: Sequence[ModelConfig], precision: Precision, micro: int, optimizers: Sequence[str]
    ) -> list[SpeedPoint]:
        """The speeds of all shapes with AdamW and of the outer ones with others, those first that say most; one at least."""
        names = sorted(set(optimizers))
        first, *others = sorted(names, key=lambda name: name != "adamw")
        wanted = [
            (shapes[1], first),
            *((shape, name) for name in others for shape in (shapes[0], shapes[-1])),
            *((shape, first) for shape in (shapes[-1], shapes[0], *shapes[2:-1])),
        ]
        found = []
        for number, (shape, name) in enumerate(wanted):
            tokens = min(micro, self.affordable(shape, precision))
            if _fits(shape, tokens, self.passport.memory_bytes):
                speed = self.speed(shape, precision, tokens, name, always=not number)
                found += [] if speed is None else [SpeedPoint(shape, tokens, tokens, name, speed)]
        return found

    def affordable(self, shape: ModelConfig, precision: Precision) -> int:
        """Tokens that a step may take, of which a measurement does three or more; whole sequences, at least one."""
        flops_per_second = UTILISATION * 1e9 * self.passport.ceiling_gflops(precision)
        tokens = int(self.each / 3 * flops_per_second / flops_per_token(shape))
        return max(1, tokens // shape.context_length) * shape.context_length

    def speed(
        self, shape: ModelConfig, precision: Precision, tokens: int, optimizer: str = "adamw", *, always: bool = False
    ) -> float | None:
        """Tokens per second of such a run's steps; 0 if they do not fit the memory, None if there is no time to measure them."""
        if not always and self.clock.now() + self.each > self.ends:
            return None
        if self.tick:
            self.tick()
        return _measure(self.run(shape, precision, tokens, optimizer), self.clock, self.each)


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
    except (MemoryError, RuntimeError) as error:
        if is_want_of_memory(error):
            return 0.0
        raise
    return rows[:, :-1].size / float(np.median(times))
