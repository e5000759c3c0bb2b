"""A study's folder -> what its page is told. Reads files and the ledger; never a live study, neither torch nor optuna."""

from pathlib import Path
from typing import Any

from budgetlm.budget.ledger import SEARCH
from budgetlm.config import STUDIES, STUDY_FILE
from budgetlm.errors import StudyError
from budgetlm.files import read_json
from budgetlm.recipe.recipe import recipe_from
from budgetlm.records import read_records
from budgetlm.report.page import StudyFacts, write_report
from budgetlm.studies import (
    IMPORTANCE,
    PLAN,
    PLAN_TEXT,
    REPORTS,
    choice_of,
    finals_of,
    forecast_kept,
    ledger_of,
    target_seconds,
)


def report(name: str) -> Path:
    """Write the report of a study, and return its path.

    Raises:
        StudyError: there is no such study, or it has not begun.
    """
    return write_report(collect(name), REPORTS / f"{name}.html")


def collect(name: str) -> StudyFacts:
    """Everything that the page shows beside the records."""
    folder = STUDIES / name
    ledger = ledger_of(name)
    target = target_seconds(folder)
    if target is None:
        raise StudyError(f"study {name!r} has not begun its search. Run `budgetlm search --study {name}` first.")
    plan = read_json(folder / PLAN)
    balance = ledger.balance(SEARCH)
    choice = choice_of(folder)
    finals = finals_of(folder)
    home = folder / "finals" / finals[-1].run if finals else folder
    importance: dict[str, Any] = {"trials": 0, "importance": {}}
    if (folder / IMPORTANCE).exists():
        importance = read_json(folder / IMPORTANCE)
    chosen = next((r.recipe for r in read_records(folder) if choice and r.trial == choice.trial), None)
    return StudyFacts(
        name=name,
        folder=folder,
        target_seconds=target,
        budget_seconds=balance.budget_seconds,
        stopped_because=balance.stopped_because,
        by_account={account: ledger.balance(account).by_purpose for account in ledger.accounts()},
        importance=importance["importance"],
        importance_trials=importance["trials"],
        parameters=[n for n, d in plan["space"].items() if d["kind"] != "Fixed" and len(d.get("values", (0, 1))) > 1],
        default=recipe_from(plan["default"]).summary(),
        passport=plan["passport"],
        plan=(folder / PLAN_TEXT).read_text(),
        study_file=(folder / STUDY_FILE).read_text(),
        forecast_kept=forecast_kept(home),
        samples=read_json(home / "samples.json") if (home / "samples.json").exists() else [],
        chosen_recipe=recipe_from(chosen).summary() if chosen else "",
    )
