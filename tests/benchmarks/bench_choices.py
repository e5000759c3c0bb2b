"""Attention by products and fewer threads against the usual way: how their steps compare here, and what asking costs.

For each shape and length the time of a whole training step with products, as a multiple of that with the fused kernel, median of turns in one
process, by the processor time of one thread; then the steps on half of the threads as a multiple of those on all, by the clock on the wall.

    python -m tests.benchmarks.bench_choices [--compile] [--shapes 4x128]
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from budgetlm.budget.clock import Clock
from budgetlm.model.size import ModelConfig
from budgetlm.passport import take_passport
from budgetlm.train.choices import _fewer_threads, _plain_run, _products_against_fused, choose_products, choose_threads
from budgetlm.train.schedule import PIECES
from tests.benchmarks.precision import add_precision, computed_in, precision_of

VOCABULARY, CONTEXT = 4_096, 256
RUNGS = (15.0, 60.0, 600.0)


class ThreadClock(Clock):
    """Tells the CPU time of this thread, which others on the machine do not lengthen."""

    def now(self) -> float:
        return time.thread_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each comparison")
    parser.add_argument("--shapes", nargs="+", default=["2x64", "4x128", "6x256"], help="depth x width")
    add_precision(parser)
    options = parser.parse_args()
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    passport, precision = take_passport("cpu"), precision_of(options.precision)
    print(f"{passport.summary()}; attention in {precision}", flush=True)
    for shape in options.shapes:
        depth, width = map(int, shape.split("x"))
        model = ModelConfig(vocab_size=VOCABULARY, depth=depth, width=width, context_length=CONTEXT)
        run = replace(computed_in(_plain_run(model), precision), compile=options.compile)
        torch.set_num_threads(1)
        ratios = [_products_against_fused(run, passport, ThreadClock(), options.seconds, pieces) for pieces in (1, PIECES)]
        says = ", ".join(f"{CONTEXT // p}: {r:.3f}" if r else "-" for p, r in zip((1, PIECES), ratios, strict=True))
        print(f"{depth} x {width}: products / fused at length {says}", flush=True)
        for rung in () if options.compile else RUNGS:
            with tempfile.TemporaryDirectory() as cache:
                clock = ThreadClock()
                before = clock.now()
                up_to = choose_products(run, passport, clock, Path(cache), rung)
                print(f"    asked within a rung of {rung:.0f} s: up to {up_to}, {clock.now() - before:.2f} s", flush=True)
        if cores > 1 and not options.compile:
            both = replace(passport, threads=cores)
            ratio = _fewer_threads(model, both, cores, cores // 2, Clock(), options.seconds)
            before = time.monotonic()
            with tempfile.TemporaryDirectory() as cache:
                chosen = choose_threads(model, both, Clock(), Path(cache), RUNGS[-1])
            took = time.monotonic() - before
            print(f"    {cores // 2} threads / {cores}: {ratio or float('nan'):.2f}; chosen {chosen} in {took:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
