"""What would go wrong with a study, before it is paid for: every check is really done, and none is charged to a ledger.

The checks run in one order and share what they find: without a device nothing is measured, and without a measured device no
size of model is expected. A check whose ground is missing says so instead of guessing. Only preparing data for the first
time, and compiling, take longer than seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from budgetlm.checks import folders, machine, room, study
from budgetlm.checks.case import Case, Finding, NotCheckedError, State
from budgetlm.config import StudyConfig
from budgetlm.errors import BudgetlmError
from budgetlm.watch import Watcher


@dataclass(frozen=True)
class Check:
    """What came of one check."""

    name: str
    state: State
    says: str
    """What was found, the numbers, and what to do."""


def examine(config: StudyConfig, cache: Path, *, compile: bool = False, watcher: Watcher | None = None) -> list[Check]:
    """Check everything that a search and its final will need.

    Args:
        config: what the search would be asked to do; `budget.hours` of 0 means that they are not known yet.
        cache: where prepared data is kept.
        compile: try torch.compile even if the study does not ask for it.
        watcher: is told how far the preparing of data is.
    """
    case = Case(config, cache, watcher or Watcher(), compile or config.train.compile in ("on", "graphs"))
    checks: list[Check] = []
    for name, check in CHECKS.items():
        state, says = _outcome(check, case)
        checks.append(Check(name, state, says))
        if name == "versions" and state == "fault":
            break  # everything else is built on these
    return checks


def _outcome(check: Callable[[Case], Finding], case: Case) -> Finding:
    try:
        return check(case)
    except NotCheckedError as missing:
        return "warning", f"not checked: {missing}"
    except BudgetlmError as error:
        return "fault", str(error)
    except OSError as error:
        return "fault", f"{error.strerror or error} ({error.filename or 'no file named'})."


CHECKS: dict[str, Callable[[Case], Finding]] = {
    "versions": machine.versions,
    "device": machine.device,
    "study": study.study,
    "folders": folders.folders,
    "locks": folders.locks,
    "clock": machine.clock,
    "precision": machine.precision,
    "data": study.data,
    "recipe": study.recipe,
    "repetition": study.repetition,
    "space": study.space,
    "compression": machine.compression,
    "budget": study.budget,
    "memory": room.memory,
    "disk": room.disk,
    "compile": machine.compile,
    "load": machine.load,
}
"""In this order: each may build on those before it."""
