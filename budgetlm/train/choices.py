"""Choices between ways of training that only measuring can make: how attention is computed, on how many threads, and whether blocks are compiled.

The usual way is known beforehand and taken unless another is clearly faster: both go in turns in one process, so that what else happens
on the machine falls on both. That may take a small share of a rung, or it is left; an answer is remembered for the machine.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from budgetlm.budget.clock import Clock
from budgetlm.data.masks import hide
from budgetlm.files import digest, read_json, write_json
from budgetlm.model.size import ModelConfig, flops_per_token
from budgetlm.model.transformer import build
from budgetlm.passport import Passport
from budgetlm.train.compilation import NOTHING_GAINED, Compilation
from budgetlm.train.config import OptimizerConfig, RunConfig, as_dict
from budgetlm.train.heap import set_heap
from budgetlm.train.schedule import PIECES
from budgetlm.train.step import Stepper

THREADS_SHARE, ATTENTION_SHARE, COPIES_SHARE, COMPILING_SHARE = 0.004, 0.003, 0.001, 0.011
"""Of the longest rung, the most that each choice may take; attention at each of two lengths. With what calibration measures beside them it
is 3 % (`train/calibrate.py`)."""
CLEARLY = 0.97
"""Time of another way, as a multiple of the usual one's, from which on it is taken."""
LEAST_TURNS, MOST_TURNS = 3, 15
LEAST_STEPS = 2 * LEAST_TURNS + 3
"""Steps of the shortest comparison: its turns, and those that set things up."""
MOST_SECONDS = 2.0
"""Longer than this no comparison needs, however long the rungs."""
UTILISATION = 0.4
"""Share of the ceiling that a step is taken to reach, to give it as many tokens as there is time for."""
MOST_TOKENS = 4_096
"""Tokens of a step."""
FORMAT = 1

Step = Callable[[], object]


def choose_products(
    config: RunConfig, passport: Passport, clock: Clock, cache: Path, rung_seconds: float, usual: int = 0
) -> int:
    """Length of the longest sequences whose attention plain products compute faster than the fused kernel, whole or cut; 0 if none.

    Args:
        config: a run as most will be, whose sequences, precision and device count.
        rung_seconds: the longest rung.
        usual: the answer where there is no time to measure.
    """
    length, seconds = config.model.context_length, min(MOST_SECONDS, ATTENTION_SHARE * rung_seconds)

    def measure() -> int | None:
        faster = 0
        for pieces in (PIECES, 1):
            ratio = _products_against_fused(config, passport, clock, seconds, pieces)
            if ratio is None:
                return None
            faster = length // pieces if ratio < CLEARLY else faster
        return faster

    encoder = ["encoder"] if config.model.encodes else []
    asked = [
        "attention",
        length,
        config.model.head_size,
        config.model.document_end is None,
        *encoder,
        config.precision,
        config.matmul,
    ]
    return _remembered(cache, [passport.id, *asked], measure, usual)


def choose_copies(config: RunConfig, passport: Passport, clock: Clock, cache: Path, rung_seconds: float) -> bool:
    """Whether runs in bf16 are clearly faster with bf16 copies of the weights (`train/halves.py`), which take memory, than under autocast.

    Args:
        config: a run as most will be, in bf16.
        rung_seconds: the longest rung.
    """
    seconds = min(MOST_SECONDS, COPIES_SHARE * rung_seconds)

    def measure() -> int | None:
        if (sequences := _affordable(config, passport, seconds)) < 1:
            return None
        cast, copied = (_step_of(replace(config, precision=way), int(sequences))[1] for way in ("bf16", "bf16-master"))
        ratio = _in_turns(cast, copied, clock, seconds)
        return None if ratio is None else int(ratio < CLEARLY)

    return bool(_remembered(cache, [passport.id, "copies", as_dict(config)], measure, usual=0))


def choose_threads(shape: ModelConfig, passport: Passport, clock: Clock, cache: Path, rung_seconds: float) -> int:
    """CPU threads on which a model trains fastest: the passport's, or half or a quarter of these and so on.

    Args:
        shape: a model as most will be.
        rung_seconds: the longest rung.
    """
    seconds = min(MOST_SECONDS, THREADS_SHARE * rung_seconds)

    def measure() -> int | None:
        best = passport.threads
        while best > 1:
            ratio = _fewer_threads(shape, passport, best, best // 2, clock, seconds)
            if ratio is None:
                return None
            if ratio > CLEARLY:
                break
            best //= 2
        return best

    try:
        return _remembered(cache, [passport.id, "threads", asdict(shape)], measure, usual=passport.threads)
    finally:
        torch.set_num_threads(passport.threads)


def choose_compilation(
    config: RunConfig, passport: Passport, clock: Clock, cache: Path, rung_seconds: float, wanted: Compilation
) -> Compilation:
    """What compiling gains and takes: tried where there is time for it, or what is expected, `wanted`.

    Args:
        config: a run as most will be.
        rung_seconds: the longest rung.
    """
    seconds = min(MOST_SECONDS, COMPILING_SHARE * rung_seconds - wanted.seconds)
    if seconds <= 0 or (sequences := _affordable(config, passport, seconds)) < 1:
        return wanted
    path = cache / "choices" / f"{digest([FORMAT, passport.id, 'compiling', as_dict(config)])}.json"
    if path.exists():
        return Compilation(**read_json(path)["answer"])
    found = _compiled_against_plain(config, int(sequences), clock, seconds)
    if found is None:
        return wanted
    write_json(path, {"asked": ["compiling", as_dict(config)], "answer": asdict(found)})
    return found


def _compiled_against_plain(config: RunConfig, sequences: int, clock: Clock, seconds: float) -> Compilation | None:
    _, plain = _step_of(config, sequences)
    _, compiled = _step_of(replace(config, compile=True), sequences)
    started = clock.now()
    try:
        compiled()
    except torch._dynamo.exc.TorchDynamoException:
        return NOTHING_GAINED
    taken = clock.now() - started
    ratio = _in_turns(plain, compiled, clock, seconds)
    return None if ratio is None else Compilation(1 / ratio, taken)


def _remembered(cache: Path, asked: list[Any], measure: Callable[[], int | None], usual: int) -> int:
    """The answer that was kept, or one that is measured now and kept; the usual one where there is no time to measure."""
    path = cache / "choices" / f"{digest([FORMAT, *asked])}.json"
    if path.exists():
        return int(read_json(path)["answer"])
    answer = measure()
    if answer is not None:
        write_json(path, {"asked": asked, "answer": answer})
    return usual if answer is None else answer


def _products_against_fused(
    config: RunConfig, passport: Passport, clock: Clock, seconds: float, pieces: int
) -> float | None:
    if (sequences := _affordable(config, passport, seconds)) < 1:
        return None
    stepper, step = _step_of(config, int(sequences))
    stepper.pieces = pieces

    def by(up_to: int) -> None:
        stepper.network.model.attend_by_products(up_to)
        step()

    return _in_turns(partial(by, 0), partial(by, config.model.context_length), clock, seconds)


def _fewer_threads(
    shape: ModelConfig, passport: Passport, usual: int, fewer: int, clock: Clock, seconds: float
) -> float | None:
    config = _plain_run(shape)
    if (sequences := _affordable(config, passport, seconds)) < 1:
        return None
    _, step = _step_of(config, int(sequences))

    def on(threads: int) -> None:
        torch.set_num_threads(threads)
        step()

    return _in_turns(partial(on, usual), partial(on, fewer), clock, seconds)


def _plain_run(shape: ModelConfig) -> RunConfig:
    return RunConfig(
        model=shape, optimizer=OptimizerConfig(name="adamw"), batch_sequences=1, micro_batch_sequences=1, steps=1
    )


def _affordable(config: RunConfig, passport: Passport, seconds: float) -> float:
    """Sequences of a step of which a comparison within `seconds` has enough."""
    flops_per_second = UTILISATION * 1e9 * passport.ceiling_gflops(config.precision)
    tokens = seconds / LEAST_STEPS * flops_per_second / flops_per_token(config.model)
    return min(MOST_TOKENS, tokens) / config.model.context_length


def _step_of(config: RunConfig, sequences: int) -> tuple[Stepper, Step]:
    """A step of such a run, of so many sequences."""
    set_heap(config.device)  # as the runs will have it
    shape = config.model
    stepper = Stepper(
        replace(config, batch_sequences=sequences, micro_batch_sequences=sequences), build(shape, 0, config.device)
    )
    rows = made_up_rows(shape, sequences)
    return stepper, partial(stepper.step, rows, 1e-4)


def made_up_rows(shape: ModelConfig, sequences: int) -> np.ndarray:
    """Sequences to time a step with, int64, shape (sequences, L + 1): tokens without sense, with marks for an encoder."""
    rows = np.random.default_rng(0).integers(shape.vocab_size, size=(sequences, shape.context_length + 1))
    return hide(rows, shape.mask_rate, seed=0) if shape.encodes else rows


def _in_turns(usual: Step, other: Step, clock: Clock, seconds: float) -> float | None:
    """Time of the other step as a multiple of the usual one's, median over turns; None if there is no time for enough of them."""
    started = clock.now()
    for patience in (4, 1):  # in its first step much is set up
        if LEAST_STEPS * _timed(usual, clock) > patience * seconds:
            return None
    other()
    ratios: list[float] = []
    while len(ratios) < LEAST_TURNS or (len(ratios) < MOST_TURNS and clock.now() - started < seconds):
        first = _timed(usual if len(ratios) % 2 else other, clock)
        second = _timed(other if len(ratios) % 2 else usual, clock)
        ratios.append(second / first if len(ratios) % 2 else first / second)
    return statistics.median(ratios)


def _timed(step: Step, clock: Clock) -> float:
    before = clock.now()
    step()
    return max(1e-9, clock.now() - before)
