"""What a run leaves behind: one line of `runs.jsonl`, and a file of curve points.

This is the seam between those that train and those that think about training: the forecast, the choice and the report
read records, never a live study. A folder of records becomes a DataFrame here.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from budgetlm.files import append_line, read_lines

State = Literal["done", "diverged", "failed", "interrupted"]

RUNS = "runs.jsonl"
CURVES = "curves"


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A moment of a run."""

    step: int
    seconds: float
    """Device-seconds of the run so far, evaluations included."""
    tokens: int
    loss: float
    """Training loss since the point before, in nats a token."""
    lr: float
    """Learning rate of the last step."""
    tokens_per_second: float
    """Speed of the optimisation steps since the point before."""
    bpb: float | None = None
    """Bits per byte on the validation sample, where it was measured here."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One training run: what was asked, what it cost, what came out."""

    run: str
    """Name of the run, unique in its study: also the name of its curve file."""
    kind: Literal["rung", "final"]
    trial: int
    rung: int
    """Position on the ladder, 0 the cheapest; -1 for a final."""
    state: State
    recipe: dict[str, Any]
    config: dict[str, Any]
    seed: int
    target_seconds: float
    planned_seconds: float
    """Device-seconds that the run could use."""
    seconds: float
    """Device-seconds that it used."""
    by_purpose: dict[str, float]
    steps: int
    tokens: int
    parameters: int
    compute_parameters: int
    flops: float
    tokens_per_second: float
    """Tokens per second of optimisation steps."""
    bpb: float | None
    """Bits per byte on the study's validation sample, at the end. None if the run did not get there."""
    bpb_full: float | None = None
    """Bits per byte on a larger part of the validation split; finals only."""
    epochs: float = 0.0
    """How often each training token that the run could see was read."""
    peak_bytes: int = 0
    """The most memory that the run held, above what its process held before it; 0 where it was not measured."""
    passport: str = ""
    error: str = ""
    """Why it failed, with the end of its traceback."""

    @property
    def tokens_per_parameter(self) -> float:
        """Training tokens for each parameter that computes."""
        return self.tokens / self.compute_parameters


def append_record(folder: Path, record: RunRecord) -> None:
    """Add a record to a study's folder."""
    append_line(folder / RUNS, dataclasses.asdict(record))


def read_records(folder: Path) -> list[RunRecord]:
    """All records of a study, oldest first; fields that a newer version added are left out."""
    known = {f.name for f in dataclasses.fields(RunRecord)}
    return [RunRecord(**{k: v for k, v in line.items() if k in known}) for line in read_lines(folder / RUNS)]


def curve_path(folder: Path, run: str) -> Path:
    """Where a run's curve is kept."""
    return folder / CURVES / f"{run}.jsonl"


def append_point(folder: Path, run: str, point: CurvePoint) -> None:
    """Add a point to a run's curve."""
    append_line(curve_path(folder, run), dataclasses.asdict(point))


def read_curve(folder: Path, run: str) -> list[CurvePoint]:
    """A run's curve in the order it was written; empty if it left none."""
    return [CurvePoint(**line) for line in read_lines(curve_path(folder, run))]
