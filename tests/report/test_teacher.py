import dataclasses
import re

from budgetlm.report.judgement import judge
from budgetlm.report.teacher import taught
from tests.conftest import record
from tests.report.made import TARGET, facts


def study(compressions, teacher_seconds):
    """Trials on two rungs, those that learn from a teacher a little better."""
    runs = []
    for trial, compression in enumerate(compressions):
        for rung, seconds in enumerate((TARGET / 16, TARGET / 4)):
            bpb = 1.6 - 0.2 * rung - 0.05 * ("distil" in compression) + 0.01 * trial
            recipe = {"depth": 2, "width": 64, "peak_lr": 0.01 * (1 + trial), "compression": compression}
            changes = {"teacher_seconds": teacher_seconds if "distil" in compression else 0.0, "recipe": recipe}
            runs.append(record(trial, rung, seconds, bpb, target=TARGET, **changes))
    made = dataclasses.replace(facts(1), records=runs)
    return made, judge(runs, TARGET)


def numbers(said):
    return [float(n) for n in re.findall(r"(\d\.\d{3}) \(", said)]


def test_a_teacher_is_held_against_none_and_against_the_time_that_it_took():
    [(about, said)] = taught(*study(["none", "none", "distil", "distil+int8", "none", "distil"], 4 * TARGET))
    with_it, without, longer = numbers(said)
    assert about == "Teacher"
    assert longer < without
    assert with_it < without
    assert "took 66.7 min" in said
    assert "83.3 min without a teacher" in said


def test_a_teacher_whose_folder_does_not_say_its_time_is_not_taken_to_be_free():
    [(_, said)] = taught(*study(["none", "distil", "none", "distil"], 0.0))
    assert len(numbers(said)) == 2
    assert "its folder does not say" in said


def test_where_all_trials_have_a_teacher_or_none_has_there_is_nothing_to_compare():
    [(_, said)] = taught(*study(["distil", "distil", "distil"], 100.0))
    assert "nothing to hold them against" in said
    assert taught(*study(["none", "none", "int8"], 100.0)) == []
