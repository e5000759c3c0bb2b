"""Search against search, in real training: what each finds for one target with the same device time, space, trainer and machine.

    budgetlm     its own search: miniatures, forecast, gate
    low          the same where the highest rung may cost a twentieth of the search, not a fifth: more trials, judged from farther away
    hyperband    Optuna's TPE and its Hyperband pruner on truncated proxies: the target's shape for a quarter of its time at most
    tpe          Optuna's TPE on truncated proxies of an eighth of the target's time, none pruned
    random       random search on the same proxies
    default      no search: the default recipe for the search's time and the target's together

A truncated proxy anneals within its own time. All search the same space, which is budgetlm's, laid around its default recipe; `hyperband+`, `tpe+` and
`random+` are also given that recipe as their first trial, which nobody has who does not know its rules. Afterwards the recipe of each is trained
for the target, and measured on the whole validation split. A search has processor time of one thread, a final the steps that the throughput model
foresees for that, so that contenders can work side by side and the machine may do something else besides.

What budgetlm would have chosen earlier on its way is kept, and with `--way` trained for the target, too: so it is seen after how much device time its choice is
first as good as the best that any other search ends with. Records and curves of its searches stay beside the results.

    python -m tests.benchmarks.bench_search results.jsonl --seconds 300 --search 2 --seeds 3       # goes on where it ended
    python -m tests.benchmarks.bench_search results.jsonl --table
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import torch

from budgetlm.budget.clock import Meter
from budgetlm.config import StudyConfig, study_config
from budgetlm.data.batches import validation_sample
from budgetlm.forecast.history import Moment, read_moments
from budgetlm.passport import take_passport
from budgetlm.recipe.oracle import expected_speed
from budgetlm.recipe.recipe import Recipe, recipe_from
from budgetlm.recipe.scale import at_target
from budgetlm.recipe.space import parameters_of, suggest
from budgetlm.records import CurvePoint, read_records
from budgetlm.search import ladder
from budgetlm.search.plan import Plan, make_plan
from budgetlm.search.sizing import suited_vocabulary
from budgetlm.search.study import search
from budgetlm.train import loop
from budgetlm.train.calibrate import calibrate
from budgetlm.train.config import Label, RunConfig
from budgetlm.train.evaluate import evaluate
from budgetlm.train.heap import set_heap
from budgetlm.train.step import warm_up
from budgetlm.watch import Watcher
from tests.benchmarks.bench_ablation import tokens_of
from tests.benchmarks.bench_learning import ProcessorClock
from tests.workers.inline import Inline

CONTENDERS = ("budgetlm", "low", "hyperband", "tpe", "random", "default", "hyperband+", "tpe+", "random+")
PEERS = ("hyperband", "tpe", "random")
"""Those whose best final budgetlm's choices are held against: searches that are not told its default recipe."""
PROXY_SHARE, HYPERBAND_SHARE = 1 / 8, 1 / 4
"""Of the target's time: a proxy that is never pruned, and the longest one of Hyperband."""
LOW_SHARE = 1 / 20
HYPERBAND_UNITS = 9
"""Into so many parts Hyperband's longest proxy is divided, each a moment at which it may be pruned; its reduction factor is 3."""


class Contest:
    """What all contenders share."""

    def __init__(self, options: argparse.Namespace, contender: str, seed: int) -> None:
        torch.set_num_threads(1)
        set_heap("cpu")
        warm_up()
        self.seed, self.target, self.budget = seed, options.seconds, options.search * options.seconds
        self.clock, self.cache = ProcessorClock(), Path(options.cache)
        passport = take_passport("cpu", self.cache)
        self.vocabulary = suited_vocabulary(self.target, passport)
        self.tokens = tokens_of("stdlib", self.vocabulary)
        self.plan = self.plan_for(self.target)
        self.trials = 0
        self.way: list[dict] = []
        """What would have been chosen, from which device-second on."""
        self.kept = (
            options.results.with_suffix("").absolute() / f"{contender}-{options.seconds:g}s-{options.search:g}-seed{seed}"
        )

    def study(self, target: float, budget: float) -> StudyConfig:
        return study_config(
            {
                "name": "contest",
                "budget": {"hours": budget / 3600, "target_hours": target / 3600},
                "data": {"vocab_size": self.vocabulary},
                "train": {"threads": 1, "device": "cpu"},
                "search": {"seed": self.seed, "stop_early": False, "least_rung_seconds": min(4.0, self.target / 16)},
            }
        )

    def plan_for(self, target: float) -> Plan:
        """As budgetlm settles it: the space, and what the machine can do. Nobody is charged for it."""
        passport = take_passport("cpu", self.cache)

        def measure(shapes, optimizers):
            return calibrate(shapes, passport, optimizers, self.clock, self.cache, rung_seconds=self.budget)

        return make_plan(self.study(target, 16 * target), passport, self.tokens, measure)[0]

    def train(self, config: RunConfig, recipe: Recipe, **options: Any) -> loop.Trained:
        label = Label(run="contest", kind="rung", trial=0, rung=0, recipe=asdict(recipe), target_seconds=self.target)
        return loop.train(config, label, self.tokens, Meter(self.clock), **options)

    def truncated(self, recipe: Recipe, seconds: float) -> RunConfig:
        return replace(at_target(recipe, self.target, self.plan.world, self.seed), seconds=seconds)

    def final(self, recipe: Recipe, plan: Plan, seconds: float) -> dict:
        """Bits per byte on the whole validation split after the steps that the throughput model foresees for `seconds`.

        By steps, because even processor time buys less on a machine that does something else besides.
        """
        timed = at_target(recipe, seconds, plan.world, seed=1000 + self.seed)
        tokens = expected_speed(timed, plan.world) * seconds
        trained = self.train(replace(timed, seconds=0.0, steps=max(1, round(tokens / timed.batch_tokens))), recipe)
        windows = validation_sample(self.tokens, plan.world.context_length, 2**24)
        bpb = evaluate(trained.network, windows, self.tokens.bytes_V, micro_batch=8)
        record = trained.record
        return {"bpb": bpb, "sample": record.bpb, "parameters": record.parameters, "tokens": record.tokens}


def by_budgetlm(contest: Contest) -> Recipe:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            config = contest.study(contest.target, contest.budget)
            found = search(config, contest.cache, contest.clock, Watcher(), hire=lambda *_: Inline(contest.clock))
            assert found.choice
            recipes = {r.trial: r.recipe for r in read_records(config.folder)}
            contest.trials, contest.way = len(recipes), way(read_moments(config.folder), recipes)
            shutil.rmtree(contest.kept, ignore_errors=True)
            shutil.copytree(config.folder, contest.kept, ignore=shutil.ignore_patterns("*.db*"))
        finally:
            os.chdir(before)
    return recipe_from(recipes[found.choice.trial])


def way(moments: list[Moment], recipes: dict[int, dict]) -> list[dict]:
    """Every choice on the way of a search: from which device-second on, and what was expected of it when it was given up, or at the end."""
    found = []
    for trial, same in groupby(moments, key=lambda m: m.trial):
        first, *more = same
        last = more[-1] if more else first
        expected = {"mean": last.mean, "low": last.low, "high": last.high}
        found.append({"seconds": first.spent_seconds, "trial": trial, "recipe": recipes[trial], **expected})
    return found


def by_low_rungs(contest: Contest) -> Recipe:
    with mock.patch.object(ladder, "TOP_SHARE", LOW_SHARE):
        return by_budgetlm(contest)


def by_optuna(
    sampler: Callable[[int], optuna.samplers.BaseSampler], pruned: bool, default_first: bool
) -> Callable[[Contest], Recipe]:
    def find(contest: Contest) -> Recipe:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if pruned:
            pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=HYPERBAND_UNITS, reduction_factor=3)
        study = optuna.create_study(study_name="contest", sampler=sampler(contest.seed), pruner=pruner)
        if default_first:
            study.enqueue_trial(parameters_of(contest.plan.default, contest.plan.space))
        seconds = contest.target * (HYPERBAND_SHARE if pruned else PROXY_SHARE)
        began, found = contest.clock.now(), {}
        while (left := contest.budget - (contest.clock.now() - began)) > seconds / 2:
            trial = study.ask()
            recipe = suggest(trial, contest.plan.space)
            found[trial.number] = recipe
            stop = Pruning(trial, seconds) if pruned else None
            config = contest.truncated(recipe, min(seconds, left))
            options = {"on_point": stop.see, "should_stop": stop.pruned} if stop else {}
            record = contest.train(config, recipe, **options).record
            if record.bpb is None:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, record.bpb)
        contest.trials = len(found)
        return found[study.best_trial.number]

    return find


class Pruning:
    """Tells Optuna the training loss as the curve goes, and asks it whether to go on."""

    def __init__(self, trial: optuna.Trial, seconds: float) -> None:
        self._trial, self._unit, self._told, self._stop = trial, seconds / HYPERBAND_UNITS, 0, False

    def see(self, point: CurvePoint) -> None:
        units = int(point.seconds / self._unit)
        if units > self._told and units < HYPERBAND_UNITS:
            self._told = units
            self._trial.report(point.loss, units)
            self._stop = self._trial.should_prune()

    def pruned(self) -> bool:
        return self._stop


def by_tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True)


def by_chance(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


FIND: dict[str, Callable[[Contest], Recipe]] = {
    "budgetlm": by_budgetlm,
    "low": by_low_rungs,
    "hyperband": by_optuna(by_tpe, pruned=True, default_first=False),
    "tpe": by_optuna(by_tpe, pruned=False, default_first=False),
    "random": by_optuna(by_chance, pruned=False, default_first=False),
    "hyperband+": by_optuna(by_tpe, pruned=True, default_first=True),
    "tpe+": by_optuna(by_tpe, pruned=False, default_first=True),
    "random+": by_optuna(by_chance, pruned=False, default_first=True),
}


def compete(contender: str, seed: int, options: argparse.Namespace, found: dict | None = None) -> dict:
    """What a contender finds, or what it had `found`, and its final."""
    contest = Contest(options, contender, seed)
    seconds = contest.target + contest.budget if contender == "default" else contest.target
    plan = contest.plan_for(seconds)
    if found:
        recipe, contest.trials, contest.way = recipe_from(found["recipe"]), found["trials"], found.get("way", [])
    else:
        recipe = plan.default if contender == "default" else FIND[contender](contest)
    facts = {"recipe": asdict(recipe), "trials": contest.trials, **contest.final(recipe, plan, seconds)}
    finals = {str(facts["recipe"]): facts}
    for earlier in contest.way:
        which = str(earlier["recipe"])
        if options.way and which not in finals:
            finals[which] = contest.final(recipe_from(earlier["recipe"]), plan, seconds)
        if which in finals:
            earlier |= {name: finals[which][name] for name in ("bpb", "sample")}
    facts["way"] = contest.way
    return {"contender": contender, "seed": seed, "seconds": options.seconds, "search": options.search, **facts}


def table(results: list[dict]) -> None:
    """Mean and spread of each contender, in how many seeds budgetlm was better, and how soon."""
    groups = sorted({(r["seconds"], r["search"]) for r in results})
    for seconds, share in groups:
        mine = [r for r in results if (r["contender"], r["seconds"], r["search"]) == ("budgetlm", seconds, share)]
        own = {r["seed"]: r["bpb"] for r in mine}
        print(f"target {seconds:g} s of one thread, search {share:g} targets; bits per byte of the final")
        for name in CONTENDERS:
            rows = [r for r in results if (r["contender"], r["seconds"], r["search"]) == (name, seconds, share) and r["bpb"]]
            if not rows:
                continue
            bpb = [r["bpb"] for r in rows]
            spread = statistics.stdev(bpb) if len(bpb) > 1 else float("nan")
            better = sum(own[r["seed"]] < r["bpb"] for r in rows if r["seed"] in own)
            print(
                f"  {name:10} {statistics.fmean(bpb):.4f} (sd {spread:.4f}, {min(bpb):.4f} to {max(bpb):.4f}), n = {len(bpb)}; "
                f"budgetlm better in {better}; {statistics.fmean(r['trials'] for r in rows):.0f} trials"
            )
        here = [r for r in results if (r["seconds"], r["search"]) == (seconds, share)]
        for line in [*how_soon(here), *receipts(here)]:
            print(f"  {line}")


def how_soon(results: list[dict]) -> Iterator[str]:
    """For each seed, after how many device-seconds budgetlm's choice is first as good as the best that another search ends with."""
    for own in (r for r in results if r["contender"] == "budgetlm"):
        rivals = [r for r in results if r["seed"] == own["seed"] and r["contender"] in PEERS and r["bpb"]]
        known = [m for m in own.get("way", []) if m.get("bpb")]
        if not rivals or not known:
            continue
        best, budget = min(rivals, key=lambda r: r["bpb"]), own["seconds"] * own["search"]
        first = next((m["seconds"] for m in known if m["bpb"] <= best["bpb"]), None)
        said = f"after {first:.0f} of {budget:.0f} device-seconds ({first / budget:.0%})" if first is not None else "never"
        choices = ", ".join(f"{m['seconds']:.0f} s {m['bpb']:.4f}" for m in known)
        yield f"seed {own['seed']}: as good as the best peer ({best['contender']}, {best['bpb']:.4f}) {said}; its choices: {choices}"


def receipts(results: list[dict]) -> Iterator[str]:
    """What was forecast of the choices, and what came of those that were trained, on the sample that the forecast is of."""
    for what, which in (("the choices at the end", slice(-1, None)), ("all choices on the way", slice(None))):
        kept = [m for r in results for m in r.get("way", [])[which] if m.get("sample") and m.get("low")]
        if kept:
            inside = sum(m["low"] <= m["sample"] <= m["high"] for m in kept)
            missed = [m["sample"] - m["mean"] for m in kept]
            yield (
                f"receipts of {what}: {inside} of {len(kept)} outcomes inside their 80 % intervals; outcome less forecast "
                f"{statistics.fmean(missed):+.4f} in the mean, {statistics.fmean(map(abs, missed)):.4f} without its sign"
            )


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """What is not yet measured: all contenders of a seed, then the next seed."""
    known = {(r["contender"], r["seed"], r["seconds"], r["search"]) for r in read(options.results)}
    for seed in range(options.seeds):
        for name in options.contenders:
            if (name, seed, options.seconds, options.search) not in known:
                yield name, seed


def main() -> None:
    """Compete, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "bench_search.jsonl")
    parser.add_argument("--seconds", type=float, default=60.0, help="processor time of the target")
    parser.add_argument("--search", type=float, default=2.0, help="time of a search, in targets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "bench_search_cache"))
    parser.add_argument("--finals", type=Path, help="results of earlier searches, whose finals alone are trained again")
    parser.add_argument("--way", action="store_true", help="train what budgetlm would have chosen earlier, too")
    parser.add_argument("--table", action="store_true", help="print what is there")
    options = parser.parse_args()
    if not options.table:
        todo = list(wanted(options))
        tokens_of("stdlib", 4096)
        with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            earlier = {(r["contender"], r["seed"]): r for r in read(options.finals)} if options.finals else {}
            todo = [who for who in todo if who in earlier] if options.finals else todo
            runs = [pool.submit(compete, *who, options, earlier.get(who)) for who in todo]
            for done in as_completed(runs):
                with contextlib.suppress(KeyboardInterrupt), options.results.open("a") as file:
                    row = done.result()
                    file.write(json.dumps(row) + "\n")
                    print(f"{row['contender']} {row['seed']}: {row['bpb']}", file=sys.stderr, flush=True)
    table(read(options.results))


if __name__ == "__main__":
    main()
