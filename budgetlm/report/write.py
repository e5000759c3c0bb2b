"""A study -> its files: the page, and what papers and scripts want of it (CSV, JSON, pictures)."""

from pathlib import Path

import pandas as pd

from budgetlm.errors import StudyError
from budgetlm.files import checked_name, write_atomic
from budgetlm.report.embedded import as_values, facts_from, read_page
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
    # What is embedded is rounded and thinned, and the page is made from that, so that it can make itself again to the byte.
    write_atomic(path, page(facts_from(as_values(facts))))
    return path


def write_csv(facts: Facts, folder: Path) -> list[Path]:
    """Write every frame as a CSV file of its own; columns are explained where they are made (`report/frames.py`, `report/effects.py`)."""
    written = []
    for name, frame in _frames(facts).items():
        path = folder / f"{name}.csv"
        write_atomic(path, frame.to_csv(index=False))
        written.append(path)
    return written


def write_json(facts: Facts, path: Path) -> Path:
    """Write all frames into one file: name -> rows."""
    write_atomic(path, as_json(make_frames(facts, judge(facts.records, facts.target_seconds))))
    return path


def _frames(facts: Facts) -> dict[str, pd.DataFrame]:
    made = make_frames(facts, judge(facts.records, facts.target_seconds))
    broken = {name: frame for name, frame in made.items() if isinstance(frame, str)}
    if broken:
        name, error = next(iter(broken.items()))
        raise StudyError(f"the frame {name!r} of study {facts.name!r} could not be made: {error}")
    return {name: frame for name, frame in made.items() if isinstance(frame, pd.DataFrame)}
