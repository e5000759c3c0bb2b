"""What the page says in words and numbers beside its figures. Facts and judgement in, plain text out; the page escapes it."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from budgetlm.budget.clock import duration
from budgetlm.budget.ledger import SEARCH
from budgetlm.config import STUDY_FILE
from budgetlm.forecast.choose import RANKS_ONLY
from budgetlm.forecast.history import DEFAULT
from budgetlm.forecast.worth import SAVED
from budgetlm.recipe.recipe import recipe_from
from budgetlm.records import REASONS, RunRecord
from budgetlm.report.effects import chosen_recipe
from budgetlm.report.facts import Facts
from budgetlm.report.judgement import Judgement
from budgetlm.report.teacher import taught
from budgetlm.studies import FINETUNE

SOME_DOUBT = 0.2
"""Where those that stayed below are better with this probability or more, all together, the verdict says so."""
COUNTED = 0.995
"""Where less of the runs' time has its energy known, that is said."""
MOST_NAMED = 8
"""Trials that a sentence names."""


@dataclass(frozen=True)
class Card:
    """A number that is read at a glance."""

    value: str
    label: str
    tone: str = ""
    """`good` or `bad` where it is either."""


def cards(facts: Facts, judgement: Judgement) -> list[Card]:
    """The verdict in numbers."""
    choice = judgement.choice
    if choice is None:
        return [_spent_card(facts)]
    target = duration(facts.target_seconds)
    if choice.ranks_only:
        shown = [Card(f"{choice.loss:.3f}", f"bits per byte measured on its rung; {RANKS_ONLY}")]
    else:
        low, high = judgement.intervals[choice.trial]
        shown = [
            Card(f"{choice.forecast.mean:.3f}", f"bits per byte forecast after {target} ({low:.3f} to {high:.3f}, 80 %)")
        ]
    final = last_final(facts, choice.trial)
    if final:
        kept = facts.forecasts_kept.get(final.run) if final.trial == choice.trial else None
        inside = kept is not None and kept["low"] <= (final.bpb or 0.0) <= kept["high"]
        verdict = f"; forecast {kept['mean']:.3f}, {'inside' if inside else 'outside'} its interval" if kept else ""
        full = f", {final.bpb_full:.3f} on a larger sample" if final.bpb_full else ""
        tone = ("good" if inside else "bad") if kept else ""
        shown.append(Card(f"{final.bpb:.3f}", f"bits per byte reached by the final{full}{verdict}", tone))
    tried = len({r.trial for r in facts.records if r.kind == "rung"})
    if choice.ranks_only:
        shown.append(Card(f"trial {choice.trial}", f"chosen of {tried} trials"))
    else:
        probability = judgement.best.get(choice.trial, 0.0)
        shown.append(
            Card(f"{probability:.0%}", f"probability that trial {choice.trial}, the chosen one, is the best of {tried}")
        )
    return [*shown, _spent_card(facts)]


def _spent_card(facts: Facts) -> Card:
    search = facts.accounts.get(SEARCH)
    if search is None:
        return Card("0 s", "of device time spent")
    finals = sum(sum(a.by_purpose.values()) for name, a in facts.accounts.items() if name != SEARCH)
    spent = sum(search.by_purpose.values())
    tuned = " and fine-tuning" if any(name.startswith(FINETUNE) for name in facts.accounts) else ""
    also = f", and {duration(finals)} on finals{tuned}" if finals else ""
    money = ""
    if facts.price_per_hour:
        money = f"; {facts.price_per_hour * (spent + finals) / 3600:,.2f} in money at {facts.price_per_hour:,.4g} an hour"
    taken = _energy(facts.records)
    energy = f"; {taken}" if taken else ""
    return Card(
        duration(spent), f"of {duration(search.budget_seconds)} of device time spent on the search{also}{money}{energy}"
    )


def _energy(records: Sequence[RunRecord]) -> str:
    """What runs took where a device counts it, and how much of their time that is; nothing where none does."""
    counted = [r for r in records if r.energy_joules > 0]
    if not counted:
        return ""
    share = sum(r.seconds for r in counted) / sum(r.seconds for r in records)
    some = f" in the {share:.0%} of their time that was counted" if share < COUNTED else ""
    return f"{sum(r.energy_joules for r in counted) / 3.6e6:.3g} kWh taken by runs{some}"


def last_final(facts: Facts, trial: int) -> RunRecord | None:
    """The final that speaks for a choice: the newest of that trial, or of any."""
    measured = [r for r in facts.finals if r.bpb is not None]
    own = [r for r in measured if r.trial == trial]
    return next(reversed(own or measured), None)


def verdict(facts: Facts, judgement: Judgement) -> list[tuple[str, str]]:
    """The verdict in sentences, each with what it is about."""
    choice = judgement.choice
    if choice is None:
        return [("Nothing yet", "no trial has finished a rung, so there is nothing to choose from.")]
    recipe = chosen_recipe(facts.records, judgement)
    said = [("Train this", f"{recipe_from(recipe).summary() if recipe else ''}."), ("Why", f"{choice.why}.")]
    near = ", ".join(f"trial {n}" for n in choice.within_noise[:MOST_NAMED])
    more = f" and {len(choice.within_noise) - MOST_NAMED} more" if len(choice.within_noise) > MOST_NAMED else ""
    others = 1 - judgement.best.get(choice.trial, 0.0)
    alone = "no other trial that reached the highest rung comes within its uncertainty"
    if not choice.ranks_only and others > SOME_DOUBT:
        alone += f"; that one of those that did not is better has a probability of {others:.0%} all together"
    sure = f"it cannot be told from {near}{more}." if near else f"{alone}."
    noise = judgement.noise
    if noise:
        sure += f" Runs that differ in their seed alone differ by {noise.spread:.4f} bits per byte (standard deviation, {noise.repeats} repeats)."
    default = recipe_from(facts.plan["default"]).summary()
    is_default = choice.trial == DEFAULT
    sure += " It is the default recipe." if is_default else f" The default recipe was {default}."
    if len(judgement.forecasts) < judgement.trials and judgement.forecasts:
        sure += f" Forecasts here are from {len(judgement.forecasts)} of {judgement.trials} trials, all that climbed highest among them."
    return [*said, ("How sure", sure), *_compression(facts, choice.trial), *taught(facts, judgement)]


def _compression(facts: Facts, trial: int) -> list[tuple[str, str]]:
    final = last_final(facts, trial)
    option = final.recipe.get("compression", "none") if final else "none"
    if final is None or final.bpb is None or option == "none":
        return []
    before = f", against {final.dense_bpb:.4f} before it was" if final.dense_bpb else ""
    return [
        ("Compressed", f"{option}: {final.artefact_bytes / 1e6:,.3g} MB on disk, {final.bpb:.4f} bits per byte{before}.")
    ]


def spending(facts: Facts) -> str:
    """Where the budget went, and why it ended."""
    search = facts.accounts.get(SEARCH)
    if search is None:
        return "Nothing was spent."
    spent = sum(search.by_purpose.values())
    share = 100 * search.by_purpose.get("train", 0.0) / spent if spent else 0.0
    ended = f"The search ended because {search.stopped_because}." if search.stopped_because else "The search is still open."
    return (
        f"{spent:.1f} of {search.budget_seconds:.1f} device-seconds are spent, {share:.0f} % of them on optimisation steps. "
        f"{ended}{_attempts(facts.records)}{'' if _energy(facts.records) else ' What energy was taken is not known: no device here says it.'}"
    )


def _attempts(records: Sequence[RunRecord]) -> str:
    """What ended runs that did not come to a measured end, and what they cost."""
    causes: dict[str, list[float]] = {}
    for r in records:
        if r.state != "done":
            causes.setdefault(r.cause or r.state, []).append(r.seconds)
    if not causes:
        return ""
    said = "; ".join(f"{cause}: {len(costs)} ({sum(costs):.1f} s)" for cause, costs in sorted(causes.items()))
    again = len({r.run for r in records if r.state == "interrupted"} & {r.run for r in records if r.state == "done"})
    finished = f" {again} runs that were cut off have been gone on with and finished." if again else ""
    return f" What ended runs, or parts of them, before they were done: {said}.{finished}"


def another_hour(frame: pd.DataFrame, stopped_because: str) -> str:
    """Whether to go on searching."""
    if frame.empty:
        return "There are too few forecasts to say what more search would gain."
    at = frame.iloc[(frame["hours"] - frame["hours"].max() / 4).abs().argmin()]
    time, search, final = duration(3600 * at["hours"]), at["search_percent"], at["final_percent"]
    compared = (
        f"Another {time} of search is expected to gain {search:.2g} %; the same time given to the final, {final:.2g} %."
    )
    if stopped_because.endswith(SAVED) or search < final:
        return f"Stop here. {compared}"
    return f"More search would pay. {compared}"


def importance(frame: pd.DataFrame, trials: int) -> str:
    """What importances stand on."""
    if frame.empty:
        return (
            f"Importances need at least 8 finished trials and are worked out when a search ends; there are {trials} trials."
        )
    return (
        f"PED-ANOVA, from {trials} trials: what separates the best tenth from all. The lines are 80 % intervals over trials drawn "
        "anew; a bar far from the middle of its line, or a line from 0, is a hint at most."
    )


def oracle(frame: pd.DataFrame) -> str:
    """How far the predictions, made before each run was paid for, were from what was measured."""
    said = []
    for what, predicted, measured in (
        ("speed", "predicted_tokens_per_second", "tokens_per_second"),
        ("memory", "predicted_peak_bytes", "peak_bytes"),
    ):
        pairs = frame[[predicted, measured]].dropna().astype(float)
        if len(pairs):
            off = (pairs[predicted] / pairs[measured] - 1).abs()
            said.append(f"{what} by {off.median():.0%} in the median and {off.max():.0%} at worst ({len(off)} runs)")
    return f"Predictions made before the runs were paid for missed {'; '.join(said)}." if said else "Nothing was predicted."


def receipts(facts: Facts) -> str:
    """How forecasts have fared."""
    judged = [r for r in facts.receipts if r.inside is not None]
    if not judged:
        return "No final here had a forecast yet."
    inside = sum(r.inside is True for r in judged)
    return f"{inside} of {len(judged)} finals here came out within their 80 % interval, over all studies beside this one."


def final(facts: Facts) -> str:
    """The newest final in numbers."""
    if not facts.finals:
        running = [r for r in facts.running if r.rung < 0]
        if running:
            return f"{running[-1].run} is under way, or was stopped and can be gone on with."
        return f"Not trained yet: budgetlm final --study {facts.name}"
    last = facts.finals[-1]
    parts = len([r for r in facts.records if r.run == last.run])
    interrupted = f" It was interrupted {parts - 1} times." if parts > 1 else " It was not interrupted."
    kept = last.by_purpose.get("checkpoint", 0.0)
    ceiling = facts.ceiling_flops
    use = (
        f", {last.flops / max(1, last.tokens) * last.tokens_per_second / ceiling:.0%} of the device's ceiling"
        if ceiling
        else ""
    )
    each = last.tokens_per_parameter
    return (
        f"{last.run}: {last.steps:,} steps, {last.tokens / 1e6:.2f} M tokens ({last.epochs:.2f} epochs, "
        f"{each:.{0 if each >= 10 else 1}f} a parameter), {last.tokens_per_second:,.0f} tokens/s{use}, {last.flops:.2e} FLOP, "
        f"{last.seconds:.1f} of {last.planned_seconds:.1f} device-seconds, {kept:.1f} of them for checkpoints.{interrupted}"
    )


def reasons(records: Sequence[RunRecord]) -> str:
    """Why runs were paid for, of the reasons that occur."""
    paid_for = {r.why for r in records}
    said = "; ".join(f"{why}: {meaning}" for why, meaning in REASONS.items() if why in paid_for)
    return f"Why runs were paid for. {said}." if said else ""


def reproduce(facts: Facts) -> list[tuple[str, str]]:
    """What another person needs to do it again."""
    hours = facts.accounts[SEARCH].budget_seconds / 3600 if SEARCH in facts.accounts else 0.0
    finals = [f"budgetlm final --study {facts.name} --trial {r.trial} --seed {r.seed}" for r in facts.finals[-1:]]
    commands = [
        f"budgetlm search --file {STUDY_FILE} --study {facts.name} --hours {hours:.4g}",
        *finals,
        f"budgetlm report --study {facts.name}",
    ]
    seeds = sorted({r.seed for r in facts.records})
    passport = "; ".join(f"{k} {v}" for k, v in facts.plan["passport"].items())
    return [
        ("Commands", "\n".join(commands)),
        ("Written by", facts.written_by),
        ("Machine (passport)", passport),
        ("Data fingerprint", str(facts.plan["data"])),
        ("Seeds of runs", ", ".join(map(str, seeds[:20])) or "none"),
        ("Plan", facts.plan_text),
        (f"Study file ({STUDY_FILE})", facts.study_file),
    ]
