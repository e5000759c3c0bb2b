"""The chosen recipe for the full target, resuming as often as needed, ending on the deadline.

A final has an account of its own in the study's ledger. What is charged there counts against the deadline even when a
crash has lost it: a resumed final goes on from its newest checkpoint with the device-seconds that are really left.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from budgetlm.budget.clock import Clock, Meter
from budgetlm.budget.ledger import Ledger, open_ledger
from budgetlm.callable import make_callable
from budgetlm.compress.artefact import load_artefact
from budgetlm.compress.measure import measure_apart, speed, tokens_read
from budgetlm.config import StudyConfig
from budgetlm.data.rest import rest_being_read, write_rest
from budgetlm.data.tokens import Tokens
from budgetlm.errors import ConfigError, StudyError
from budgetlm.files import read_json, write_json
from budgetlm.final_own import train_own
from budgetlm.final_team import team_of
from budgetlm.final_why import Reasons, kept, reasons, shape_and_rule
from budgetlm.forecast.choose import RANKS_ONLY, choose, ranks_only
from budgetlm.forecast.fit import Forecast, fit
from budgetlm.forecast.front import BEST, pick
from budgetlm.inherit import INIT, Given, check_vocabulary, given_to_final
from budgetlm.interrupt import StopRequest
from budgetlm.model.transformer import LanguageModel
from budgetlm.passport import identify, pick_device
from budgetlm.recipe.oracle import Way
from budgetlm.recipe.recipe import Recipe, recipe_from
from budgetlm.recipe.scale import MANY_EPOCHS, at_length, epochs_at_target, reshaped
from budgetlm.records import CurvePoint, RunRecord, append_point, append_record, curve_path, read_records
from budgetlm.samples import write_samples
from budgetlm.search.plan import Plan, load_plan
from budgetlm.search.study import check_data, check_machine, prepare, repetition_warning, threads_of
from budgetlm.studies import FORECAST
from budgetlm.train.compilation import keep_compiled
from budgetlm.train.config import Label, RunConfig, as_dict, run_config_from
from budgetlm.train.fp8 import check_fp8
from budgetlm.train.loop import Checkpoints, train
from budgetlm.train.model_folder import write_model
from budgetlm.train.step import warm_up
from budgetlm.watch import Watcher
from budgetlm.workers.own import Training

CLOSING_SHARE, LEAST_CLOSING, MOST_CLOSING = 0.01, 0.5, 60.0
"""What is kept back before the deadline for writing the model and the samples: a share of the target, in these bounds (s)."""
APART_SECONDS = 20.0
"""What must be left before the deadline for measuring the model in a process of its own, beside the measuring."""
OTHER_START = "it begins from weights that the study's runs did not begin from"
"""Why a final of given weights has no forecast."""


@dataclass(frozen=True)
class FinalResult:
    """How a final ended."""

    recipe: str
    """The recipe, in words."""
    record: RunRecord
    folder: Path
    forecast: Forecast | None
    """None where the study's runs do not support one: all of them are on one rung."""
    samples: list[dict[str, str]]
    utilisation: float
    """Share of the device's matrix-product ceiling that its optimisation steps reached (MFU, arXiv:2204.02311)."""
    already_done: bool
    exit_code: int = 0
    """0, or what the process should end with because it was asked to stop (`interrupt.py`)."""
    limit_bytes: int = 0
    """Most that its weights were to weigh; 0 for no limit."""
    no_forecast: str = ""
    """Why there is none, where there is none."""
    reasons: Reasons = field(default_factory=Reasons)
    """What its shape and the choice of its recipe stand on, as it was said before it began."""

    @property
    def size(self) -> str:
        """What its weights weigh on the disk, beside the limit, in words."""
        weighs = f"{self.record.artefact_bytes / 1e6:,.3f} MB of weights on the disk"
        if not self.limit_bytes:
            return weighs
        kept = "is kept" if self.record.artefact_bytes <= self.limit_bytes else "is NOT kept"
        return f"{weighs}; the limit of {self.limit_bytes / 1e6:,.4g} MB {kept}"


make_callable(__name__)


def final(
    study: str,
    cache: Path,
    clock: Clock,
    watcher: Watcher,
    *,
    config: StudyConfig,
    hours: float = 0.0,
    trial: int | None = None,
    seed: int = 0,
    which: str = BEST,
    init: Path | None = None,
    train_it: Training | None = None,
) -> FinalResult:
    """Train a study's chosen recipe, or that of a given trial, for the target; repeat the call to resume.

    Args:
        config: of the study.
        hours: device-hours; 0 for the study's target.
        trial: whose recipe; None for the chosen one, or the picked one.
        which: of the front, where more than the loss counts: `smallest`, `fastest`, `best`, or a trial's number.
        seed: initialisation and data order.
        init: folder of a model whose weights this final alone begins from, in their shape (`inherit.py`); None for those that the study's runs do.
        train_it: trains it in place of budgetlm, which then writes no model.

    Raises:
        StudyError: nothing was chosen yet, there is no such trial, or another process is at this final.
        ConfigError: it cannot begin from those weights, or something else asks for the impossible.
    """
    folder = config.folder
    plan = load_plan(folder)
    records = read_records(folder)
    forecasts = fit(records, plan.target_seconds) if plan else {}
    choice = choose(records, plan.target_seconds, forecasts, plan.world.objectives) if plan else None
    if init and train_it:
        raise ConfigError("a training function of your own decides itself what it begins from. Leave out `init`.")
    if plan is None or choice is None:
        raise StudyError(
            f"study {study!r} has no finished trial to choose from. Run `budgetlm search --study {study} --hours …` first."
        )
    if trial is not None:
        number, why = trial, "asked for"
    else:
        number, why = pick(which, choice.front, choice.trial), "chosen" if which == BEST else "picked"
    recipe = _recipe_of(number, records, study)
    seconds = hours * 3600 or plan.target_seconds
    limit = plan.world.max_model_bytes
    given = given_to_final(init, config, plan.world.context_length) if init else None
    name = final_name(number, seconds, seed, given.mark if given else "")
    home = folder / "finals" / name
    home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StudyError(f"another process is training {name}. Wait for it, or stop it with Ctrl-C.") from None
    try:
        if given:
            plan = _begun_from(given, home, plan)
            recipe = reshaped(recipe, given.shape, plan.target_seconds, plan.world)
        unknown = OTHER_START if given else RANKS_ONLY
        forecast = None if given or ranks_only(records) else _forecast(number, records, forecasts, seconds, plan)
        done = next((r for r in records if r.run == name and r.state == "done"), None)
        if done and (train_it or (home / "samples.json").exists()):
            samples = [] if train_it else read_json(home / "samples.json")
            share = _utilisation(done, plan)
            return FinalResult(recipe.summary(), done, home, forecast, samples, share, True, 0, limit, unknown, kept(home))
        stands_on = reasons(number, why, choice, records, forecasts)
        run = _Final(config, plan, recipe, number, why, stands_on, name, home, given, seconds, seed, cache, clock, watcher)
        record, samples, code = run.hand(train_it, forecast, unknown) if train_it else run.go(forecast, unknown)
        share = _utilisation(record, plan)
        return FinalResult(recipe.summary(), record, home, forecast, samples, share, False, code, limit, unknown, kept(home))
    finally:
        watcher.close()
        lock.release()


def final_name(trial: int, seconds: float, seed: int = 0, init: str = "") -> str:
    """Of a final's folder, account and record.

    Args:
        init: what tells the weights that it alone begins from.
    """
    return f"final-trial{trial:04d}-{seconds:.0f}s-seed{seed}{f'-init{init}' if init else ''}"


def _forecast(
    trial: int, records: list[RunRecord], forecasts: dict[int, Forecast], seconds: float, plan: Plan
) -> Forecast | None:
    """Of a trial's recipe after so many device-seconds; for the study's target it is known already."""
    return (forecasts if seconds == plan.target_seconds else fit(records, seconds)).get(trial)


def _begun_from(given: Given, home: Path, plan: Plan) -> Plan:
    """The plan as it is for a final that begins from its own copy of given weights."""
    world = replace(plan.world, init=str(home / INIT), rope_theta=given.shape.rope_theta)
    return replace(plan, world=world)


def _recipe_of(number: int, records: list[RunRecord], study: str) -> Recipe:
    for record in records:
        if record.trial == number:
            return recipe_from(record.recipe)
    known = sorted({r.trial for r in records})
    raise StudyError(f"study {study!r} has no trial {number}. It has trials {known[0]} to {known[-1]}.")


def _utilisation(record: RunRecord, plan: Plan) -> float:
    flops = record.flops / record.tokens * record.tokens_per_second if record.tokens else 0.0
    return flops / (1e9 * plan.passport.ceiling_gflops(plan.world.precision))


class _Final:
    """One final, from wherever it stands to its end."""

    def __init__(
        self,
        study: StudyConfig,
        plan: Plan,
        recipe: Recipe,
        trial: int,
        why: str,
        stands_on: Reasons,
        name: str,
        home: Path,
        given: Given | None,
        seconds: float,
        seed: int,
        cache: Path,
        clock: Clock,
        watcher: Watcher,
    ) -> None:
        self.study, self.plan, self.recipe, self.trial, self.why, self.reasons = study, plan, recipe, trial, why, stands_on
        self.name, self.home, self.given, self.seconds, self.seed = name, home, given, seconds, seed
        self.cache, self.clock, self.watcher = cache, clock, watcher

    def go(self, forecast: Forecast | None, unknown: str) -> tuple[RunRecord, list[dict[str, str]], int]:
        """Prepare, resume, train, write model and samples, and keep the record; with what the process should end with."""
        # The whole machine is its own now, but the forecast is of a final on as many threads as the rungs had.
        device = pick_device(self.study.train.device, threads_of(self.study, self.plan))
        self.team = team_of(self.study, device, threads_of(self.study, self.plan))
        if self.plan.world.precision == "fp8":
            check_fp8(device)
        check_machine(self.plan, identify(device))
        tokens = prepare(self.study, self.plan.world.vocab_size, self.cache, self.watcher)
        check_data(self.plan, tokens, self.study.name)
        if self.given:
            check_vocabulary(self.given.folder, tokens)
            self.given.keep(self.home / INIT, self.plan.world.context_length)
        if (epochs := epochs_at_target(self.recipe, self.seconds, self.plan.world)) > MANY_EPOCHS:
            self.watcher.note(repetition_warning("this final", epochs))
        if not self.team.together:
            warm_up()
        keep_compiled(self.cache)
        curve_path(self.study.folder, self.name).parent.mkdir(parents=True, exist_ok=True)
        config = self._config()
        way = self._way(config, tokens) if self.team.together else None
        self._keep_forecast(forecast, unknown)
        ledger = open_ledger(self.study.database, self.study.scope)
        ledger.release_the_dead(time.sleep)
        charged = self._charged(ledger)
        if charged:
            self.watcher.note(f"resuming  {charged:.0f} of {self.seconds:.0f} device-seconds are used up")
        with StopRequest() as stop, rest_being_read(self.study.data, self.cache, tokens, self.watcher.note):
            with self._held(ledger, self.team.devices) as meter:
                if way:
                    record = self._train_together(way, config, tokens, meter, charged, stop)
                else:
                    record = self._train(config, tokens, meter, charged, stop)
            with self._held(ledger, 1) as meter:  # what follows needs no more
                record, samples = self._close(record, tokens, meter, ledger)
        if record.state == "done":  # what it has learnt is in the model now
            shutil.rmtree(self.home / "checkpoints", ignore_errors=True)
        if not tokens.complete:
            self.watcher.note(f"warning   {tokens.corpus.source} was not all read: {tokens.state()}")
        ledger.stop(self.name, "the deadline is reached" if record.state == "done" else record.state)
        return record, samples, stop.exit_code if record.state == "interrupted" else 0

    def hand(
        self, train_it: Training, forecast: Forecast | None, unknown: str
    ) -> tuple[RunRecord, list[dict[str, str]], int]:
        """Have a function of somebody's own train, which leaves no model that could write."""
        check_machine(self.plan, identify(pick_device(self.study.train.device, threads_of(self.study, self.plan))))
        plan = self.plan.learning(read_records(self.study.folder))
        config = at_length(self.recipe, self.seconds, plan.target_seconds, plan.world, seed=self.seed)
        self._say_why(config, plan)
        self._keep_forecast(forecast, unknown)
        self.watcher.run(f"{self.name}: {self.recipe.summary()}", self.seconds)
        record, code = train_own(train_it, self.study, config, self._label(), self.home, self.clock)
        return record, [], code

    @contextmanager
    def _held(self, ledger: Ledger, devices: int) -> Iterator[Meter]:
        """So many devices, all that is left of the account leased for them, and the meter that charges what they use."""
        ledger.set_budget(self.name, max(self.seconds, self._charged(ledger)))
        lease = ledger.lease(self.name, ledger.balance(self.name).remaining_seconds, run=self.name, devices=devices)
        meter = Meter(self.clock, lease.charge, run=self.name)
        try:
            yield meter
        finally:
            meter.flush()
            lease.settle()

    def _train(self, config: RunConfig, tokens: Tokens, meter: Meter, charged: float, stop: Callable[[], bool]) -> RunRecord:
        """Train on one device, here. Returns the record of a model that is written, if the run was done."""
        self.watcher.run(f"{self.name}: {self.recipe.summary()}", self.seconds)
        trained = train(
            config,
            self._label(),
            tokens,
            meter,
            on_point=self._point,
            should_stop=stop,
            checkpoints=self._checkpoints(),
            spent_seconds=charged,
        )
        self._say_faults(trained.notes)
        done = trained.record.state == "done"
        return write_model(self.home / "model", trained, tokens) if done else trained.record

    def _way(self, config: RunConfig, tokens: Tokens) -> Way:
        """How several devices train it, once it is known that they can, and all of the text is there for them.

        Raises:
            ConfigError: they cannot.
        """
        way = self.team.way(config, self.plan.world)
        if not tokens.complete:
            self.watcher.note(
                "data      the rest of the source is read before training, so that all devices read the same text"
            )
            write_rest(self.study.data, self.cache, tokens)
        return way

    def _train_together(
        self, way: Way, config: RunConfig, tokens: Tokens, meter: Meter, charged: float, stop: Callable[[], bool]
    ) -> RunRecord:
        """Train on several devices, or on one beside which its weights wait. Returns as `_train`."""
        for line in self.team.says(way, config):
            self.watcher.note(f"devices   {line}")
        self.watcher.run(f"{self.name}: {self.recipe.summary()}", self.seconds)
        folder = self.home.absolute() / "model"
        task = self.team.task(way, config, self._label(), tokens, self._checkpoints(), folder, charged)
        record, notes = self.team.train(task, meter, self._point, stop, self.watcher.note)
        self._say_faults(notes)
        return record

    def _close(
        self, record: RunRecord, tokens: Tokens, meter: Meter, ledger: Ledger
    ) -> tuple[RunRecord, list[dict[str, str]]]:
        """Let the model write, measure it, and keep the record, with all that the final has taken so far, however often it was cut off."""
        deadline, samples = meter.clock.now() + self.seconds - self._charged(ledger), list[dict[str, str]]()
        if record.state == "done":
            loaded, _, _ = load_artefact(self.home / "model")  # what is on the disk, not what was trained
            deployed = loaded.to(self.plan.passport.device)
            samples = write_samples(deployed, tokens, lambda: meter.clock.now() > deadline)
            write_json(self.home / "samples.json", samples)
            record = self._measured(record, deployed, deadline, meter)
        taken = meter.clock.now() - deadline + self.seconds
        meter.flush()
        spent = ledger.balance(self.name).by_purpose
        record = replace(record, seconds=taken, planned_seconds=self.seconds, by_purpose=spent)
        append_record(self.study.folder, record)
        return record, samples

    def _label(self) -> Label:
        return Label(
            run=self.name,
            kind="final",
            trial=self.trial,
            rung=-1,
            recipe=asdict(self.recipe),
            target_seconds=self.seconds,
            passport=self.plan.passport.id,
            why=self.why,
        )

    def _checkpoints(self) -> Checkpoints:
        """Where they go, and how often they are written: in device-seconds, of which a second has as many as there are devices."""
        every = self.team.devices * self.study.train.checkpoint_seconds
        return Checkpoints(folder=self.home.absolute() / "checkpoints", every_seconds=every)

    def _point(self, point: CurvePoint) -> None:
        append_point(self.study.folder, self.name, point)
        self.watcher.point(point)

    def _say_faults(self, notes: list[str]) -> None:
        for note in notes:
            self.watcher.note(f"warning   {note} The one before it is used.")

    def _measured(self, record: RunRecord, deployed: LanguageModel, deadline: float, meter: Meter) -> RunRecord:
        """The record with what the model takes on this device, as far as there is time: its memory is seen in a process of its own."""
        if not record.tokens_per_second:  # it had time for a step at most, so it has none for this
            return record
        left, takes = deadline - meter.clock.now(), tokens_read(deployed.config.context_length) / record.tokens_per_second
        if left < takes:
            return record
        if left < takes + APART_SECONDS:
            return replace(record, **asdict(speed(deployed, meter.clock.now)))
        threads, device = torch.get_num_threads(), self.plan.passport.device
        try:
            measured = measure_apart(self.home / "model", threads, device, within_seconds=left)
        except StudyError as error:  # the final is done, whatever becomes of this
            self.watcher.note(f"warning   {error}")
            return record
        return replace(record, **asdict(measured))

    def _config(self) -> RunConfig:
        """The run as it was first settled: a resumed final must not be another one because more is known by now."""
        path = self.home / "config.json"
        if path.exists():
            return run_config_from(read_json(path))
        plan = self.plan.learning(read_records(self.study.folder))
        config = self._first_that_fits(plan)
        closing = min(MOST_CLOSING, max(LEAST_CLOSING, CLOSING_SHARE * self.seconds))
        if closing > self.seconds / 4:
            raise ConfigError(
                f"{self.seconds:.1f} s are too short for a final. Give `--hours {10 * LEAST_CLOSING / 3600:.2g}` or more."
            )
        self._say_why(config, plan)
        # The whole of the deadline is used, also where a miniature would stop early to keep its tokens per parameter.
        config = replace(config, seconds=self.seconds - closing, full_eval_tokens=plan.world.full_eval_tokens)
        write_json(path, as_dict(config))
        return config

    def _first_that_fits(self, plan: Plan) -> RunConfig:
        """The recipe as a run of this final's length, on one device or, spread over several where one is too small.

        Raises:
            ConfigError: it does not fit.
        """
        worlds = self.team.worlds(plan.world)
        for world in worlds[:-1]:
            with suppress(ConfigError):
                return at_length(self.recipe, self.seconds, plan.target_seconds, world, seed=self.seed)
        return at_length(self.recipe, self.seconds, plan.target_seconds, worlds[-1], seed=self.seed)

    def _say_why(self, config: RunConfig, plan: Plan) -> None:
        """Say, and keep, what is trained, and why."""
        known = replace(self.reasons, shape=shape_and_rule(self.recipe, config, self.seconds, plan))
        known.keep(self.home)
        for about, words in known.lines():
            self.watcher.note(f"{about:9} {words}")

    def _keep_forecast(self, forecast: Forecast | None, unknown: str) -> None:
        """Keep the forecast as it was before the outcome was known: the receipt."""
        path = self.home / FORECAST
        if path.exists():
            return
        if forecast is None:
            write_json(path, {"mean": None, "why": unknown})
            self.watcher.note(f"forecast  {unknown}")
        else:
            low, high = forecast.interval
            write_json(path, {"mean": forecast.mean, "low": low, "high": high, "share": 0.8})

    def _charged(self, ledger: Ledger) -> float:
        return ledger.balance(self.name).charged_seconds if self.name in ledger.accounts() else 0.0
