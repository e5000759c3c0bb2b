"""The rungs of a ladder: which fractions of the target's device time a trial climbs through. Arithmetic only.

Rungs are the target divided by powers of 4, so that two searches for one target share their rungs whatever their budgets,
and a budget that is raised later only adds rungs.
"""

from collections.abc import Sequence

from budgetlm.errors import BudgetExhausted

RATIO = 4
TOP_SHARE = 1 / 5
"""The highest rung costs at most this share of the search's budget, so that several trials can reach it."""
TOP_SHARE_OF_A_FRONT = 1 / 16
"""The same where more than the loss counts: a front is of the trials that reached the highest rung, and wants more of them than a single best. With a
fifth, two were there (docs/LOG.md)."""
WALL_SHARE = 2 / 5
"""The highest rung takes at most this share of the search's time on the wall, its budget over its devices: then a climb through all rungs (4/3 of the highest) and
a run of the gate after it fit, one after the other. It tells from three devices on."""
BOTTOM_SHARE = 1 / 400
"""The cheapest rung costs at least this share: more trials than that would not be evaluated, only counted."""
LEAST_RUNGS = 2


def plan_rungs(
    budget_seconds: float,
    target_seconds: float,
    least_seconds: float,
    known: Sequence[float] = (),
    objectives: str = "loss",
    devices: int = 1,
) -> list[float]:
    """Device-seconds of each rung, cheapest first.

    Args:
        budget_seconds: what the search may spend in total.
        target_seconds: the final's time; no rung is longer.
        least_seconds: no rung is shorter.
        known: rungs that the study has already; they stay, and only higher ones are added.
        objectives: of the study. Where more than the loss counts, the ladder ends lower if two rungs are left of it.
        devices: that are used at once. Where they are many it ends lower likewise.

    Raises:
        BudgetExhausted: the budget does not pay for two rungs.
    """
    ladder = [target_seconds / RATIO**k for k in range(40)]
    affordable = [r for r in ladder if least_seconds <= r <= budget_seconds * TOP_SHARE]
    ends = [budget_seconds * TOP_SHARE_OF_A_FRONT] if objectives != "loss" else []
    if devices > 1:
        ends.append(budget_seconds / devices * WALL_SHARE)
    for end in ends:
        low = [r for r in affordable if r <= end]
        affordable = low if len(low) >= LEAST_RUNGS else affordable[-LEAST_RUNGS:]  # the ladder is the dearest first
    if target_seconds / RATIO ** (LEAST_RUNGS - 1) < least_seconds:
        raise BudgetExhausted(
            f"a target of {target_seconds:g} s is too short for {LEAST_RUNGS} rungs of at least {least_seconds:g} s, each a "
            f"quarter of the next. Give `--target-hours {RATIO * least_seconds / 3600:.2g}` or more."
        )
    if len(affordable) < LEAST_RUNGS and not known:
        top = min(r for r in ladder if r / RATIO ** (LEAST_RUNGS - 1) >= least_seconds)
        needed = 1.005 * top / TOP_SHARE  # so that what is printed, rounded, is still enough
        raise BudgetExhausted(
            f"{budget_seconds:.0f} device-seconds do not pay for a ladder of {LEAST_RUNGS} rungs of at least "
            f"{least_seconds:g} s, each a power of {RATIO} below the target of {target_seconds:.0f} s. Give `--hours "
            f"{needed / 3600:.3g}` or more, or lower `search.least_rung_seconds`."
        )
    worthwhile = [r for r in affordable if r >= budget_seconds * BOTTOM_SHARE]
    rungs = worthwhile if len(worthwhile) >= LEAST_RUNGS else affordable[:LEAST_RUNGS]
    if not known:
        return sorted(rungs)
    return sorted({*known, *(r for r in rungs if r > max(known) * 1.01)})
