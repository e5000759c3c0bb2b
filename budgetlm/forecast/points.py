"""What the forecast speaks of: where runs are, what their knobs are, and what is known before any of them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Points:
    """Where a loss was measured or is wanted."""

    scales: np.ndarray
    """(n, axes): natural logarithms, of parameters and tokens for instance."""
    knobs: np.ndarray
    """(n, knobs): logarithms where the knob is one of scale, plain numbers, or indicators."""


@dataclass(frozen=True)
class Kinds:
    """What the knobs are, each (knobs,)."""

    curved: np.ndarray
    """bool: a number, which has a best value between others; else an indicator."""
    logged: np.ndarray
    """bool: a logarithm."""
    role: np.ndarray
    """What everybody knows of it: a peak learning "rate", a "batch", a "ratio" such as tokens per parameter; "" of others."""

    @staticmethod
    def plain(curved: np.ndarray) -> "Kinds":
        """Of knobs that are no logarithms and of which nothing is known."""
        return Kinds(curved, np.zeros(len(curved), dtype=bool), np.full(len(curved), ""))


@dataclass(frozen=True)
class Centre:
    """Where the best knobs lie, linear in the scale axes."""

    offset: np.ndarray  # (knobs,)
    drift: np.ndarray  # (knobs, axes)

    def at(self, scales: np.ndarray) -> np.ndarray:
        """The best knobs at scales (n, axes), shape (n, knobs)."""
        best: np.ndarray = self.offset + scales @ self.drift.T
        return best


@dataclass(frozen=True)
class Prior:
    """What is known before any run."""

    exponents: tuple[float, ...]
    """Median exponent of each axis."""
    balance: tuple[float, ...]
    """Where on each axis the terms of the law are alike, in the axis' own logarithm."""
    optimum: Centre | None = None
    """A published law of the optimum, in the knobs' own coordinates; NaN for knobs that it does not know."""
    floor: tuple[float, float] | None = None
    """Mean and spread of E, where its size is known and not only its share of the losses."""
    fall: tuple[float, float] | None = (0.048, 0.25)
    """Median, and spread of the logarithm, of the share of the loss that a factor e of compute takes away at the least loss seen."""
    shared: tuple[tuple[float, float], ...] = ((2.0, 0.0),)
    """Of each effect that the runs of a group have in common: median and spread of the logarithm of its size beside the noise."""
    depth: float = 0.01
    """Median of what one spread of a knob off its best value costs, relative to the loss."""
    slope: float = 0.5
    """How far off the centre the best knob may be, in units of half a spread: the size of slopes beside the bowl's depth."""
    drift: float = 0.2
    """Likewise for each factor e of scale."""
    centred: bool = True
    """Whether the optimum is looked for before the fit; otherwise the knobs' middle stands for it."""
    indicator: float = 3.0
    """Size of what a value of a text knob changes, beside the bowl's depth."""
    beyond: float = 0.025
    """The law's error for each factor e that an axis is carried beyond what was measured, relative to the loss."""
