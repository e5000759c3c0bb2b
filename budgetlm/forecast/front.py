"""Loss against cost: which trials no other makes superfluous, and which one a person picks. Records and forecasts in, numbers out.

A cost is what a recipe's artefact takes beside its loss: bytes, or milliseconds a token. It is foretold, and known before anything is trained; the loss is
a distribution. So a trial can only be beaten by those that cost no more, and where nothing costs anything, that is every other one: a study
of the loss alone is the case in which all costs are equal, and every rule here is then that of a single best.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from budgetlm.errors import StudyError
from budgetlm.forecast.fit import Forecast
from budgetlm.records import COSTS, RunRecord

SMALLEST, FASTEST, BEST = "smallest", "fastest", "best"
"""Words for a pick; anything else is the number of a trial."""


@dataclass(frozen=True)
class FrontPoint:
    """A trial of the front."""

    trial: int
    bpb: float
    """Its forecast's mean at the target."""
    low: float
    """Ends of the 80 % interval."""
    high: float
    megabytes: float
    """That its artefact would weigh (1e6 bytes)."""
    token_ms: float
    """Milliseconds in which it would write a token: by the throughput model, corrected by what finals of the study were measured to take."""
    measured_ms: float | None = None
    """What its own final was measured to take; None where it has none."""


def costs_of(records: Iterable[RunRecord], objectives: str) -> dict[int, float]:
    """What each trial's artefact costs, in the unit of the study's second objective; empty where the loss is all there is."""
    _, _, cost = objectives.partition(",")
    return {r.trial: float(getattr(r, COSTS[cost])) for r in records if r.kind == "rung"} if cost else {}


def no_dearer(trial: int, others: Iterable[int], costs: Mapping[int, float]) -> list[int]:
    """Of the others, those that cost no more than a trial does: only they can make it superfluous."""
    return [n for n in others if n != trial and costs.get(n, 0.0) <= costs.get(trial, 0.0)]


def front(losses: Mapping[int, float], costs: Mapping[int, float]) -> list[int]:
    """The trials that none beats in loss and cost at once, the cheapest first. Of equals in both the first one."""
    found: list[int] = []
    for trial in sorted(losses, key=lambda n: (costs.get(n, 0.0), losses[n], n)):
        if not found or losses[trial] < losses[found[-1]]:
            found.append(trial)
    return found


def leader_of(trial: int, leaders: Sequence[int], losses: Mapping[int, float], costs: Mapping[int, float]) -> int | None:
    """Of the leaders that cost no more than a trial, the one of the least loss; None where all cost more."""
    return min(no_dearer(trial, leaders, costs), key=losses.__getitem__, default=None)


def behind(losses: Mapping[int, float], costs: Mapping[int, float]) -> dict[int, float]:
    """How far each trial is behind the best of those that cost no more, itself among them; 0 on the front."""
    gaps, best = {}, math.inf
    for trial in sorted(losses, key=lambda n: (costs.get(n, 0.0), losses[n])):
        best = min(best, losses[trial])
        gaps[trial] = losses[trial] - best
    return gaps


def front_of(records: Sequence[RunRecord], forecasts: Mapping[int, Forecast], objectives: str) -> list[FrontPoint]:
    """The front among given trials as it is foretold, the cheapest first; of a study of the loss alone nothing.

    Args:
        records: of one study.
        forecasts: of the trials that count, the finalists for instance.
    """
    costs = costs_of(records, objectives)
    if not costs:
        return []
    priced = {r.trial: r for r in records if r.kind == "rung"}
    measured = {
        r.trial: 1e3 / r.decode_tokens_per_second
        for r in records
        if r.kind == "final" and r.decode_tokens_per_second > 0 and r.target_seconds == priced[r.trial].target_seconds
    }
    pace = median([ms / priced[n].predicted_token_ms for n, ms in measured.items()] or [1.0])
    points = []
    for trial in front({n: f.mean for n, f in forecasts.items()}, costs):
        forecast, run = forecasts[trial], priced[trial]
        low, high = forecast.interval
        megabytes, foretold = run.predicted_model_bytes / 1e6, pace * run.predicted_token_ms
        points.append(FrontPoint(trial, forecast.mean, low, high, megabytes, foretold, measured.get(trial)))
    return points


def pick(which: str, points: Sequence[FrontPoint], best: int) -> int:
    """The trial that a person picks.

    Args:
        which: `smallest`, `fastest`, `best`, or a trial's number.
        points: the front; empty where there is only the best.
        best: what the study has chosen.

    Raises:
        StudyError: there is no such pick; the message says which there are.
    """
    known = ", ".join(str(p.trial) for p in points) or str(best)
    check_pick(which, "loss,size" if points else "loss", known)
    if which == BEST:
        return best
    if which.isdecimal():
        return int(which)
    return min(points, key=lambda p: (p.megabytes if which == SMALLEST else p.token_ms, p.bpb)).trial


def check_pick(which: str, objectives: str, known: str = "0") -> None:
    """Refuse a pick that a study of these objectives cannot have, whatever it finds.

    Args:
        known: trials to name as examples.

    Raises:
        StudyError: as `pick`.
    """
    if which in (SMALLEST, FASTEST) and objectives == "loss":
        raise StudyError(
            f"there is no {which} to pick: the study is about the loss alone. Use {BEST}, or a trial's number; a new study with "
            "`--objectives loss,size` or `loss,latency` would keep the best of every size or speed."
        )
    if which not in (SMALLEST, FASTEST, BEST) and not which.isdecimal():
        raise StudyError(
            f"there is no pick {which!r}. Use {SMALLEST}, {FASTEST}, {BEST}, or a trial's number, e.g. {known}."
        )


def describe(points: Sequence[FrontPoint]) -> list[str]:
    """A line for each point of a front, for people."""
    return [
        f"trial {p.trial:4}: {p.bpb:.4f} bits per byte ({p.low:.4f} to {p.high:.4f}), {p.megabytes:,.3f} MB, "
        f"a token in {p.token_ms:,.3g} ms as foretold{f', {p.measured_ms:,.3g} measured' if p.measured_ms else ''}"
        for p in points
    ]
