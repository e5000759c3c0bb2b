"""What the forecast makes of a study's records: the one slow part of a page, done once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from budgetlm.forecast.choose import Choice, choose, highest_rungs, probabilities_best
from budgetlm.forecast.fit import Fitted, Forecast, Forecaster, quantiles, usable
from budgetlm.forecast.history import DEFAULT
from budgetlm.forecast.noise import Noise, measured_noise
from budgetlm.records import RunRecord

PLACES_OF_A_WAY, MOST_WAYS = 20, 40
"""At how many times trials are followed on their way to the target, and how many of the best are, beside as many of all."""
MOST_LENGTHS = 8
"""Rungs that are among these times, the longest ones."""
MOST_FITTED = 250
"""Trials that the surface is fitted to for a page: those that climbed highest, and an even sample of the rest."""


@dataclass(frozen=True)
class Judgement:
    """Forecasts, choice and noise of a study."""

    choice: Choice | None
    """What would be chosen now; None when nothing was measured."""
    fitted: Fitted | None
    """The surface; None as well where all runs are on one rung, so that there is no forecast."""
    forecasts: dict[int, Forecast]
    """By trial; empty where all runs are on one rung."""
    intervals: dict[int, tuple[float, float]]
    """Their central 80 %."""
    best: dict[int, float]
    """Probability of being the best."""
    noise: Noise | None
    ways: dict[float, dict[int, Forecast]]
    """Seconds -> what some trials, the best and an even sample, are expected to have reached after so many."""
    trials: int
    """Finished ones, of which `forecasts` has at most `MOST_FITTED`."""


def judge(records: Sequence[RunRecord], target_seconds: float, objectives: str = "loss") -> Judgement:
    """Fit, choose, and work out what the page asks of the fit."""
    known = few_enough(usable(records))
    trials = len({r.trial for r in usable(records)})
    fitted = Forecaster(target_seconds).surface(known)
    forecasts = fitted.at(target_seconds) if fitted else {}
    choice = choose(known, target_seconds, forecasts, objectives) if forecasts else None
    noise = measured_noise(usable(records))
    if choice is None or choice.ranks_only:
        return Judgement(choice, None, {}, {}, {}, noise, {}, trials)
    bounds = quantiles(list(forecasts.values()), (0.1, 0.9)).tolist()
    intervals = {trial: (low, high) for trial, (low, high) in zip(forecasts, bounds, strict=True)}
    best, ways = probabilities_best(forecasts), _ways(fitted, forecasts, known) if fitted else {}
    return Judgement(choice, fitted, forecasts, intervals, best, noise, ways, trials)


def _ways(fitted: Fitted, forecasts: Mapping[int, Forecast], runs: Sequence[RunRecord]) -> dict[float, dict[int, Forecast]]:
    lengths = sorted({r.planned_seconds for r in runs if r.planned_seconds < fitted.target_seconds})
    even = np.geomspace(lengths[0], fitted.target_seconds, PLACES_OF_A_WAY).tolist() if lengths else []
    times = sorted({fitted.target_seconds, *lengths[-MOST_LENGTHS:], *(round(s, 3) for s in even[:-1])})
    best = sorted(forecasts, key=lambda n: forecasts[n].mean)[:MOST_WAYS]
    followed = dict.fromkeys([*best, DEFAULT, *fitted.numbers[:: max(1, len(forecasts) // MOST_WAYS)]])
    return dict(zip(times, fitted.along(times, [n for n in followed if n in forecasts]), strict=True))


def few_enough(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs of at most `MOST_FITTED` trials, in their order."""
    reached = highest_rungs(runs)
    if len(reached) <= MOST_FITTED:
        return list(runs)
    top = max(reached.values())
    best = {r.trial: r.bpb for r in runs if r.rung == reached[r.trial]}
    first = sorted(reached, key=lambda n: (-reached[n], best[n]))
    highest = [n for n in first if reached[n] == top][: MOST_FITTED // 2]
    rest = [n for n in reached if n not in set(highest)]
    step = len(rest) / (MOST_FITTED - len(highest))
    kept = {*highest, *(rest[int(i * step)] for i in range(MOST_FITTED - len(highest)))}
    return [r for r in runs if r.trial in kept]
