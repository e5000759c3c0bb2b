"""Anybody's table of finished runs -> what candidates would reach: columns in, distributions out. Behind `budgetlm forecast`.

A table has `params`, `tokens`, `loss`, perhaps `seed`; every other column is a knob. A knob that is positive counts by its
logarithm, one with text in it by its values; what never varies says nothing and is left out.
"""

import csv
import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from budgetlm.errors import DataError
from budgetlm.forecast.encoding import Columns, Encoding
from budgetlm.forecast.points import Points, Prior
from budgetlm.forecast.surface import Surface, fit_surface

SCALES = ("params", "tokens")
NOT_KNOBS = (*SCALES, "loss", "seed")
EXPONENTS = (0.25, 0.25)
"""Median exponents in parameters and tokens before any run."""
TOKENS_PER_PARAMETER = 20.0
"""Where the two terms of the law are about alike before any run (Hoffmann et al. 2022)."""
UNIQUE, WORN = "unique_tokens", 15.4
"""A column that says how much text there was, and after how many readings the next one is worth e times less than new text (arXiv:2305.16264)."""
PRIORS = ("steplaw",)
SWEEPS = 2
"""Of the fit: single runs of others' tables may be wrong."""
FEWEST = 3
"""Runs that a forecast needs."""
ONE_SCALE = math.log(2.0)
"""Runs whose compute lies within this (a logarithm) are of one scale, and show nothing of another."""


@dataclass(frozen=True)
class Outlook:
    """What a candidate would reach."""

    mean: float | None
    """Expected loss; None where the runs support no forecast of it."""
    low: float | None
    """Of the central 80 % interval of what one run would show."""
    high: float | None
    probability_best: float
    """That none of the other candidates is better in truth."""


@dataclass(frozen=True)
class Forecasts:
    """What all candidates would reach."""

    outlooks: list[Outlook]
    """In the order of the candidates."""
    note: str = ""
    """What the runs could not support, empty where they could."""


def forecast_files(runs: Path, candidates: Path, prior: str | None = None) -> Forecasts:
    """`forecast_columns` of two files.

    Raises:
        DataError: a file, a column or a value that cannot be used; the message says which.
    """
    return forecast_columns(read_table(runs, (*SCALES, "loss")), read_table(candidates, SCALES), prior)


def forecast_columns(runs: Columns, candidates: Columns, prior: str | None = None, draws: int = 2000) -> Forecasts:
    """Forecast the loss of candidates from finished runs.

    Args:
        runs: `params`, `tokens`, `loss`, perhaps `seed`, and knobs.
        candidates: the same without `loss`.
        prior: name of a published law of the optimum (`PRIORS`); None to know of none.
        draws: of the joint distribution; the answer is the same every time.
    """
    surface, points, supported = fit_columns(runs, candidates, prior)
    truth, shown = surface.sample(points, draws)
    best = np.bincount(truth.argmin(axis=1), minlength=truth.shape[1]) / draws
    if supported:
        low, high = np.quantile(shown, (0.1, 0.9), axis=0)
        columns = zip(truth.mean(axis=0).tolist(), low.tolist(), high.tolist(), best.tolist(), strict=True)
        return Forecasts([Outlook(*each) for each in columns])
    return Forecasts([Outlook(None, None, None, p) for p in best.tolist()], _unsupported(runs))


def describe(forecasts: Forecasts) -> str:
    """A line for each candidate, the likeliest to be best marked."""
    rows = [f"{'candidate':>9} {'mean':>9} {'80 % interval':>20} {'best':>7}"]
    likeliest = max(forecasts.outlooks, key=lambda outlook: outlook.probability_best)
    for place, outlook in enumerate(forecasts.outlooks):
        numbers = (outlook.mean, outlook.low, outlook.high)
        mean, low, high = ("-" if number is None else f"{number:.4f}" for number in numbers)
        mark = "  <- likeliest" if outlook is likeliest else ""
        rows.append(f"{place:9} {mean:>9} {low:>9} {high:>10} {outlook.probability_best:7.1%}{mark}")
    return "\n".join(rows + ([forecasts.note] if forecasts.note else []))


def fit_columns(runs: Columns, candidates: Columns, prior: str | None = None) -> tuple[Surface, Points, bool]:
    """The surface, the candidates in its coordinates, and whether the runs support a forecast of their loss."""
    if prior is not None and prior not in PRIORS:
        raise DataError(f"there is no prior {prior!r}; known: {', '.join(PRIORS)}. Leave it out to use none.")
    _check_knobs(runs, candidates)
    encoding = Encoding.of(runs, candidates, [name for name in runs if name not in NOT_KNOBS])
    law = encoding.step_law() if prior == "steplaw" else None
    known = Prior(EXPONENTS, (0.0, math.log(TOKENS_PER_PARAMETER)), law)
    here, there = (Points(_scales(table), encoding.values(table)) for table in (runs, candidates))
    loss = np.asarray(runs["loss"], dtype=float)
    surface = fit_surface(here, loss, encoding.kinds, known, around=there, sweeps=SWEEPS)
    spent, wanted = here.scales.sum(axis=1), there.scales.sum(axis=1)
    far = max(spent.min() - wanted.min(), wanted.max() - spent.max())
    supported = len(loss) >= FEWEST and (np.ptp(spent) >= ONE_SCALE or far < ONE_SCALE)
    return surface, there, bool(supported)


def _scales(table: Columns) -> np.ndarray:
    params, tokens = (np.asarray(table[name], dtype=float) for name in SCALES)
    if UNIQUE in table and table[UNIQUE].dtype.kind in "fiu" and (table[UNIQUE] > 0).all():
        unique = np.minimum(table[UNIQUE], tokens)
        tokens = unique * (1 + WORN * -np.expm1(-(tokens / unique - 1) / WORN))
    scales: np.ndarray = np.log(np.stack([params, tokens], axis=1))
    return scales


def _unsupported(runs: Columns) -> str:
    if len(runs["loss"]) < FEWEST:
        return f"{len(runs['loss'])} finished runs cannot support a forecast of the loss ({FEWEST} are the fewest): candidates are only ranked."
    return (
        "all runs are of about one scale (compute within a factor of 2), which cannot support a forecast of the loss at another: "
        "candidates are only ranked. Add runs at other params and tokens."
    )


def _check_knobs(runs: Columns, candidates: Columns) -> None:
    here, there = ({name for name in table if name not in NOT_KNOBS} for table in (runs, candidates))
    for name in sorted(here ^ there):
        where = ("the runs", "the candidates") if name in here else ("the candidates", "the runs")
        raise DataError(f"column {name!r} is in {where[0]} but not in {where[1]}. Both tables need the same knobs.")


def read_table(path: Path, needed: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns of a CSV file (`.csv` or `.csv.gz`).

    Args:
        path: of the file.
        needed: columns that it must have, all of them positive numbers.

    Raises:
        DataError: it cannot be read, has no rows, or a value in it is missing or of no use.
    """
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}. Give a .csv or .csv.gz file.") from error
    if len(lines) < 2:
        raise DataError(f"{path} has no rows. It needs a line of column names and at least one more.")
    names = [name.strip() for name in lines[0]]
    for name in needed:
        if name not in names:
            raise DataError(f"{path} has no column {name!r}; it has {', '.join(names)}. Add or rename it.")
    if len(set(names)) < len(names):
        raise DataError(f"{path} names a column twice: {', '.join(names)}.")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(names):
            raise DataError(f"{path}, line {number} has {len(line)} values for {len(names)} columns.")
    columns = {name: [line[i].strip() for line in lines[1:]] for i, name in enumerate(names)}
    return {name: _column(path, name, values, name in needed) for name, values in columns.items()}


def _column(path: Path, name: str, values: list[str], needed: bool) -> np.ndarray:
    numbers = np.array([_number(value) for value in values])
    if needed:
        for place, number in enumerate(numbers):
            if not (math.isfinite(number) and number > 0):
                raise DataError(
                    f"{path}, line {place + 2}: {name} is {values[place]!r}, and has to be a positive number. "
                    f"Correct the row, or leave it out."
                )
        return numbers
    if name == "seed":
        return np.array(values)
    for place, (value, number) in enumerate(zip(values, numbers, strict=True)):
        if not value or value.lower() == "nan" or math.isinf(number):
            raise DataError(f"{path}, line {place + 2}: {name} is {value or 'empty'}. Fill it in, or leave the row out.")
    return np.array(values) if np.isnan(numbers).any() else numbers


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
