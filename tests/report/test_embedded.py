import json
import math

import pytest

from budgetlm.errors import StudyError
from budgetlm.report.embedded import (
    as_values,
    columns_of,
    curves_as_numbers,
    curves_from,
    facts_from,
    flat,
    nested,
    pack,
    read_page,
    rows_of,
    thinned,
    unpack,
)
from budgetlm.report.facts import LEAST_POINTS
from tests.report.made import EVIL, curve, facts


def test_what_is_packed_comes_back_and_holds_nothing_that_html_would_read():
    value = {"a": [1, 2.5, None, EVIL], "b": {}}
    assert unpack(pack(value)) == value
    assert not set(pack(value)) & set("<>&\"'")


@pytest.mark.parametrize("trials", [0, 1, 9])
def test_facts_come_back_but_for_the_digits_that_nobody_needs(trials):
    before = facts(trials)
    after = facts_from(json.loads(json.dumps(as_values(before))))
    assert [r.run for r in after.records] == [r.run for r in before.records]
    for old, new in zip(before.records, after.records, strict=True):
        assert new.bpb == (None if old.bpb is None else pytest.approx(old.bpb, rel=1e-6))
        assert (new.recipe.keys(), new.config.keys(), new.state) == (old.recipe.keys(), old.config.keys(), old.state)
    assert after.accounts == before.accounts
    assert after.moments == before.moments
    assert after.receipts == before.receipts


def test_what_came_back_is_embedded_to_the_same_bytes_so_that_a_page_can_make_itself_again():
    once = as_values(facts(9, points=200))
    assert as_values(facts_from(json.loads(json.dumps(once)))) == once


def test_rows_that_differ_in_their_names_come_back():
    rows = [flat({"a": 1, "b": {"c": 2}}), flat({"a": 1, "b": {}}), {"a": 1, "d": None}]
    packed = columns_of(rows)
    assert packed["same"] == {"a": 1}
    assert [nested(row) for row in rows_of(packed)] == [{"a": 1, "b": {"c": 2}}, {"a": 1, "b": {}}, {"a": 1, "d": None}]


def test_true_and_one_are_not_the_same():
    assert [type(row["a"]) for row in rows_of(columns_of([{"a": True}, {"a": 1}]))] == [bool, int]


def test_curves_come_back_to_a_part_in_two_thousand_and_steps_exactly():
    before = {"one": curve(100.0, 1.5), "none": [], "two": curve(7.0, None, points=3)}
    after = curves_from(curves_as_numbers(before))
    assert list(after) == ["one", "two"]
    for run, points in after.items():
        for old, new in zip(before[run], points, strict=True):
            assert (new.step, new.tokens) == (old.step, old.tokens)
            assert new.loss == pytest.approx(old.loss, rel=1 / 2000)
            assert new.lr == pytest.approx(old.lr, rel=1 / 2000, abs=1e-12)
            assert (new.bpb is None) == (old.bpb is None)
    assert after["one"][-1].bpb == pytest.approx(1.5, abs=1e-4)


def test_thinning_keeps_the_ends_and_the_extremes_and_is_done_when_it_is_done():
    points = curve(100.0, 1.5, points=500)
    worst, best = (f(points, key=lambda p: p.loss) for f in (max, min))
    kept = thinned(points, 50)
    assert len(kept) <= 50
    assert {points[0].step, points[-1].step, worst.step, best.step} <= {p.step for p in kept}
    assert thinned(kept, 50) == kept


def test_many_curves_have_fewer_points_each_but_never_too_few():
    one = curve(100.0, 1.5, points=100)
    packed = curves_as_numbers({str(i): one for i in range(20_000)})
    assert max(packed["lengths"]) <= LEAST_POINTS
    assert math.isclose(sum(packed["lengths"]), len(packed["columns"]["loss"]))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "<html>",
        '<script type="text/plain" id="study">!!!</script>',
        '<script type="text/plain" id="study">AAAA</script>',
    ],
)
def test_a_file_that_is_no_page_of_ours_is_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "other.html"
    path.write_text(content)
    with pytest.raises(StudyError, match="not a report that can be made again"):
        read_page(path)
    with pytest.raises(StudyError, match="not a report"):
        read_page(tmp_path / "absent.html")
