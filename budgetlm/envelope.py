"""Search, final and report out of one budget: what the search does not earn, the final gets.

The search may spend a share of the envelope at most, and stops before when another run is expected to gain less than its
seconds would gain in the final. The final is as long as what is left, and the recipe is carried to just that length.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from budgetlm.budget.clock import Clock, duration
from budgetlm.budget.ledger import SEARCH
from budgetlm.config import BudgetConfig, StudyConfig
from budgetlm.errors import BudgetExhausted, StudyError
from budgetlm.final import FinalResult, final, final_name
from budgetlm.forecast.front import BEST, check_pick, pick
from budgetlm.report.write import report
from budgetlm.search.sizing import rungs_of
from budgetlm.search.study import Hire, SearchResult, search
from budgetlm.studies import ledger_of
from budgetlm.watch import Watcher

SEARCH_SHARE = 0.25
"""Most of the envelope that a search may spend. By the law a final loses 0.2 % of its loss above E for each 1 % of its time, so a
quarter is what a search must earn back 6 % for."""


@dataclass(frozen=True)
class Envelope:
    """What one budget was spent on. Device-seconds."""

    seconds: float
    search_seconds: float
    final_seconds: float
    stopped_because: str
    """Why the search ended."""
    search: SearchResult
    final: FinalResult | None
    """None where the search was interrupted, or has chosen nothing."""
    report: Path | None


def whole(budget: BudgetConfig) -> float:
    """Device-hours of a search and its final together, as a study has them; 0 where it has none for a search.

    Of twelve digits, so that an envelope of so many or fewer is found again in the shares that it was parted into.
    """
    return float(f"{budget.hours + budget.target_hours:.12g}") if budget.hours else 0.0


def enveloped(config: StudyConfig, hours: float) -> StudyConfig:
    """The study whose search and final share `hours`: the search's part is the most that it may spend.

    Raises:
        BudgetExhausted: that part does not pay for a ladder.
    """
    if not _pays_for_a_ladder(config, hours):
        enough = hours
        while not _pays_for_a_ladder(config, enough):
            enough *= 1.05
        raise BudgetExhausted(
            f"{duration(3600 * hours)} are too short for a search and a final: the search may spend a {SEARCH_SHARE:.0%} share, which "
            f"does not pay for two rungs of at least {config.search.least_rung_seconds:g} s. Give `--hours {1.01 * enough:.3g}` or more."
        )
    return dataclasses.replace(config, budget=_shares(hours))


def _shares(hours: float) -> BudgetConfig:
    return BudgetConfig(hours=SEARCH_SHARE * hours, target_hours=(1 - SEARCH_SHARE) * hours)


def _pays_for_a_ladder(config: StudyConfig, hours: float) -> bool:
    try:
        rungs_of(dataclasses.replace(config, budget=_shares(hours)), 1)
    except BudgetExhausted:
        return False
    return True


def run_all(
    config: StudyConfig,
    hours: float,
    cache: Path,
    clock: Clock,
    make_watcher: Callable[[], Watcher],
    hire: Hire | None = None,
    which: str = BEST,
) -> Envelope:
    """Search, train the final for what is left, and write the report; repeat the call to go on where it stopped.

    Args:
        config: as `enveloped` returns it.
        hours: device-hours of everything.
        make_watcher: makes one for the search, and one for the final.
        hire: the search's workers, where they are not to be processes.
        which: of the front the final trains `smallest`, `fastest`, `best`, or a trial's number, as `final` does.

    Raises:
        StudyError, BudgetExhausted, DataError, ConfigError: as search and final would.
    """
    seconds = 3600 * hours
    check_pick(which, config.search.objectives)
    found = search(config, cache, clock, make_watcher(), hire)
    spent = ledger_of(config.name).balance(SEARCH).charged_seconds
    if found.exit_code:
        return Envelope(seconds, spent, 0.0, found.stopped_because, found, None, None)
    if found.choice is None:
        raise StudyError(
            f"the search of study {config.name!r} spent {spent:.0f} s and no trial finished a rung, so there is nothing to "
            f"train for the {seconds - spent:.0f} s that are left. `budgetlm budget --study {config.name}` shows where they went."
        )
    picked = pick(which, found.choice.front, found.choice.trial)
    _check_one_final(config.name, picked, seconds - spent)
    watcher = make_watcher()
    watcher.note(
        f"envelope  {spent:.0f} of {seconds:.0f} device-seconds were spent on the search ({found.stopped_because}); "
        f"{seconds - spent:.0f} are left for the final"
    )
    trained = final(config.name, cache, clock, watcher, config=config, hours=(seconds - spent) / 3600, which=which)
    page = report(config.name) if trained.record.state == "done" else None
    return Envelope(seconds, spent, trained.record.seconds, found.stopped_because, found, trained, page)


def _check_one_final(study: str, trial: int, seconds: float) -> None:
    """Refuse a second pick once another one has had what the envelope kept for its final."""
    name = final_name(trial, seconds)
    ending = name.removeprefix(f"final-trial{trial:04d}")
    begun = [account for account in ledger_of(study).accounts() if account.startswith("final-") and account.endswith(ending)]
    if begun and name not in begun:
        raise StudyError(
            f"the {seconds:.0f} s for the final of study {study!r} went to {begun[0]} already. Repeat the pick that it was, or train trial {trial} "
            f"beside it, for as long again: `budgetlm final --study {study} --trial {trial}`."
        )
