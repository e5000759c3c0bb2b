"""Which run would tell most of what is best at a target, for what it costs."""

import numpy as np

from budgetlm.forecast.bowl import FAR, Bowl

DRAWS = 64
"""Of the bowl, each with a best choice of its own. With four times as many the searches of docs/LOG.md chose worse: chance spreads the runs."""


def tells(
    bowl: Bowl, scales: np.ndarray, knobs: np.ndarray, cells: np.ndarray, choices: np.ndarray, chance: np.random.Generator
) -> np.ndarray:
    """How much of the doubt about the choice a run would take away, (runs,).

    The doubt is the variance of how much better than the choice that is expected to be best those are which may be best instead, the mean
    over draws of the bowl. Runs far up its walls tell little, as of a run that is known (`FAR`).

    Args:
        bowl: what is known.
        scales: (runs, axes), logarithms.
        knobs: (runs, knobs).
        cells: (runs,), the numbers of their scales.
        choices: (choices, knobs), at the target.
        chance: draws.
    """
    place, levels = bowl.frame.place(np.tile(bowl.frame.target, (len(choices), 1)), choices), len(bowl.levels)
    at_target = bowl.frame.features(*place)
    drawn = (bowl.draws(DRAWS, chance) @ at_target.T).argmin(axis=1)
    rivals = at_target[drawn] - at_target[(at_target @ bowl.coefficients).argmin()]
    runs = bowl.frame.features(*bowl.frame.place(scales, knobs))
    known = cells[:, None] == bowl.levels
    x = np.concatenate([known, runs], axis=1)
    through = x @ bowl.covariance
    variance = (through * x).sum(axis=1) + bowl.noise**2  # a scale that is new is taken as if its level were known
    shared = through[:, levels:] @ rivals.T
    expected = runs @ bowl.coefficients
    _, cell = np.unique(cells, return_inverse=True)
    least = np.full(cell.max() + 1, np.inf)
    np.minimum.at(least, cell, expected)
    told: np.ndarray = (shared**2).mean(axis=1) / variance / (1 + ((expected - least[cell]) / FAR) ** 4)
    return told
