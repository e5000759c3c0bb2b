"""What each choice in a training step is worth: a whole step with it and without, on one thread, in processor time.

Loss, norm, rotation, attention, head size and attention within documents are compared in one process, a step of one kind after a step of the other, in
alternating order; heaps in processes of their own, in turns. The ratio is the median over pairs; below 1, what is named is faster.

    python -m tests.benchmarks.bench_step --pairs 15
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from budgetlm.model import documents, norm, size, transformer
from budgetlm.model.size import ModelConfig
from budgetlm.model.transformer import build
from budgetlm.train.config import OptimizerConfig, Precision, RunConfig
from budgetlm.train.heap import set_heap
from budgetlm.train.step import Stepper, warm_up
from tests.benchmarks.precision import add_precision, computed_in, precision_of

SHAPES = ((2, 64, 1024), (4, 128, 2048), (6, 256, 4096))
"""Depth, width, vocabulary."""
CONTEXT, SEQUENCES = 256, 16
TCMALLOC = Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")


def all_logits(features, weight, target, reduction="mean"):
    """The loss as PyTorch computes it at once."""
    return F.linear_cross_entropy(features, weight, target, reduction=reduction)


def pytorchs_norm(self, x):
    """RMSNorm of PyTorch's array operations, rounded by each product that reads it."""
    return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def plain_rotation(x_BHLS, cos_LS, sin_LS, **_layout):
    """Turned heads of PyTorch's array operations."""
    left, right = x_BHLS.chunk(2, dim=-1)
    return (x_BHLS * cos_LS + torch.cat([-right, left], dim=-1) * sin_LS).to(x_BHLS.dtype)


def plain_products(q_BHLS, k_BHLS, v_BHLS, *_mask, **_causal):
    """Attention of PyTorch's array operations, which remember what they need for their gradients each by itself."""
    length, size = q_BHLS.shape[2:]
    mask_LL = torch.full((length, length), -torch.inf, dtype=q_BHLS.dtype).triu_(1)
    scores_BHLL = ((q_BHLS * size**-0.5) @ k_BHLS.mT).add_(mask_LL)
    return scores_BHLL.softmax(-1, dtype=v_BHLS.dtype) @ v_BHLS


@contextmanager
def small_heads() -> Iterator[None]:
    """Heads of 16 below a width of 128, of 32 below 512, as they were at first."""
    with mock.patch.object(size, "_head_size", lambda width, _groups: 16 if width < 128 else 32 if width < 512 else 64):
        size.block_matrices.cache_clear()
        size.body_parameters.cache_clear()
        yield
    size.block_matrices.cache_clear()
    size.body_parameters.cache_clear()


def stepper(shape: tuple[int, int, int], precision: Precision, **changes: int) -> Callable[[], float]:
    """A function that makes a step and says how long it took."""
    depth, width, vocabulary = shape
    model = ModelConfig(vocab_size=vocabulary, depth=depth, width=width, context_length=CONTEXT, **changes)
    settings = {"batch_sequences": SEQUENCES, "micro_batch_sequences": SEQUENCES, "steps": 1}
    settings |= {} if precision == "fp32" else {"products_up_to": CONTEXT}  # as calibration chooses
    config = computed_in(RunConfig(model=model, optimizer=OptimizerConfig(), **settings), precision)
    one = Stepper(config, build(model, 0))
    rows = np.random.default_rng(0).integers(vocabulary, size=(SEQUENCES, CONTEXT + 1))

    def step() -> float:
        before = time.process_time()
        one.step(rows, 1e-4)
        return time.process_time() - before

    step.network = one.network
    step()
    return step


def patched(step: Callable[[], float], *where: object) -> Callable[[], float]:
    """The step with something put in the place of something else."""

    def run() -> float:
        with mock.patch.object(*where):
            return step()

    return run


def compare(name: str, ours: Callable[[], float], other: Callable[[], float], pairs: int) -> None:
    """Time both in turns and print what came out."""
    times = []
    for number in range(pairs + 1):
        order = (ours, other) if number % 2 else (other, ours)
        took = {kind: kind() for kind in order}
        times.append((took[ours], took[other]))
    times = times[1:]  # the first pair warms up
    ratios = sorted(a / b for a, b in times)
    with_it, without = (statistics.median(column) for column in zip(*times, strict=True))
    spread = f"{ratios[len(ratios) // 4]:.2f} to {ratios[3 * len(ratios) // 4]:.2f}"
    print(
        f"  {name:38} {with_it:.3f} s, without {without:.3f} s, ratio {statistics.median(ratios):.3f} ({spread}), n = {pairs}"
    )


def heaps(shape: tuple[int, int, int], rounds: int, precision: Precision) -> None:
    """Seconds of a step and the most resident memory under each heap."""
    modes = ["as it is", "keeping what is freed"] + (["tcmalloc preloaded"] if TCMALLOC.exists() else [])
    found: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
    for _ in range(rounds):
        for mode in modes:
            environment = {**os.environ, **({"LD_PRELOAD": str(TCMALLOC)} if mode.startswith("tcmalloc") else {})}
            command = [sys.executable, "-m", "tests.benchmarks.bench_step", "--precision", precision]
            command += ["--heap", mode, *map(str, shape)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            found[mode].append(tuple(json.loads(done.stdout)))
    for mode, values in found.items():
        seconds, resident = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"  heap, {mode:32} {seconds:.3f} s, {resident / 2**20:,.0f} MiB, n = {rounds} processes of 5 steps")


def one_heap(mode: str, shape: tuple[int, int, int], precision: Precision) -> None:
    """Inside a process of its own."""
    import resource

    if mode == "keeping what is freed":
        set_heap("cpu")
    step = stepper(shape, precision)
    seconds = statistics.median(step() for _ in range(5))
    print(json.dumps([seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, default=15)
    options.add_argument("--rounds", type=int, default=5, help="processes for each heap")
    options.add_argument("--heap", nargs=4, help=argparse.SUPPRESS)
    add_precision(options)
    given = options.parse_args()
    torch.set_num_threads(1)
    warm_up()
    precision = precision_of(given.precision)
    if given.heap:
        depth, width, vocabulary = map(int, given.heap[1:])
        return one_heap(given.heap[0], (depth, width, vocabulary), precision)
    for shape in SHAPES:
        print(
            f"depth {shape[0]} x width {shape[1]}, vocabulary {shape[2]:,}, {SEQUENCES * CONTEXT:,} tokens a step, {precision}",
            flush=True,
        )
        heaps(shape, given.rounds, precision)
        set_heap("cpu")
        step = stepper(shape, precision)
        compare("head and loss together", step, patched(step, step.network, "head_loss", all_logits), given.pairs)
        others = {
            "RMSNorm with fewer sweeps": (norm.Norm, "forward", pytorchs_norm),
            "rotation with fewer sweeps": (transformer, "rotate", plain_rotation),
            "products with their own gradients": (documents, "_attend_by_products", plain_products),
        }
        without_all = step
        for name, where in others.items():
            compare(name, step, patched(step, *where), given.pairs)
            without_all = patched(without_all, *where)
        compare("these three together", step, without_all, given.pairs)
        with small_heads():
            old = stepper(shape, precision)
        compare("heads near 64", step, old, given.pairs)
        compare("attention within documents", stepper(shape, precision, document_end=0), step, given.pairs)
    return None


if __name__ == "__main__":
    main()
