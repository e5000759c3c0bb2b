"""A labelled table -> examples to fine-tune on, and those of them that are held out.

Which part an example is in is decided by a hash of its text alone: it never moves, and the same text is never in both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from budgetlm.data.config import DataConfig
from budgetlm.data.formats import missing_column, text_of
from budgetlm.data.sieve import mark_of
from budgetlm.data.sources import open_rows
from budgetlm.errors import ConfigError, DataError

TaskName = Literal["classify", "tag", "continue"]
"""A label for a text, one for each of its words, or the text that follows it."""
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
HELD_OUT = 0.2
"""Share of the examples that is held out where no other file is."""
LEAST_ROWS = 10
"""Examples that there must be to train on, and as many to measure on."""
REMEDY = "Name them with `--column` (or `--text`) and `--label`"


@dataclass(frozen=True)
class Example:
    """One row."""

    text: str
    """What is read; its words joined by blanks where each has a label."""
    labels: tuple[str, ...]
    """One for the text, or for each word, or the text that follows."""
    words: tuple[str, ...] = ()
    """Where each has a label."""


def read_examples(task: TaskName, data: DataConfig, label: str, cache: Path) -> list[Example]:
    """Read a labelled table; rows without text are left out.

    Args:
        task: what its labels are.
        data: which table, and its column (or template) of text; for `tag` the column holds a list of words, or words between blanks.
        label: the column of labels: a name or number; for `tag` as many as there are words, for `continue` a text.
        cache: where addresses are fetched to.

    Raises:
        DataError: it cannot be read, a column is missing, or a row has no label or one that cannot be any.
        ConfigError: there is no such task, or words are asked for by a template.
    """
    if task not in TASK_NAMES:
        raise ConfigError(f"there is no task {task!r}. Use {', '.join(TASK_NAMES)}.")
    if task == "tag" and data.text:
        raise ConfigError(
            "`--text` puts a text together, but to tag words they have to come from one column: use `--column`."
        )
    examples = []
    for where, row in open_rows(data, [*data.columns, label], cache, REMEDY):
        for column in (*data.columns, label):
            if column not in row:
                raise missing_column(column, row, where, REMEDY)
        example = _tagged(row, data.column, label, where) if task == "tag" else _labelled(row, data, label, where)
        if example.text.strip():
            examples.append(example)
    return examples


def _labelled(row: Mapping[str, Any], data: DataConfig, label: str, where: str) -> Example:
    text = text_of(row, data, where)[0]
    return Example(text, (_label(row[label], label, where),) if text.strip() else ())


def _tagged(row: Mapping[str, Any], column: str, label: str, where: str) -> Example:
    words, tags = (_several(row[name], name, where) for name in (column, label))
    if len(words) != len(tags):
        raise DataError(
            f"{where} has {len(words)} words in {column!r}, but {len(tags)} labels in {label!r}. Give each word one."
        )
    return Example(" ".join(words), tuple(tags), tuple(words))


def _several(value: Any, column: str, where: str) -> list[str]:
    found = value.split() if isinstance(value, str) else value or []
    if not isinstance(found, list):
        raise DataError(f"column {column!r} in {where} holds {type(value).__name__}, not a list, or words between blanks.")
    return [_label(one, column, where) for one in found]


def _label(value: Any, column: str, where: str) -> str:
    if value is None or value == "":
        raise DataError(f"{where} has nothing in column {column!r}. Fill it in, or remove the row.")
    if not isinstance(value, str | int):
        raise DataError(
            f"column {column!r} in {where} holds {type(value).__name__}, which is no label: use names or whole numbers."
        )
    return str(value)


def split(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Those to train on, and those held out, by a hash of their text."""
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        mark = int.from_bytes(mark_of(example.text.encode("utf-8", errors="replace"))[:8])
        parts[mark < HELD_OUT * 2**64].append(example)
    return parts


def check_examples(task: TaskName, training: Sequence[Example], held: Sequence[Example], source: str) -> None:
    """See that there is something to learn, and to measure on.

    Raises:
        DataError: there are too few rows, or only one label.
    """
    if min(len(training), len(held)) < LEAST_ROWS:
        raise DataError(
            f"{source} leaves {len(training)} rows with text to train on and {len(held)} held out to measure on, and {LEAST_ROWS} of each are the "
            "least. Give more rows, or others to measure on with `--validation`."
        )
    known = labels_of(training)
    if task != "continue" and len(known) < 2:
        raise DataError(
            f"all {len(training):,} rows of {source} that are trained on have the same label, {known[0]!r}, so there is nothing to tell apart. "
            "Check `--label`."
        )


def labels_of(examples: Sequence[Example]) -> list[str]:
    """All labels, in order; numbers by their value."""
    found = {label for example in examples for label in example.labels}
    return sorted(found, key=lambda label: (not label.isdigit(), label.zfill(20) if label.isdigit() else label))
