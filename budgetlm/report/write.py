"""A study -> its files: the page, and what papers and scripts want of it (CSV, JSON, pictures)."""

from pathlib import Path
from typing import Any

import pandas as pd

from budgetlm.errors import StudyError
from budgetlm.files import checked_name, write_atomic
from budgetlm.report import frames
from budgetlm.report.embedded import read_page
from budgetlm.report.facts import Facts, collect
from budgetlm.report.judgement import judge
from budgetlm.report.page import as_json, make_frames, page
from budgetlm.studies import REPORTS


def report(name: str, price_per_hour: float = 0.0) -> Path:
    """Write the report of a study, and return its path.

    Raises:
        StudyError: there is no such study, or it has not begun.
    """
    return write_page(collect(name, price_per_hour))


def facts_of_page(path: Path) -> Facts:
    """The facts that a page carries, whose study need not be here.

    Raises:
        StudyError: it is no page of ours.
        ConfigError: the study in it has a name that could lead out of the folder of reports.
    """
    facts = read_page(path)
    checked_name(facts.name)
    return facts


def write_page(facts: Facts) -> Path:
    """Write a page, whole or not at all."""
    path = REPORTS / f"{facts.name}.html"
    write_atomic(path, page(facts))
    return path


def write_csv(facts: Facts, folder: Path) -> list[Path]:
    """Write every frame as a CSV file of its own; columns are explained where they are made (`report/frames.py`, `report/effects.py`).

    Raises:
        StudyError: one of them could not be made; the others are written.
    """
    made = _all_frames(facts)
    written = {name: folder / f"{name}.csv" for name, frame in made.items() if isinstance(frame, pd.DataFrame)}
    for name, path in written.items():
        write_atomic(path, made[name].to_csv(index=False))
    broken = [f"{name}: {frame}" for name, frame in made.items() if isinstance(frame, str)]
    if broken:
        raise StudyError(
            f"{len(written)} files are in {folder}, but of study {facts.name!r} could not be made {'; '.join(broken)}"
        )
    return list(written.values())


def write_json(facts: Facts, path: Path) -> Path:
    """Write all frames into one file: name -> rows, or the error of one that could not be made."""
    write_atomic(path, as_json(_all_frames(facts)))
    return path


def _all_frames(facts: Facts) -> dict[str, Any]:
    """What the page draws, and what it has among its facts."""
    own = {"runs": frames.runs(facts.records), "oracle": frames.oracle(facts.records)}
    return own | make_frames(facts, judge(facts.records, facts.target_seconds, facts.objectives))
