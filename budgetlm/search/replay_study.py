"""A study's own search replayed in seconds: the real scheduler on a simulated clock, on losses modelled from the study's runs."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from budgetlm.config import StudyConfig
from budgetlm.errors import BudgetExhausted, StudyError
from budgetlm.forecast.choose import choose
from budgetlm.recipe.oracle import size_violation
from budgetlm.recipe.recipe import recipe_from
from budgetlm.recipe.space import recipe_of
from budgetlm.records import RunRecord, read_records
from budgetlm.search.engines.faults import Faults, Toll
from budgetlm.search.engines.modelled import Drawn, fit_landscape, random_recipes
from budgetlm.search.engines.simulated import Simulation, simulate
from budgetlm.search.jobs import RungJob
from budgetlm.search.ladder import plan_rungs
from budgetlm.search.plan import Plan, load_plan
from budgetlm.search.rehearse import imagine
from budgetlm.search.replay import check
from budgetlm.search.sampler import make_sampler
from budgetlm.search.study import prepare
from budgetlm.watch import Watcher

SHARES = (0.125, 0.25, 0.5, 1.0)
"""Of the budget, at which a replayed study says what it would have chosen."""
RIVALS = 1000
"""Recipes drawn at random, with their true losses known: the best of them and of all that were tried is what regret is against."""


@dataclass(frozen=True)
class Moment:
    """What a search would have chosen after a share of its budget."""

    share: float
    seconds: float
    """Device-seconds spent by then."""
    trial: int
    regret: float
    """Of its recipe at the target, per cent."""


@dataclass(frozen=True)
class ReplayedStudy:
    """One search of a study, replayed."""

    seed: int
    trials: int
    runs_by_rung: list[int]
    moments: list[Moment]
    recipe: str
    """The chosen one, in words."""
    stopped_because: str
    toll: Toll


@dataclass(frozen=True)
class StudyReplay:
    """A study's search, replayed many times."""

    sampler: str
    budget: float
    """Target runs."""
    fitted_runs: int
    """Of the study, that the losses were modelled from."""
    mean: float
    """Of the regret at the end, per cent."""
    median: float
    p90: float
    by_share: dict[str, float]
    """Mean regret after a share of the budget."""
    rungs: list[float]
    """Device-seconds of each."""
    devices: int
    failures: str
    """As they were asked for; empty for none."""
    searches: list[ReplayedStudy]

    def summary(self) -> str:
        """For people."""
        way = ", ".join(f"{regret:.2f} % after {float(share):.0%}" for share, regret in self.by_share.items())
        rows = [
            f"{len(self.searches)} searches with {self.sampler}, {self.budget:.3g} target runs each, on landscapes fitted to "
            f"{self.fitted_runs} runs",
            f"regret    mean {self.mean:.3f} %, median {self.median:.3f} %, 90th percentile {self.p90:.3f} %; mean {way} of the budget",
            f"rungs     {', '.join(f'{r:.4g} s' for r in self.rungs)}",
        ]
        if self.devices > 1 or self.failures:
            rows.append(f"devices   {_together([s.toll for s in self.searches])}")
        for s in self.searches:
            runs = " ".join(map(str, s.runs_by_rung))
            rows.append(
                f"seed {s.seed:<4} {s.moments[-1].regret:6.3f} %  {s.trials} trials, runs by rung {runs}: {s.recipe}"
            )
        return "\n".join(rows)


def replay_study(
    config: StudyConfig,
    cache: Path,
    watcher: Watcher,
    budget: float | None = None,
    seeds: int = 10,
    sampler: str = "tpe",
    devices: int = 1,
    failures: str = "",
) -> StudyReplay:
    """Replay a study's own search, its scheduler on a simulated clock, its losses modelled from its runs.

    Every seed searches another landscape that the study's runs allow.

    Args:
        config: of the study.
        cache: where its tokens are.
        watcher: told of what takes a while.
        budget: in runs of the target; the study's own if None.
        seeds: how many searches.
        sampler: which of Optuna's samplers proposes.
        devices: that are used at once.
        failures: how often they fail, in the words of `Faults.read`; never if empty.

    Raises:
        StudyError: it has no plan, or too few runs to model.
        ConfigError, BudgetExhausted, DataError: the message says what to do.
    """
    check(1.0 if budget is None else budget, seeds)
    make_sampler(0, sampler)  # what is not known is refused first
    faults = Faults.read(failures) if failures else Faults()
    plan = load_plan(config.folder)
    if plan is None:
        raise StudyError(
            f"study {config.name!r} has no runs yet. `budgetlm search --study {config.name} --hours …` begins it."
        )
    if plan.world.objectives != "loss":
        raise StudyError(
            f"study {config.name!r} is about {plan.world.objectives.replace(',', ' and ')}, but a replay says how much loss a search gives away, against "
            "one best recipe. Replay a study of the loss alone."
        )
    landscape = fit_landscape(read_records(config.folder), plan.space, plan.target_seconds, config.name)
    seconds = config.budget.seconds if budget is None else budget * plan.target_seconds
    if budget is not None or devices > 1:
        plan = replace(
            plan, rungs=plan_rungs(seconds, plan.target_seconds, config.search.least_rung_seconds, devices=devices)
        )
    tokens = prepare(config, plan.world.vocab_size, cache, watcher)
    searches = []
    for seed in range(seeds):
        watcher.working("replaying", seed, seeds)
        drawn = landscape.draw(seed)
        simulation = simulate(
            plan,
            tokens,
            seconds,
            lambda job: _modelled(job, plan, drawn),  # noqa: B023
            seed,
            sampler=sampler,
            places=devices,
            stops_early=config.search.stop_early,
            faults=replace(faults, seed=seed),
            max_restarts=config.search.max_restarts,
        )
        if not simulation.records:
            raise BudgetExhausted(f"{seconds:.0f} device-seconds pay for no run of this study. Raise `--budget`.")
        searches.append(_replayed(seed, simulation, plan, drawn, seconds))
    ends = np.array([s.moments[-1].regret for s in searches])
    by_share = {str(share): float(np.mean([_at(s, share) for s in searches])) for share in SHARES}
    mean, median, p90 = float(ends.mean()), float(np.median(ends)), float(np.quantile(ends, 0.9))
    share = seconds / plan.target_seconds
    return StudyReplay(sampler, share, landscape.runs, mean, median, p90, by_share, plan.rungs, devices, failures, searches)


def _modelled(job: RungJob, plan: Plan, drawn: Drawn) -> RunRecord:
    """The record that a run would leave on a landscape."""
    u = math.log(job.config.seconds / job.label.target_seconds)
    bpb = drawn.bpb(job.label.recipe, u, f"{job.label.run} {job.config.seed}")
    return replace(imagine(job, plan.world), bpb=bpb)


def _replayed(seed: int, simulation: Simulation, plan: Plan, drawn: Drawn, seconds: float) -> ReplayedStudy:
    """What a search chose on its way, and how good that was."""
    records = simulation.records
    recipes = {r.trial: r.recipe for r in records}
    truth = {trial: drawn.bpb(recipe) for trial, recipe in recipes.items()}
    rivals = [recipe for recipe in random_recipes(plan.space, RIVALS, seed) if _keeps_the_limit(recipe, plan)]
    best = min(*truth.values(), *map(drawn.bpb, rivals))
    spent = np.cumsum([r.seconds for r in records])
    moments = []
    for share in SHARES:
        seen = records if share == 1 else records[: int(np.searchsorted(spent, share * seconds, side="right"))]
        choice = choose(seen, plan.target_seconds)
        if choice:
            regret = 100 * (truth[choice.trial] / best - 1)
            moments.append(Moment(share, float(spent[len(seen) - 1]), choice.trial, regret))
    runs = [sum(r.rung == rung and r.state == "done" for r in records) for rung in range(len(plan.rungs))]
    chosen = recipe_from(recipes[moments[-1].trial]).summary()
    return ReplayedStudy(seed, len(recipes), runs, moments, chosen, simulation.stopped_because, simulation.toll)


def _together(tolls: list[Toll]) -> str:
    """What many searches' devices came to, in words."""
    hours = float(np.mean([t.wall_seconds for t in tolls])) / 3600
    use, failures = float(np.mean([t.utilisation for t in tolls])), float(np.mean([t.failures for t in tolls]))
    lost = float(np.mean([t.redone + t.restarting for t in tolls])) / 3600
    worst = max(t.overspent for t in tolls)
    return (
        f"{tolls[0].devices} at once: {hours:.3g} h on the wall, {use:.1%} of the time that was charged of use, {failures:.3g} failures a search, which cost "
        f"{lost:.3g} device-hours; at most {worst:.1f} s overspent, {sum(t.lost_trials for t in tolls)} trials lost"
    )


def _keeps_the_limit(params: dict[str, Any], plan: Plan) -> bool:
    recipe = recipe_of(params, plan.space)
    return recipe is not None and size_violation(recipe, plan.world) <= 0


def _at(search: ReplayedStudy, share: float) -> float:
    """The regret after a share of the budget; where nothing was chosen by then, of the first choice."""
    return next((m.regret for m in reversed(search.moments) if m.share <= share), search.moments[0].regret)
