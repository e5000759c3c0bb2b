"""The search: prepare, ask, climb, tell, until the budget is spent; repeat the command to go on.

Optuna owns sampling and storage, the ledger owns the budget, records own what was measured. After a crash at any instant
the three are brought into agreement here: a trial that Optuna still calls running is told what its records say, or is
queued again if they say nothing.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from budgetlm.budget.clock import Clock, Meter, Purpose, duration
from budgetlm.budget.ledger import SEARCH, Ledger, open_ledger
from budgetlm.config import STUDY_FILE, StudyConfig, read_study_file
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.rest import rest_being_read
from budgetlm.data.sources import check_sources
from budgetlm.data.tokens import Tokens, prepare_tokens
from budgetlm.errors import ConfigError, SearchRunning, StudyError
from budgetlm.files import disk_errors, write_json
from budgetlm.forecast.choose import Choice, choose
from budgetlm.forecast.evidence import evidence
from budgetlm.inherit import data_of, keep_init
from budgetlm.interrupt import RESUME_ME, StopRequest
from budgetlm.passport import Passport, visible_gpus
from budgetlm.recipe.recipe import recipe_from
from budgetlm.recipe.scale import MANY_EPOCHS, epochs_at_target
from budgetlm.recipe.space import compressions, read_space
from budgetlm.search.ahead import PRELOAD
from budgetlm.search.copies import Shared, Tidier
from budgetlm.search.jobs import CalibrateJob, IdentifyJob, ThreadsJob
from budgetlm.search.lead import Lead
from budgetlm.search.plan import Measure, Plan, describe, load_plan, make_plan
from budgetlm.search.scheduler import TICK_SECONDS, Scheduler
from budgetlm.search.shared import publish
from budgetlm.search.site import Site
from budgetlm.search.sizing import check_limit, rungs_of, teacher_charge, usual_shape, vocabulary_of
from budgetlm.search.trials import Trials, open_storage
from budgetlm.search.world import final_team, memory_of
from budgetlm.studies import IMPORTANCE, LOCK, PLAN
from budgetlm.train.compilation import keep_compiled
from budgetlm.train.parallel.kinds import check_offload
from budgetlm.watch import Watcher
from budgetlm.workers.board import Board
from budgetlm.workers.child import Place
from budgetlm.workers.job import TRANSIENT, Ended, Failure, Job, Spent, Workers
from budgetlm.workers.processes import Processes, start_server

MOST_PREPARING_SECONDS = 600.0
"""Identifying and measuring a device takes seconds; beyond this something is wrong with it."""
TEACHER = "teacher"
"""What the ledger calls the training of a study's teacher, where that is charged."""


Hire = Callable[[StudyConfig, Clock, Callable[[], bool]], Workers]
"""Makes the workers of a search, from its configuration, clock, and who says whether to stop."""


@dataclass(frozen=True)
class SearchResult:
    """How a search ended."""

    stopped_because: str
    exit_code: int
    """0, or what the process should end with because it was asked to stop (`interrupt.py`)."""
    choice: Choice | None
    recipe: str
    """The chosen recipe, in words."""
    new_runs: int
    saved_seconds: float
    """Device-seconds of the budget that are left."""
    evidence: Sequence[str] = ()
    """What the choice stands on, in sentences."""


def search(
    config: StudyConfig,
    cache: Path,
    clock: Clock,
    watcher: Watcher,
    hire: Hire | None = None,
    *,
    lends: bool = True,
    reached: StudyConfig | None = None,
) -> SearchResult:
    """Search under a budget, beginning or continuing the study of this name.

    Args:
        hire: makes the workers; processes on the study's devices if left out.
        lends: whether other processes may lend it a hand (`budgetlm worker`); not where they could not do what is done here.
        reached: the same study with the address by which this machine reaches its database, where that is another than others use.

    Raises:
        SearchRunning: another search is at it.
        StudyError: it was begun with other settings or on another machine, or its files are damaged.
        BudgetExhausted: the budget does not pay for two rungs.
        DataError, ConfigError: see their messages.
    """
    folder = config.folder
    check_settings(config)
    known = load_plan(folder)
    # An impossible budget or limit is refused before anything is paid for or written.
    rungs_of(config, 1, known.rungs if known else ())
    check_limit(config)
    check_sources(config.data)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SearchRunning(
            f"another search is running on study {config.name!r}. Wait for it, lend it a hand with `budgetlm worker --study "
            f"{config.name}`, stop it with Ctrl-C, or name another study."
        ) from None
    try:
        return _search(config, cache, clock, watcher, hire or processes, lends, reached or config)
    finally:
        watcher.close()
        lock.release()


def check_settings(config: StudyConfig) -> None:
    """Refuse to go on with a study under other settings than it was begun with.

    Only its hours, the number of devices and how they work together, the engine, the allocator, how often checkpoints are written, the bucket that they go
    to, and whether it stops early may change.

    Raises:
        StudyError: they differ; the message says where.
    """
    if not (config.folder / PLAN).exists():  # it never got as far as a plan: there is nothing to compare with
        return
    before, now = (dataclasses.asdict(c) for c in (read_study_file(config.folder / STUDY_FILE), config))
    for values in (before, now):
        values["budget"].pop("hours")
        for name in ("devices", "engine", "ray_address", "final_devices", "parallel", "offload"):
            values["train"].pop(name)
        values["train"].pop("checkpoint_seconds")
        values["train"].pop("allocator", None)
        values["search"].pop("stop_early")
        values["search"].pop("shared", None)
    differences = [
        f"{section}.{key} was {before[section].get(key)!r}, is {now[section].get(key)!r}"
        for section in ("budget", "data", "model", "train", "search", "space")
        for key in sorted({*before[section], *now[section]})
        if before[section].get(key) != now[section].get(key)
    ]
    if differences:
        raise StudyError(
            f"study {config.name!r} was begun with other settings: {'; '.join(differences)}. Its trials could not be "
            "compared. Repeat it with the old ones, or give the new search another name with `--study`."
        )


def prepare(config: StudyConfig, vocab_size: int, cache: Path, watcher: Watcher) -> Tokens:
    """Corpus and tokens, from the cache where they have been made before. The device is not held meanwhile.

    Of a streamed source only the head is prepared; `rest_being_read` sees to the rest.
    """
    done, data = 0, data_of(config)

    def tick(size: int) -> None:
        nonlocal done
        done += size
        watcher.working("reading text", done / 1e6, 0)

    corpus = prepare_corpus(data, cache, tick)
    watcher.note(f"data      {corpus.facts.summary()}")
    total, done = sum(corpus.facts.bytes.values()) + corpus.facts.bytes["train"], 0

    def tick_tokens(size: int) -> None:
        nonlocal done
        done += size
        watcher.working("tokenising", done / 1e6, total / 1e6)

    tokens = prepare_tokens(data, corpus, vocab_size, cache, tick_tokens, masks=config.model.objective == "mlm")
    if tokens.streamed:
        watcher.note(f"data      {tokens.state()}{'' if tokens.complete else '; the rest is read beside training'}")
    return tokens


def _search(
    config: StudyConfig, cache: Path, clock: Clock, watcher: Watcher, hire: Hire, lends: bool, reached: StudyConfig
) -> SearchResult:
    folder = config.folder
    plan = load_plan(folder)
    if not plan:
        _check_unled(config, reached)
    ledger = open_ledger(reached.database, reached.scope)
    for lease, seconds in ledger.release_the_dead(time.sleep):
        watcher.note(f"{lease.run} was cut off; {seconds:.1f} s are charged beyond its last heartbeat")
    ledger.set_budget(SEARCH, config.budget.seconds)
    owed = 0.0 if ledger.charged_to(SEARCH, TEACHER) else teacher_charge(config)
    config.save(folder)
    keep_init(config)
    keep_compiled(cache)
    stop = StopRequest()
    with closing(hire(config, clock, stop)) as workers:
        alone = Alone(ledger, clock, workers, attempts=1 + config.search.max_restarts)
        plan, tokens = _settle(config, plan, len(workers.places), alone, cache, watcher)
        if owed:
            alone.charge(TEACHER, "teacher", owed)
            watcher.note(f"teacher   its training took {duration(owed)}, which the search is charged for")
        site = Site(
            folder,
            plan,
            tokens,
            ledger,
            clock,
            watcher,
            stop,
            config.search.seed,
            config.search.max_restarts,
            config.train.checkpoint_seconds,
            config.search.stop_early,
        )
        objectives, before_runs = config.search.objectives, len(site.records())
        storage = open_storage(reached.database)
        trials = Trials(storage, config.name, plan.space, config.search.seed, objectives=objectives)
        with _published(site, reached), stop, rest_being_read(config.data, cache, tokens, watcher.note):
            if not lends:
                because = Scheduler(site, trials, workers).run()
            else:
                with Lead(reached, ledger, clock) as lead:
                    because = Scheduler(site, trials, lead.crew(workers)).run()
                    lead.end("" if stop.exit_code == RESUME_ME else because)
    ledger.stop(SEARCH, because)
    counted, importance = trials.importance()
    intervals = trials.importance_intervals()
    write_json(folder / IMPORTANCE, {"trials": counted, "importance": importance, "intervals": intervals})
    records = site.records()
    choice = choose(records, plan.target_seconds, site.forecasts(), objectives)
    recipe = next((recipe_from(r.recipe).summary() for r in records if choice and r.trial == choice.trial), "")
    left = ledger.balance().remaining_seconds
    stands_on = evidence(choice, records, site.forecasts()) if choice else []
    return SearchResult(because, stop.exit_code, choice, recipe, len(records) - before_runs, left, stands_on)


@contextmanager
def _published(site: Site, reached: StudyConfig) -> Iterator[None]:
    """Have a study's bucket, if there is one, hold what other machines need of it, and tidied afterwards.

    Raises:
        BucketAway: it cannot be used.
    """
    if not reached.search.shared:
        yield
        return
    site.shared = Shared(reached.search.shared, reached.name)
    publish(site.shared.bucket(), reached, site.tokens, site.watcher.note)
    with closing(Tidier(site.shared.bucket(), site.watcher.note)) as site.tidier:
        yield


def _check_unled(config: StudyConfig, reached: StudyConfig) -> None:
    """Refuse to begin a study that a server's database knows already: its trials there would have no records here.

    Raises:
        StudyError: it does.
    """
    if not config.search.storage:
        return
    with closing(Board(reached.database, config.name)) as board:
        if board.lead():
            raise StudyError(
                f"the database at {reached.database} knows a search of study {config.name!r}, whose records are not in {config.folder}. Go on with it in the "
                f"folder that it was begun in, lend it a hand with `budgetlm worker --study {config.name}`, or name another study."
            )


def _settle(
    config: StudyConfig, plan: Plan | None, devices: int, alone: "Alone", cache: Path, watcher: Watcher
) -> tuple[Plan, Tokens]:
    """The plan and the tokens of a study: looked at and measured the first time, held to what they were after that."""
    train, named = config.train, compressions(read_space(config.space))
    identify = IdentifyJob(
        train.device, threads_of(config, plan), precision=train.precision, compressions=named, teacher=train.teacher
    )
    passport = alone.free(identify)  # PyTorch is being loaded meanwhile, which is not charged
    if config.train.offload:  # told now, and not when the search is over
        check_offload(passport.device)
    rungs = rungs_of(config, devices, plan.rungs if plan else ())
    if plan:
        check_machine(plan, passport)
        tokens = prepare(config, plan.world.vocab_size, cache, watcher)
        check_data(plan, tokens, config.name)
        world = dataclasses.replace(plan.world, **final_team(config, passport.device))
        plan = dataclasses.replace(plan, world=world, rungs=rungs)
    else:
        passport = alone.charged(dataclasses.replace(identify, measured=cache))
        passport = alone.threads(config, passport, cache, rungs[-1])
        tokens = prepare(config, vocabulary_of(config, passport), cache, watcher)
        measure = alone.calibration(config, passport, cache, rungs[-1])
        plan, measured = make_plan(config, passport, tokens, measure, devices)
        watcher.note(f"speed     {f'measured in {measured.seconds:.1f} s' if measured.seconds else 'remembered'}")
    plan.save(config.folder)
    watcher.note(describe(plan))
    if (epochs := epochs_at_target(plan.default, plan.target_seconds, plan.world)) > MANY_EPOCHS:
        watcher.note(repetition_warning("the default recipe's final", epochs))
    return plan, tokens


def processes(config: StudyConfig, clock: Clock, _should_stop: Callable[[], bool]) -> Workers:
    """A process for each device that the study may use."""
    device, memory = config.train.device, int(config.train.memory_gb * 1e9)
    if config.train.engine == "ray":
        from budgetlm.workers.cluster import Cluster

        place = Place(device, "", threads_of(config), memory)
        train, patience = config.train, config.search.hang_seconds
        return Cluster(train.ray_address, train.devices, place, clock, hang_seconds=patience, gpu_share=train.gpu_share)
    gpus = visible_gpus() if device != "cpu" else []
    if gpus:
        count = min(config.train.devices or len(gpus), len(gpus))
        places = [Place("cuda", gpu, config.train.threads, memory) for gpu in gpus[:count]]
    else:
        places = [Place("cpu", "", threads_of(config), memory)] * max(1, config.train.devices)
    start_server(PRELOAD, config.train.allocator)
    return Processes(places, clock, hang_seconds=config.search.hang_seconds, preload=PRELOAD)


def threads_of(config: StudyConfig, plan: Plan | None = None) -> int:
    """CPU threads of each worker: those asked for, or an even share of the cores, of which a plan may have settled for fewer."""
    share = config.train.threads or max(1, len(os.sched_getaffinity(0)) // max(1, config.train.devices))
    return min(share, plan.passport.threads) if plan else share


class Alone:
    """Jobs that are done before there are trials, one at a time, on the first place."""

    def __init__(self, ledger: Ledger, clock: Clock, workers: Workers, attempts: int) -> None:
        self._ledger, self._clock, self._workers, self._attempts = ledger, clock, workers, attempts

    def free(self, job: Job) -> Any:
        """Do a job that costs the device nothing worth mention, such as looking at it."""
        return self._do(job, None)

    def charged(self, job: Job) -> Any:
        """Do a job, and charge the study for it."""
        lease = self._ledger.lease(SEARCH, self._ledger.balance().remaining_seconds)
        meter = Meter(self._clock, lease.charge)
        try:
            return self._do(job, meter)
        finally:
            meter.flush()
            lease.settle()

    def charge(self, run: str, purpose: Purpose, seconds: float) -> None:
        """Charge the study for what was done elsewhere."""
        lease = self._ledger.lease(SEARCH, seconds, run=run)
        lease.charge(run, {purpose: seconds})
        lease.settle()

    def threads(self, config: StudyConfig, passport: Passport, cache: Path, rung_seconds: float) -> Passport:
        """The passport with as many CPU threads as train fastest, where that is left to be chosen."""
        if passport.device != "cpu" or config.train.threads or passport.threads == 1:
            return passport
        job = ThreadsJob(usual_shape(config, passport), passport, cache, rung_seconds)
        chosen: Passport = self.charged(job)
        return chosen

    def calibration(self, config: StudyConfig, passport: Passport, cache: Path, rung_seconds: float) -> Measure:
        """Calibrates the first place's device, within the memory that its runs will have."""
        train = config.train
        passport = dataclasses.replace(passport, memory_bytes=memory_of(config, passport))
        return lambda shapes, names: self.charged(
            CalibrateJob(shapes, passport, names, cache, rung_seconds, train.precision, train.attention, train.matmul)
        )

    def _do(self, job: Job, meter: Meter | None) -> Any:
        for left in reversed(range(self._attempts)):
            outcome = self._attempt(job, meter)
            if not isinstance(outcome, Failure):
                return outcome
            if outcome.cause not in TRANSIENT or not left:
                break
        what = f"{type(job).__name__.removesuffix('Job').lower()} the device"
        error = ConfigError if outcome.cause == "configuration" else StudyError
        raise error(
            outcome.message if outcome.cause in ("configuration", "study") else f"could not {what}: {outcome.message}"
        )

    def _attempt(self, job: Job, meter: Meter | None) -> Any:
        self._workers.start(0, job, MOST_PREPARING_SECONDS)
        while True:
            for _, event in self._workers.wait(TICK_SECONDS):
                if isinstance(event, Spent) and meter:
                    meter.explain(event.by_purpose)
                if isinstance(event, Ended):
                    return event.outcome
            if meter:
                meter.tick()


def check_machine(plan: Plan, passport: Passport) -> None:
    """Refuse to mix the device-seconds of two machines.

    Raises:
        StudyError: this is not the machine that the plan was made on.
    """
    if plan.passport.id != passport.id:
        raise StudyError(
            f"this study was begun on another machine or set-up ({plan.passport.summary()}); this is {passport.summary()}. "
            "Device-seconds of the two cannot be compared. Go on there, or begin another study here with `--study`."
        )


def check_data(plan: Plan, tokens: Tokens, name: str) -> None:
    """Refuse to go on with other text than a study was begun with.

    Raises:
        StudyError: it has changed.
    """
    if plan.data != tokens.facts.fingerprint:
        raise StudyError(
            f"the data of study {name!r} has changed since it was begun (fingerprint {plan.data}, now "
            f"{tokens.facts.fingerprint}). Bring the old text back, or give the new search another name with `--study`."
        )


def repetition_warning(who: str, epochs: float) -> str:
    """What to say of a final that reads its data too often."""
    return (
        f"warning   {who} would read its training data {epochs:.1f} times; beyond about {MANY_EPOCHS:.0f} times repeated text "
        "teaches clearly less (arXiv:2305.16264). More text would help: `--data site`, or a source of your own."
    )
