"""Whether `torch.compile` is worth its time on a device. No torch."""

import os
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Compilation:
    """What compiling does to a run."""

    gain: float
    """Compiled steps in the time of one that is not."""
    seconds: float
    """What it takes, once a run."""

    def pays(self, run_seconds: float) -> bool:
        """Whether a run of this length gets more done compiled, its compilation included."""
        return run_seconds * (1 - 1 / self.gain) > self.seconds

    def learning(self, runs: Sequence[tuple[float, float]]) -> "Compilation":
        """The same with what compiled runs have shown, gain and seconds of each; this counts as one more."""
        gains, seconds = [self.gain, *(gain for gain, _ in runs)], [self.seconds, *(s for _, s in runs)]
        return Compilation(statistics.geometric_mean(gains), statistics.fmean(seconds))


NOTHING_GAINED = Compilation(gain=1.0, seconds=30.0)
EXPECTED = {"cpu": NOTHING_GAINED, "cuda": Compilation(gain=1.3, seconds=60.0)}
"""Before anything is known. On a CPU as measured in fp32 (docs/LOG.md); on a GPU a guess, not measured by us."""
EXPECTED_IN_HALVES = Compilation(gain=1.12, seconds=25.0)
"""On a CPU that multiplies bf16 fast, so that what is beside the products weighs more: as measured (docs/LOG.md)."""


def expected(device: str, precision: str) -> Compilation:
    """What compiling is expected to do before it has been tried: nothing where there is no compiler, or no gain was seen."""
    if device == "cpu" and precision != "fp32" and compiler():
        return EXPECTED_IN_HALVES
    return EXPECTED[device]


def compiler() -> str:
    """The C++ compiler that `torch.compile` would find; empty if there is none."""
    named = [name for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name]
    return next((path for name in named if (path := shutil.which(name))), "")


def keep_compiled(cache: Path) -> None:
    """Let this process and those it starts keep compiled code in our cache, so that a shape is compiled once."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.absolute() / "compiled"))
