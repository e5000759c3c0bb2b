"""From a person's coordinates to those of the surface: scales about their middle, knobs about an optimum that drifts with scale."""

from dataclasses import dataclass

import numpy as np

from budgetlm.forecast.bowl import BowlFrame, fit_bowl
from budgetlm.forecast.points import Centre, Kinds, Points, Prior

CLIP = 0.5
"""Numbers farther outside what was seen than this, in spreads, count as if they were there: no bowl holds far away."""


@dataclass(frozen=True)
class Frame:
    """From a person's coordinates to those of the model."""

    middle: np.ndarray  # (axes,)
    edges: tuple[np.ndarray, np.ndarray]  # least and greatest of each axis
    spread: np.ndarray  # (knobs,)
    curved: np.ndarray  # (knobs,) bool
    known: np.ndarray  # (knobs,) bool: a published law gave the optimum
    centre: Centre
    seen: tuple[np.ndarray, np.ndarray]
    """Least and greatest knob, in spreads, relative to the centre."""

    def scales(self, points: Points) -> np.ndarray:
        """Relative to the middle, (n, axes)."""
        relative: np.ndarray = points.scales - self.middle
        return relative

    def knobs(self, points: Points) -> np.ndarray:
        """In spreads, relative to the optimum, (n, knobs)."""
        low, high = self.seen
        relative = (points.knobs - self.centre.at(points.scales)) / self.spread
        clipped: np.ndarray = np.where(self.curved, np.clip(relative, low - CLIP, high + CLIP), relative)
        return clipped


def make_frame(points: Points, loss: np.ndarray, group: np.ndarray, kinds: Kinds, prior: Prior, around: Points) -> Frame:
    """The coordinates of a table of runs; see `fit_surface`."""
    axes, count = points.scales.shape[1], points.knobs.shape[1]
    known = np.isfinite(prior.optimum.offset) if prior.optimum else np.zeros(count, dtype=bool)
    spread = np.where(kinds.curved, points.knobs.std(axis=0), 1.0)
    centre = Centre(np.where(kinds.curved, points.knobs.mean(axis=0), 0.0), np.zeros((count, axes)))
    if prior.centred and kinds.curved.any():
        # Where there is nothing to choose, what was tried says where the best may lie.
        chosen = np.ptp(around.knobs, axis=0) > 0
        middle = np.where(chosen, around.knobs.mean(axis=0), points.knobs.mean(axis=0))
        wide = np.where(chosen, around.knobs.std(axis=0), points.knobs.std(axis=0))
        bowl = BowlFrame.of(around.scales.mean(axis=0), middle, wide, kinds)
        centre = fit_bowl(bowl, points.scales, points.knobs, loss, group).centre
    if prior.optimum:
        offset = np.where(known, prior.optimum.offset, centre.offset)
        centre = Centre(offset, np.where(known[:, None], prior.optimum.drift, centre.drift))
    edges = (points.scales.min(axis=0), points.scales.max(axis=0))
    apart = (points.knobs - centre.at(points.scales)) / spread
    seen = (apart.min(axis=0), apart.max(axis=0)) if count else (np.zeros(0), np.zeros(0))
    return Frame(points.scales.mean(axis=0), edges, spread, kinds.curved, known, centre, seen)
