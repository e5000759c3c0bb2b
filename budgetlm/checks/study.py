"""The study: how an earlier one of its name stands, its text, what it would train, and what its budget pays for."""

from pathlib import Path
from typing import TYPE_CHECKING

from budgetlm.budget.clock import duration
from budgetlm.budget.ledger import SEARCH, Balance, open_ledger
from budgetlm.checks import probes
from budgetlm.checks.case import Case, Expected, Finding, NotCheckedError, State, judge, needed, size_text
from budgetlm.config import STUDY_FILE, StudyConfig
from budgetlm.data.batches import training_batches, validation_sample
from budgetlm.data.corpus import CorpusFacts, prepare_corpus
from budgetlm.errors import ConfigError
from budgetlm.model.size import parameters
from budgetlm.recipe.limit import limited
from budgetlm.recipe.oracle import deployed_bytes, expected_tokens, model_of, size_violation
from budgetlm.recipe.scale import MANY_EPOCHS, at_target, epochs_at_target
from budgetlm.recipe.space import complete_space, default_recipe, only_compression, read_space, searched, suggest
from budgetlm.records import read_records
from budgetlm.studies import LOCK, has_ledger

if TYPE_CHECKING:
    from budgetlm.data.tokens import Tokens
    from budgetlm.search.plan import Plan

DRAWS = 100
"""Recipes drawn from the space to see whether they are possible."""
MUCH_OVERLAP = 0.05
"""Share of the validation documents that may be in training documents, too, before it is warned of."""
SPLITS = {"train": "train", "validation": "validate"}
"""Splits, and what is done with them."""


def study(case: Case) -> Finding:
    """An earlier study of this name. Its plan is only believed if it was made for these settings and this machine."""
    from budgetlm.search.plan import load_plan
    from budgetlm.search.study import check_machine, check_settings

    folder = case.config.folder
    warnings = _leftovers(folder, case.cache)
    if not (folder / STUDY_FILE).exists():
        return judge([], warnings, f"{case.config.name!r} is new")
    check_settings(case.config)
    plan = load_plan(folder)
    if plan and case.identity:
        check_machine(plan, case.identity)
    case.plan = plan
    held = [path for path in (folder / LOCK, *sorted(folder.glob("finals/*/lock"))) if probes.is_locked(path)]
    faults = [f"{path} is locked: another process is at work there. Wait for it, or stop it with Ctrl-C." for path in held]
    settled = "was begun with these settings" if plan else "has no plan yet"
    return judge(faults, warnings, f"{case.config.name!r} {settled}; {_how_it_stands(case.config)}")


def _how_it_stands(config: StudyConfig) -> str:
    folder = config.folder
    trials = len({r.trial for r in read_records(folder) if r.kind == "rung"})
    balance = _balance(config)
    if balance is None:
        return f"{trials} trials, nothing spent yet"
    because = balance.stopped_because or "it did not say why it stopped (killed, perhaps)"
    return f"{trials} trials, {duration(balance.charged_seconds)} of {duration(balance.budget_seconds)} spent; {because}"


def _balance(config: StudyConfig) -> Balance | None:
    """The search's account, if the study has one."""
    if not has_ledger(config):
        return None
    ledger = open_ledger(config.database, config.scope)
    return ledger.balance(SEARCH) if SEARCH in ledger.accounts() else None


def _leftovers(*folders: Path) -> list[str]:
    found = [path for folder in folders for path in probes.leftovers(folder)]
    if not found:
        return []
    size = sum(map(probes.size_of, found))
    return [
        f"crashes have left {len(found)} temporary files ({size_text(size)}), the first is {found[0]}. They can be deleted."
    ]


def data(case: Case) -> Finding:
    """Whether the text can be read and is enough for one sequence; it is prepared as the search will want it."""
    from budgetlm.search.sizing import context_of
    from budgetlm.search.study import check_data, prepare

    if case.cache in case.unwritable:
        raise NotCheckedError("it needs a cache folder that can be written (see above).")
    vocab_size = _vocabulary(case)
    if vocab_size is None:
        corpus = prepare_corpus(case.config.data, case.cache)
        return "warning", f"{corpus.facts.summary()}; not tokenised, for the vocabulary depends on the device (see above)"
    tokens = prepare(case.config, vocab_size, case.cache, case.watcher)
    facts = tokens.facts
    if case.plan:
        check_data(case.plan, tokens, case.config.name)
    context = context_of(case.config, case.identity.device if case.identity else "cpu")
    training_batches(tokens, context, case.config.search.seed)
    validation_sample(tokens, context, context)
    case.tokens = tokens
    count = " and ".join(f"{facts.tokens[split]:,} tokens to {verb}" for split, verb in SPLITS.items())
    count += f", {tokens.state()}, the rest is read beside training" if tokens.streamed else ""
    count += f", {_first_again(tokens)}" if tokens.facts.parts else ""
    says = f"{tokens.corpus.summary()}; {count}, vocabulary {facts.vocab_size:,}, context {context}"
    return judge([], _overlap_warnings(tokens.corpus), says)


def _first_again(tokens: "Tokens") -> str:
    """Which of several sources is read through first: it is what counts as the training tokens."""
    shares = zip(tokens.corpus.parts, tokens.facts.parts, tokens.facts.weights, strict=True)
    _, source = min((part["train"] / weight, str(named["source"])) for named, part, weight in shares)
    return f"{tokens.train_tokens:,} training tokens can be read by these weights before {source} comes again"


def _overlap_warnings(corpus: CorpusFacts) -> list[str]:
    """A warning if too much of what validates was trained on."""
    if corpus.overlap_dropped or corpus.overlap_share <= MUCH_OVERLAP:
        return []
    return [
        f"{corpus.overlapping:,} of {corpus.documents['validation']:,} validation documents are in training documents, too, by half or more, so "
        "bits per byte come out too good. `data.drop_overlap = true`, the default, leaves them out:"
    ]


def _vocabulary(case: Case) -> int | None:
    """The vocabulary that the search will use, as far as it is known."""
    from budgetlm.search.sizing import vocabulary_of

    if case.plan:
        return case.plan.world.vocab_size
    return vocabulary_of(case.config, case.passport) if case.passport else case.config.data.vocab_size or None


def recipe(case: Case) -> Finding:
    """What the default final would be: the measure for all that follows."""
    case.expected = _from_plan(case.plan) if case.plan else _estimate(case)
    world, default = case.expected.world, case.expected.default
    model, target = model_of(default, world), case.config.budget.target_seconds
    tokens = expected_tokens(default, model, default.batch_tokens, target, world)
    basis = "by the study's own measurements" if case.plan else "estimated from the ceilings"
    limit = f" of {world.max_model_bytes / 1e6:,.3g} that are allowed" if world.max_model_bytes else ""
    return "ok", (
        f"the default final of {duration(target)} would be depth {default.depth} x width {default.width}, "
        f"{parameters(model) / 1e6:,.2f} M parameters, {deployed_bytes(default, world) / 1e6:,.3g} MB{limit}, "
        f"{tokens / 1e6:,.1f} M tokens ({basis})"
    )


def _from_plan(plan: "Plan") -> Expected:
    return Expected(plan.world, plan.space, plan.default)


def _estimate(case: Case) -> Expected:
    """What a plan would settle, with a share of the ceiling in place of measured speeds."""
    from budgetlm.search.world import guessed_calibration, world_of

    config, passport, tokens = case.config, needed(case.passport, "a measured device"), needed(case.tokens, "tokens")
    world = world_of(config, passport, tokens, guessed_calibration(config, passport))
    wanted = read_space(config.space)
    default = default_recipe(config.budget.target_seconds, world, only_compression(wanted), wanted)
    space, default = limited(*complete_space(wanted, default, world), world)
    return Expected(world, space, default)


def repetition(case: Case) -> Finding:
    """How often the default final would read its text."""
    expected = needed(case.expected, "a default recipe")
    world, target = expected.world, case.config.budget.target_seconds
    epochs = epochs_at_target(expected.default, target, world)
    says = f"the default final would read its {world.train_tokens / 1e6:,.2f} M training tokens {epochs:,.2g} times"
    if epochs <= MANY_EPOCHS:
        return "ok", says
    return "warning", (
        f"{says}; beyond about {MANY_EPOCHS:.0f} times repeated text teaches clearly less (arXiv:2305.16264). Give "
        f"{world.train_tokens / 1e6 * epochs / MANY_EPOCHS:,.1f} M tokens or more: `--data site`, or a source of your own."
    )


def space(case: Case) -> Finding:
    """Whether recipes drawn as the sampler would at first are possible, at the target and in memory."""
    import optuna

    expected = needed(case.expected, "a default recipe")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=case.config.search.seed))
    refused, large = [], 0
    for _ in range(DRAWS):
        drawn = suggest(study.ask(), expected.space)
        try:
            at_target(drawn, case.config.budget.target_seconds, expected.world)
        except ConfigError as error:
            if size_violation(drawn, expected.world) > 0:  # as it should be where there is a limit: the sampler learns it
                large += 1
            else:
                refused.append(str(error))
    names = searched(expected.space)
    says = f"searches {', '.join(names) or 'nothing: every parameter is fixed'}"
    beyond = f" but for {large} beyond `search.max_model_mb`, which cost nothing" if large else ""
    if not refused:
        return "ok" if names else "warning", f"{says}; {DRAWS} recipes drawn from it are all possible{beyond}"
    state: State = "fault" if len(refused) + large == DRAWS else "warning"
    return state, f"{len(refused)} of {DRAWS} recipes drawn from the space are impossible, e.g.: {refused[0]}"


def budget(case: Case) -> Finding:
    """What the search's hours pay for, less what is spent already."""
    from budgetlm.search.scheduler import MARGIN_SECONDS
    from budgetlm.search.sizing import devices_of, rungs_of

    budget, plan = case.config.budget, case.plan
    if budget.hours == 0:
        return "warning", "how much may the search spend? Give `--hours`, then this says what they pay for."
    devices = devices_of(case.config, case.passport.device if case.passport else "cpu")
    rungs = rungs_of(case.config, devices, plan.rungs if plan else ())
    balance = _balance(case.config)
    charged = balance.charged_seconds if balance else 0.0
    if charged > budget.seconds:
        return "fault", f"{budget.hours:.4g} h are less than the {charged / 3600:.4g} h already spent. Give more `--hours`."
    left = budget.seconds - charged
    if left < rungs[0] + MARGIN_SECONDS:
        return "warning", f"the {left:.1f} s left do not pay for another run of {rungs[0]:.1f} s. Raise `--hours` to go on."
    return "ok", (
        f"{duration(left)} pay for a ladder of {len(rungs)} rungs ({', '.join(map(duration, rungs))}), at most "
        f"{int(left / (rungs[0] + MARGIN_SECONDS)):,} runs of the cheapest; the highest is 1/{budget.target_seconds / rungs[-1]:.0f} of the target"
    )
