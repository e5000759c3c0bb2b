"""A file -> the texts in it, by its ending: text, JSON, parquet, CSV, compressed or not.

Every file is read as a stream, so that it may be larger than the memory (but for JSON that is one long list), and whatever is wrong
with it is said with its name and line. Only the columns that are wanted are read of parquet.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from budgetlm.data.config import DataConfig
from budgetlm.errors import DataError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TABLE_KINDS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
}
TEXT_ENDINGS = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".c", ".h", ".cpp", ".js", ".ts", ".rs", ".go", ".java"}
COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".zst": zstd.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
ENDINGS = f"{', '.join(sorted(TEXT_ENDINGS | set(TABLE_KINDS)))}, all but parquet also compressed ({', '.join(COMPRESSED)})"
"""What can be read, for people."""
EXPANSION = 3
"""Compressed text is about so many times as long when it is read: only for estimates."""
PIECE_BYTES = 16 * 1024
"""A text file of the user's beyond 64 of these is cut at line ends into documents of about this size, so that one long
book still has a validation split. Files of the embedded corpora stay whole."""
ROWS = 256
"""Rows of parquet that are in memory at once."""

Text = tuple[str, bool]
"""A document, and whether it had bytes that are not UTF-8, each bad stretch replaced by U+FFFD."""


def kind_of(path: Path) -> str:
    """The reader for a file: `text`, `json`, `parquet`, `csv`, or nothing where its ending is not known."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    compressed = bool(endings) and endings[-1] in COMPRESSED
    ending = "".join(endings[:-1] if compressed else endings[-1:])
    kind = TABLE_KINDS.get(ending, "text" if ending in TEXT_ENDINGS else "")
    return "" if compressed and kind == "parquet" else kind


def text_size(path: Path) -> int:
    """About how many bytes of text a file has."""
    return path.stat().st_size * (EXPANSION if path.suffix.lower() in COMPRESSED else 1)


def read_file(path: Path, config: DataConfig, *, whole: bool = False) -> Iterator[Text]:
    """The texts of a file, in order.

    Args:
        whole: a text file is one document, however long.

    Raises:
        DataError: it cannot be read, is not what its ending says, or has not the columns that are wanted.
    """
    if kind_of(path) in TABLE_KINDS.values():
        for where, row in read_rows(path, config.columns, _remedy(config)):
            yield text_of(row, config, where)
        return
    with _faults_of(path):
        if path.suffix.lower() in COMPRESSED and path.with_suffix("").suffix.lower() == ".parquet":
            raise DataError(f"{path}: parquet is compressed inside already. Unpack it, then it can be read.")
        with _opened(path) as file:
            yield from _text_file(file, path, config, whole=whole, known=kind_of(path) == "text")


def read_rows(path: Path, columns: Sequence[str], remedy: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a table, each with where it stands, for people. Of parquet only the wanted columns are read; in others a row may lack some.

    Args:
        remedy: what to do if parquet has not these columns.

    Raises:
        DataError: it is no table, cannot be read, or is not what its ending says.
    """
    kind = kind_of(path)
    if kind not in TABLE_KINDS.values():
        raise DataError(f"{path} is no table with columns. Tables end with {', '.join(TABLE_KINDS)}.")
    with _faults_of(path):
        if kind == "parquet":
            for number, row in _parquet(path, columns, remedy):
                yield f"row {number:,} of {path}", row
            return
        with _opened(path) as file:
            for number, row in _json(file, path) if kind == "json" else _csv(file, path):
                yield f"line {number:,} of {path}", row


def _opened(path: Path) -> IO[bytes]:
    opener: Callable[[Path], Any] = COMPRESSED.get(path.suffix.lower(), _plain)
    return cast("IO[bytes]", opener(path))


def _plain(path: Path) -> IO[bytes]:
    return path.open("rb")


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Say of which file it is what a reader has to complain about."""
    try:
        yield
    except EOFError as error:
        raise DataError(f"{path} ends too early: it was cut off. Fetch or make it again.") from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstd.ZstdError, csv.Error, ValueError) as error:
        raise DataError(
            f"could not read {path}: {_one_line(error)}. Check that it is whole, and what its ending says."
        ) from error
    except OSError as error:
        reason = error.strerror or _one_line(error)
        raise DataError(f"could not read {path}: {reason}. Check its permissions, and that it is whole.") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


# --- rows -> texts ---------------------------------------------------------------------------------------------------

Rows = Iterator[tuple[int, Mapping[str, Any]]]
"""Rows of a table, each with its number in the file."""


def text_of(row: Mapping[str, Any], config: DataConfig, where: str) -> Text:
    """The text of a row, from its column or by the template. What is null is empty; a template takes numbers, too.

    Raises:
        DataError: a column is missing, or holds something else.
    """
    values: dict[str, str] = {}
    for column in config.columns:
        if column not in row:
            raise missing_column(column, row, where, _remedy(config))
        value = row[column]
        if value is None:
            values[column] = ""
        elif isinstance(value, str) or (config.text and isinstance(value, int | float)):
            values[column] = str(value)
        else:
            raise DataError(
                f"column {column!r} in {where} holds {type(value).__name__}, not text. Set `data.column` to a column of text."
            )
    if not any(values.values()):
        return "", False
    text = config.text.format_map(values) if config.text else values[config.column]
    return text, "\ufffd" in text


def missing_column(column: str, names: Iterable[Any], where: str, remedy: str) -> DataError:
    """What is said where a table has not a column: which it has, and what to do."""
    there = ", ".join(sorted(map(str, names))) or "none"
    return DataError(f"{where} has no column {column!r}. Its columns are: {there}. {remedy}.")


def _remedy(config: DataConfig) -> str:
    return "Name these in `data.text`" if config.text else "Set `data.column` to one of them"


# --- kinds of files --------------------------------------------------------------------------------------------------


def _json(file: IO[bytes], path: Path) -> Rows:
    """Rows of JSON lines, or of one list."""
    beginning = file.read(1)
    while beginning.isspace():
        beginning = file.read(1)
    lines = enumerate(_lines(beginning, file), 1)
    if beginning == b"[":
        rows = _parsed(beginning + file.read(), f"{path}")
        yield from ((number, _object(row, f"row {number} of {path}")) for number, row in enumerate(rows, 1))
        return
    for number, line in lines:
        if not line.isspace():
            where = f"line {number:,} of {path}"
            yield number, _object(_parsed(line, where), where)


def _lines(beginning: bytes, file: IO[bytes]) -> Iterator[bytes]:
    first = beginning + file.readline()
    if first:
        yield first.removeprefix(b"\xef\xbb\xbf")
    yield from file


def _parsed(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode(errors="replace"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not JSON: {error.msg.removesuffix(' at')} (character {error.colno:,}). Mend or remove it."
        ) from error
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply to be read. Remove it.") from error


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f'{where} holds {type(value).__name__}, not an object with columns, such as {{"text": "…"}}.')
    return value


def _csv(file: IO[bytes], path: Path) -> Rows:
    """Rows of a CSV or TSV file with a header."""
    csv.field_size_limit(2**31 - 1)  # of its own accord it refuses fields beyond 128 KiB
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="") as lines:
        reader = csv.reader(lines, delimiter="\t" if ".tsv" in path.suffixes[-2:] else ",", strict=True)
        header = next(reader, [])
        for row in reader:
            if len(row) == len(header):
                yield reader.line_num, dict(zip(header, row, strict=True))
            elif row:
                raise DataError(
                    f"line {reader.line_num:,} of {path} has {len(row)} fields, but its header names {len(header)}. Mend that line."
                )


def _parquet(path: Path, columns: Sequence[str], remedy: str) -> Rows:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for column in columns:
                if column not in file.schema_arrow.names:
                    raise missing_column(column, file.schema_arrow.names, str(path), remedy)
            number = 0
            for batch in file.iter_batches(batch_size=ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except ArrowException as error:
        raise DataError(f"could not read {path}: {_one_line(error)}. Check that it is whole, and parquet.") from error


def _text_file(file: IO[bytes], path: Path, config: DataConfig, *, whole: bool, known: bool) -> Iterator[Text]:
    """A text file as one document; a long one as pieces, unless `whole`."""
    beginning = file.read() if whole else file.read(64 * PIECE_BYTES + 1)
    if not known and b"\0" in beginning[:8192]:
        raise DataError(f"{path} is not text. Files that can be read end with {ENDINGS}.")
    long = not whole and len(beginning) > 64 * PIECE_BYTES
    for piece in _pieces(beginning, file) if long else [beginning]:
        try:
            text, invalid = piece.decode(), False
        except UnicodeDecodeError:
            text, invalid = piece.decode(errors="replace"), True
        if config.text and config.columns == [
            config.column
        ]:  # a template of other columns is for the tables among the files
            text, _ = text_of({config.column: text}, config, str(path))
        yield text, invalid


def _pieces(left: bytes, file: IO[bytes]) -> Iterator[bytes]:
    """Parts of about PIECE_BYTES that end at a line's end, or at worst before a new character."""
    start = 0
    while True:
        if len(left) - start <= PIECE_BYTES + 4:
            left, start = left[start:] + file.read(64 * PIECE_BYTES), 0
        if start == len(left):
            return
        end = min(len(left), start + PIECE_BYTES)
        if end < len(left):
            line_end = left.rfind(b"\n", start, end)
            end = line_end + 1 if line_end >= start else end
            while line_end < start and end < len(left) and left[end] & 0xC0 == 0x80:
                end += 1
        yield left[start:end]
        start = end
