import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from budgetlm.data.config import DataConfig
from budgetlm.data.labelled import Example, check_examples, labels_of, read_examples, split
from budgetlm.errors import ConfigError, DataError


def rows_in(path, rows):
    """Writes them as the ending says."""
    if path.suffix == ".csv":
        names = list(rows[0])
        path.write_text(
            "\n".join(",".join(str(row[n]) for n in names) for row in [{name: name for name in names}, *rows]) + "\n"
        )
    elif path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_the_same_rows_are_read_of_every_kind_of_table(tmp_path, ending):
    rows = [
        {"title": "a", "body": "b c", "stars": 5},
        {"title": "", "body": "", "stars": 1},
        {"title": "d", "body": "e", "stars": 0},
    ]
    source = str(rows_in(tmp_path / f"rows.{ending}", rows))
    read = read_examples("classify", DataConfig(source=source, text="{title}: {body}"), "stars", tmp_path)
    assert read == [Example("a: b c", ("5",)), Example("d: e", ("0",))]


def test_words_and_their_labels_come_as_lists_or_between_blanks(tmp_path):
    listed = rows_in(tmp_path / "a.jsonl", [{"text": ["a", "b"], "label": [1, 0]}])
    spaced = rows_in(tmp_path / "b.csv", [{"text": "a b", "label": "1 0"}])
    for path in (listed, spaced):
        assert read_examples("tag", DataConfig(source=str(path)), "label", tmp_path) == [
            Example("a b", ("1", "0"), ("a", "b"))
        ]


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("classify", {"text": "a"}, r"line 2 of .* has no column 'label'. Its columns are: text. Name them with"),
        ("classify", {"body": "a", "label": 1}, r"line 2 of .* has no column 'text'"),
        ("classify", {"text": "a", "label": None}, r"line 2 of .* has nothing in column 'label'"),
        ("classify", {"text": "a", "label": 0.5}, r"column 'label' in line 2 of .* holds float, which is no label"),
        ("classify", {"text": ["a"], "label": 1}, r"column 'text' in line 2 of .* holds list, not text"),
        ("tag", {"text": ["a", "b"], "label": ["x"]}, r"line 2 of .* has 2 words in 'text', but 1 labels"),
        ("tag", {"text": 3, "label": ["x"]}, r"column 'text' in line 2 of .* holds int, not a list"),
    ],
)
def test_a_row_that_cannot_be_learnt_from_is_named_with_its_line(tmp_path, task, row, message):
    good = {"text": ["a"], "label": ["x"]} if task == "tag" else {"text": "a", "label": "x"}
    path = rows_in(tmp_path / "rows.jsonl", [good, row])
    with pytest.raises(DataError, match=message):
        read_examples(task, DataConfig(source=str(path)), "label", tmp_path)


def test_what_is_no_table_or_task_is_a_line(tmp_path):
    rows_in(tmp_path / "rows.parquet", [{"text": "a", "kind": 1}])
    with pytest.raises(DataError, match=r"rows.parquet has no column 'label'. Its columns are: kind, text"):
        read_examples("classify", DataConfig(source=str(tmp_path / "rows.parquet")), "label", tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match="is no table with columns"):
        read_examples("classify", DataConfig(source=str(tmp_path / "a.txt")), "label", tmp_path)
    with pytest.raises(DataError, match="stdlib has no columns"):
        read_examples("classify", DataConfig(source="stdlib"), "label", tmp_path)
    with pytest.raises(ConfigError, match="no task 'rank'. Use classify, tag, continue"):
        read_examples("rank", DataConfig(source="stdlib"), "label", tmp_path)
    with pytest.raises(ConfigError, match="to tag words they have to come from one column"):
        read_examples("tag", DataConfig(source="stdlib", text="{a}"), "label", tmp_path)


def test_a_text_is_always_in_the_same_part_and_never_in_both():
    examples = [Example(f"text {number % 300}", (str(number),)) for number in range(600)]
    training, held = split(examples)
    assert {e.text for e in training}.isdisjoint(e.text for e in held)
    assert 0.12 < len(held) / 600 < 0.28
    assert split(examples[::-1])[1] == held[::-1]
    assert split(examples[:100])[1] == [e for e in held if e in examples[:100]]


def test_too_little_and_one_label_are_refused_and_labels_are_in_order():
    few, many = [Example("a", ("x",))] * 9, [Example("a", ("x",))] * 10
    for training, held in ((few, many), (many, few)):
        with pytest.raises(DataError, match=r"9 .*10 of each are the least"):
            check_examples("classify", training, held, "rows.csv")
    with pytest.raises(DataError, match="all 10 rows of rows.csv that are trained on have the same label, 'x'"):
        check_examples("classify", many, many, "rows.csv")
    check_examples("continue", many, many, "rows.csv")
    assert labels_of([Example("a", ("10", "b")), Example("a", ("9", "a"))]) == ["9", "10", "a", "b"]
