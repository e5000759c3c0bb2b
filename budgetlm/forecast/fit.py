"""Rungs -> a distribution of bits per byte at the target, for every trial. No torch, no optuna.

A study's runs on the response surface that serves any table of runs (`forecast/surface.py`): its one axis of scale is device time,
u = log(seconds / target seconds) <= 0, its knobs are what tells the study's recipes from one another (`forecast/traits.py`, and
`forecast/doses.py` for how they are compressed), and
what the runs of a trial have in common is their own level and their own exponent. A forecast is a mixture of (shifted)
log-normals: trials stopped at different rungs are comparable, and the shorter the ladder, the wider the interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import ndtr

from budgetlm.forecast.doses import doses_of
from budgetlm.forecast.errors import Errors
from budgetlm.forecast.importance import Draws
from budgetlm.forecast.points import Kinds, Points, Prior
from budgetlm.forecast.surface import Mixture, fit_surface
from budgetlm.forecast.traits import traits_of
from budgetlm.records import RunRecord

EXPONENT = 0.2
"""Median exponent in device time, E apart: published fits in compute lie between 0.1 and 0.3."""
FLOOR = (0.5, 0.12)
"""Mean and spread of E in bits per byte: about what the largest published models approach on text and code. Short ladders say little of
E themselves, and with a wide prior they were fitted with an E that finals then undercut."""
OWN_LEVEL, OWN_EXPONENT = (3.0, 1.0), (1.5, 1.0)
"""Of a trial's own level and exponent beside the surface: median and spread of the logarithm of their size, in noises of a run."""
DEPTH, SLOPE, DRIFT, WORD = 0.015, 1.5, 0.15, 2.0
"""What a recipe's traits change, as in `Prior`: a study's recipes are in transferred coordinates, so their optimum hardly drifts."""
SIZE, COMPONENTS = 512, 128
"""Of a sample of the surface's parameters, and of a forecast, in components. With half of them two fits to the same runs differed by
up to 0.03 bits per byte in the chosen trial, with these by 0.01 (docs/LOG.md)."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one trial's recipe is expected to reach at the target, in bits per byte. A mixture of shifted log-normals."""

    weights: np.ndarray
    """Of the components, shape (components,), summing to 1."""
    floors: np.ndarray
    """E of each component."""
    means: np.ndarray
    """Mean of log(bpb - E) in each component."""
    spreads: np.ndarray
    """Standard deviation of the same, the law's own error apart."""
    apart: np.ndarray
    """The part of it that is not the same for all trials: what tells one from another."""
    misfit: np.ndarray
    """Standard deviation that the law's own error adds: the same for all trials, so that it tells none from another."""
    mean: float
    """Expected bits per byte."""

    @property
    def _widths(self) -> np.ndarray:
        widths: np.ndarray = np.hypot(self.spreads, self.misfit)
        return widths

    def quantile(self, share: float) -> float:
        """The value that the outcome stays below with probability `share`."""
        low, high = float(self.floors.min()), float(np.max(self.floors + np.exp(self.means + 6 * self._widths)))
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.probability_below(middle) < share else (low, middle)
        return (low + high) / 2

    def probability_below(self, value: float) -> float:
        """Probability that the outcome is less than `value`."""
        above = np.maximum(value - self.floors, 1e-300)
        return float(np.sum(self.weights * ndtr((np.log(above) - self.means) / self._widths)))

    @property
    def interval(self) -> tuple[float, float]:
        """The central 80 % interval."""
        return self.quantile(0.1), self.quantile(0.9)


def usable(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs that a forecast can learn from: finished rungs with a measured loss."""
    return [r for r in records if r.kind == "rung" and r.state == "done" and r.bpb is not None and r.planned_seconds > 0]


def fit(records: Sequence[RunRecord], target_seconds: float) -> dict[int, Forecast]:
    """Forecast every trial that has at least one finished rung.

    Args:
        records: of one study; others than finished rungs are passed over.
        target_seconds: the horizon.

    Returns:
        Trial number -> forecast. Empty when there is nothing to learn from.
    """
    return Forecaster(target_seconds).fit(records)


class Forecaster:
    """Forecasts a study again and again: every fit begins where the one before ended, which makes it several times as fast.

    Args:
        target_seconds: the horizon.
    """

    def __init__(self, target_seconds: float) -> None:
        self._target_seconds = target_seconds
        self._known: Draws | None = None

    def fit(self, records: Sequence[RunRecord]) -> dict[int, Forecast]:
        """As the function `fit`."""
        runs = usable(records)
        if not runs:
            return {}
        numbers = list(dict.fromkeys(r.trial for r in runs))
        place = {number: i for i, number in enumerate(numbers)}
        trial = np.array([place[r.trial] for r in runs])
        u = np.log(np.array([r.planned_seconds for r in runs]) / self._target_seconds)
        recipes = {r.trial: {k: v for k, v in r.recipe.items() if k != "compression"} for r in runs}
        traits, words = traits_of([recipes[number] for number in numbers])
        doses, final_doses = doses_of(runs, numbers, self._target_seconds, EXPONENT)
        knobs = np.concatenate([traits, words], axis=1)
        curved = np.repeat([True, False], [traits.shape[1], words.shape[1] + doses.shape[1]])
        kinds = Kinds(curved, np.zeros_like(curved), np.zeros_like(curved))
        points = Points(u[:, None], np.concatenate([knobs[trial], doses], axis=1))
        loss = np.array([r.bpb for r in runs], dtype=float)
        fitted = partial(fit_surface, points, loss, kinds, _prior(), Errors.of_trials(trial, u))
        surface = fitted(size=SIZE, like=self._known or fitted(size=SIZE).draws)
        self._known = surface.draws
        wanted = Points(np.zeros((len(numbers), 1)), np.concatenate([knobs, final_doses], axis=1))
        level = np.tile([1.0, 0.0], (len(numbers), 1))
        return dict(
            zip(numbers, _forecasts(surface.mixture(wanted, np.arange(len(numbers)), level, COMPONENTS)), strict=True)
        )


def _prior() -> Prior:
    return Prior(
        exponents=(EXPONENT,),
        balance=(0.0,),
        floor=FLOOR,
        fall=None,
        shared=(OWN_LEVEL, OWN_EXPONENT),
        depth=DEPTH,
        slope=SLOPE,
        drift=DRIFT,
        indicator=WORD,
        centred=False,
    )


def _forecasts(mixture: Mixture) -> list[Forecast]:
    weights = np.full(len(mixture.floors), 1 / len(mixture.floors))
    widths = np.hypot(mixture.spreads, mixture.beyond)
    expected = weights @ (mixture.floors[:, None] + np.exp(mixture.means + widths**2 / 2))
    columns = zip(mixture.means.T, mixture.spreads.T, mixture.apart.T, mixture.beyond.T, expected.tolist(), strict=True)
    return [Forecast(weights, mixture.floors, *column) for column in columns]
