"""A landscape of losses fitted to a study's own runs, to replay searches on: a law in device time, a bowl in the recipe, and noise.

    log(bpb - E) = level - exponent·u + slopes·z + squares·z² + drift·z·u + the recipe's own + the run's own,

with u the logarithm of device time over the target's and z the searched parameters, -1 to 1 over their ranges. A recipe's own is a level and a slope in u: what it
shows far below the target is not what it comes to there. Each draw is one
landscape that the runs allow, so that searches on many of them say how sure the answer is. Divergence is not modelled.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from budgetlm.errors import StudyError
from budgetlm.files import digest
from budgetlm.forecast.fit import usable
from budgetlm.recipe.space import INTEGERS, Choices, Domain, Range, Space, searched
from budgetlm.records import RunRecord

E_SHARES = (0.3, 0.5, 0.7, 0.85)
"""Candidates for E, as shares of the least loss seen."""
OWN = (0.003, 0.01, 0.03, 0.1)
"""Candidates for the spread of what is a recipe's own, in log(bpb - E)."""
OWN_SLOPES = (0.0, 0.2, 0.5)
"""Candidates for how much that changes for each factor e of device time, as a share of it."""
NOISE = (0.002, 0.006, 0.02)
"""Likewise for a run's."""
EXPONENT = (0.2, 0.12)
"""Mean and spread of the exponent in device time."""
SLOPE, SQUARE, DRIFT = 0.06, (0.03, 0.05), 0.015
"""Spread of slopes, mean and spread of squares, spread of drifts."""
FEWEST = 4
"""Finished runs that a landscape needs, on two rungs at least."""
MOST = 300
"""So many of the newest runs are fitted."""


@dataclass(frozen=True)
class Landscape:
    """What recipes would reach, as far as a study's runs say."""

    space: Space
    floor: float
    means: np.ndarray  # (features,)
    root: np.ndarray  # (features, features) of the covariance
    own: float
    own_slope: float
    noise: float
    runs: int
    """That it was fitted to."""

    def draw(self, seed: int) -> "Drawn":
        """One landscape of those that the runs allow."""
        chance = np.random.default_rng(seed)
        return Drawn(self, self.means + self.root @ chance.standard_normal(len(self.means)), seed)


@dataclass(frozen=True)
class Drawn:
    """One landscape."""

    landscape: Landscape
    coefficients: np.ndarray
    seed: int

    def bpb(self, recipe: dict[str, Any], u: float = 0.0, run: str | None = None) -> float:
        """Bits per byte of a recipe, its own peculiarity included.

        Args:
            recipe: its parameters.
            u: logarithm of device time over the target's.
            run: names a run, whose noise is then included.
        """
        land = self.landscape
        level = float(features(land.space, recipe, u) @ self.coefficients)
        which = sorted((k, str(recipe[k])) for k in searched(land.space))
        level += land.own * (_normal(self.seed, which) - land.own_slope * u * _normal(self.seed, which, "slope"))
        level += land.noise * _normal(self.seed, run) if run else 0.0
        return land.floor + math.exp(level)


def random_recipes(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Recipes drawn evenly from a space, each as the parameters that are searched."""
    chance = np.random.default_rng(seed)
    return [{name: _drawn(name, space[name], chance) for name in searched(space)} for _ in range(count)]


def _drawn(name: str, domain: Domain, chance: np.random.Generator) -> Any:
    if isinstance(domain, Choices):
        return domain.values[chance.integers(len(domain.values))]
    assert isinstance(domain, Range)
    if domain.step:
        return domain.low + domain.step * int(chance.integers(int((domain.high - domain.low) // domain.step) + 1))
    low, high = (math.log(v) if domain.log else v for v in (domain.low, domain.high))
    value = chance.uniform(low, high)
    value = math.exp(value) if domain.log else value
    return round(value) if name in INTEGERS else value


def _normal(*key: object) -> float:
    """A standard normal number that depends on the key alone."""
    return float(np.random.default_rng(int(digest(key), 16)).standard_normal())


def features(space: Space, recipe: dict[str, Any], u: float) -> np.ndarray:
    """The regressors of one recipe, (features,)."""
    numbers: list[float] = []
    others: list[float] = []
    for name in searched(space):
        domain, value = space[name], recipe[name]
        if isinstance(domain, Choices):
            others += [float(value == v) for v in domain.values]
        elif isinstance(domain, Range):
            low, high, at = (math.log(v) if domain.log else v for v in (domain.low, domain.high, value))
            numbers.append(2 * (at - low) / (high - low) - 1)
    z = np.array(numbers)
    return np.concatenate([[1.0, -u], others, z, z**2, z * u])


def fit_landscape(records: Sequence[RunRecord], space: Space, target_seconds: float, name: str) -> Landscape:
    """Fit a landscape to a study's finished rungs.

    Raises:
        StudyError: there are too few of them.
    """
    runs = [r for r in usable(records) if all(p in r.recipe for p in searched(space))][-MOST:]
    if len(runs) < FEWEST or len({r.rung for r in runs}) < 2:
        raise StudyError(
            f"study {name!r} has {len(runs)} finished runs on {len({r.rung for r in runs})} rungs; to model its losses takes "
            f"{FEWEST} on 2 at least. Go on with it: `budgetlm search --study {name} --hours …`."
        )
    u = np.log([r.planned_seconds / target_seconds for r in runs])
    x = np.array([features(space, r.recipe, at) for r, at in zip(runs, u.tolist(), strict=True)])
    bpb = np.array([r.bpb for r in runs], dtype=float)
    trial = np.array([r.trial for r in runs])
    same = (trial[:, None] == trial).astype(float)
    means, spreads = _prior(space, x.shape[1])
    best: tuple[float, float, np.ndarray, tuple[float, float, float]] = (-math.inf, 0.0, same, (0.0, 0.0, 0.0))
    between = (x * spreads**2) @ x.T
    for share, own, slope, noise in product(E_SHARES, OWN, OWN_SLOPES, NOISE):
        floor = share * float(bpb.min())
        y = np.log(bpb - floor)
        within = own**2 * same * (1 + slope**2 * np.outer(u, u)) + noise**2 * np.eye(len(y))
        lower = np.linalg.cholesky(between + within)
        left = np.linalg.solve(lower, y - x @ means)
        evidence = -0.5 * float(left @ left) - float(np.log(np.diag(lower)).sum()) - float(y.sum())
        if evidence > best[0]:
            best = evidence, floor, within, (own, slope, noise)
    _, floor, within, sizes = best
    inverse = np.linalg.inv(within)
    covariance = np.linalg.inv(np.diag(spreads**-2.0) + x.T @ inverse @ x)
    found = means + covariance @ x.T @ inverse @ (np.log(bpb - floor) - x @ means)
    return Landscape(space, floor, found, np.linalg.cholesky((covariance + covariance.T) / 2), *sizes, len(runs))


def imagined_landscape(
    space: Space, floor: float = 0.5, own: float = 0.01, own_slope: float = 0.5, noise: float = 0.006
) -> Landscape:
    """The landscapes that are thought likely before there is any run.

    Args:
        floor: E, in bits per byte.
        own: spread of what is a recipe's own, in log(bpb - E).
        own_slope: how much that changes for each factor e of device time, as a share of it; as the forecast takes it to (`forecast/fit.py`).
        noise: likewise of a run's.
    """
    size = len(features(space, random_recipes(space, 1, 0)[0], 0.0))
    means, spreads = _prior(space, size)
    spreads[0] = 0.0  # where the level lies changes nothing that is searched for
    return Landscape(space, floor, means, np.diag(spreads), own, own_slope, noise, 0)


def _prior(space: Space, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and spreads of the coefficients."""
    numbers = sum(isinstance(space[n], Range) for n in searched(space))
    others = size - 2 - 3 * numbers
    groups = [(0.0, 3.0, 1), (*EXPONENT, 1), (0.0, SLOPE, others + numbers), (*SQUARE, numbers), (0.0, DRIFT, numbers)]
    means, spreads = (np.concatenate([np.full(g[2], g[i]) for g in groups]) for i in (0, 1))
    return means, spreads
