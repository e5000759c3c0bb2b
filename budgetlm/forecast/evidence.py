"""What a choice stands on, in sentences: how much was seen, how much of it is chance, and who came nearest. Records and forecasts in."""

from collections.abc import Mapping, Sequence

from budgetlm.budget.clock import duration
from budgetlm.forecast.choose import RANKS_ONLY, Choice, finalists, mean_losses, probability_better, told
from budgetlm.forecast.fit import Forecast, usable
from budgetlm.forecast.noise import measured_noise
from budgetlm.records import RunRecord

MOST_NAMED = 5
"""Trials that a sentence names."""


def evidence(choice: Choice, records: Sequence[RunRecord], forecasts: Mapping[int, Forecast]) -> list[str]:
    """What a choice stands on.

    Args:
        choice: as `choose` made it.
        records: of the study, from which it did.
        forecasts: of all its trials, likewise.

    Returns:
        How many runs, rungs and seeds there were; how much of a loss is chance; the runner-up, and by how much.
    """
    return [_seen(choice, records, forecasts), _noise(choice, records), _runner_up(choice, records, forecasts)]


def _seen(choice: Choice, records: Sequence[RunRecord], forecasts: Mapping[int, Forecast]) -> str:
    runs = usable(records)
    lengths = sorted({r.rung: r.planned_seconds for r in runs}.items())
    repeats = len(runs) - len({(r.trial, r.rung) for r in runs})
    own = [r for r in runs if r.trial == choice.trial]
    seeds = len({r.seed for r in own if r.rung == max(r.rung for r in own)})
    return (
        f"{counted(len(runs), 'run')} of {counted(len(forecasts), 'trial')} on rungs of {', '.join(duration(s) for _, s in lengths)}, "
        f"{repeats or 'none'} of them with another seed; trial {choice.trial} has {counted(seeds, 'seed')} on the highest, "
        f"which {counted(len(finalists(records, forecasts)), 'trial')} reached"
    )


def _noise(choice: Choice, records: Sequence[RunRecord]) -> str:
    noise = measured_noise(usable(records))
    if noise is None:
        return "nothing was run again with another seed, so how much of a loss is chance is not known"
    return (
        f"runs that differ in their seed alone differ by {noise.spread:.2g} {choice.unit} (standard deviation, from "
        f"{counted(noise.repeats, 'repeat')})"
    )


def _runner_up(choice: Choice, records: Sequence[RunRecord], forecasts: Mapping[int, Forecast]) -> str:
    runs = usable(records)
    here = mean_losses(runs, max(r.rung for r in runs))
    losses = here if choice.ranks_only else {n: forecasts[n].mean for n in here}
    rivals = sorted((n for n in losses if n != choice.trial), key=lambda n: losses[n])
    if not rivals:
        return "no other trial reached the highest rung"
    second = rivals[0]
    more = losses[second] - losses[choice.trial]
    nearest = (
        f"runner-up: trial {second}, {told(losses[second], choice.unit)}, {abs(more):.2g} {'more' if more >= 0 else 'less'}"
    )
    if choice.ranks_only:
        return f"{nearest}, on the same rung; {RANKS_ONLY}"
    sure = probability_better(forecasts[choice.trial], forecasts[second])
    return f"{nearest}; trial {choice.trial} is the better one with a probability of {sure:.0%}{_others(choice)}"


def _others(choice: Choice) -> str:
    many = choice.within_noise
    if not many:
        return ""
    named = ", ".join(map(str, many[:MOST_NAMED]))
    more = f" and {len(many) - MOST_NAMED} more" if len(many) > MOST_NAMED else ""
    return f"; it cannot be told from {'trial' if len(many) == 1 else 'trials'} {named}{more}"


def counted(number: int, what: str) -> str:
    """A number of things: `1 run`, `2 runs`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
