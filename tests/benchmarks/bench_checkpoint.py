"""What a checkpoint of a final in parts takes: ours, which the leader gathers and writes whole, beside PyTorch's, to which every member writes its own part.

Two processes hold a model by `fsdp`, with AdamW's moments. Each writes in turns; processor time and the time on the wall are medians, memory is the most that a process held above what
it held before. Both are written to one disk of one machine here: over a network every member would have a line of its own, and the leader's is ours.

    python -m tests.benchmarks.bench_checkpoint [--width 512] [--rounds 5]
"""

import argparse
import ctypes
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict

from budgetlm.budget.clock import ManualClock
from budgetlm.model.size import ModelConfig, parameters
from budgetlm.model.transformer import LanguageModel
from budgetlm.train.checkpoint import Position, save_checkpoint
from budgetlm.train.config import OptimizerConfig, RunConfig
from budgetlm.train.parallel.member import make_team
from tests.train.parallel.gang import together

SIDES = ("whole", "parts")
Figures = tuple[float, float, float]
"""Seconds of processor time, seconds on the wall, bytes."""


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--depth", type=int, default=6)
    options.add_argument("--width", type=int, default=512)
    options.add_argument("--vocabulary", type=int, default=8_192)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    model = ModelConfig(vocab_size=given.vocabulary, depth=given.depth, width=given.width, context_length=64)
    folder = Path(tempfile.mkdtemp(prefix="bench-checkpoint-"))
    try:
        found = together(written, model, folder, given.rounds, logs=folder / "logs")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    size = 12 * parameters(model)
    print(
        f"{parameters(model) / 1e6:.1f} M parameters, {size / 1e6:.0f} MB with AdamW's moments, 2 processes, n = {given.rounds}"
    )
    print("side    process   processor s   wall s   memory above, of the whole")
    for side in SIDES:
        for rank, figures in found.items():
            work, wall, peak = (statistics.median(column) for column in zip(*figures[side], strict=True))
            print(f"{side:7} {rank:7} {work:13.2f} {wall:8.2f} {peak / size:28.2f}")


def written(model: ModelConfig, folder: Path, rounds: int) -> dict[str, list[Figures]]:
    """What each way of writing has taken of this process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    team, network = make_team("fsdp", ManualClock(), lambda: False), LanguageModel(model)
    team.take(
        network, RunConfig(model=model, optimizer=OptimizerConfig(), batch_sequences=2, micro_batch_sequences=1, steps=1)
    )
    optimizer = torch.optim.AdamW(network.parameters())
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()

    def whole(number: int) -> None:
        save_checkpoint(folder / "whole", network, [optimizer], Position(step=number), {}, team=team)

    def parts(number: int) -> None:
        weights, moments = get_state_dict(network, optimizer)
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / "parts" / str(number))

    found: dict[str, list[Figures]] = {side: [] for side in SIDES}
    for number in range(rounds + 1):
        for side, write in zip(SIDES, (whole, parts), strict=True):
            figures = taken(write, number)
            found[side] += [figures] if number else []  # the first loads what each loads
    dist.destroy_process_group()
    return found


def taken(write: Callable[[int], None], number: int) -> Figures:
    """What writing takes of this process."""
    dist.barrier()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back, so that it counts when it is taken again
    Path("/proc/self/clear_refs").write_text("5")  # from now on the most memory is counted anew
    before, work, wall = memory("VmRSS"), time.process_time(), time.monotonic()
    write(number)
    dist.barrier()
    return time.process_time() - work, time.monotonic() - wall, memory("VmHWM") - before


def memory(which: str) -> int:
    """Bytes that the kernel counts of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
