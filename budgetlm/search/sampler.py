"""The sampler of a study: by default Optuna's TPE on an excerpt of the history, so that asking stays cheap however long the study is.

TPE draws candidates from a density over the good trials, l(x), and takes the one with the largest l(x)/g(x), where g is the
density over all others (Watanabe 2023, arXiv:2304.11127). Optuna calls at most 25 trials good, so in a long study nearly all
of the time goes into g, trial by trial. The excerpt keeps those 25 and an even sample of the rest: l is exactly what it
would be, and g is estimated from fewer points of the same distribution. Up to `EXCERPT` trials nothing changes at all.
"""

import warnings
from collections.abc import Container, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from operator import attrgetter
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from budgetlm.errors import ConfigError
from budgetlm.forecast.front import front

EXCERPT = 600
"""Finished trials that TPE sees: enough that it takes `GOOD` of them as good, as of any longer history (a tenth, at most 25)."""
GOOD = 25
"""Most trials that Optuna's TPE takes as good."""


SAMPLERS = ("tpe", "gp", "cmaes", "qmc", "random")
"""Names that `make_sampler` knows, all of them Optuna's own."""
STARTING = 8
"""Trials that the Gaussian process and CMA-ES take from elsewhere before they begin."""


def make_sampler(seed: int, name: str = "tpe") -> optuna.samplers.BaseSampler:
    """The sampler for a study that minimises.

    `tpe` is multivariate TPE, whose cost for each trial is bounded; `gp` a Gaussian process; `cmaes` CMA-ES; `qmc` a scrambled
    Sobol sequence, which learns nothing; `random` neither.
    Recipes that broke a constraint (`Trial.set_constraint`) and those that other workers are running are treated as by TPE itself.

    Args:
        seed: of its random numbers; the same history and the same seed give the same recipe.
        name: one of `SAMPLERS`.

    Raises:
        ConfigError: there is no such sampler, or what it needs is not installed.
    """
    samplers = optuna.samplers
    if name not in SAMPLERS:
        raise ConfigError(f"there is no sampler {name!r}. Use {', '.join(SAMPLERS)}.")
    if name == "cmaes" and not find_spec("cmaes"):
        raise ConfigError(
            "the sampler 'cmaes' needs a package that is not installed: `pip install cmaes`, or use another one."
        )
    with warnings.catch_warnings():  # "experimental" for years, and what the documentation recommends
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=STARTING)
        if name == "cmaes":
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=STARTING, warn_independent_sampling=False)
        if name == "qmc":
            return samplers.QMCSampler(
                seed=seed, scramble=True, warn_independent_sampling=False, warn_asynchronous_seeding=False
            )
        if name == "random":
            return samplers.RandomSampler(seed=seed)
        return _ExcerptTPE(seed=seed, multivariate=True, group=True)


def excerpt(trials: Sequence[FrozenTrial], size: int = EXCERPT) -> list[FrozenTrial]:
    """The best finished trials that broke no constraint, an even sample of all others, and whatever is running; in their order.

    Args:
        trials: complete, pruned and running ones of a study that minimises, in the order of their numbers.
        size: finished trials to keep at most.
    """
    running = [t for t in trials if t.state == TrialState.RUNNING]
    finished = [t for t in trials if t.state != TrialState.RUNNING]
    if len(finished) <= size:
        return list(trials)
    complete = [t for t in finished if t.state == TrialState.COMPLETE]
    several = bool(complete) and len(complete[0].values) > 1
    good = size // 10 if several else GOOD  # of several objectives TPE takes a tenth as good, however many there are
    ranked = _by_fronts(complete) if several else sorted(complete, key=attrgetter("value"))
    feasible = (t for t in ranked if all(v <= 0 for v in t.constraints.values()))
    best = islice(feasible, good)  # lazily: looking up constraints is what costs
    share = size - good
    sample = (finished[(i + 1) * len(finished) // share - 1] for i in range(share))  # the newest among them
    seen = {t.number: t for t in (*best, *sample, *running)}
    return [seen[number] for number in sorted(seen)]


def _by_fronts(trials: Sequence[FrozenTrial]) -> Iterator[FrozenTrial]:
    """Trials of two objectives: those that none beats in both, then those that none of the rest does, and so on."""
    left = {t.number: t for t in trials}
    while left:
        losses, costs = ({n: t.values[i] for n, t in left.items()} for i in (0, 1))
        yield from [left.pop(number) for number in front(losses, costs)]


class _Excerpt(optuna.Study):
    """A study as its sampler sees it: the same storage and settings, and an excerpt of the trials there were at one moment."""

    def __init__(self, study: optuna.Study) -> None:
        self.__dict__.update(study.__dict__)
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        self._seen = excerpt(study.get_trials(deepcopy=False, states=states))

    def _get_trials(
        self,
        deepcopy: bool = True,  # noqa: ARG002  # Optuna's signature; a sampler never asks for copies
        states: Container[TrialState] | None = None,
        use_cache: bool = False,  # noqa: ARG002
    ) -> list[FrozenTrial]:
        return [t for t in self._seen if states is None or t.state in states]


class _ExcerptTPE(optuna.samplers.TPESampler):
    """TPE that is handed the excerpt in place of the study, by the three questions that every Optuna sampler is asked."""

    _view: tuple[int, _Excerpt] | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(self._excerpt_for(study, trial), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(self._excerpt_for(study, trial), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return super().sample_independent(self._excerpt_for(study, trial), trial, param_name, param_distribution)

    def _excerpt_for(self, study: optuna.Study, trial: FrozenTrial) -> _Excerpt:
        """The excerpt as of the first question about this trial: choosing it once is cheaper than choosing it thrice."""
        if self._view is None or self._view[0] != trial.number:
            self._view = (trial.number, _Excerpt(study))
        return self._view[1]
