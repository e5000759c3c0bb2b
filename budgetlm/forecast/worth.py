"""What another run may gain, and what its seconds would gain elsewhere: both in bits per byte at the target."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from budgetlm.forecast.fit import EXPONENT, Forecast
from budgetlm.forecast.front import behind

SAVED = "the rest of the budget is saved"
"""How the reason ends why a search ended before its budget did."""
RECENT_SHARE = 0.5
"""Of the trials, the newest that say what the next one will be like: a sampler learns."""
LEAST_RECENT = 8


class Improvement(NamedTuple):
    """How a trial compares with the one that would be chosen."""

    probability: float
    """That it is better."""
    expected: float
    """By how much on average, in bits per byte, where it is worse counted as 0: the expected improvement (Jones et al. 1998)."""


def improvement(one: Forecast, leader: Forecast) -> Improvement:
    """What it would be worth to know that `one` is better than `leader`.

    Both are mixtures over the same components, within which they are taken as independent.
    """
    (mean, spread), (other, others) = _moments(one), _moments(leader)
    gap, width = other - mean, np.hypot(spread, others)
    return Improvement(float(leader.weights @ ndtr(gap / width)), float(leader.weights @ _positive_part(gap, width)))


def gain_of_trials(forecasts: Mapping[int, Forecast], count: int, costs: Mapping[int, float] | None = None) -> float:
    """What so many more trials are expected to gain over the best, if they are like the newest ones.

    The least of `count` independent draws from the distribution of `gain_of_a_trial`; the integral of the probability that it is below x,
    over all x below the best.
    """
    mean, spread = _newest(forecasts, costs)
    x = np.linspace(min(0.0, mean) - 8 * spread, 0.0, 2001)
    return float(np.trapezoid(1 - (1 - ndtr((x - mean) / spread)) ** count, x))


def gain_of_a_trial(forecasts: Mapping[int, Forecast], costs: Mapping[int, float] | None = None) -> float:
    """What one more trial is expected to gain over the best, if it is like the newest ones.

    It is as if the next trial's quality were drawn from a normal distribution with the mean and spread of those.

    Args:
        costs: of each trial's artefact (`forecast/front.py`); where there are any, the best is that of those that cost no more.
    """
    mean, spread = _newest(forecasts, costs)
    return float(_positive_part(np.array(-mean), np.array(spread)))


def _newest(forecasts: Mapping[int, Forecast], costs: Mapping[int, float] | None) -> tuple[float, float]:
    """How far behind the best the newest trials are expected to end: mean and spread."""
    newest = sorted(forecasts)[-max(LEAST_RECENT, round(RECENT_SHARE * len(forecasts))) :]
    gaps = behind({n: f.mean for n, f in forecasts.items()}, costs or {})
    recent = np.array([gaps[n] for n in newest])
    return float(recent.mean()), max(float(np.std(recent, ddof=1)), 1e-9) if len(recent) > 1 else 1e-9


def gain_of_seconds(forecast: Forecast, seconds: float, target_seconds: float) -> float:
    """What the final would gain from so many device-seconds more: the slope of its power law, loss above E falling as time^-0.2."""
    above = forecast.mean - float(forecast.weights @ forecast.floors)
    return EXPONENT * above * seconds / target_seconds


def gain_of_a_longer_final(forecast: Forecast, seconds: float, target_seconds: float) -> float:
    """The same where so many seconds are no small part of the target: along the power law rather than its slope."""
    above = forecast.mean - float(forecast.weights @ forecast.floors)
    return float(above * (1 - (1 + seconds / target_seconds) ** -EXPONENT))


def _positive_part(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Expected value of a normal variable where what is negative counts as 0."""
    z = mean / spread
    expected: np.ndarray = spread * (np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) + z * ndtr(z))
    return expected


def _moments(forecast: Forecast) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the bits per byte in each component, the error that all trials share left out."""
    mean = np.exp(forecast.means + forecast.apart**2 / 2)
    return forecast.floors + mean, mean * np.sqrt(np.expm1(forecast.apart**2))
