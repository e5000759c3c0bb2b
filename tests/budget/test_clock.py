import threading
import time
from contextlib import closing

import pytest

from budgetlm.budget import clock as clocks
from budgetlm.budget.clock import AttendedClock, Clock, ManualClock, Meter, duration


def test_every_moment_is_charged_to_exactly_one_purpose():
    clock, charges = ManualClock(), []
    meter = Meter(clock, lambda run, spent: charges.append((run, spent)))
    clock.move(1)
    with meter.during("train"):
        clock.move(2)
        with meter.during("evaluate"):
            clock.move(3)
        clock.move(4)
    clock.move(5)
    meter.flush()
    totals = {}
    for _, spent in charges:
        for purpose, seconds in spent.items():
            totals[purpose] = totals.get(purpose, 0) + seconds
    assert totals == {"other": 6, "train": 6, "evaluate": 3}
    assert sum(meter.spent.values()) == 15


def test_a_killed_process_leaves_at_most_the_flush_interval_and_a_step_uncharged():
    clock, charged = ManualClock(), []
    meter = Meter(clock, lambda _run, spent: charged.extend(spent.values()), flush_seconds=1.0)
    for _ in range(100):
        with meter.during("train"):
            clock.move(0.3)
    # The process dies here, without a flush.
    assert 30 - sum(charged) <= 1.0 + 0.3 + 1e-9


def test_time_goes_to_the_run_that_is_billed():
    clock, by_run = ManualClock(), {}
    meter = Meter(clock, lambda run, spent: by_run.setdefault(run, []).append(sum(spent.values())))
    clock.move(1)
    meter.bill("trial0")
    clock.move(2)
    meter.bill("study")
    clock.move(3)
    meter.flush()
    assert by_run == {"study": [1, 3], "trial0": [2]}


def test_what_a_worker_says_of_its_time_moves_it_and_keeps_the_sum():
    clock, charges = ManualClock(), []
    meter = Meter(clock, lambda _run, spent: charges.append(spent))
    clock.move(5)
    meter.flush()
    meter.explain({"train": 3.0, "evaluate": 1.0})
    clock.move(1)
    meter.flush()
    assert charges == [{"other": 5}, {"train": 3.0, "evaluate": 1.0, "other": -3.0}]
    assert meter.spent["other"] == 2.0
    assert sum(meter.spent.values()) == 6.0


def test_time_that_only_the_worker_has_seen_is_charged_on_top():
    clock, charges = ManualClock(), []
    meter = Meter(clock, lambda _run, spent: charges.append(spent))
    meter.bill("trial0")
    clock.move(1)  # this clock stood still for the rest
    meter.explain({"train": 3.0})
    clock.move(1)
    meter.explain({"evaluate": 1.0})
    meter.flush()
    assert charges == [{"train": 3.0, "evaluate": 1.0, "other": 0.0}]


@pytest.fixture
def hands(monkeypatch):
    """The machine's clocks, moved by hand: real seconds, seconds that the process worked, and the date."""
    hands = {"real": 1000.0, "worked": 10.0, "date": 1.7e9}
    monkeypatch.setattr(time, "monotonic", lambda: hands["real"])
    monkeypatch.setattr(time, "process_time", lambda: hands["worked"])
    monkeypatch.setattr(time, "time", lambda: hands["date"])
    return hands


def test_time_in_which_the_process_was_stopped_does_not_count(hands):
    clock = Clock()
    start = clock.now()
    for _ in range(10):  # ten seconds of work
        hands["real"] += 1
        hands["worked"] += 1
        clock.now()
    hands["real"] += 3600  # stopped for an hour
    assert clock.now() - start == pytest.approx(10)
    hands["real"] += 1
    hands["worked"] += 1
    assert clock.now() - start == pytest.approx(11)


def test_long_work_between_two_readings_counts(hands):
    clock = Clock()
    start = clock.now()
    hands["real"] += 600
    hands["worked"] += 590
    assert clock.now() - start == pytest.approx(600)


def test_a_change_of_the_date_changes_nothing(hands):
    clock = Clock()
    start = clock.now()
    for jump in (-86_400 * 365, 86_400 * 365, -3600):
        hands["date"] += jump
        hands["real"] += 1
        hands["worked"] += 1
        clock.now()
    assert clock.now() - start == pytest.approx(3)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.5, "0.5 s"), (80, "80 s"), (119.9, "120 s"), (600, "10 min"), (7200, "2 h"), (86_400, "24 h")]
)
def test_lengths_of_time_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said


class Waiting:
    """The time of a process that waits for others: it passes, and no processor is used."""

    def __init__(self, monkeypatch):
        self.seconds = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(time, "process_time", lambda: 0.0)


def test_a_clock_that_is_attended_counts_what_its_reader_waits_for_others(monkeypatch):
    read = threading.Event()

    class Attended(AttendedClock):
        def now(self):
            read.set()
            return super().now()

    monkeypatch.setattr(clocks, "ATTEND_SECONDS", 0.0)
    with closing(Attended()):
        assert read.wait(10)  # by nobody but its thread
    monkeypatch.setattr(clocks, "ATTEND_SECONDS", 1000.0)
    waiting = Waiting(monkeypatch)
    plain, attended = Clock(), AttendedClock()
    for _ in range(180):
        waiting.seconds += 0.5
        attended.now()  # as the thread does
    assert (plain.now(), attended.now()) == (0.0, 90.0)
    waiting.seconds += 50  # and now all of it was stopped, its thread too
    assert attended.now() == 90.0
    attended.close()
