"""What a deployed model takes on this device: speed of reading and writing text one sequence at a time, memory of a process of its own.

`python -m budgetlm.compress.measure FOLDER DEVICE` prints it as JSON; with `--processor-time` after that, for a machine that is shared, in seconds
of this process's work.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from budgetlm.compress.artefact import load_artefact
from budgetlm.compress.quantize import import_torchao
from budgetlm.errors import StudyError
from budgetlm.model.generate import generate
from budgetlm.model.transformer import LanguageModel

REPEATS, DECODED = 5, 32
"""Sequences read, of which the median counts; tokens written after a prompt of a quarter of the context."""


@dataclass(frozen=True)
class Deployed:
    """How a model does on a device."""

    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    resident_bytes: int = 0
    """What loading and using the model added to its process; 0 where it was not measured."""


def tokens_read(context_length: int) -> int:
    """Tokens that go through the model while its speed is measured, at most: what writes without a memory reads its text anew for each."""
    return (REPEATS + 1) * context_length + DECODED * (context_length // 4 + DECODED)


@torch.no_grad()
def speed(network: LanguageModel, now: Callable[[], float] = time.perf_counter) -> Deployed:
    """Tokens a second at batch 1: reading a sequence of the context's length, and writing as `budgetlm generate` does."""
    device, length = next(network.parameters()).device, network.config.context_length
    token_1L = torch.arange(length, device=device)[None] % network.config.vocab_size
    network(token_1L[:, : max(1, length // 8)])  # what is done once only
    seconds = [_timed(lambda: float(network(token_1L)[0, -1, 0]), now) for _ in range(REPEATS)]
    prompt = token_1L[0, : max(1, length // 4)].tolist()
    if network.config.encodes:  # it does not write
        return Deployed(length / statistics.median(seconds), 0.0)
    writing = _timed(lambda: list(generate(network, prompt, DECODED, temperature=0)), now)
    return Deployed(length / statistics.median(seconds), DECODED / writing)


def measure_apart(
    folder: Path, threads: int, device: str = "cpu", *options: str, within_seconds: float | None = None
) -> Deployed:
    """The same of a model on disk, in a process of its own, with the memory that it takes there: on a GPU, the GPU's.

    Args:
        folder: of the model.
        threads: of the CPU.
        device: `cpu` or `cuda`.
        options: of the command, as said above.
        within_seconds: it is ended after so many; None lets it take its time.

    Raises:
        StudyError: the process failed, or took too long; the message has the end of what it said.
    """
    command = [sys.executable, "-m", "budgetlm.compress.measure", str(folder), device, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(  # noqa: S603  # ourselves
            command, capture_output=True, text=True, env=environment, check=False, timeout=within_seconds
        )
    except subprocess.TimeoutExpired as error:
        raise StudyError(f"{folder} could not be measured within {error.timeout:.0f} s.") from error
    if done.returncode:
        raise StudyError(f"{folder} could not be measured: {done.stderr.strip()[-500:]}")
    return Deployed(**json.loads(done.stdout))


def _timed(work: Callable[[], object], now: Callable[[], float]) -> float:
    before = now()
    work()
    return max(1e-9, now() - before)


def resident(device: str = "cpu") -> int:
    """Bytes of memory that are this process's and in use; of a GPU's, what PyTorch holds there."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def load_and_measure(folder: Path, device: str, now: Callable[[], float]) -> tuple[Deployed, LanguageModel]:
    """Load, use and measure a model in this process, which is to be one of its own. What PyTorch itself takes is there before."""
    import_torchao()
    torch.nn.functional.linear(torch.ones(64, 64, device=device), torch.ones(64, 64, device=device))
    before = resident(device)
    loaded, _, _ = load_artefact(folder)
    network = loaded.to(device)
    measured = speed(network, now)
    return replace(measured, resident_bytes=max(0, resident(device) - before)), network


def main(folder: Path, device: str = "cpu", *options: str) -> None:
    """Measure, and print it."""
    now = time.process_time if "--processor-time" in options else time.perf_counter
    sys.stdout.write(json.dumps(asdict(load_and_measure(folder, device, now)[0])))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
