"""Rungs -> a distribution of bits per byte at the target, for every trial. No torch, no optuna.

A study's runs on the response surface that serves any table of runs (`forecast/surface.py`): its axes of scale are how much smaller than the
recipe's own target a run is in parameters and in tokens (`forecast/scales.py`), its knobs are what tells the study's recipes from one another (`forecast/traits.py`, and
`forecast/doses.py` for how they are compressed), and
what the runs of a trial have in common is their own level and their own exponent. A forecast is a mixture of (shifted)
log-normals: trials stopped at different rungs are comparable, and the shorter the ladder, the wider the interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from budgetlm.forecast.doses import doses_of
from budgetlm.forecast.errors import Errors
from budgetlm.forecast.importance import Draws
from budgetlm.forecast.points import Kinds, Points, Prior
from budgetlm.forecast.scales import Scales, scales_of
from budgetlm.forecast.surface import Mixture, Surface, fit_surface
from budgetlm.forecast.traits import traits_of
from budgetlm.records import BITS, RunRecord

EXPONENT = 0.2
"""Median exponent in device time, E apart: published fits in compute lie between 0.1 and 0.3."""
EXPONENTS = (0.3, 0.2)
"""Likewise of parameters and of tokens, whose terms are about alike at the target. Lower than the 0.34 and 0.28 of arXiv:2203.15556: chosen on
public frontiers and on miniatures of our own, whose least shapes go by a lower one (docs/LOG.md)."""
FLOOR = (0.5, 0.12)
"""Mean and spread of E in bits per byte: about what the largest published models approach on text and code. Short ladders say little of
E themselves, and with a wide prior they were fitted with an E that finals then undercut."""
OWN_LEVEL, OWN_EXPONENT = (3.0, 1.0), (1.5, 1.0)
"""Of a trial's own level and exponent beside the surface: median and spread of the logarithm of their size, in noises of a run."""
FEW_TOKENS, MANY_TOKENS = 1e6, 1e8
"""A study whose longest run has read at least `MANY_TOKENS` goes by the law of large runs; one of `FEW_TOKENS` at most by that of small ones."""
SMALL_EXPONENTS, SMALL_BEYOND = (0.4, 0.33), 0.0375
"""The medians of small runs, and their law's error as of `Prior.beyond`: 13 finals that were 16 times as long as the highest rung were all better than by the law of large ones, 10 of
them beyond its intervals (docs/LOG.md)."""
DEPTH, SLOPE, DRIFT, WORD = 0.015, 1.5, 0.15, 2.0
"""What a recipe's traits change, as in `Prior`: a study's recipes are in transferred coordinates, so their optimum hardly drifts."""
SIZE, COMPONENTS = 512, 128
"""Of a sample of the surface's parameters, and of a forecast, in components. With half of them two fits to the same runs differed by
up to 0.03 bits per byte in the chosen trial, with these by 0.01 (docs/LOG.md)."""
WIDEST = 1.0
"""Width of a component as far as it counts in the expected value: the far tail of a wider log-normal is the form's, and no belief. One single
run of a loss near E was forecast at a hundred times itself."""
NOT_TRAITS = ("compression",)
"""What of recipes is none: it is a dose (`forecast/doses.py`)."""
AT_ONCE, HALVINGS = 1000, 30
"""Of quantiles of many forecasts: so many forecasts together, and so many halvings of the interval that holds one."""


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
        return float(quantiles([self], (share,))[0, 0])

    def probability_below(self, value: float) -> float:
        """Probability that the outcome is less than `value`."""
        above = np.maximum(value - self.floors, 1e-300)
        return float(np.sum(self.weights * ndtr((np.log(above) - self.means) / self._widths)))

    @property
    def interval(self) -> tuple[float, float]:
        """The central 80 % interval."""
        low, high = quantiles([self], (0.1, 0.9))[0].tolist()
        return low, high


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
    """Forecasts a study again and again: every fit begins where the one before ended, which makes it many times as fast.

    As long as the runs that have ended since tell little that is new, it has draws of that fit with other weights.

    Args:
        target_seconds: the horizon.
    """

    def __init__(self, target_seconds: float) -> None:
        self._target_seconds = target_seconds
        self._known: Draws | None = None
        self._kept: Draws | None = None
        self._axes = 0

    def fit(self, records: Sequence[RunRecord]) -> dict[int, Forecast]:
        """As the function `fit`."""
        fitted = self.surface(records)
        return fitted.at(self._target_seconds) if fitted else {}

    def surface(self, records: Sequence[RunRecord]) -> "Fitted | None":
        """The surface behind the forecasts, for whoever asks it for more than the target; None when there is nothing to learn from."""
        runs = usable(records)
        if not runs:
            return None
        numbers = list(dict.fromkeys(r.trial for r in runs))
        place = {number: i for i, number in enumerate(numbers)}
        trial = np.array([place[r.trial] for r in runs])
        u = np.log(np.array([r.planned_seconds for r in runs]) / self._target_seconds)
        by_trial = {r.trial: r.recipe for r in runs}
        recipes = [by_trial[number] for number in numbers]
        traits, words = traits_of(recipes, beside=NOT_TRAITS)
        doses, final_doses = doses_of(runs, numbers, self._target_seconds, EXPONENT)
        knobs = np.concatenate([traits, words], axis=1)
        curved = np.repeat([True, False], [traits.shape[1], words.shape[1] + doses.shape[1]])
        kinds = Kinds.plain(curved)
        scales = scales_of(runs, self._target_seconds)
        points = Points(scales.of_runs, np.concatenate([knobs[trial], doses], axis=1))
        loss = np.array([r.bpb for r in runs], dtype=float)
        fitted = partial(fit_surface, points, loss, kinds, _prior(runs, scales.axes), Errors.of_trials(trial, u))
        if self._axes != scales.axes:
            self._known, self._kept, self._axes = fitted(size=SIZE).draws, None, scales.axes
        surface = fitted(size=SIZE, like=self._known, kept=self._kept)
        if self._kept is None or surface.draws.points is not self._kept.points:
            self._known, self._kept = surface.draws, surface.draws.sample(COMPONENTS)
        return Fitted(surface, scales, self._target_seconds, numbers, recipes, knobs, final_doses)


@dataclass(frozen=True)
class Fitted:
    """A study's runs on the surface: what its trials reach at any time, and what recipes would that nobody has tried."""

    surface: Surface
    scales: Scales
    target_seconds: float
    numbers: list[int]
    """Of the trials."""
    recipes: list[dict[str, Any]]
    """Theirs."""
    traits: np.ndarray
    """Likewise, as the surface takes them."""
    doses: np.ndarray
    """How much their compressions weigh at the target (`forecast/doses.py`)."""

    @property
    def knobs(self) -> np.ndarray:
        """Both, shape (trials, knobs)."""
        return np.concatenate([self.traits, self.doses], axis=1)

    def at(self, seconds: float, trials: Sequence[int] | None = None) -> dict[int, Forecast]:
        """Forecasts of trials, all of them if left out, for runs of `seconds`."""
        return self.along([seconds], trials)[0]

    def along(self, times: Sequence[float], trials: Sequence[int] | None = None) -> list[dict[int, Forecast]]:
        """Forecasts of trials, all of them if left out, for runs of each of some lengths in seconds; compressed as it tells at the target."""
        place = {number: i for i, number in enumerate(self.numbers)}
        chosen = np.array([place[number] for number in (self.numbers if trials is None else trials)], dtype=int)
        groups = np.tile(chosen, len(times))
        u = np.repeat(np.log(np.array(times) / self.target_seconds), len(chosen))
        level = np.stack([np.ones_like(u), -u], axis=1)
        found = _forecasts(self.surface.mixture(Points(self.scales.at(u), self.knobs[groups]), groups, level, COMPONENTS))
        numbers = [self.numbers[i] for i in chosen]
        return [dict(zip(numbers, found[i * len(chosen) : (i + 1) * len(chosen)], strict=True)) for i in range(len(times))]

    def draws_of(self, recipes: Sequence[Mapping[str, Any]], count: int) -> np.ndarray:
        """Joint draws of what recipes reach in truth at the target, bits per byte, shape (count, recipes); tried ones count as new."""
        traits = np.concatenate(traits_of(recipes, self.recipes, NOT_TRAITS), axis=1)
        knobs = np.concatenate([traits, self._doses_of(recipes)], axis=1)
        return self.surface.sample(Points(np.zeros((len(knobs), self.scales.axes)), knobs), count)[0]

    def _doses_of(self, recipes: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Of recipes that nobody has tried: the mean dose of the trials that were compressed likewise; 0 where there are none."""
        alike = np.array(
            [[r.get("compression") == known.get("compression") for known in self.recipes] for r in recipes], dtype=float
        )
        shares: np.ndarray = alike / np.maximum(alike.sum(axis=1, keepdims=True), 1)
        doses: np.ndarray = shares @ self.doses
        return doses


def quantiles(forecasts: Sequence[Forecast], shares: Sequence[float]) -> np.ndarray:
    """Values that outcomes stay below with given probabilities, of many forecasts at once: shape (forecasts, shares)."""
    found = np.zeros((len(forecasts), len(shares)))
    for start in range(0, len(forecasts), AT_ONCE):
        many = forecasts[start : start + AT_ONCE]
        floors, means = np.stack([f.floors for f in many]), np.stack([f.means for f in many])
        widths, weights = np.stack([f._widths for f in many]), np.stack([f.weights for f in many])
        for column, share in enumerate(shares):
            own = floors + np.exp(means + ndtri(share) * widths)
            low, high = own.min(axis=1), own.max(axis=1)  # a mixture's quantile lies between those of its components
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                above = np.log(np.maximum(middle[:, None] - floors, 1e-300))
                below = (weights * ndtr((above - means) / widths)).sum(axis=1) < share
                low, high = np.where(below, middle, low), np.where(below, high, middle)
            found[start : start + len(many), column] = (low + high) / 2
    return found


def _prior(runs: Sequence[RunRecord], axes: int) -> Prior:
    small = _smallness(runs) if axes == 2 else 0.0
    exponents = np.array(EXPONENTS) + small * (np.array(SMALL_EXPONENTS) - EXPONENTS)
    return Prior(
        exponents=(EXPONENT,) if axes == 1 else tuple(exponents.tolist()),
        balance=(0.0,) * axes,
        floor=FLOOR if all(run.unit == BITS for run in runs) else None,  # of other losses nobody knows
        fall=None,
        shared=(OWN_LEVEL, OWN_EXPONENT),
        depth=DEPTH,
        slope=SLOPE,
        drift=DRIFT,
        indicator=WORD,
        centred=False,
        beyond=Prior.beyond + small * (SMALL_BEYOND - Prior.beyond),
    )


def _smallness(runs: Sequence[RunRecord]) -> float:
    """Where a study is between one of large runs, 0, and one of small ones, 1."""
    read = max(FEW_TOKENS, *(run.tokens for run in runs))
    return float(np.clip(np.log(MANY_TOKENS / read) / np.log(MANY_TOKENS / FEW_TOKENS), 0.0, 1.0))


def _forecasts(mixture: Mixture) -> list[Forecast]:
    weights, widths = mixture.weights, np.minimum(np.hypot(mixture.spreads, mixture.beyond), WIDEST)
    expected = weights @ (mixture.floors[:, None] + np.exp(mixture.means + widths**2 / 2))
    columns = zip(mixture.means.T, mixture.spreads.T, mixture.apart.T, mixture.beyond.T, expected.tolist(), strict=True)
    return [Forecast(weights, mixture.floors, *column) for column in columns]
