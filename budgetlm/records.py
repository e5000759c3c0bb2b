"""What a run leaves behind: one line of `runs.jsonl`, and a file of curve points.

This is the seam between those that train and those that think about training: the forecast, the choice and the report
read records, never a live study. A folder of records becomes a DataFrame here.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from budgetlm.files import append_line, read_lines_from, read_whole_lines

State = Literal["done", "diverged", "failed", "interrupted"]

REASONS = {
    "default": "the default recipe, the measure of all others",
    "new": "a new recipe",
    "climb": "its forecast may yet beat the best",
    "first on its rung": "nobody had been there, and it was nearest",
    "noise": "the incumbent once more, to see how much is chance",
    "gate": "one of the last candidates, to tell them apart",
    "chosen": "the study's choice",
    "asked for": "somebody named its trial",
    "picked": "somebody's pick of the front",
}
"""Why a run was paid for, in words."""

COSTS = {"size": "predicted_model_bytes", "latency": "predicted_token_ms"}
"""What a study may weigh against the loss, and the field of a record that says how much of it a recipe's artefact takes."""
OBJECTIVES = ("loss", *(f"loss,{cost}" for cost in COSTS))
"""What a study may be about."""

BITS, OWN = "bits per byte", "loss"
"""Units of losses."""
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
    """Tokens per device-second of the optimisation steps since the point before."""
    bpb: float | None = None
    """Bits per byte on the validation sample, where it was measured here."""
    gradient_norm: float | None = None
    """Norm of the last step's gradient before it was clipped; None in curves of old."""


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
    """Device-seconds that it used; where it was resumed, those of this part."""
    by_purpose: dict[str, float]
    """The same by purpose."""
    inherited_seconds: float = 0.0
    """Device-seconds of its plan that it did not use, because it began from the trunk of a run that had."""
    inherited_from: str = ""
    """The name of that run."""
    steps: int
    tokens: int
    parameters: int
    compute_parameters: int
    flops: float
    tokens_per_second: float
    """Tokens per device-second of optimisation steps."""
    devices: int = 1
    """Devices that trained it together."""
    bpb: float | None
    """Bits per byte on the study's validation sample, at the end. None if the run did not get there."""
    unit: str = BITS
    """What `bpb` and the other losses here are in: bits per byte, or whatever a training function of somebody's own returns."""
    bpb_full: float | None = None
    """Bits per byte on a larger part of the validation split; finals only."""
    dense_bpb: float | None = None
    """Bits per byte on the validation sample before weights were quantised; `bpb` is that of what would be deployed. None where they are one."""
    artefact_bytes: int = 0
    """Bytes of the weights as they would be deployed; 0 in records of old."""
    resident_bytes: int = 0
    """Memory that a process of its own holds once the model is loaded, beyond what it held before; finals only, 0 if not measured."""
    prefill_tokens_per_second: float = 0.0
    """Tokens read a second, one sequence of the context's length at a time; finals only, 0 if not measured."""
    decode_tokens_per_second: float = 0.0
    """Tokens written a second, one sequence at a time, as `budgetlm generate` does; likewise."""
    teacher_seconds: float = 0.0
    """Device-seconds that the teacher had been trained for, where it says so: not charged again, but part of what the student cost."""
    epochs: float = 0.0
    """How often each training token that the run could see was read."""
    peak_bytes: int = 0
    """The most memory that the run held on one device, above what its process held before it; 0 where it was not measured."""
    energy_joules: float = 0.0
    """What its devices took, by their own counters (`train/energy.py`); where it was resumed, for this part; 0 where nothing counts it."""
    predicted_tokens_per_second: float = 0.0
    """What the oracle said before the run was paid for; 0 where it was not asked."""
    predicted_peak_bytes: float = 0.0
    """Likewise."""
    predicted_model_bytes: float = 0.0
    """Bytes of the recipe's artefact at the target, as foretold; 0 where nobody asked."""
    predicted_token_ms: float = 0.0
    """Milliseconds in which that artefact would write a token, alone and from nothing, as foretold."""
    target_tokens: float = 0.0
    """Tokens that the recipe would read in its `target_seconds`, as foretold; 0 where nobody asked."""
    target_compute_parameters: int = 0
    """Parameters of the recipe itself that take part in a token's computation, beside `compute_parameters`; likewise."""
    passport: str = ""
    place: int = 0
    """Which of the search's devices it ran on."""
    began_seconds: float | None = None
    """How long the search had been at work when it began, pauses between two commands left out; None in records of old, and for finals."""
    why: str = ""
    """Why it was paid for, one of `REASONS`; empty in records of old."""
    cause: str = ""
    """What ended it, where it is not done: a cause of `workers/job.py`, `diverged`, or `stopped` when it was asked to or its
    search was ended."""
    error: str = ""
    """What happened, with the end of the traceback where there is one."""

    @property
    def tokens_per_parameter(self) -> float:
        """Training tokens for each parameter that computes."""
        return self.tokens / self.compute_parameters


_FIELDS = {field.name for field in dataclasses.fields(RunRecord)}


def append_record(folder: Path, record: RunRecord) -> None:
    """Add a record to a study's folder; it is on the disk when this returns."""
    append_line(folder / RUNS, dataclasses.asdict(record), durable=True)


def read_records(folder: Path) -> list[RunRecord]:
    """All records of a study, oldest first; fields that a newer version added are left out."""
    return Records(folder).all()


class Records:
    """The records of a study that is growing, perhaps by other processes: each look parses only what was added since the last."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RUNS
        self._offset = 0
        self._read: list[RunRecord] = []

    def all(self) -> list[RunRecord]:
        """All records up to now, oldest first."""
        lines, self._offset = read_lines_from(self._path, self._offset)
        self._read += [RunRecord(**{k: v for k, v in line.items() if k in _FIELDS}) for line in lines]
        return list(self._read)


def curve_path(folder: Path, run: str) -> Path:
    """Where a run's curve is kept."""
    return folder / CURVES / f"{run}.jsonl"


def append_point(folder: Path, run: str, point: CurvePoint) -> None:
    """Add a point to a run's curve."""
    append_line(curve_path(folder, run), dataclasses.asdict(point))


def read_curve(folder: Path, run: str, most: int | None = None) -> list[CurvePoint]:
    """A run's curve by step; empty if it left none. Where a resumed run went over old ground, the newer points count.

    Args:
        most: no more points than that, the extremes of the loss among them (`places_of_most_interest`).
    """
    lines: list[dict[str, Any]] = []
    for line in read_whole_lines(curve_path(folder, run)):
        while lines and lines[-1]["step"] >= line["step"]:
            lines.pop()
        lines.append(line)
    if most and len(lines) > most:
        lines = [lines[place] for place in places_of_most_interest([line["loss"] for line in lines], most)]
    return [CurvePoint(**line) for line in lines]


def places_of_most_interest(values: Sequence[float], most: int) -> list[int]:
    """Places of at most so many values, the first, the last and the extremes among them.

    They are cut into stretches of equally many, and of each the highest and the lowest stay. Of so few all stay.
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    kept, stretches = {0, count - 1}, max(1, (most - 2) // 2)
    for i in range(stretches):
        stretch = range(1 + i * (count - 2) // stretches, 1 + (i + 1) * (count - 2) // stretches)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)} if stretch else set()
    return sorted(kept)
