"""The scheduler: which trial climbs which rung on which device, and what becomes of it however it ends.

Every place (a device and the process that works there) holds a lease while there is work for it. A run may end well, diverge,
fail by its recipe, fail by its machine, or be stopped; each is a record with its cause and its cost, and none ends the
study. What is kept on disk is always enough to go on: after a crash at any instant, runs that were begun are continued
from their checkpoints, and trials that Optuna still calls running are told what their records say.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace

from budgetlm.budget.clock import Meter
from budgetlm.budget.ledger import HEARTBEAT_SECONDS, SEARCH
from budgetlm.errors import BudgetExhausted, ConfigError, StudyError
from budgetlm.forecast.choose import can_win, choose, highest_rungs
from budgetlm.forecast.history import append_moment, moment
from budgetlm.forecast.worth import improvement
from budgetlm.model.size import parameters
from budgetlm.recipe.limit import fitted, moved, starts
from budgetlm.recipe.oracle import (
    deployed_bytes,
    expected_peak_bytes,
    expected_speed,
    reach,
    size_violation,
    token_milliseconds,
)
from budgetlm.recipe.recipe import Recipe, recipe_from
from budgetlm.recipe.scale import at_rung, memory_violation
from budgetlm.records import CurvePoint, RunRecord, append_point, append_record, curve_path
from budgetlm.search.climb import Enough, Standing, Wish, next_wish
from budgetlm.search.jobs import RungJob
from budgetlm.search.plan import Plan
from budgetlm.search.site import Seat, Site, Step
from budgetlm.search.trials import Trials
from budgetlm.search.trunks import KEPT, forget_all_but, tidy, trials_with_trunks
from budgetlm.search.unfinished import Unfinished, begin, failed_record, unfinished_runs
from budgetlm.train.config import Label, run_config_from
from budgetlm.workers.job import TRANSIENT, Ended, Event, Failure, Note, Spent, Workers

MARGIN_SECONDS = 0.4
"""Leased beside a rung's own seconds, for what surrounds it: asking, telling, writing."""
TICK_SECONDS = 0.2
"""How often the places are looked after when nothing is heard of them."""
GRACE_SECONDS = 20.0
"""How long jobs that were asked to stop may take to save what they have. Slurm ends a job by force after 30 s, a spot
instance after 30 to 120."""
EXCEPTIONS_IN_A_ROW = 3
"""So many runs in a row that end in what looks like a bug end the study: it would only burn the budget."""
MOST_REFUSED = 200
"""So many recipes in a row that would not fit the memory end the study: its space is not for this device."""
KEPT_BY_A_CHECKPOINT = ("compile", "train", "evaluate", "compress")
"""What of an interrupted run's time its checkpoint stands for at least."""
FINAL_STATES = ("done", "diverged", "failed")


class Scheduler:
    """Keeps all places at work until the budget is spent or somebody asks to stop."""

    def __init__(self, site: Site, trials: Trials, workers: Workers) -> None:
        self.site, self.trials, self.workers = site, trials, workers
        self.waiting: deque[Step] = deque()
        self.seats: dict[int, Seat] = {}
        self.untold: set[int] = set()
        """Trials that Optuna is to be told of when they end."""
        self.rooted: set[int] = set()
        """Trials whose trunks are on the disk."""
        self.exceptions = 0
        self.dry = False
        """There was no work to be had, and nothing has changed since."""
        self.fatal = ""
        """Why the study cannot go on, where that is so."""
        self.enough = ""
        """Why there is nothing more to pay for."""
        self.stopping_since: float | None = None
        self._learnt = (-1, site.plan)
        earlier = [r.began_seconds + r.seconds for r in site.records() if r.began_seconds is not None]
        self.worked_since = site.clock.now() - max(earlier, default=0.0)
        """When the search began on this clock, had it never paused."""

    def run(self) -> str:
        """Hand out work until there is a reason to stop; returns the reason.

        Raises:
            StudyError: what went wrong would go wrong with every trial.
        """
        self._take_over()
        plan = self.site.plan
        begun = starts(plan.space, plan.default, plan.target_seconds, plan.world)

        def fit(recipe: Recipe) -> Recipe:
            recipe = moved(recipe, plan.default, begun[recipe.compression], plan.space)
            return fitted(recipe, plan.space, plan.world)

        self.trials.begin_with(plan.default, fit)
        self._show_best()
        try:
            while self._hand_out():
                for place, event in self.workers.wait(TICK_SECONDS):
                    self._hear(place, event)
                self._look_after()
        finally:
            self.workers.close()
            for seat in self.seats.values():
                seat.leave()
        self._forget_trunks()
        if self.fatal:
            raise StudyError(self.fatal)
        if self.site.should_stop():
            return "interrupted; the same command goes on"
        return self.enough if self.site.remaining() > 0 else "the budget is spent"

    # --- what a crash has left ---

    def _take_over(self) -> None:
        """Bring ledger, records, unfinished runs and Optuna into agreement, whatever instant the last search ended at."""
        if self.site.trunks:
            tidy(self.site.trunks)
            self.rooted = trials_with_trunks(self.site.trunks, self.site.records())
        running = self.trials.running()
        self.untold = set(running)
        records = self.site.records()
        begun = set()
        for run in unfinished_runs(self.site.folder):
            if any(r.run == run.label.run and r.state in FINAL_STATES for r in records):
                self.site.finish(run)
                continue
            self._record_what_was_lost(run, records)
            begun.add(run.label.trial)
            self.waiting.append(Step(run.label.trial, run.recipe, run.label.rung, run, run.config.seed - self.site.seed))
        for number, recipe in running.items():
            if number in begun:
                continue
            last = next((r for r in reversed(records) if r.trial == number and r.kind == "rung"), None)
            if last:
                self._decide(Step(number, recipe_from(last.recipe), last.rung), last)
            elif recipe:
                self.waiting.append(Step(number, recipe, 0))
            else:
                self.untold.discard(number)
                self.trials.tell_failed(number)

    def _record_what_was_lost(self, run: Unfinished, records: list[RunRecord]) -> None:
        """A record for the part of a run that ended together with its search."""
        name = run.label.run
        recorded = sum(r.seconds for r in records if r.run == name)
        cost = self.site.ledger.charged_to(SEARCH, name) - recorded
        if cost > 1e-3:
            why = Failure("killed", "the search itself was ended")
            record = failed_record(run.label, run.config, run.config.seed, why, "interrupted")
            # Not its own doing, and not its machine's: it does not count against the restarts.
            record = replace(record, seconds=cost, by_purpose={"lost": cost}, cause="stopped")
            append_record(self.site.folder, record)

    # --- handing out work ---

    def _hand_out(self) -> bool:
        """Give free places something to do; False when nothing is being done and nothing is left to do."""
        if self.fatal or self.site.should_stop():
            self._wind_down()
        else:
            for place in self.workers.places:
                if not self.dry and not (place in self.seats and self.seats[place].step):
                    self._occupy(place)
        for place in [place for place, seat in self.seats.items() if not seat.step]:
            self.seats.pop(place).leave()
        return bool(self.seats)

    def _wind_down(self) -> None:
        now = self.site.clock.now()
        if self.stopping_since is None:
            self.stopping_since = now
            self.workers.stop()
        elif now - self.stopping_since > GRACE_SECONDS:
            self.workers.kill(why=f"it did not stop within {GRACE_SECONDS:.0f} s")

    def _occupy(self, place: int) -> None:
        """Find work for a place and begin it; the place stays free when there is none."""
        while step := self._next_step(place):
            run = step.run or self._settle(step)
            if run is None:
                continue  # impossible at this rung; it has its record
            seat = self.seats[place]
            seat.step, seat.run = step, run
            seat.meter.bill(run.label.run)
            seat.before, seat.began_at = dict(seat.meter.spent), self.site.clock.now()
            self.site.watcher.run(_title(step, run), run.config.seconds)
            curve_path(self.site.folder, run.label.run).parent.mkdir(parents=True, exist_ok=True)
            job = RungJob(
                run.label,
                run.config,
                self.site.tokens,
                run.checkpoints,
                self.site.checkpoint_seconds,
                self.site.plan.passport.threads,
                None if step.repeat else self.site.trunks,  # another seed has another trunk, and never climbs
                goes_on=step.run is not None,
                shared=self.site.shared,
            )
            self.workers.start(place, job, run.config.seconds)
            self.site.remaining()
            return
        self.dry = True

    def _next_step(self, place: int) -> Step | None:
        """The most useful thing that the budget pays for: what was begun, then climbing, then a new trial."""
        rungs = self.site.plan.rungs
        while self.waiting:
            step = self.waiting.popleft()
            if self._hold(place, self._left_of(step)):
                return step
            if step.run:  # what it has cost is in the records of its parts
                why = Failure("killed", "it was cut off, and the budget did not pay for going on")
                append_record(self.site.folder, failed_record(step.run.label, step.run.config, step.run.config.seed, why))
                self.site.finish(step.run)
            self._conclude(step.trial)
        if place in self.seats:  # what the run before has left over is free again
            self.seats[place].hold(0.0)
        wish = self._wish()
        if isinstance(wish, Enough):
            self.enough = wish.why
            return None
        if not self._hold(place, rungs[wish.rung]):
            self.enough = f"the budget is spent: what is left does not pay for another run of {rungs[wish.rung]:.1f} s"
            return None
        if wish.trial is None:
            return self._new_trial()
        recipe = next(r.recipe for r in self.site.records() if r.trial == wish.trial)
        return Step(wish.trial, recipe_from(recipe), wish.rung, repeat=wish.repeat, why=wish.why)

    def _left_of(self, step: Step) -> float:
        """Device-seconds that a step still takes: what a run had done when it was asked to stop is in its checkpoint.

        What surrounded that work (starting, waiting, writing) is not, nor is anything told of a part that was cut off.
        """
        parts = [r for r in self.site.records() if step.run and r.run == step.run.label.run and r.state == "interrupted"]
        kept = sum(r.by_purpose.get(purpose, 0.0) for r in parts if r.tokens for purpose in KEPT_BY_A_CHECKPOINT)
        return max(0.0, self.site.plan.rungs[step.rung] - kept)

    def _hold(self, place: int, seconds: float) -> bool:
        """Lease device-seconds for a place and what surrounds a run there; it holds its device from now on."""
        seconds += MARGIN_SECONDS + self.workers.delay(place)
        if place not in self.seats:
            try:
                lease = self.site.ledger.lease(SEARCH, seconds)
            except BudgetExhausted:
                return False
            self.seats[place] = Seat(
                lease, Meter(self.site.clock, lease.charge, flush_seconds=self.site.heartbeat_seconds), place
            )
        return self.seats[place].hold(seconds)

    def _new_trial(self) -> Step:
        """A new trial, of a recipe whose final fits the memory and the limit of size; the sampler learns from those that would not.

        Raises:
            StudyError: hardly any recipe of the space fits.
        """
        plan = self.plan()
        for _ in range(MOST_REFUSED):
            number, recipe = self.trials.ask()
            memory = memory_violation(recipe, plan.target_seconds, plan.world)
            size = size_violation(recipe, plan.world)
            if max(memory, size) <= 0:
                self.untold.add(number)
                return Step(number, recipe, 0, why="new" if number else "default")
            self.trials.tell_infeasible(number, {"memory_gib": memory, "size_mb": size})
        what = (
            f"need more memory than the {plan.world.usable_bytes / 2**30:.1f} GiB that there are for a run, the last one by {memory:.1f} GiB"
            if memory > 0
            else f"weigh more than `search.max_model_mb` = {plan.world.max_model_bytes / 1e6:.3g} allows, the last one by {size:.3g} MB"
        )
        raise StudyError(
            f"{MOST_REFUSED} recipes in a row {what}. Narrow `space.width` or `space.depth`, or raise "
            f"{'`train.memory_gb`' if memory > 0 else 'the limit'}."
        )

    def plan(self) -> Plan:
        """The plan, with what the study's own runs have taught of speed and memory."""
        records = self.site.records()
        if self._learnt[0] != len(records):
            self._learnt = len(records), self.site.plan.learning(records)
        return self._learnt[1]

    def _wish(self) -> Wish | Enough:
        """What `search/climb.py` makes of where things stand."""
        site, plan = self.site, self.site.plan
        return next_wish(
            Standing(
                site.records(),
                site.forecasts(),
                plan.rungs,
                plan.target_seconds,
                site.ledger.balance(SEARCH).budget_seconds,
                site.remaining(),
                {seat.step.trial: seat.step.rung for seat in self.seats.values() if seat.step},
                frozenset(self.untold),
                site.seed,
                site.stops_early,
                MARGIN_SECONDS,
                site.costs(),
            )
        )

    def _settle(self, step: Step) -> Unfinished | None:
        """Decide what a trial's run on a rung is, and keep that; None if it cannot be."""
        plan = self.plan()
        label = Label(
            run=f"trial{step.trial:04d}-rung{step.rung}{f'-repeat{step.repeat}' if step.repeat else ''}",
            kind="rung",
            trial=step.trial,
            rung=step.rung,
            recipe=asdict(step.recipe),
            target_seconds=plan.target_seconds,
            passport=plan.passport.id,
            why=step.why,
        )
        seed = self.site.seed + step.repeat
        try:
            config = at_rung(step.recipe, plan.rungs[step.rung], plan.target_seconds, plan.world, seed=seed)
        except ConfigError as error:
            record = failed_record(label, None, seed, Failure("configuration", str(error)))
            append_record(self.site.folder, record)
            self._decide(step, record)
            return None
        # By the plan as it was settled: what is weighed against each other must not depend on when it was asked for.
        settled = self.site.plan.world
        predicted = {
            "predicted_tokens_per_second": expected_speed(config, plan.world),
            "predicted_peak_bytes": expected_peak_bytes(config, plan.world),
            "predicted_model_bytes": deployed_bytes(step.recipe, settled),
            "predicted_token_ms": token_milliseconds(step.recipe, settled),
            **reach(step.recipe, plan.target_seconds, settled),
        }
        return begin(self.site.folder, label, config, predicted)

    # --- what the places say ---

    def _hear(self, place: int, event: Event) -> None:
        seat = self.seats[place]
        assert seat.run
        if isinstance(event, Spent):
            seat.meter.explain(event.by_purpose)
        elif isinstance(event, CurvePoint):
            append_point(self.site.folder, seat.run.label.run, event)
            self.site.watcher.point(event)
        elif isinstance(event, Note):
            self.site.watcher.note(f"{seat.run.label.run} {event.text}")
        else:
            self._end(seat, event)

    def _look_after(self) -> None:
        """Heartbeats; and no place works on what it has not leased."""
        for place, seat in self.seats.items():
            seat.meter.tick()
            over = seat.step and self.site.clock.now() - seat.held_at > seat.held_seconds
            if over and not seat.hold(2 * HEARTBEAT_SECONDS):
                self.workers.kill(place, "the budget was spent before it ended")

    def _end(self, seat: Seat, ended: Ended) -> None:
        """Keep the record of a run that has ended, and decide what becomes of its trial."""
        step, run, outcome = seat.step, seat.run, ended.outcome
        assert step
        assert run
        if isinstance(outcome, Failure) and outcome.cause in TRANSIENT:
            seat.meter.flush()
            seat.meter.explain({"lost": seat.spent()["other"]})
        seat.meter.bill("study")
        spent: Mapping[str, float] = {str(p): s for p, s in seat.spent().items() if s}
        record = self._judge(run, outcome) if isinstance(outcome, Failure) else outcome
        began = seat.began_at - self.worked_since
        record = replace(
            record,
            seconds=sum(spent.values()),
            by_purpose=dict(spent),
            place=seat.place,
            began_seconds=began,
            **run.predicted,
        )
        append_record(self.site.folder, record)
        seat.step = seat.run = None
        self.dry = False
        if record.state == "interrupted":
            ending = self.fatal or self.stopping_since is not None or self.site.should_stop()
            if record.cause in TRANSIENT or not ending:  # its machine was asked to stop, not this search
                why = record.error or "its worker was asked to stop"
                self.site.watcher.note(f"{record.run} was cut off ({why}) and goes on from its last checkpoint")
                self.waiting.appendleft(replace(step, run=run))
            return
        self.site.finish(run)
        if not step.repeat:
            self.rooted.add(step.trial)
        self._decide(step, record)
        self._forget_trunks()

    def _judge(self, run: Unfinished, failure: Failure) -> RunRecord:
        """The record of a failure: worth another attempt, the end of the trial, or of the study."""
        self.exceptions = self.exceptions + 1 if failure.cause == "exception" else 0
        if self.exceptions >= EXCEPTIONS_IN_A_ROW:
            self.fatal = (
                f"{self.exceptions} runs in a row ended in an error that is not about their recipes, so the search was "
                f"stopped before it wasted the budget. The last one:\n{failure.message}"
            )
        if failure.cause == "study":
            self.fatal = failure.message
            return failed_record(run.label, run.config, run.config.seed, failure, "interrupted")
        if failure.cause in TRANSIENT and self.stopping_since is not None:  # by force: it was asked to, and did not
            return replace(failed_record(run.label, run.config, run.config.seed, failure, "interrupted"), cause="stopped")
        before = [r for r in self.site.records() if r.run == run.label.run and r.cause in TRANSIENT]
        again = failure.cause in TRANSIENT and len(before) < self.site.max_restarts
        return failed_record(run.label, run.config, run.config.seed, failure, "interrupted" if again else "failed")

    # --- what becomes of a trial ---

    def _decide(self, step: Step, record: RunRecord) -> None:
        """Let a trial climb on, or tell Optuna what it was worth."""
        if record.state == "done":
            self.exceptions = 0
            higher = step.rung + 1 < len(self.site.plan.rungs)
            # The default recipe is the measure of all others, so it climbs to the top in any case.
            climbs = higher and not step.repeat
            site = self.site
            if climbs and (step.trial == 0 or can_win(step.trial, site.forecasts(), site.records(), site.costs())):
                why = "climb" if step.trial else "default"
                self.waiting.append(replace(step, rung=step.rung + 1, run=None, why=why))
                return
        elif record.state in FINAL_STATES:
            said = record.error.splitlines()[-1] if record.error else record.state
            self.site.watcher.note(f"trial {step.trial} {record.state}: {said}")
        self._conclude(step.trial, record)
        self._show_best()

    def _conclude(self, trial: int, record: RunRecord | None = None) -> None:
        """Tell Optuna, once, what a trial has come to."""
        if trial not in self.untold:
            return
        forecasts, costs = self.site.forecasts(), self.site.costs()
        cost = (costs[trial],) if trial in costs else ()
        if trial in forecasts:
            self.trials.tell(trial, forecasts[trial].mean, *cost)
        elif record and record.state == "diverged":
            # As bad as knowing nothing: a finite value teaches the sampler to stay away, which a failure would not.
            self.trials.tell(trial, self.site.tokens.facts.uniform_bpb, *cost)
        elif record and record.state == "failed" and record.cause not in TRANSIENT:
            self.trials.tell_infeasible(trial, {record.cause: 1.0})
        else:
            self.trials.tell_failed(trial)
        self.untold.discard(trial)

    def _forget_trunks(self) -> None:
        """Keep those of the trials under way and of the few others that the gate would send up first; so their disk is bounded."""
        if not self.site.trunks:
            return
        forecasts, reached = self.site.forecasts(), highest_rungs(self.site.records())
        leader = min(forecasts.values(), key=lambda f: f.mean, default=None)

        def last(trial: int) -> tuple[int, float]:
            assert leader
            return reached[trial], -improvement(forecasts[trial], leader).expected

        closed = sorted((self.rooted & forecasts.keys()) - self.untold, key=last)
        self.rooted = self.untold | set(closed[:KEPT])
        begun = [seat.run for seat in self.seats.values()] + [step.run for step in self.waiting]
        configs = [run.config for run in begun if run]
        configs += [run_config_from(r.config) for r in self.site.records() if r.trial in self.rooted and r.config]
        kept = forget_all_but(self.site.trunks, configs)
        if self.site.tidier:
            self.site.tidier.keep_trunks(kept)

    def _show_best(self) -> None:
        site, forecasts = self.site, self.site.forecasts()
        choice = choose(site.records(), site.plan.target_seconds, forecasts, site.plan.world.objectives)
        if choice:
            front = f"; {len(choice.front)} on the front" if choice.front else ""
            site.watcher.best(f"trial {choice.trial} of {len(forecasts)}: {choice.expected}{front}")
            append_moment(site.folder, moment(choice, forecasts, site.ledger.balance(SEARCH).charged_seconds))


def _title(step: Step, run: Unfinished) -> str:
    config, model = run.config, run.config.model
    why = ", ".join(part for part in (run.label.why, "goes on" if step.run else "") if part)
    mixer = "" if model.mixer == "attention" else f", {model.mixer}"
    compression = "" if config.compression.option == "none" else f", {config.compression.option}"
    return (
        f"trial {step.trial}, rung {step.rung}{f' ({why})' if why else ''}: depth {model.depth} x width {model.width} "
        f"({parameters(model) / 1e6:.2f} M){mixer}, batch {config.batch_tokens:,}, {config.optimizer.name} "
        f"lr {config.optimizer.peak_lr:.1e}, {config.schedule.shape}{compression}"
    )
