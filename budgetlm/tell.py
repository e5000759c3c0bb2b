"""What commands say of their results, in lines for people."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from budgetlm.forecast.front import FrontPoint, describe
from budgetlm.forecast.worth import SAVED
from budgetlm.studies import StudyStatus, TrialCost

if TYPE_CHECKING:  # both know PyTorch, which has no part in this
    from budgetlm.config import StudyConfig
    from budgetlm.final import FinalResult
    from budgetlm.search.study import SearchResult


def describe_search(config: "StudyConfig", result: "SearchResult") -> str:
    """What a search came to."""
    name, because = config.name, result.stopped_because
    if result.new_runs == 0:
        lines = [f"study {name}: nothing left to do; {because}. Raise --hours to go on."]
    else:
        lines = [f"study {name}: {result.new_runs} runs; {because}."]
        if because.endswith(SAVED):
            lines.append(f"saved: {result.saved_seconds:.0f} of {config.budget.seconds:.0f} device-seconds")
    if result.choice is None:
        return "\n".join([*lines, "no trial has finished a rung, so there is nothing to choose from."])
    return "\n".join(
        [
            *lines,
            f"chosen: trial {result.choice.trial}, {result.choice.why}.",
            f"recipe: {result.recipe}",
            *(f"evidence: {line}" for line in result.evidence),
            *_front(result.choice.front),
            f"next: budgetlm report --study {name}; budgetlm final --study {name}",
        ]
    )


def describe_final(name: str, result: "FinalResult") -> str:
    """What a finished final came to."""
    record, forecast = result.record, result.forecast
    said = f", no forecast ({result.no_forecast})"
    if forecast:
        said = f", forecast {forecast.mean:.4f} ({forecast.interval[0]:.4f} to {forecast.interval[1]:.4f})"
    full = f", {record.bpb_full:.4f} on a larger validation sample" if record.bpb_full else ""
    together = f" on each of {record.devices} devices" if record.devices > 1 else ""
    return "\n".join(
        [
            f"study {name}: {'already trained' if result.already_done else 'trained'} {record.run}",
            f"recipe: {result.recipe}",
            f"model: {result.folder / 'model'}",
            f"reached: {record.bpb:.4f} bits per byte{full}{said}",
            *([f"size: {result.size}"] if record.artefact_bytes else []),
            f"spent: {record.seconds:.1f} of {record.planned_seconds:.1f} device-seconds, {record.tokens / 1e6:.2f} M tokens, "
            f"{record.epochs:.2f} epochs",
            f"speed: {record.tokens_per_second:,.0f} tokens/s{together}, {result.utilisation:.0%} of what the device's matrix products reach",
            *(f"{about}: {words}" for about, words in result.reasons.lines()),
            *(f"\n--- {sample['prompt']!r} goes on:\n{sample['continuation']}" for sample in result.samples),
        ]
    )


def describe_status(row: StudyStatus) -> str:
    """How a study stands."""
    numbers = ["-" if v is None else f"{v:.4f}" for v in (row.best_forecast_bpb, row.final_bpb)]
    line = f"{row.name:20} {row.state:10} {row.trials:4} trials   forecast {numbers[0]:>7}   final {numbers[1]:>7}   {row.report or ''}"
    return "\n".join([line, *_front(row.front, "  ")])


def describe_accounts(
    accounts: Mapping[str, Mapping[str, Any]], costs: Sequence[TrialCost], most: int, front: Sequence[FrontPoint]
) -> str:
    """Where the device-seconds of a search and its finals went.

    Args:
        accounts: by name, as `studies.balance_as_dict` gives them.
        costs: of the trials, the dearest first.
        most: so many of these; 0 for all.
        front: what there is to pick from.
    """
    lines = [line for title, account in accounts.items() for line in _account(title, account)]
    lines += _front(front)
    shown = costs[: most or None]
    if shown:
        lines.append(f"{'the dearest' if len(shown) < len(costs) else 'all'} {len(shown)} of {len(costs)} trials:")
    for cost in shown:
        train = cost.by_purpose.get("train", 0.0) / max(cost.seconds, 1e-9)
        lines.append(
            f"  trial {cost.trial:4} {cost.seconds:10.1f} s, {train:4.0%} of it training; {cost.rungs} rungs finished, "
            f"{cost.attempts} attempts, last one {cost.ended}"
        )
    return "\n".join(lines)


def _account(title: str, account: Mapping[str, Any]) -> list[str]:
    charged, total, left = (account[f"{name}_seconds"] for name in ("charged", "budget", "remaining"))
    leased = f", {account['leased_seconds']:.1f} leased by work under way" if account["leased_seconds"] else ""
    spent = [
        f"  {purpose:10} {seconds:10.1f} s  {100 * seconds / max(charged, 1e-9):5.1f} %"
        for purpose, seconds in account["by_purpose"].items()
        if seconds
    ]
    return [
        f"{title}: {charged:.1f} of {total:.1f} device-seconds charged{leased}, {left:.1f} left",
        *spent,
        f"  stopped because: {account['stopped_because'] or 'it has not stopped'}",
    ]


def _front(points: Sequence[FrontPoint], indent: str = "") -> list[str]:
    """What there is to pick from, where more than the loss counts."""
    return [f"{indent}front: {line}" for line in describe(points)]
