"""What a search and its final would be, on this device or on one that is not here; nothing is spent, nothing is kept."""

from pathlib import Path

from budgetlm.budget.clock import duration
from budgetlm.config import StudyConfig
from budgetlm.devices import published_passport
from budgetlm.passport import Passport, pick_device, take_passport
from budgetlm.recipe.scale import MANY_EPOCHS
from budgetlm.recipe.space import compressions, read_space
from budgetlm.search.plan import Plan, load_plan
from budgetlm.search.rehearse import Rehearsal, Stage, guessed_plan, rehearse
from budgetlm.search.sizing import devices_of, vocabulary_of
from budgetlm.search.study import check_settings, prepare, threads_of
from budgetlm.watch import Watcher


def look_ahead(config: StudyConfig, cache: Path, watcher: Watcher, device: str | None = None) -> Rehearsal:
    """Rehearse a study.

    Args:
        device: a key of `devices.DEVICES`; the device that is here if left out.

    Raises:
        ConfigError, BudgetExhausted, DataError, StudyError: as the search itself would.
    """
    known = None if device else _settled(config)
    passport = known.passport if known else _passport(config, device, cache)
    tokens = prepare(config, known.world.vocab_size if known else vocabulary_of(config, passport), cache, watcher)
    places = devices_of(config, "cpu" if device else passport.device)  # of a published device there is one
    plan = known or guessed_plan(config, passport, tokens, places)
    return rehearse(config, plan, tokens, places)


def _settled(config: StudyConfig) -> Plan | None:
    """What the study itself has measured, if it was begun with these settings."""
    check_settings(config)
    return load_plan(config.folder)


def _passport(config: StudyConfig, device: str | None, cache: Path) -> Passport:
    if device:
        return published_passport(device)
    picked = pick_device(config.train.device, threads_of(config))
    if config.train.precision == "fp8":
        from budgetlm.train.fp8 import check_fp8

        check_fp8(picked)
    if (named := compressions(read_space(config.space))) != ("none",):
        from budgetlm.compress.quantize import check_here

        check_here(named, picked, config.train.teacher)
    return take_passport(picked, cache)


def describe(outlook: Rehearsal) -> str:
    """A rehearsal for people."""
    beyond = "fit the memory or keep the limit of size" if outlook.max_model_bytes else "fit the memory"
    refused = f", {outlook.refused} more refused because their finals would not {beyond}" if outlook.refused else ""
    rows = [
        f"device    {outlook.device}" + (f", {outlook.devices} at once" if outlook.devices > 1 else ""),
        f"search    {duration(3600 * outlook.search_hours)} of device time: about {outlook.trials} trials, "
        f"{sum(s.runs for s in outlook.rungs)} runs{refused}",
        f"{'':10}{'seconds':>10} {'runs':>6} {'depth x width':>14} {'parameters':>11} {'tokens':>9} {'tokens/s':>10} "
        f"{'FLOP':>8} {'a pass':>8} {'memory':>9} {'disk':>9}",
        *(_row(f"rung {k}", stage) for k, stage in enumerate(outlook.rungs)),
        _row("final", outlook.final),
    ]
    if outlook.final_devices > 1:
        rows.append(f"{'':10}the final is trained by {outlook.final_devices} devices together; its memory is that of each")
    if outlook.final.checkpoint_activations:
        rows.append(f"{'':10}the final checkpoints its activations: less memory, and slower")
    limit = f" of {outlook.max_model_bytes / 1e6:,.4g} MB that are allowed" if outlook.max_model_bytes else ""
    judged = f"; recipes are judged by {outlook.objectives.replace(',', ' and ')}" if "," in outlook.objectives else ""
    rows.append(
        f"artefact  {outlook.model_bytes / 1e6:,.4g} MB{limit}, a token in about {outlook.token_ms:,.2g} ms by the "
        f"throughput model, not measured{judged}"
    )
    many = (
        f"; beyond about {MANY_EPOCHS:.0f} times repeated text teaches clearly less" if outlook.epochs > MANY_EPOCHS else ""
    )
    rows += [
        f"data      the final would read its training text {outlook.epochs:,.2g} times{many}",
        f"disk      {_size(outlook.disk_bytes)} at most, beside the prepared data",
        f"time      {duration(3600 * outlook.wall_hours)} from the start of the search to the end of the final",
        "Sizes, tokens and memory are those of the default recipe, at speeds that a search would measure; how many trials climb "
        "is a rehearsal with imagined losses.",
    ]
    return "\n".join(rows)


def _row(name: str, stage: Stage) -> str:
    return (
        f"{name:10}{stage.seconds:10,.1f} {stage.runs:6} {f'{stage.depth} x {stage.width}':>14} "
        f"{_short(stage.parameters):>11} {_short(stage.tokens):>9} {_short(stage.tokens_per_second):>10} {stage.flops:8.1e} "
        f"{_short(stage.micro_batch_tokens):>8} {_size(stage.peak_bytes):>9} {_size(stage.disk_bytes):>9}"
    )


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
