"""Which trial may still win, and which one is chosen. Records and forecasts in, numbers out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.special import ndtr

from budgetlm.budget.clock import duration
from budgetlm.forecast.fit import Forecast, fit, usable
from budgetlm.forecast.front import FrontPoint, front_of, no_dearer
from budgetlm.forecast.noise import measured_noise
from budgetlm.records import BITS, RunRecord

PROMISING = 0.25
"""A trial climbs on while the probability that it beats the best of the others is at least this."""
PROMOTED_SHARE = 1 / 3
"""Of the trials on a rung, so many may climb on."""
WITHIN_NOISE = 0.25
"""Trials that beat the chosen one with at least this probability are told apart from it by nothing but luck."""

MOST_RIVALS = 300
"""Trials that are compared all with all for the probability of being best."""
RANKS_ONLY = "ranks only: all runs are on one rung"
"""What is said in place of a forecast where nothing is known of how losses fall from rung to rung."""
EQUAL = 0.25
"""Finalists whose forecasts differ by less than so many standard deviations of the measured noise are equals."""


@dataclass(frozen=True)
class Choice:
    """The chosen trial, and how sure the choice is."""

    trial: int
    forecast: Forecast
    within_noise: list[int]
    """Other trials that the forecast cannot tell from it, best first."""
    why: str
    loss: float
    """Bits per byte that it was measured to have on the highest rung, the mean where it was repeated."""
    ranks_only: bool = False
    """Whether the order on the one rung is all that the choice stands on; the forecast is then no more than a guess."""
    unit: str = BITS
    """What losses are in."""
    front: Sequence[FrontPoint] = ()
    """Of a study of more than the loss: the finalists that none beats in both, the cheapest first."""

    @property
    def expected(self) -> str:
        """What is expected of it at the target, in words."""
        if self.ranks_only:
            return f"{told(self.loss, self.unit)} {self.unit} on its rung; {RANKS_ONLY}"
        mean, low, high = (told(value, self.unit) for value in (self.forecast.mean, *self.forecast.interval))
        return f"{mean} {self.unit} ({low} to {high}, 80 %)"


def told(loss: float, unit: str) -> str:
    """A loss for people; of somebody's own nobody knows how small it is, so that it has digits rather than decimals."""
    return f"{loss:.3f}" if unit == BITS else f"{loss:.4g}"


def ranks_only(records: Sequence[RunRecord]) -> bool:
    """Whether all finished runs are on one rung, so that the data say which is better there and nothing of the target."""
    return len({r.rung for r in usable(records)}) == 1


def probability_better(one: Forecast, other: Forecast) -> float:
    """Probability that `one` ends below `other`.

    The two share E, level and exponent of the law, so they are compared component by component, by what is not the same for both.
    """
    return _probabilities_better([one], other)[0]


def _probabilities_better(many: Sequence[Forecast], other: Forecast) -> list[float]:
    means, spreads = np.stack([f.means for f in many]), np.stack([f.apart for f in many])
    gaps = (other.means - means) / np.hypot(spreads, other.apart)
    better: list[float] = (ndtr(gaps) @ other.weights).tolist()
    return better


def probabilities_best(forecasts: Mapping[int, Forecast], draws: int = 64, seed: int = 0) -> dict[int, float]:
    """Probability of each trial to end below all others; 0 for those far behind the best `MOST_RIVALS`, which are not drawn.

    Args:
        draws: for each component of the mixtures.
    """
    rivals = sorted(forecasts, key=lambda n: forecasts[n].mean)[:MOST_RIVALS]
    if not rivals:
        return {}
    chance, wins = np.random.default_rng(seed), np.zeros(len(rivals))
    means, apart = (np.stack([getattr(forecasts[n], name) for n in rivals], axis=1) for name in ("means", "apart"))
    for component, weight in enumerate(forecasts[rivals[0]].weights):
        drawn = means[component] + apart[component] * chance.standard_normal((draws, len(rivals)))
        wins += weight * np.bincount(drawn.argmin(axis=1), minlength=len(rivals)) / draws
    return dict.fromkeys(forecasts, 0.0) | dict(zip(rivals, wins.tolist(), strict=True))


def can_win(
    trial: int, forecasts: Mapping[int, Forecast], records: Sequence[RunRecord], costs: Mapping[int, float] | None = None
) -> bool:
    """Whether a trial should climb on: it is among the best third on its rung, and its forecast may yet beat the best.

    Its rivals are those that climbed higher, for only they show what climbing is worth, or else its equals. The rank on
    the rung guards against a forecast that is too unsure to stop anybody (Li et al. 2018, ASHA, arXiv:1810.05934).

    Where artefacts have a cost, only those that cost no more than the trial's count, on the rung and as rivals: what is asked is whether
    it may yet be dominated by none.

    Args:
        costs: of each trial's artefact (`forecast/front.py`); the same for all if left out.
    """
    costs = costs or {}
    runs = usable(records)
    reached = _highest(runs)
    rung = reached[trial]
    here = mean_losses(runs, rung)
    equals = no_dearer(trial, here, costs)
    if sum(here[n] < here[trial] for n in equals) >= math.ceil((1 + len(equals)) * PROMOTED_SHARE):
        return False
    others = no_dearer(trial, forecasts, costs)
    rivals = [n for n in others if reached[n] > rung] or others
    if not rivals:
        return True
    best = min(rivals, key=lambda n: forecasts[n].mean)
    return probability_better(forecasts[trial], forecasts[best]) >= PROMISING


def choose(
    records: Sequence[RunRecord],
    target_seconds: float,
    forecasts: Mapping[int, Forecast] | None = None,
    objectives: str = "loss",
) -> Choice | None:
    """The trial with the least expected loss among those that climbed highest; None when nothing was measured.

    A short ladder flatters: of many trials seen once, the luckiest looks best. So only the highest rung reached counts. All
    trials are compared at the same target, so the least expected loss is the least expected regret as well. Where all runs are on one
    rung, it is the least loss there.

    Args:
        records: of one study.
        target_seconds: the horizon, in device-seconds.
        forecasts: what `fit` says of them, where that is known already.
        objectives: of the study; with more than the loss, the choice knows the front among the same trials too.
    """
    if forecasts is None:
        forecasts = fit(records, target_seconds)
    if not forecasts:
        return None
    highest, runs, only = finalists(records, forecasts), usable(records), ranks_only(records)
    here = mean_losses(runs, max(r.rung for r in runs))
    losses = here if only else {n: f.mean for n, f in forecasts.items()}
    best = _smallest_of_equals(highest, losses, runs)
    first = min(highest, key=lambda n: losses[n])
    how, rule = "least", ""
    if losses[best] > losses[first]:
        how = "smallest model within the noise of the least"
        rule = f"; trial {first}'s is less by {losses[best] - losses[first]:.1g}, and less than {EQUAL:g} of a run's noise counts as nothing"
    forecast = forecasts[best]
    points = front_of(records, {n: forecasts[n] for n in highest}, objectives)
    near = zip(forecasts, _probabilities_better(list(forecasts.values()), forecast), strict=True)
    within = sorted((n for n, p in near if p >= WITHIN_NOISE and n != best), key=lambda n: forecasts[n].mean)
    unit = runs[0].unit
    mean, low, high = (told(value, unit) for value in (forecast.mean, *forecast.interval))
    if only:
        seconds = max(r.planned_seconds for r in runs)
        why = (
            f"{how} loss of the {len(highest)} trials, {told(here[best], unit)} {unit} after {duration(seconds)}; {RANKS_ONLY}, which say "
            f"nothing of what is reached after {duration(target_seconds)}{rule}"
        )
        return Choice(best, forecast, within, why, here[best], True, unit, points)
    why = (
        f"{how} forecast of the {len(highest)} of {len(forecasts)} trials that reached the highest rung: "
        f"{mean} {unit} after {duration(target_seconds)} (80 % interval {low} to {high}){rule}"
    )
    return Choice(best, forecast, within, why, here[best], unit=unit, front=points)


def _smallest_of_equals(trials: Sequence[int], losses: Mapping[int, float], runs: Sequence[RunRecord]) -> int:
    """The trial of the least loss; of those that are as good within the noise, the one with the smallest model."""
    noise = measured_noise(runs)
    least = min(losses[n] for n in trials)
    equals = {n for n in trials if losses[n] <= least + (EQUAL * noise.spread if noise else 0.0)}
    reached = _highest(runs)
    sizes = {r.trial: r.compute_parameters for r in runs if r.trial in equals and r.rung == reached[r.trial]}
    return min(equals, key=lambda n: (sizes[n], losses[n]))


def finalists(records: Sequence[RunRecord], forecasts: Mapping[int, Forecast]) -> list[int]:
    """The trials that have reached the highest rung that anybody has."""
    reached = highest_rungs(records)
    highest = max(reached.values(), default=-1)
    return [n for n in forecasts if reached[n] == highest]


def highest_rungs(records: Sequence[RunRecord]) -> dict[int, int]:
    """The highest rung that each trial has finished."""
    return _highest(usable(records))


def mean_losses(runs: Sequence[RunRecord], rung: int) -> dict[int, float]:
    """Bits per byte of each trial on a rung, the mean where it was repeated."""
    found: dict[int, list[float]] = {}
    for run in runs:
        if run.rung == rung and run.bpb is not None:
            found.setdefault(run.trial, []).append(run.bpb)
    return {trial: fmean(losses) for trial, losses in found.items()}


def _highest(runs: Sequence[RunRecord]) -> dict[int, int]:
    reached: dict[int, int] = {}
    for run in runs:
        if run.rung > reached.get(run.trial, -1):
            reached[run.trial] = run.rung
    return reached
