"""Receipts: what was forecast of every final before it began, beside what came of it. Reads only; no torch, no optuna."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from budgetlm.budget.clock import duration
from budgetlm.config import STUDIES
from budgetlm.studies import finals_of, forecast_kept, study_names


@dataclass(frozen=True)
class Receipt:
    """One final's forecast and outcome, in bits per byte on its study's validation sample."""

    study: str
    final: str
    trial: int
    seconds: float
    """Device-seconds that it was to have."""
    forecast: float | None
    """None where there was none: all runs of the study were on one rung, or it is a final of old."""
    low: float | None
    """The forecast's 80 % interval."""
    high: float | None
    outcome: float
    inside: bool | None
    """Whether the outcome is within the interval."""


@dataclass(frozen=True)
class Receipts:
    """Those of all finals, and what they come to."""

    finals: list[Receipt]
    forecasts: int
    """Finals of which there was a forecast."""
    inside: int
    """Of these, outcomes within the 80 % interval."""
    mean_error: float | None
    """Mean of outcome - forecast: below 0 where forecasts were too high."""
    mean_absolute_error: float | None


def receipts(studies: Sequence[str] | None = None) -> Receipts:
    """The receipts of some studies' finished finals, of all studies here if left out."""
    found = []
    for study in study_names() if studies is None else studies:
        folder = STUDIES / study
        for record in finals_of(folder):
            if record.bpb is None:
                continue
            kept = forecast_kept(folder / "finals" / record.run) or {}
            mean, low, high = (kept.get(name) for name in ("mean", "low", "high"))
            inside = low <= record.bpb <= high if low is not None and high is not None else None
            found.append(
                Receipt(study, record.run, record.trial, record.planned_seconds, mean, low, high, record.bpb, inside)
            )
    errors = [r.outcome - r.forecast for r in found if r.forecast is not None]
    mean = statistics.fmean(errors) if errors else None
    absolute = statistics.fmean(map(abs, errors)) if errors else None
    return Receipts(found, len(errors), sum(r.inside is True for r in found), mean, absolute)


def describe(all_of_them: Receipts) -> str:
    """A table for people."""
    rows = [f"{'study':20} {'final':34} {'length':>8} {'forecast':>8} {'80 % interval':>16} {'outcome':>8}"]
    for r in all_of_them.finals:
        said, interval, verdict = "none", "", ""
        if r.forecast is not None and r.low is not None and r.high is not None:
            said, interval = f"{r.forecast:.4f}", f"{r.low:.4f} to {r.high:.4f}"
            verdict = "inside" if r.inside else f"outside, {'below' if r.outcome < r.low else 'above'}"
        rows.append(
            f"{r.study:20} {r.final:34} {duration(r.seconds):>8} {said:>8} {interval:>16} {r.outcome:8.4f}  {verdict}".rstrip()
        )
    total = all_of_them
    if total.mean_error is None or total.mean_absolute_error is None:
        return "\n".join([*rows, "no final had a forecast"])
    return "\n".join(
        [
            *rows,
            f"{total.inside} of {total.forecasts} outcomes are inside their 80 % intervals; outcome less forecast {total.mean_error:+.4f} "
            f"bits per byte in the mean, {total.mean_absolute_error:.4f} without its sign",
        ]
    )
