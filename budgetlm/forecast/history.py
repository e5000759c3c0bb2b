"""What a study's best forecast was, moment by moment, as it was known then. A file that the search writes and the report reads."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from budgetlm.files import append_line, read_lines
from budgetlm.forecast.choose import Choice
from budgetlm.forecast.fit import Forecast

HISTORY = "history.jsonl"
DEFAULT = 0
"""The trial of the default recipe."""


@dataclass(frozen=True)
class Moment:
    """The best forecast when so much was spent."""

    spent_seconds: float
    """Device-seconds charged to the search."""
    trials: int
    """Trials with a forecast."""
    trial: int
    """The one that would have been chosen."""
    mean: float
    """Its expected bits per byte at the target; its loss on the one rung where all runs are on it."""
    low: float | None
    """Its 80 % interval; None where all runs are on one rung."""
    high: float | None
    default: float | None
    """What was expected of the default recipe; None where that was not known."""


def moment(choice: Choice, forecasts: Mapping[int, Forecast], spent_seconds: float) -> Moment:
    """How things stand."""
    if choice.ranks_only:
        return Moment(spent_seconds, len(forecasts), choice.trial, choice.loss, None, None, None)
    low, high = choice.forecast.interval
    default = forecasts[DEFAULT].mean if DEFAULT in forecasts else None
    return Moment(spent_seconds, len(forecasts), choice.trial, choice.forecast.mean, low, high, default)


def append_moment(folder: Path, now: Moment) -> None:
    """Add a moment to a study's folder."""
    append_line(folder / HISTORY, dataclasses.asdict(now))


def read_moments(folder: Path) -> list[Moment]:
    """All moments of a study, oldest first; empty for studies of old."""
    return [Moment(**line) for line in read_lines(folder / HISTORY)]
