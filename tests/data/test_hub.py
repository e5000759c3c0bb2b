"""The Hub by the real `datasets`, from a server on this machine that breaks connections."""

import json
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from budgetlm.data.fetch import DOWNLOADS
from tests.data.hub import lines, local_hub

READ = """
read = [text for text, _ in texts()]
print(json.dumps(read))
"""
WANTED = [json.loads(line)["text"] for k in range(6) for line in lines(250, 250 * k).splitlines()]
ROWS_OF_A_PART = 183
"""About so many texts have 20,000 characters and more."""
EVER = [0] * 1000


def parts(cache):
    return sorted(cache.glob(f"{DOWNLOADS}/*/*.parquet"))


def read(hub, cache, code=READ):
    done = hub.python(code, cache)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_texts_are_read_once_and_another_corpus_of_them_needs_no_connection(tmp_path):
    corpus = """
facts = [prepare_corpus(DataConfig(source="hf:someone/texts", drop_overlap=False, validation_fraction=f), cache).facts for f in (0.1, 0.2)]
print(json.dumps([sum(f.documents.values()) for f in facts]))
"""
    with local_hub() as hub:
        assert read(hub, tmp_path, corpus) == [1500, 1500]
        assert hub.asked
    hub.asked.clear()
    assert read(hub, tmp_path) == WANTED  # the server is gone
    assert hub.asked == []


def test_a_connection_that_breaks_costs_nothing_but_another_one(tmp_path):
    with local_hub(drops={"data/train-1.jsonl": [10_000, 0]}) as hub:
        assert read(hub, tmp_path) == WANTED
        assert hub.asked.count("data/train-1.jsonl") > 2


def test_after_a_server_that_stays_away_the_next_command_goes_on_where_the_last_one_stopped(tmp_path):
    with local_hub(drops={"data/train-4.jsonl": list(EVER)}) as hub:
        failed = hub.python(READ, tmp_path)
        assert "DataError: could not read hf:someone/texts" in failed.stderr
        assert "1,000 rows have come and are kept: repeat the command to go on." in failed.stderr
        hub.drops.clear()
        hub.asked.clear()
        assert read(hub, tmp_path) == WANTED
        assert hub.asked.count("data/train-0.jsonl") == 1  # `datasets` looks into the first file for its columns
        assert "data/train-1.jsonl" not in hub.asked


@pytest.mark.parametrize("instant", [30, 200, 700, 1499])
def test_after_a_kill_at_any_instant_all_texts_come_once_and_in_order(tmp_path, instant):
    dies = f"""
import os
for number, _ in enumerate(texts()):
    if number == {instant}:
        os._exit(9)
"""
    with local_hub() as hub:
        assert hub.python(dies, tmp_path).returncode == 9
        assert len(parts(tmp_path)) == (instant + 1) // ROWS_OF_A_PART
        assert read(hub, tmp_path) == WANTED


def test_more_text_of_the_same_set_is_read_on_and_not_again(tmp_path):
    def corpus(most):
        settings = f'source="hf:someone/texts", drop_overlap=False, max_bytes={most}'
        return f"print(json.dumps(sum(prepare_corpus(DataConfig({settings}), cache).facts.documents.values())))"

    with local_hub() as hub:
        small = read(hub, tmp_path, corpus(60_000))
        assert 500 < small < 1000
        hub.asked.clear()
        assert small < read(hub, tmp_path, corpus(100_000)) < 1000
        assert hub.asked.count("data/train-0.jsonl") == 1
        assert "data/train-5.jsonl" not in hub.asked


def test_a_damaged_part_and_what_is_behind_it_are_fetched_again(tmp_path):
    with local_hub() as hub:
        read(hub, tmp_path)
        there = parts(tmp_path)
        assert len(there) > 4
        there[2].write_bytes(there[2].read_bytes()[:100])
        assert read(hub, tmp_path) == WANTED
        assert parts(tmp_path) == there


def test_a_command_that_is_broken_off_while_it_mends_a_damaged_part_leaves_no_gap(tmp_path):
    some = f"""
stream = texts()
print(json.dumps([next(stream)[0] for _ in range({2 * ROWS_OF_A_PART + 50})]))
stream.close()
"""
    with local_hub() as hub:
        read(hub, tmp_path)
        parts(tmp_path)[2].write_bytes(b"damaged")
        read(hub, tmp_path, some)  # ends within the third part, behind which older ones lie
        assert read(hub, tmp_path) == WANTED
        assert read(hub, tmp_path) == WANTED


def test_of_tables_that_say_their_columns_only_those_of_the_text_are_read_and_gone_on_with(tmp_path):
    tables = {}
    for k in range(3):
        file = BytesIO()
        rows = [json.loads(line) for line in lines(500, 500 * k).splitlines()]
        pq.write_table(pa.Table.from_pylist(rows), file)
        tables[f"data/train-{k}.parquet"] = file.getvalue()
    some = """
stream = texts()
print(json.dumps([next(stream)[0] for _ in range(700)]))
stream.close()
"""
    columns = """
stream = hub._opened("hf:someone/texts", DataConfig(source="hf:someone/texts"), columns=["text"])
print(json.dumps(list(next(iter(stream)))))
"""
    with local_hub(files=tables) as hub:
        assert read(hub, tmp_path, columns) == ["text"]
        assert read(hub, tmp_path, some) == WANTED[:700]
        assert read(hub, tmp_path) == WANTED


def test_a_row_that_cannot_be_used_is_not_passed_over_by_the_next_command(tmp_path):
    broken = lines(100) + b'{"text": 7, "number": 1}\n' + lines(100)
    with local_hub(files={"data/train-0.jsonl": broken}) as hub:
        for _ in range(2):
            assert "row 101 of hf:someone/texts holds int, not text" in hub.python(READ, tmp_path).stderr


def test_a_set_that_changes_meanwhile_is_read_at_the_revision_it_was_begun_at(tmp_path):
    first = """
stream = texts()
print(json.dumps([next(stream)[0] for _ in range(600)]))
"""
    revision = """
import pyarrow.parquet as pq
print(json.dumps([json.loads(pq.read_schema(p).metadata[b"place"])["revision"] for p in sorted(cache.glob("downloads/*/*.parquet"))]))
"""
    with local_hub() as hub:
        assert read(hub, tmp_path, first) == WANTED[:600]
        hub.commit = "d" * 40
        assert read(hub, tmp_path) == WANTED
        assert set(read(hub, tmp_path, revision)) == {"a" * 40}


def test_another_reader_at_the_same_time_reads_all_and_adds_nothing(tmp_path):
    both = """
one, other = texts(), texts()
begun = [next(one)[0] for _ in range(600)]
alone = [text for text, _ in other]
print(json.dumps([begun + [text for text, _ in one], alone]))
"""
    with local_hub() as hub:
        assert read(hub, tmp_path, both) == [WANTED, WANTED]


def test_a_new_version_of_the_reader_goes_on_by_counting_rows(tmp_path):
    first = """
hub._reader = lambda: "0.1"
stream = texts()
print(json.dumps([next(stream)[0] for _ in range(600)]))
"""
    with local_hub() as hub:
        assert read(hub, tmp_path, first) == WANTED[:600]
        assert read(hub, tmp_path) == WANTED


LABELLED = [{"text": f"{'tree' if k % 2 else 'stone'} word {k}", "label": k % 2, "when": k} for k in range(400)]
EXAMPLES = """
from budgetlm.data.labelled import read_examples
hub.PART_CHARS = 2_000


def examples(label):
    return read_examples("classify", DataConfig(source="hf:someone/texts"), label, cache)


try:
    examples("stars")
except Exception as error:
    print(error, file=sys.stderr)
print(json.dumps([[example.text, *example.labels] for example in examples("label")]))
"""


def labelled_hub(**settings):
    """A Hub whose data set has labels in two files."""
    files = {
        f"data/train-{k}.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in LABELLED[200 * k :][:200])
        for k in range(2)
    }
    return local_hub(files=files, **settings)


def test_labelled_rows_are_kept_with_the_columns_that_are_read_and_a_broken_reading_is_gone_on_with(tmp_path):
    with labelled_hub(drops={"data/train-1.jsonl": list(EVER)}) as hub:
        failed = hub.python(EXAMPLES, tmp_path)
        assert "row 1 of hf:someone/texts has no column 'stars'. Its columns are: label, text, when." in failed.stderr
        assert "200 rows have come and are kept: repeat the command to go on." in failed.stderr
        hub.drops.clear()
        assert read(hub, tmp_path, EXAMPLES) == [[row["text"], str(row["label"])] for row in LABELLED]
    rows = [json.loads(row) for path in parts(tmp_path) for row in pq.read_table(path)["text"].to_pylist()]
    assert [row for row in rows if row.keys() == {"text", "label"}] == [
        {k: row[k] for k in ("text", "label")} for row in LABELLED
    ]
