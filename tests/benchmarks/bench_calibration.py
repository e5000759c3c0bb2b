"""What calibration takes of rungs of several lengths, and what it finds out there. Nothing that was remembered is used.

taskset -c 1 python -m tests.benchmarks.bench_calibration
"""

import argparse
import tempfile
from pathlib import Path

import torch

from budgetlm.budget.clock import Clock
from budgetlm.passport import take_passport
from budgetlm.search.sizing import shapes_to_time
from budgetlm.train.calibrate import calibrate

RUNGS, LADDER, CONTEXT, VOCABULARY = (15.0, 60.0, 600.0, 3600.0), 16, 256, 4096


def main() -> None:
    """Print a line a rung."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rungs", type=float, nargs="+", default=RUNGS, help="seconds of the longest rung, a quarter of the target"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    passport = take_passport("cpu")
    print(f"matrix products on one thread: {passport.fp32_gflops:.0f} GFLOP/s in fp32, {passport.bf16_gflops:.0f} in bf16")
    for rung in options.rungs:
        shapes = shapes_to_time(4 * rung / LADDER, 4 * rung, passport, VOCABULARY, CONTEXT, {})
        with tempfile.TemporaryDirectory() as cache:
            found = calibrate(shapes, passport, ("adamw", "muon"), Clock(), Path(cache), rung_seconds=rung)
        gain, seconds = found.compilation.gain, found.compilation.seconds
        print(
            f"rung of {rung:5.0f} s: {found.seconds:5.2f} s, {found.seconds / rung:.1%}; {len(found.points)} speeds; {found.precision}, "
            f"{found.micro_batch_tokens:,} tokens a pass, attention by products up to {found.products_up_to} tokens, compiling "
            f"gains {gain:.2f} for {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
