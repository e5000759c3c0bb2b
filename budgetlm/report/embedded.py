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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from budgetlm.errors import StudyError
from budgetlm.forecast.history import Moment
from budgetlm.receipts import Receipt
from budgetlm.records import CurvePoint, RunRecord
from budgetlm.report.facts import Account, Facts
from budgetlm.studies import RunningRun

DIGITS = 7
"""Significant digits of what is embedded of a record."""
STEPS_OF_LOG = 2000
"""A curve's numbers are kept to this part of themselves: 0.05 %."""
MOST_POINTS, LEAST_POINTS, ALL_POINTS = 120, 10, 150_000
"""Of a curve at most, of a curve at least, and of all curves together."""
PLACE = "study"
"""The id of the script that holds the data."""
ZERO = -(10**6)
"""Stands for a 0 among logarithms."""


def pack(value: Any) -> str:
    """Any JSON value as deflated base64, without a character that means something in HTML."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


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
    values["records"] = columns_of([flat(dataclasses.asdict(record)) for record in facts.records])
    values["curves"] = curves_as_numbers(facts.curves)
    return values


def facts_from(values: Mapping[str, Any]) -> Facts:
    """The facts behind their values."""
    known = {field.name for field in dataclasses.fields(RunRecord)}
    rows = [{k: v for k, v in nested(row).items() if k in known} for row in rows_of(values["records"])]
    return Facts(
        **{
            **values,
            "records": [RunRecord(**row) for row in rows],
            "curves": curves_from(values["curves"]),
            "accounts": {name: Account(**account) for name, account in values["accounts"].items()},
            "moments": [Moment(**moment) for moment in values["moments"]],
            "receipts": [Receipt(**receipt) for receipt in values["receipts"]],
            "running": [RunningRun(**run) for run in values["running"]],
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: dataclasses.asdict(each) for name, each in value.items()}
    return [dataclasses.asdict(each) for each in value]


# --- records ---


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, names joined by dots; an empty one stays, so that it can come back."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
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
    """At most so many points of a curve, the first, the last and the extremes of the loss among them.

    The curve is cut into stretches of equally many points, and of each the highest and the lowest stay.
    """
    if len(points) <= most:
        return list(points)
    loss = np.array([p.loss for p in points])
    kept = {0, len(points) - 1}
    for stretch in np.array_split(np.arange(1, len(points) - 1), max(1, (most - 2) // 2)):
        kept |= {int(stretch[loss[stretch].argmin()]), int(stretch[loss[stretch].argmax()])} if len(stretch) else set()
    return [points[i] for i in sorted(kept)]


def _logarithms(values: Sequence[float | None], unit: float = STEPS_OF_LOG) -> list[int | None]:
    return [None if v is None else round(unit * math.log(v)) if v > 0 else ZERO for v in values]


def _exponentials(values: Sequence[int | None], unit: float = STEPS_OF_LOG) -> list[float | None]:
    found = [None if v is None else 0.0 if v == ZERO else math.exp(v / unit) for v in values]
    return [_rounded(v) for v in found]


CODES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "step": (list, list),
    "tokens": (list, list),
    "seconds": (_logarithms, _exponentials),
    "loss": (_logarithms, _exponentials),
    "lr": (_logarithms, _exponentials),
    "tokens_per_second": (_logarithms, _exponentials),
    "gradient_norm": (_logarithms, _exponentials),
    "bpb": (partial(_logarithms, unit=1e5), partial(_exponentials, unit=1e5)),
}
"""Of each quantity of a curve: into whole numbers, and back."""


def curves_as_numbers(curves: Mapping[str, Sequence[CurvePoint]]) -> dict[str, Any]:
    """Curves as columns over all of them, thinned so that a page of many trials stays small."""
    most = max(LEAST_POINTS, min(MOST_POINTS, ALL_POINTS // max(1, len(curves))))
    kept = {run: thinned(points, most) for run, points in curves.items() if points}
    columns: dict[str, list[int | None]] = {}
    for name, (encode, _) in CODES.items():
        columns[name] = [n for points in kept.values() for n in _differences(encode([getattr(p, name) for p in points]))]
    return {"runs": list(kept), "lengths": [len(points) for points in kept.values()], "columns": columns}


def curves_from(packed: Mapping[str, Any]) -> dict[str, list[CurvePoint]]:
    """The curves behind their numbers."""
    curves, start = {}, 0
    for run, length in zip(packed["runs"], packed["lengths"], strict=True):
        columns = {
            name: decode(_sums(packed["columns"][name][start : start + length])) for name, (_, decode) in CODES.items()
        }
        curves[run] = [CurvePoint(**{name: column[i] for name, column in columns.items()}) for i in range(length)]
        start += length
    return curves


def _differences(values: Sequence[int | None]) -> list[int | None]:
    """Each value less the last one that there was."""
    found, last = [], 0
    for value in values:
        found.append(None if value is None else value - last)
        last = last if value is None else value
    return found


def _sums(values: Sequence[int | None]) -> list[int | None]:
    found, last = [], 0
    for value in values:
        last += value or 0
        found.append(None if value is None else last)
    return found
