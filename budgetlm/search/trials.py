"""The Optuna side of a search: asked for recipes, and told once, at its end, what has become of each trial.

Three ends are told apart. A trial that was measured, or that diverged, gets a value. One whose recipe cannot be (too large for
the memory, an error that it would meet again) is infeasible: the sampler learns where, and by how much. One that only had
bad luck with its machine is failed, which teaches the sampler nothing.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import numpy as np
import optuna

from budgetlm.budget.database import engine_options, outlast
from budgetlm.recipe.near import near
from budgetlm.recipe.recipe import Recipe
from budgetlm.recipe.space import Space, parameters_of, recipe_of, searched, suggest
from budgetlm.search.sampler import make_sampler

TrialState = optuna.trial.TrialState
T = TypeVar("T")
NEAR, EVEN = 9, 3
"""After the default recipe, as many trials as TPE would otherwise draw evenly from the whole space; and every which of them still is."""
LEAST_FOR_IMPORTANCE = 8
"""Fewer trials than that say nothing of which parameter matters."""
RESAMPLES, MOST_RESAMPLED = 30, 400
"""For the intervals of importances: how often trials are drawn anew, and from how many at most."""


def open_storage(address: str) -> optuna.storages.RDBStorage:
    """Optuna's tables in a study's database."""
    return optuna.storages.RDBStorage(address, engine_kwargs=engine_options(address))


class Trials:
    """The trials of one search.

    Args:
        storage: where Optuna keeps them.
        name: of the study.
        space: what recipes are sampled from.
        seed: decides what is sampled.
        sampler: a name that `make_sampler` knows.
        objectives: of the study (`records.OBJECTIVES`).
    """

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        name: str,
        space: Space,
        seed: int,
        sampler: str = "tpe",
        objectives: str = "loss",
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._storage = storage
        directions: list[optuna.study.StudyDirection | Literal["minimize", "maximize"]] = ["minimize"] * len(
            objectives.split(",")
        )
        self._study = self._outlast(
            lambda _again: optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
        )
        self._space, self._seed = space, seed
        # A continued search must not draw the same random numbers again, so the seed moves with the trials.
        self._study.sampler = make_sampler(seed * 100_003 + len(self._study.get_trials(deepcopy=False)), sampler)
        self._asked: dict[int, optuna.Trial] = {}
        self._first: Recipe | None = None
        self._fit: Callable[[Recipe], Recipe] = lambda recipe: recipe

    def begin_with(self, recipe: Recipe, fit: Callable[[Recipe], Recipe] | None = None) -> None:
        """Make a recipe the first trial, and recipes near it two of every three of the next ones.

        TPE draws its first trials evenly from the whole space, most of which the laws know to be bad. A third of them still are, in case the
        laws are wrong here; later ones come from a mixture that always holds that even density too.

        Args:
            recipe: the first one.
            fit: brings one near it within the study's limits.
        """
        self._first, self._fit = recipe, fit or self._fit

    def ask(self) -> tuple[int, Recipe]:
        """A new trial: its number and its recipe."""
        return self._outlast(self._ask)

    def _ask(self, again: bool) -> tuple[int, Recipe]:
        if again:  # what was begun when the database went away is known to nobody
            for stray in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                if stray.number not in self._asked:
                    self._study.tell(stray.number, state=TrialState.FAIL)
        known = len(self._study.get_trials(deepcopy=False))
        if self._first and known <= NEAR and known % EVEN != EVEN - 1:
            chance = np.random.default_rng((self._seed, known))
            begun = self._fit(near(self._first, self._space, chance)) if known else self._first
            self._study.enqueue_trial(parameters_of(begun, self._space))
        trial = self._study.ask()
        recipe = suggest(trial, self._space)
        self._asked[trial.number] = trial
        return trial.number, recipe

    def running(self) -> dict[int, Recipe | None]:
        """Trials that were asked for and not yet told of; without a recipe where a crash came before it was complete."""
        found: dict[int, Recipe | None] = {}
        for trial in self._outlast(lambda _again: self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING])):
            self._asked[trial.number] = optuna.Trial(self._study, trial._trial_id)
            found[trial.number] = recipe_of(trial.params, self._space)
        return found

    def tell(self, number: int, bpb: float, *cost: float) -> None:
        """The trial is worth so much, in bits per byte at the target, and its artefact costs so much, where the study minds."""
        self._tell(number, [bpb, *cost])

    def tell_infeasible(self, number: int, violations: Mapping[str, float]) -> None:
        """The trial's recipe cannot be.

        Args:
            violations: of each constraint, e.g. `memory_gib`, by how much it is broken; 0 or less where it is kept.
        """
        trial = self._asked[number]

        def constrain(_again: bool) -> None:
            for what, excess in violations.items():
                trial.set_constraint(what, excess)

        self._outlast(constrain)
        self._tell(number, state=TrialState.PRUNED)

    def tell_failed(self, number: int) -> None:
        """The trial came to nothing, by no fault of its recipe."""
        self._tell(number, state=TrialState.FAIL)

    def _tell(self, number: int, values: list[float] | None = None, state: optuna.trial.TrialState | None = None) -> None:
        def tell(again: bool) -> None:
            kept = again and self._study.get_trials(deepcopy=False)[number].state.is_finished()
            if not kept:  # else only the answer was lost
                self._study.tell(number, values, state=state)

        self._outlast(tell)
        self._asked.pop(number)

    def _outlast(self, work: Callable[[bool], T]) -> T:
        """Do something with the storage, again if its server was away meanwhile."""
        engine = getattr(self._storage, "engine", None)  # in memory it has none, and is never away
        return outlast(engine, work) if engine is not None else work(False)

    def infeasible(self) -> int:
        """How many trials were told to be infeasible."""
        trials = self._study.get_trials(deepcopy=False, states=[TrialState.PRUNED])
        return len([t for t in trials if any(excess > 0 for excess in t.constraints.values())])

    def importance(self) -> tuple[int, dict[str, float]]:
        """How many trials have a value, and by PED-ANOVA (arXiv:2304.10255) each parameter's importance, if they are enough."""
        trials, names = self._for_importance()
        return len(trials), _importances(self._study, names) if names else {}

    def importance_intervals(self) -> dict[str, tuple[float, float]]:
        """Central 80 % of each parameter's importance over the trials drawn anew with replacement: how much it is chance.

        Of many trials it takes an even excerpt, so that it stays a matter of seconds.
        """
        trials, names = self._for_importance()
        if not names:
            return {}
        chance, found = np.random.default_rng(self._seed), []
        trials = trials[:: math.ceil(len(trials) / MOST_RESAMPLED)]
        for _ in range(RESAMPLES):
            study = optuna.create_study(directions=self._study.directions)
            study.add_trials([trials[i] for i in chance.integers(len(trials), size=len(trials))])
            if all(len({t.params.get(n) for t in study.get_trials(deepcopy=False)} - {None}) > 1 for n in names):
                found.append(_importances(study, names))
        if not found:
            return {}
        lows, highs = np.quantile([[one[name] for name in names] for one in found], (0.1, 0.9), axis=0).tolist()
        return {name: (low, high) for name, low, high in zip(names, lows, highs, strict=True)}

    def _for_importance(self) -> tuple[list[optuna.trial.FrozenTrial], list[str]]:
        """Trials with a value, and the parameters that differ among them; none of these where that says nothing."""
        trials = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        names = [n for n in searched(self._space) if len({t.params.get(n) for t in trials} - {None}) > 1]
        return trials, names if len(trials) >= LEAST_FOR_IMPORTANCE and len(names) > 1 else []


def _importances(study: optuna.Study, names: list[str]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message=".*low `target` values")  # which is what the loss is
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        loss = (lambda trial: trial.values[0]) if len(study.directions) > 1 else None
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator, params=names, target=loss))
