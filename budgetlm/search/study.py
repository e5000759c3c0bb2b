"""The search: prepare, ask, climb, tell, until the budget is spent; repeat the command to go on.

Optuna owns sampling and storage, the ledger owns the budget, records own what was measured. After a crash at any instant
the three are brought into agreement here: a trial that Optuna still calls running is told what its records say, or is
queued again if they say nothing.
"""

import dataclasses
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import FileLock, Timeout

from budgetlm.budget.clock import Clock, Meter
from budgetlm.budget.ledger import SEARCH, Ledger, database_url, open_database
from budgetlm.config import STUDY_FILE, StudyConfig, read_study_file
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.tokens import Tokens, prepare_tokens
from budgetlm.errors import StudyError
from budgetlm.files import write_json
from budgetlm.forecast.choose import Choice, choose, highest_rungs
from budgetlm.interrupt import StopRequest
from budgetlm.passport import Passport, identify, pick_device, take_passport
from budgetlm.recipe.recipe import Recipe, recipe_from
from budgetlm.recipe.scale import MANY_EPOCHS, epochs_at_target
from budgetlm.recipe.space import parameters_of, searched, suggest
from budgetlm.records import RunRecord, read_records
from budgetlm.search.climb import MARGIN_SECONDS, Site, climb
from budgetlm.search.ladder import plan_rungs
from budgetlm.search.plan import Plan, describe, load_plan, make_plan, suited_vocabulary
from budgetlm.studies import DATABASE, IMPORTANCE, LOCK, PLAN
from budgetlm.watch import Watcher

BUGS_IN_A_ROW = 3
"""So many trials in a row that end in what looks like a bug end the study: it would only burn the budget."""

TrialState = optuna.trial.TrialState


@dataclass(frozen=True)
class SearchResult:
    """How a search ended."""

    stopped_because: str
    interrupted: bool
    choice: Choice | None
    recipe: str
    """The chosen recipe, in words."""
    new_runs: int


def search(config: StudyConfig, cache: Path, clock: Clock, watcher: Watcher) -> SearchResult:
    """Search under a budget, beginning or continuing the study of this name.

    Raises:
        StudyError: another search is at it, it was begun with other settings or on another machine, or its files are damaged.
        BudgetExhausted: the budget does not pay for two rungs.
        DataError, ConfigError: see their messages.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = config.folder
    check_settings(config)
    _rungs(config, load_plan(folder))  # an impossible budget is refused before anything is paid for or written
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StudyError(
            f"another search is running on study {config.name!r}. Wait for it, stop it with Ctrl-C, or name another study."
        ) from None
    try:
        return _search(config, cache, clock, watcher)
    finally:
        watcher.close()
        lock.release()


def check_settings(config: StudyConfig) -> None:
    """Refuse to go on with a study under other settings than it was begun with; only the search's hours may change.

    Raises:
        StudyError: they differ; the message says where.
    """
    if not (config.folder / PLAN).exists():  # it never got as far as a plan: there is nothing to compare with
        return
    before, now = (dataclasses.asdict(c) for c in (read_study_file(config.folder / STUDY_FILE), config))
    for values in (before, now):
        values["budget"].pop("hours")
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
    """Corpus and tokens, from the cache where they have been made before. The device is not held meanwhile."""
    done = 0

    def tick(size: int) -> None:
        nonlocal done
        done += size
        watcher.working("reading text", done / 1e6, 0)

    corpus = prepare_corpus(config.data, cache, tick)
    watcher.note(f"data      {corpus.facts.summary()}")
    total, done = sum(corpus.facts.bytes.values()) + corpus.facts.bytes["train"], 0

    def tick_tokens(size: int) -> None:
        nonlocal done
        done += size
        watcher.working("tokenising", done / 1e6, total / 1e6)

    return prepare_tokens(config.data, corpus, vocab_size, cache, tick_tokens)


def _rungs(config: StudyConfig, plan: Plan | None) -> list[float]:
    budget = config.budget
    known = plan.rungs if plan else ()
    return plan_rungs(budget.seconds, budget.target_seconds, config.search.least_rung_seconds, known)


def _search(config: StudyConfig, cache: Path, clock: Clock, watcher: Watcher) -> SearchResult:
    folder = config.folder
    plan = load_plan(folder)
    rungs = _rungs(config, plan)
    device = pick_device(config.train.device, config.train.threads)
    ledger = Ledger(open_database(folder / DATABASE))
    ledger.set_budget(SEARCH, config.budget.seconds)
    config.save(folder)
    if plan:
        passport = identify(device)
        check_machine(plan, passport)
        plan = dataclasses.replace(plan, rungs=rungs)
    else:  # measuring the machine holds the device, if for a moment, and is charged like everything that does
        before = clock.now()
        passport = take_passport(device)
        ledger.charge(SEARCH, "study", "calibrate", clock.now() - before)
    vocab_size = (
        plan.world.vocab_size
        if plan
        else config.data.vocab_size or suited_vocabulary(config.budget.target_seconds, passport)
    )
    tokens = prepare(config, vocab_size, cache, watcher)
    if plan and plan.data != tokens.facts.fingerprint:
        raise StudyError(
            f"the data of study {config.name!r} has changed since it was begun (fingerprint {plan.data}, now "
            f"{tokens.facts.fingerprint}). Bring the old text back, or give the new search another name with `--study`."
        )
    warm_up(device)
    # With nothing left that a run could be paid from, the device is not held, and looking on is not charged.
    open_for_runs = plan is None or ledger.balance().remaining_seconds >= plan.rungs[0] + MARGIN_SECONDS
    meter = Meter(clock, ledger.charger(SEARCH) if open_for_runs else None)
    with StopRequest() as stop:
        try:
            if plan is None:
                with meter.during("calibrate"):
                    plan, measured = make_plan(config, passport, tokens, clock, cache, meter.flush)
                cost = f"measured in {measured.seconds:.1f} s" if measured.seconds else "remembered"
                watcher.note(f"speed     {cost}")
            plan.save(folder)
            watcher.note(describe(plan))
            if (epochs := epochs_at_target(plan.default, plan.target_seconds, plan.world)) > MANY_EPOCHS:
                watcher.note(repetition_warning("the default recipe's final", epochs))
            site = Site(folder, plan, tokens, ledger, meter, watcher, stop, config.search.seed)
            before_runs = len(site.records())
            because = _Search(site, _open_study(config)).run()
        finally:
            meter.flush()
    ledger.stop(SEARCH, because)
    _keep_importance(config)
    records = read_records(folder)
    choice = choose(records, plan.target_seconds)
    recipe = next((recipe_from(r.recipe).summary() for r in records if choice and r.trial == choice.trial), "")
    return SearchResult(because, stop.requested, choice, recipe, len(records) - before_runs)


def warm_up(device: str) -> None:
    """Load what PyTorch loads at the first step of a process, before the device's time is counted."""
    import torch

    weight = torch.nn.Parameter(torch.ones(2, 2))
    torch.autograd.backward(weight.sum())
    torch.optim.AdamW([weight], fused=True).step()
    torch.optim.Muon([weight]).zero_grad()
    if device == "cuda":
        torch.ones(1, device=device)


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


def repetition_warning(who: str, epochs: float) -> str:
    """What to say of a final that reads its data too often."""
    return (
        f"warning   {who} would read its training data {epochs:.1f} times; beyond about {MANY_EPOCHS:.0f} times repeated text "
        "teaches clearly less (arXiv:2305.16264). More text would help: `--data site`, or a source of your own."
    )


def _open_study(config: StudyConfig) -> optuna.Study:
    storage = optuna.storages.RDBStorage(
        database_url(config.folder / DATABASE), engine_kwargs={"connect_args": {"timeout": 60}}
    )
    study = optuna.create_study(study_name=config.name, storage=storage, direction="minimize", load_if_exists=True)
    # A continued search must not draw the same random numbers again, so the seed moves with the trials.
    seed = config.search.seed * 100_003 + len(study.get_trials(deepcopy=False))
    with warnings.catch_warnings():  # "experimental" for years, and what the documentation recommends
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    return study


class _Search:
    """The loop over trials."""

    def __init__(self, site: Site, study: optuna.Study) -> None:
        self.site, self.study = site, study
        self.bugs = 0

    def run(self) -> str:
        """Ask, climb, tell, until there is a reason to stop; returns the reason."""
        self._settle_the_interrupted()
        if not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(parameters_of(self.site.plan.default, self.site.plan.space))
        self._show_best()
        while not self.site.should_stop():
            if not self.site.affords(0):
                return self._spent()
            if not self._climb_again():
                self._new_trial()
            self._show_best()
            if self.bugs >= BUGS_IN_A_ROW:
                last = self.site.records()[-1].error
                raise StudyError(
                    f"{self.bugs} trials in a row ended in an error that is not about their recipes, so the search was "
                    f"stopped before it wasted the budget. The last one:\n{last}"
                )
        return "interrupted; the same command goes on"

    def _spent(self) -> str:
        left, least = self.site.remaining(), self.site.plan.rungs[0]
        if left <= 0:
            return "the budget is spent"
        return f"the budget is spent: the {left:.1f} s left do not pay for another run of {least:.1f} s"

    def _new_trial(self) -> None:
        trial = self.study.ask()
        recipe = suggest(trial, self.site.plan.space)
        record = climb(self.site, trial.number, recipe)
        self._settle(trial.number, record, recipe)

    def _climb_again(self) -> bool:
        """Let a trial that was stopped climb on, where that is worth more than a new trial.

        That is so when nobody has reached the top yet, as after a budget was raised and has added a rung, and when the rest of
        the budget pays for a higher rung but hardly for a new trial beside it. Optuna has been told what these trials were
        worth and is not told again; the records are what the choice is made from.
        """
        site, rungs = self.site, self.site.plan.rungs
        records, forecasts = site.records(), site.forecasts()
        standing = highest_rungs(records)
        broken = {(r.trial, r.rung) for r in records if r.state in ("failed", "diverged")}
        unreached = len(rungs) - 1 not in standing.values()
        left = site.remaining()
        for trial in sorted(forecasts, key=lambda n: forecasts[n].mean):
            rung = standing[trial] + 1
            if rung == len(rungs) or (trial, rung) in broken:
                continue
            last_chance = left < rungs[rung] + rungs[0] + 1.0
            if (unreached or last_chance) and site.affords(rung):
                recipe = next(r.recipe for r in records if r.trial == trial)
                climb(site, trial, recipe_from(recipe), rung)
                return True
        return False

    def _settle(self, number: int, record: RunRecord, recipe: Recipe) -> None:
        """Tell Optuna, once, what has become of a trial."""
        self.bugs = self.bugs + 1 if record.error.startswith("bug:") else 0
        forecasts = self.site.forecasts()
        if number in forecasts:
            self.study.tell(number, forecasts[number].mean)
        elif record.state == "diverged":
            # As bad as knowing nothing: a finite value teaches the sampler to stay away, which a failure would not.
            self.study.tell(number, self._uniform_bpb())
            self.site.watcher.note(f"trial {number} diverged")
        elif record.state == "interrupted":
            self.study.tell(number, state=TrialState.FAIL)
            self.study.enqueue_trial(parameters_of(recipe, self.site.plan.space))
        else:
            self.study.tell(number, state=TrialState.FAIL)
            self.site.watcher.note(
                f"trial {number} failed: {record.error.splitlines()[-1] if record.error else record.state}"
            )

    def _uniform_bpb(self) -> float:
        """Bits per byte of guessing every token alike."""
        facts = self.site.tokens.facts
        tokens_a_byte = facts.tokens["validation"] / facts.corpus["bytes"]["validation"]
        return float(math.log2(facts.vocab_size) * tokens_a_byte)

    def _settle_the_interrupted(self) -> None:
        """Bring trials that a crash left running into agreement with their records."""
        forecasts = self.site.forecasts()
        last = {r.trial: r for r in self.site.records() if r.kind == "rung"}
        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if trial.number in forecasts:
                self.study.tell(trial.number, forecasts[trial.number].mean)
            elif trial.number in last and last[trial.number].state == "diverged":
                self.study.tell(trial.number, self._uniform_bpb())
            else:
                self.study.tell(trial.number, state=TrialState.FAIL)
                if set(trial.params) == set(parameters_of(self.site.plan.default, self.site.plan.space)):
                    self.study.enqueue_trial(trial.params)
                self.site.watcher.note(f"trial {trial.number} was cut off by a crash and begins again")

    def _show_best(self) -> None:
        choice = choose(self.site.records(), self.site.plan.target_seconds)
        if choice:
            low, high = choice.forecast.interval
            self.site.watcher.best(
                f"trial {choice.trial}: {choice.forecast.mean:.3f} bpb forecast ({low:.3f} to {high:.3f}) of "
                f"{len(self.site.forecasts())} trials"
            )


def _keep_importance(config: StudyConfig) -> None:
    """Parameter importances by Optuna's PED-ANOVA, kept for the report, which knows no Optuna."""
    study = _open_study(config)
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    plan = load_plan(config.folder)
    names = searched(plan.space) if plan else []
    names = [n for n in names if all(n in t.params for t in trials) and len({t.params[n] for t in trials}) > 1]
    importance: dict[str, float] = {}
    if len(trials) >= 8 and len(names) >= 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        importance = dict(optuna.importance.get_param_importances(study, evaluator=evaluator, params=names))
    write_json(config.folder / IMPORTANCE, {"trials": len(trials), "importance": importance})
