"""How much each compression of a recipe weighs on a run's loss, by a law: columns for the surface, beside the traits. No torch.

An option that a recipe has or has not would be an indicator, and its effect on log(loss - E) the same on every rung and for every shape. For two ways of
compressing that is so, by what was published: fewer weights, and weights that are rounded while they are trained, act like a model
of fewer parameters (Frantar et al. 2023, arXiv:2309.08520; Kumar et al. 2024, arXiv:2411.04330, section 4). Weights that are rounded only
afterwards add to the loss what grows with the tokens that each parameter has learnt from, as (tokens/parameters)^0.5 (section 3 there, equation 2,
whose exponents of tokens and parameters are nearly equal); as what is left of the loss above E falls with scale, that is an ever larger part of it.

So an option's column is its dose by that law, 1 at the target for a recipe of the mean tokens per parameter. The surface finds what a dose costs, lets
it drift with scale, and a second column lets it change with the tokens per parameter otherwise than the law says.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from budgetlm.compress.apply import Option, parse
from budgetlm.records import RunRecord

OVERTRAINED = 0.5
"""Exponent of tokens per parameter in what rounding after training adds to the loss."""
UNIT = 0.5
"""Of a dose: what an indicator of half the recipes has for its spread, so that the prior of a word's effect is an option's too."""
CHANGE = 0.5
"""Of the second column, for each factor e of tokens per parameter: about half as sure as the effect itself is of being none."""
LEAST_RANGE = 0.1
"""Tokens per parameter that differ less than this, in logarithms, tell nothing of their part."""


def doses_of(
    runs: Sequence[RunRecord], numbers: Sequence[int], target_seconds: float, exponent: float
) -> tuple[np.ndarray, np.ndarray]:
    """The columns of runs, and of their trials at the target.

    Args:
        runs: finished ones.
        numbers: of the trials, in the order of the rows that are wanted of them.
        target_seconds: the horizon.
        exponent: at which the loss above E falls with device time.

    Returns:
        Shapes (runs, columns) and (trials, columns); no columns where all trials compress alike.
    """
    place = {number: i for i, number in enumerate(numbers)}
    trial = np.array([place[r.trial] for r in runs])
    options = [_options(r.recipe) for r in {r.trial: r for r in runs}.values()]
    wanted = {o.name: o for some in options for o in some if any(o not in others for others in options)}
    if not wanted:
        return np.zeros((len(runs), 0)), np.zeros((len(numbers), 0))
    u = np.log(np.array([r.planned_seconds for r in runs]) / target_seconds)
    learnt = np.log([max(r.tokens, 1) / max(r.compute_parameters, 1) for r in runs])
    final = _at_target(runs, learnt, u, trial, len(numbers))
    has = np.array([[o in _options(r.recipe) for o in wanted.values()] for r in runs], dtype=float)
    of_trials = np.zeros((len(numbers), len(wanted)))
    of_trials[trial] = has
    middle = float(final.mean())
    return tuple(  # type: ignore[return-value]  # two of them
        _columns(list(wanted.values()), rows, t - middle, at, exponent, float(np.ptp(final)))
        for rows, t, at in ((has, learnt, u), (of_trials, final, np.zeros(len(numbers))))
    )


def _columns(
    options: Sequence[Option], has: np.ndarray, learnt: np.ndarray, u: np.ndarray, exponent: float, spread: float
) -> np.ndarray:
    """Doses, and how each changes with tokens per parameter where these differ."""
    by_law = np.exp(OVERTRAINED * learnt + exponent * u)
    rounded = np.array([o.kind == "bits" and not o.rounds_in_training for o in options])
    doses = has * np.where(rounded, by_law[:, None], 1.0) / UNIT
    return np.concatenate([doses, CHANGE * doses * learnt[:, None]] if spread > LEAST_RANGE else [doses], axis=1)


def _at_target(runs: Sequence[RunRecord], learnt: np.ndarray, u: np.ndarray, trial: np.ndarray, count: int) -> np.ndarray:
    """Logarithm of the tokens per parameter that each trial would have at the target: a miniature's own; more where the shape is the recipe's already."""
    whole = np.array([_is_the_recipe(r) for r in runs])
    foretold = learnt - np.where(whole, u, 0.0)
    found = np.zeros(count)
    for row in np.argsort(u, kind="stable"):  # the highest rung last
        found[trial[row]] = foretold[row]
    return found


def _is_the_recipe(run: RunRecord) -> bool:
    shape = run.config.get("model", {})
    return bool(shape) and all(shape.get(name) == run.recipe.get(name, math.nan) for name in ("depth", "width"))


def _options(recipe: Mapping[str, object]) -> tuple[Option, ...]:
    return parse(str(recipe.get("compression", "none")))
