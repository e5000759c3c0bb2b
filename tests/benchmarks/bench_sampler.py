"""Does TPE on an excerpt of its history find as good recipes as TPE on all of it? Random sampling shows that there is something to find.

Made-up losses in nine parameters with the domains of `default_space`: a noisy bowl in logarithms of rate, batch, depth and
width with offsets of the categorical ones; a narrow valley, where the best rate follows batch, width and optimiser; and the bowl where
deep and wide models break a memory constraint. What is compared is what a search would choose: the true loss of the
trial with the least observed one, above the least true loss there is.

    python -m tests.benchmarks.bench_sampler --trials 2000 --seeds 4

takes about 20 minutes of one core; without options it is a short form of a few minutes.
"""

import argparse
import math
import random
import statistics
import warnings
from collections.abc import Callable

import optuna

from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.space import Range, Space, suggest
from budgetlm.search.sampler import EXCERPT, make_sampler
from tests.benchmarks.bench_machinery import SPACE as MACHINERY_SPACE

SPACE: Space = MACHINERY_SPACE | {"batch_tokens": Range(low=512, high=16_384, step=512)}
"""TPE on all takes five times longer with a `log` range of integers."""
NOISE = 0.005
"""Spread of one observation, relative to the loss."""
LEAST = 1.5
"""The best true loss of every one of them."""


def bowl(r: Recipe) -> float:
    lr, batch = math.log(r.peak_lr / 8e-3), math.log(r.batch_tokens / 4096)
    depth, width = math.log(r.depth / 5), math.log(r.width / 224)
    offsets = {"linear": 0.0, "cosine": 0.01, "wsd": 0.005 + 0.1 * (r.cooldown - 0.4) ** 2}[r.schedule]
    offsets += 0.03 * (r.optimizer == "adamw") + 2 * (r.warmup - 0.04) ** 2 + 0.005 * math.log(r.weight_decay / 0.1) ** 2
    size = depth + 2 * width
    return LEAST + 0.04 * (lr - 0.5 * batch) ** 2 + 0.02 * batch**2 + 0.03 * size**2 + 0.02 * (depth - width) ** 2 + offsets


def valley(r: Recipe) -> float:
    shift = 0.5 * math.log(r.batch_tokens / 4096) - 0.7 * math.log(r.width / 224) + (0.8 if r.optimizer == "muon" else 0.0)
    miss = math.log(r.peak_lr / 5e-3) - shift
    return bowl(r) - 0.04 * (math.log(r.peak_lr / 8e-3) - 0.5 * math.log(r.batch_tokens / 4096)) ** 2 + 0.2 * miss**2


def memory(r: Recipe) -> float:
    """Above 0 where it does not fit; the bowl's best recipe just fits."""
    return math.log(r.depth * r.width**2 / (5 * 224**2)) - 0.1


def excess(
    seed: int, sampler: optuna.samplers.BaseSampler, loss: Callable[[Recipe], float], trials: int, tight: bool
) -> float:
    """The true loss of what looks best after `trials` trials, above the least."""
    chance = random.Random(seed)
    study = optuna.create_study(sampler=sampler)
    seen: list[tuple[float, float]] = []
    for _ in range(trials):
        trial = study.ask()
        recipe = suggest(trial, SPACE)
        if tight:
            trial.set_constraint("memory", memory(recipe))
        truth = loss(recipe)
        value = truth * (1 + chance.gauss(0, NOISE))
        if not tight or memory(recipe) <= 0:
            seen.append((value, truth))
        study.tell(trial, value)
    return min(seen)[1] - LEAST


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trials", type=int, default=600)
    options.add_argument("--seeds", type=int, default=2)
    given = options.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    samplers: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
        "all": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True),
        f"{EXCERPT}": make_sampler,
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    }
    for name, loss, tight in (("bowl", bowl, False), ("valley", valley, False), ("bowl, memory-bound", bowl, True)):
        found: dict[str, list[float]] = {who: [] for who in samplers}
        for seed in range(given.seeds):
            for who, make in samplers.items():
                found[who].append(excess(seed, make(seed), loss, given.trials, tight))
        told = ", ".join(
            f"{who} {1e3 * statistics.fmean(v):.1f} ({1e3 * min(v):.1f} to {1e3 * max(v):.1f})" for who, v in found.items()
        )
        whole, thin = (statistics.fmean(LEAST + r for r in v) for v in list(found.values())[:2])
        print(
            f"{name}, {given.trials} trials: excess loss x 1000, mean (least to most): {told}; "
            f"loss with an excerpt / with all {thin / whole:.4f}, n = {given.seeds}",
            flush=True,
        )


if __name__ == "__main__":
    main()
