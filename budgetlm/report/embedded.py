"""Facts in little room, and back: what a page carries of its study, so that it can be made again from itself.

Records become columns, a column that is the same for all runs one value; curves become whole numbers, each the difference from the
one before it, which compress well; the whole is JSON, deflated, in base64. Measured at 10,000 trials: docs/LOG.md.
"""

import base64
import binascii
import dataclasses
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from budgetlm.errors import StudyError
from budgetlm.forecast.history import Moment
from budgetlm.receipts import Receipt
from budgetlm.records import CurvePoint, RunRecord, places_of_most_interest
from budgetlm.report.facts import Account, Facts, points_for_each
from budgetlm.studies import RunningRun

DIGITS = 7
"""Significant digits of what is embedded of a record."""
STEPS_OF_LOG, STEPS_OF_BPB = 2000, 100_000
"""A curve's numbers are kept to this part of themselves, 0.05 %; bits per byte to 0.001 %."""
PLACE = "study"
"""The id of the script that holds the data."""
ZERO = -(10**6)
"""Stands for a 0 among logarithms."""


def pack(value: Any) -> str:
    """Any JSON value as deflated base64, without a character that means something in HTML."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def unpack(text: str) -> Any:
    """What `pack` was given."""
    return json.loads(zlib.decompress(base64.b64decode(text, validate=True)))


def read_page(path: Path) -> Facts:
    """The facts that a page carries.

    Raises:
        StudyError: the file is not there, or is no page of ours.
    """
    try:
        found = re.search(rf'<script type="text/plain" id="{PLACE}">\s*([^<]*?)\s*</script>', path.read_text())
        return facts_from(unpack(found[1])["facts"]) if found else _refuse(path, "there is no study in it")
    except (OSError, UnicodeDecodeError) as error:
        return _refuse(path, str(error))
    except (binascii.Error, zlib.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return _refuse(path, f"what it holds is damaged: {error!r}")


def _refuse(path: Path, why: str) -> Facts:
    raise StudyError(
        f"{path} is not a report that can be made again ({why}). Give a page that `budgetlm report` has written."
    )


def as_values(facts: Facts) -> dict[str, Any]:
    """Facts as JSON values, which `facts_from` turns back."""
    values = {field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)}
    for name in ("accounts", "moments", "receipts", "running"):
        values[name] = _plain(values[name])
    values["records"] = columns_of([flat(vars(record)) for record in facts.records])
    values["curves"] = curves_as_numbers(facts.curves)
    return values


def facts_from(values: Mapping[str, Any]) -> Facts:
    """The facts behind their values."""
    return Facts(
        **{
            **values,
            "records": records_from(values["records"]),
            "curves": curves_from(values["curves"]),
            "accounts": {name: Account(**account) for name, account in values["accounts"].items()},
            "moments": [Moment(**moment) for moment in values["moments"]],
            "receipts": [Receipt(**receipt) for receipt in values["receipts"]],
            "running": [RunningRun(**run) for run in values["running"]],
        }
    )


def records_from(packed: Mapping[str, Any]) -> list[RunRecord]:
    """The records behind their columns; fields that a newer version added are left out."""
    known = {field.name for field in dataclasses.fields(RunRecord)}
    return [RunRecord(**{k: v for k, v in nested(row).items() if k in known}) for row in rows_of(packed)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: dataclasses.asdict(each) for name, each in value.items()}
    return [dataclasses.asdict(each) for each in value]


# --- records ---


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, names joined by dots; an empty one stays, so that it can come back."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:  # not `Mapping`, which takes five times as long to ask
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def nested(row: Mapping[str, Any]) -> dict[str, Any]:
    """What `flat` was given."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        *path, last = name.split(".")
        place = found
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return found


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as columns, floats rounded: `same` for all rows, `columns` a list each, `absent` the rows that have no such name."""
    names = dict.fromkeys(name for row in rows for name in row)
    same, columns, absent = {}, {}, {}
    for name in names:
        missing = [i for i, row in enumerate(rows) if name not in row]
        column = [_rounded(row.get(name)) for row in rows]
        if missing:
            absent[name] = missing
        if not missing and all(value == column[0] and type(value) is type(column[0]) for value in column):
            same[name] = column[0]
        else:
            columns[name] = column
    return {"rows": len(rows), "same": same, "columns": columns, "absent": absent}


def rows_of(packed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows behind columns."""
    absent = {name: set(rows) for name, rows in packed["absent"].items()}
    nowhere: set[int] = set()
    return [
        {
            **packed["same"],
            **{name: c[i] for name, c in packed["columns"].items() if i not in absent.get(name, nowhere)},
        }
        for i in range(packed["rows"])
    ]


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


# --- curves ---


def thinned(points: Sequence[CurvePoint], most: int) -> list[CurvePoint]:
    """At most so many points of a curve, the extremes of its loss among them."""
    return [points[place] for place in places_of_most_interest([p.loss for p in points], most)]


Codes = tuple[Callable[[np.ndarray], np.ndarray], Callable[[int], float | int]]


def _logarithmic(unit: float) -> Codes:
    def encode(values: np.ndarray) -> np.ndarray:
        return np.where(values > 0, np.round(unit * np.log(np.maximum(values, 1e-300))), ZERO)

    def decode(number: int) -> float:
        return 0.0 if number == ZERO else float(f"{math.exp(number / unit):.{DIGITS}g}")

    return encode, decode


def _whole(values: np.ndarray) -> np.ndarray:
    return values


CODES: dict[str, Codes] = {
    "step": (_whole, int),
    "tokens": (_whole, int),
    "seconds": _logarithmic(STEPS_OF_LOG),
    "loss": _logarithmic(STEPS_OF_LOG),
    "lr": _logarithmic(STEPS_OF_LOG),
    "tokens_per_second": _logarithmic(STEPS_OF_LOG),
    "gradient_norm": _logarithmic(STEPS_OF_LOG),
    "bpb": _logarithmic(STEPS_OF_BPB),
}
"""Of each quantity of a curve: into whole numbers, and back."""


def curves_as_numbers(curves: Mapping[str, Sequence[CurvePoint]]) -> dict[str, Any]:
    """Curves as columns over all of them, thinned so that a page of many trials stays small.

    Each number is the difference from the last one of its curve that there was, None where nothing was measured.
    """
    most = points_for_each(len(curves))
    kept = {run: thinned(points, most) for run, points in curves.items() if points}
    lengths = [len(points) for points in kept.values()]
    curve, points = np.repeat(np.arange(len(lengths)), lengths), list(chain.from_iterable(kept.values()))
    columns: dict[str, list[int | None]] = {}
    for name, (encode, _) in CODES.items():
        values = np.array(list(map(attrgetter(name), points)), dtype=float)
        known = np.flatnonzero(np.isfinite(values))
        numbers = encode(values[known]).astype(int)
        first = np.diff(curve[known], prepend=-1) != 0
        column: list[int | None] = [None] * len(values)
        for place, number in zip(
            known.tolist(), np.where(first, numbers, np.diff(numbers, prepend=0)).tolist(), strict=True
        ):
            column[place] = number
        columns[name] = column
    return {"runs": list(kept), "lengths": lengths, "columns": columns}


def curves_from(packed: Mapping[str, Any]) -> dict[str, list[CurvePoint]]:
    """The curves behind their numbers."""
    curves, start = {}, 0
    for run, length in zip(packed["runs"], packed["lengths"], strict=True):
        columns: dict[str, list[Any]] = {}
        for name, (_, decode) in CODES.items():
            sums, last = [], 0
            for number in packed["columns"][name][start : start + length]:
                last += number or 0
                sums.append(None if number is None else decode(last))
            columns[name] = sums
        curves[run] = [CurvePoint(**{name: column[i] for name, column in columns.items()}) for i in range(length)]
        start += length
    return curves
