"""A data set of the Hugging Face Hub -> its texts or rows, kept in the cache as they come, so that reading goes on where it stopped.

`datasets` streams the rows, tries again where a connection breaks, and can say where it is. Texts, or rows as JSON, lie in parts, parquet files each whole or absent, with the
place to go on from in their metadata: the next command goes on there, at the same revision, and what is there whole needs no connection. Of the data
set's files only those about that place are fetched again. One process at a time adds parts; another that reads meanwhile fetches what is not there yet for itself.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from budgetlm.data.config import DataConfig
from budgetlm.data.fetch import DOWNLOADS
from budgetlm.data.formats import Text, text_of
from budgetlm.errors import BudgetlmError, DataError
from budgetlm.files import digest, disk_errors, write_atomic

Row = dict[str, Any]
"""By column."""
PART_CHARS = 2**23
"""Of text in a part: so much is lost at most when a command is killed."""
PLACE = b"place"


@dataclass(frozen=True)
class Place:
    """How far reading has come."""

    revision: str = ""
    """Commit of the data set; empty before the first row."""
    rows: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    """What `datasets` goes on from; empty for the beginning."""
    reader: str = ""
    """The version of `datasets` that wrote it: others may not understand it."""
    end: bool = False
    """Whether there are no rows after these."""


def hub_texts(name: str, config: DataConfig, cache: Path) -> Iterator[Text]:
    """The texts of a data set, in order: those that are kept, then the rest, which are kept on the way.

    Raises:
        DataError: it cannot be read.
    """
    identity = [name, config.config, config.split, config.column, config.text]

    def text(row: Row, where: str) -> Text:
        return text_of(row, config, where)

    yield from _all(name, config, cache / DOWNLOADS / digest(identity), config.columns, text)


def hub_rows(name: str, config: DataConfig, columns: Sequence[str], cache: Path) -> Iterator[Row]:
    """The rows of a data set, kept likewise, with some of their columns; where one is missing, with the names of those that there are.

    Raises:
        DataError: it cannot be read, or a column holds what is no text, number or list.
    """
    identity = ["rows", name, config.config, config.split, *columns]

    def document(row: Row, where: str) -> Text:
        wanted = {column: row[column] for column in columns if column in row}
        try:
            return json.dumps(wanted if len(wanted) == len(columns) else {**dict.fromkeys(row), **wanted}), False
        except TypeError as error:
            raise DataError(
                f"{where} has something else than text, numbers and lists in {', '.join(wanted)}: {error}."
            ) from error

    for told, _ in _all(name, config, cache / DOWNLOADS / digest(identity), columns, document):
        yield json.loads(told)


def _all(
    name: str, config: DataConfig, folder: Path, columns: Sequence[str], kept_of: Callable[[Row, str], Text]
) -> Iterator[Text]:
    """What is made of the rows, of which what is kept in the folder is not made again. One process at a time keeps."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock", thread_local=False)
    with suppress(Timeout):
        lock.acquire(timeout=0)
    try:
        yield from _texts(name, config, folder, columns, kept_of, keeps=lock.is_locked)
    finally:
        lock.release()


def repository_of(name: str) -> str:
    """What is behind `hf:`.

    Raises:
        DataError: it is no name of a data set.
    """
    repository = name.removeprefix("hf:")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
        raise DataError(f"{name!r} does not name a Hub data set. Write it as `hf:owner/name`.")
    return repository


def _texts(
    name: str, config: DataConfig, folder: Path, columns: Sequence[str], kept_of: Callable[[Row, str], Text], *, keeps: bool
) -> Iterator[Text]:
    place = Place()
    for kept, texts in _kept(folder):
        yield from texts
        place = kept
    if place.end:
        return
    part = _Part(folder, keeps)
    with _told(name, lambda: place.rows if keeps else 0):
        place = replace(place, revision=place.revision or _revision(name))
        stream = _opened(name, config, place.revision, columns)
        rows, met = _from(stream, place), place.rows
        place = replace(place, reader=_reader())
        try:
            for row in rows:
                met += 1
                text = kept_of(row, f"row {met:,} of {name}")
                place = replace(place, rows=met)
                if part.add(text):
                    part.write(place, stream)
                yield text
            place = replace(place, end=True)
        finally:
            if met == place.rows:  # otherwise `datasets` is past a row that could not be used
                part.write(place, stream)


def _kept(folder: Path) -> Iterator[tuple[Place, Iterator[Text]]]:
    """The parts that are there, one behind the other: what does not follow is left of a reading before one of them was damaged."""
    before = Place()
    for path in sorted(folder.glob("*.parquet")):
        if path.stem != f"{before.rows:012}":
            continue
        try:
            table = pq.read_table(path)
            place = Place(**json.loads(table.schema.metadata[PLACE]))
            texts = table["text"].to_pylist(), table["invalid"].to_pylist()
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
            continue  # it is written again
        if place.revision == (before.revision or place.revision):
            yield place, zip(*texts, strict=True)
            before = place


class _Part:
    """Texts that have come and are not written yet."""

    def __init__(self, folder: Path, keeps: bool) -> None:
        self._folder, self._keeps = folder, keeps
        self._texts: list[Text] = []
        self._chars = 0

    def add(self, text: Text) -> bool:
        """Returns whether it is full."""
        if self._keeps:
            self._texts.append(text)
            self._chars += len(text[0])
        return self._chars >= PART_CHARS

    def write(self, place: Place, stream: Any) -> None:
        """Make a file of it, named by its first row; none where that would say nothing new."""
        if not self._keeps or not (self._texts or place.end):
            return
        columns = {
            "text": pa.array([t for t, _ in self._texts], pa.string()),
            "invalid": pa.array([i for _, i in self._texts], pa.bool_()),
        }
        told = json.dumps(asdict(replace(place, state=stream.state_dict())))
        table = pa.table(columns).replace_schema_metadata({PLACE: told})
        path = self._folder / f"{place.rows - len(self._texts):012}.parquet"
        write_atomic(path, lambda path: pq.write_table(table, path, compression="zstd"))
        self._texts, self._chars = [], 0


# --- `datasets` ---


def _revision(name: str) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(repository_of(name)).sha)


def _opened(name: str, config: DataConfig, revision: str = "", columns: Sequence[str] = ()) -> Any:
    """The stream; of the columns only some, where it knows beforehand which there are."""
    import datasets

    datasets.disable_progress_bars()
    stream = datasets.load_dataset(
        repository_of(name), config.config or None, split=config.split, streaming=True, revision=revision or None
    )
    return stream.select_columns(list(columns)) if columns and set(columns) <= set(stream.features or ()) else stream


def _from(stream: Any, place: Place) -> Iterator[dict[str, Any]]:
    """Its rows after those that were read."""
    if not place.state or place.reader != _reader():
        return islice(stream, place.rows, None)
    stream.load_state_dict(place.state)
    return iter(stream)


def _reader() -> str:
    return version("datasets")


@contextmanager
def _told(name: str, rows_kept: Callable[[], int] = int) -> Iterator[None]:
    """Whatever goes wrong in `datasets` is about the source."""
    try:
        yield
    except (GeneratorExit, KeyboardInterrupt, BudgetlmError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        rows = rows_kept()
        kept = f" {rows:,} rows have come and are kept: repeat the command to go on." if rows else ""
        raise DataError(
            f"could not read {name}: {type(error).__name__}: {reason[:300]}. Check that it exists and can be read, its configuration and "
            f"split, and your connection.{kept}"
        ) from error
