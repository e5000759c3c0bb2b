import bz2
import csv
import gzip
import json
import lzma

import pandas as pd
import pytest

from budgetlm.data.config import DataConfig
from budgetlm.data.corpus import prepare_corpus
from budgetlm.data.formats import PIECE_BYTES, read_file, zstd
from budgetlm.errors import ConfigError, DataError
from tests.conftest import sentences

TEXTS = [*sentences(40), "", 'quoted "words", a comma,\na line break, ünïcode and 漢字\n']
LINES = "".join(json.dumps({"title": f"no {n}", "text": text, "n": n}) + "\n" for n, text in enumerate(TEXTS)).encode()
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def written(path, content):
    path.write_bytes(content)
    return path


def read(path, **settings):
    return [text for text, _ in read_file(path, DataConfig(source=str(path), **settings))]


def csv_text(delimiter):
    frame = pd.DataFrame({"title": [f"no {n}" for n in range(len(TEXTS))], "text": TEXTS})
    return frame.to_csv(index=False, sep=delimiter, quoting=csv.QUOTE_MINIMAL).encode()


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_every_format_gives_the_same_texts_compressed_or_not(tmp_path, kind, ending):
    content = {
        "jsonl": b"\xef\xbb\xbf" + LINES + b"\n",
        "json": json.dumps([json.loads(line) for line in LINES.splitlines()], indent=1).encode(),
        "csv": csv_text(","),
        "tsv": csv_text("\t"),
    }[kind]
    assert read(written(tmp_path / f"a.b.{kind}{ending}", COMPRESS[ending](content))) == TEXTS


def test_of_parquet_only_the_columns_that_are_wanted_are_read(tmp_path):
    frame = pd.DataFrame({"text": TEXTS, "title": [f"no {n}" for n in range(len(TEXTS))], "other": [[1]] * len(TEXTS)})
    frame.loc[3, "text"] = None
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=7)
    expected = [*TEXTS[:3], "", *TEXTS[4:]]
    assert read(tmp_path / "a.parquet") == expected
    assert read(tmp_path / "a.parquet", text="{title}: {text}")[3:5] == ["no 3: ", f"no 4: {TEXTS[4]}"]


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_long_text_file_is_cut_into_the_same_pieces_compressed_or_not(tmp_path, ending):
    text = "".join(f"line {i}, ünïcode included\n" for i in range(60_000)) + "é" * (3 * PIECE_BYTES) + "the end"
    pieces = read(written(tmp_path / f"book.txt{ending}", COMPRESS[ending](text.encode())))
    assert "".join(pieces) == text
    assert len(pieces) > 90
    assert all(piece.endswith("\n") for piece in pieces[:80])
    assert max(len(piece.encode()) for piece in pieces) <= PIECE_BYTES + 4


def test_a_template_makes_a_text_of_several_columns_numbers_included(tmp_path):
    path = written(tmp_path / "a.jsonl", LINES)
    assert read(path, text="{n}. {title}\n\n{text} {{end}}")[1] == f"1. no 1\n\n{TEXTS[1]} {{end}}"
    (tmp_path / "plain.txt").write_text("all of it")
    assert read(tmp_path / "plain.txt", text="<{text}>") == ["<all of it>"]
    assert read(tmp_path / "plain.txt", text="{n}. {title}") == ["all of it"]  # it stands beside tables
    empty = written(tmp_path / "empty.jsonl", b'{"title": null, "text": ""}\n')
    assert read(empty, text="{title}: {text}") == [""]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{}", "takes the name of a column and nothing else"),
        ("{a.b}", "nothing else"),
        ("{a[0]}", "nothing else"),
        ("{a!r}", "nothing else"),
        ("{a:>9}", "nothing else"),
        ("{a", "Write .* for braces"),
        ("plain", "names no column"),
    ],
)
def test_a_template_takes_names_of_columns_and_nothing_else(template, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(text=template)


ROW = '{"text": "a good line"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", b"not gzip", "could not read .*a.jsonl.gz: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-50], "a.jsonl.gz ends too early: it was cut off"),
        ("a.jsonl.zst", zstd.compress(LINES)[:-3], "a.jsonl.zst ends too early"),
        ("a.txt.zst", zstd.compress(LINES)[:200], "a.txt.zst ends too early"),
        ("a.txt.xz", lzma.compress(LINES)[:-30], "a.txt.xz ends too early"),
        ("a.txt.bz2", bz2.compress(LINES)[:-30], "a.txt.bz2 ends too early"),
        ("a.txt.zst", b"not zstandard at all", "could not read .*a.txt.zst"),
        ("a.jsonl", (ROW * 2 + '{"text": "cut\n' + ROW).encode(), r"line 3 of .*a.jsonl is not JSON: .* \(character 14\)"),
        ("a.jsonl", b'{"text": "x"}\n[1, 2]\n', "line 2 of .* holds list, not an object"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 5}\n', "'text' in line 2 of .* holds int, not text"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', "line 2 of .* has no column 'text'. Its columns are: body"),
        ("a.json", b'{"data": [\n"a"]}', "line 1 of .*a.json is not JSON"),
        ("a.json", b'["a", "b"]', "row 1 of .*a.json holds str, not an object"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.csv", b"id,text\n1,good\n2,bad,worse\n", "line 3 of .*a.csv has 3 fields, but its header names 2"),
        ("a.csv", b'id,text\n1,"never closed\n', "could not read .*a.csv: unexpected end of data"),
        ("a.csv", b"id,body\n1,good\n", "has no column 'text'. Its columns are: body, id"),
        ("a.parquet", b"PAR1 and nothing", "could not read .*a.parquet"),
        ("a.parquet.gz", gzip.compress(b"x", mtime=0), "parquet is compressed inside already"),
        ("a.zip", b"PK\x03\x04\0\0\0", "is not text. Files that can be read end with"),
        ("a.jsonl", (ROW * 3).encode(), "has 1 documents with text in them .* 2 duplicates"),
        ("a.jsonl", b"", "has 0 documents"),
    ],
)
def test_a_broken_file_is_refused_in_one_line_that_says_where(tmp_path, capfd, name, content, message):
    path = written(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as refused:
        prepare_corpus(DataConfig(source=str(path)), tmp_path / "cache")
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")
    assert [entry.suffix for entry in (tmp_path / "cache").glob("corpora/*")] in ([], [".lock"])


def test_a_column_of_the_wrong_type_is_named_in_parquet_too(tmp_path):
    pd.DataFrame({"text": [1, 2], "body": ["a", "b"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="'text' in row 1 of .* holds int, not text"):
        read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no column 'title'. Its columns are: body, text. Name these in `data.text`"):
        read(tmp_path / "a.parquet", text="{title}")


def test_one_broken_file_of_a_folder_leaves_nothing_behind_and_is_read_once_mended(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    written(folder / "good.jsonl", LINES)
    broken = written(folder / "zz.jsonl.gz", gzip.compress(b"".join(LINES.splitlines(keepends=True)[:5]))[:-9])
    config = DataConfig(source=str(folder))
    with pytest.raises(DataError, match="ends too early"):
        prepare_corpus(config, tmp_path / "cache")
    written(broken, gzip.compress(ROW.encode()))
    assert "a good line" in "".join(prepare_corpus(config, tmp_path / "cache").documents("train"))
