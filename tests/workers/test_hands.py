"""A leader and a hand in one process, on one clock: every sleep of the hand is a turn of the leader's."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from budgetlm.budget.clock import ManualClock
from budgetlm.budget.database import file_address
from budgetlm.budget.holder import Holder
from budgetlm.errors import LeaseLost, SearchRunning
from budgetlm.records import CurvePoint, RunRecord
from budgetlm.train.config import Label, bare_record
from budgetlm.workers import board as boards
from budgetlm.workers.board import Board
from budgetlm.workers.hand import KILL_SECONDS, STOP_SECONDS, Attendance
from budgetlm.workers.job import Ended, Failure, Spent
from budgetlm.workers.remote import SILENT_SECONDS, Crew, Remote, lead, take_over
from tests.workers.inline import Inline

LABEL = Label(run="trial0000-rung0", kind="rung", trial=0, rung=0, recipe={}, target_seconds=80.0, passport="here")
DONE = replace(bare_record(LABEL, None), state="done", bpb=1.5)
CUT = replace(DONE, state="interrupted", bpb=None)
POINT = CurvePoint(step=1, seconds=1.0, tokens=10, loss=2.0, lr=0.1, tokens_per_second=10.0)


@dataclass(frozen=True)
class Written:
    """A job that can be posted."""

    label: Label = LABEL

    def document(self) -> dict:
        return {"label": asdict(self.label)}

    def work(self, desk) -> RunRecord:
        with desk.meter.during("train"):
            desk.meter.clock.move(3.0)
        desk.say(POINT)
        return DONE


class Slow:
    """One place, whose job ends only when it is asked to, or by force."""

    places = (0,)

    def __init__(self) -> None:
        self.at_work, self.asked, self._said = False, [], []

    def start(self, place, job, most_seconds):
        self.at_work, self._said = True, [(0, Spent({"train": 2.0}))]

    def wait(self, seconds):
        said, self._said = self._said, []
        self.at_work &= not any(isinstance(event, Ended) for _, event in said)
        return said

    def stop(self):
        self.asked.append("stop")
        self._said.append((0, Ended(CUT)))

    def kill(self, place=None, why=""):
        self.asked.append("kill")
        self._said = [(0, Ended(Failure("hang", why)))]

    def close(self):
        pass


class Stage:
    """A leader and a hand."""

    def __init__(self, folder: Path, workers=None) -> None:
        self.address, self.clock = file_address(folder / "study.db"), ManualClock()
        self.board = Board(self.address, "s")
        self.remote = Remote(self.board, lead(self.board), self.clock, self.clock.move)
        self.workers = workers or Inline(self.clock)
        self.heard, self.stopped, self.leads = [], False, True
        self.turn = lambda: None
        """Done at every turn of the leader's."""
        self.attendance = Attendance(
            Board(self.address, "s", patience=0.0),
            self.workers,
            lambda document: Written(Label(**document["label"])),
            self.clock,
            lambda: self.stopped,
            self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        self.clock.move(seconds)
        if self.leads:
            self.heard += self.remote.wait(0.0)
        self.turn()
        assert self.clock.now() < 300, "nobody ends it"

    def begin(self) -> None:
        """Post the job once there is somebody to do it."""
        if self.remote.places and not self.heard and not getattr(self, "posted", False):
            self.posted = True
            self.remote.start(0, Written(), 5.0)

    @property
    def end(self):
        return self.heard[-1][1].outcome if self.heard and isinstance(self.heard[-1][1], Ended) else None


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


@pytest.fixture
def slow(tmp_path):
    stage = Stage(tmp_path, Slow())
    wait = stage.workers.wait

    def patient(seconds):  # a place at work takes its time, which is the leader's too
        stage.sleep(seconds)
        return wait(seconds)

    stage.workers.wait = patient
    return stage


def test_a_hand_does_what_is_posted_and_its_leader_hears_it_all(stage):
    def turn():
        stage.begin()
        stage.stopped = stage.end is not None

    stage.turn = turn
    assert stage.attendance.attend() == "stopped"
    spent = sum(sum(e.by_purpose.values()) for _, e in stage.heard if isinstance(e, Spent))
    assert spent == pytest.approx(3.0)
    assert (0, POINT) in stage.heard
    assert stage.end == DONE
    assert stage.attendance.jobs == 1
    assert stage.board.hands() == []
    stage.clock.move(2.0)
    stage.remote.wait(0.0)
    assert list(stage.remote.places) == []


def test_a_hand_that_is_asked_to_stop_hands_over_what_it_has(slow):
    def turn():
        slow.begin()
        slow.stopped |= slow.workers.at_work

    slow.turn = turn
    assert slow.attendance.attend() == "stopped"
    slow.clock.move(2.0)
    slow.heard += slow.remote.wait(0.0)
    assert slow.end == CUT
    assert slow.workers.asked == ["stop"]


def test_the_leader_can_have_a_job_stopped_and_ended_by_force(slow):
    def turn():
        slow.begin()
        if slow.workers.at_work and not slow.workers.asked:
            slow.remote.kill(0, "the budget was spent")
        slow.stopped = slow.end is not None

    slow.turn = turn
    slow.attendance.attend()
    assert slow.end == Failure("hang", "the budget was spent")
    assert slow.workers.asked == ["kill"]


def test_a_hand_that_is_silent_is_given_up_and_what_it_did_is_killed_here(slow, monkeypatch):
    """The network is cut for the hand alone: it stops its job long before the leader gives the run to another."""
    cut = []
    say = Board.say

    def speak(board, *arguments, **options):
        if cut and slow.attendance._board is board:
            raise boards_away()
        return say(board, *arguments, **options)

    monkeypatch.setattr(Board, "say", speak)
    asked_at, lost_at = [], []

    def turn():
        slow.begin()
        if slow.workers.at_work and not cut:
            cut.append(slow.clock.now())
            slow.workers.stop = lambda: asked_at.append(slow.clock.now())  # it takes its time
        if slow.end and not lost_at:
            lost_at.append(slow.clock.now())
            cut.clear()
        slow.stopped = bool(lost_at) and slow.clock.now() > lost_at[0] + 5

    slow.turn = turn
    began = slow.clock.now()
    assert slow.attendance.attend() == "stopped"
    assert slow.end.cause == "killed"
    assert "not heard of" in slow.end.message
    assert asked_at[0] - began < STOP_SECONDS + 3
    assert slow.workers.asked[0] == "kill"
    assert lost_at[0] - began > SILENT_SECONDS > KILL_SECONDS


def boards_away():
    from sqlalchemy.exc import OperationalError

    return OperationalError("", {}, Exception("the link is cut"))


def test_without_a_leader_a_hand_stops_and_the_next_leader_charges_what_it_spent(slow):
    def turn():
        slow.begin()
        slow.leads &= not slow.workers.at_work  # and from then on it says nothing

    slow.turn = turn
    assert slow.attendance.attend() == "leaderless"
    assert slow.workers.asked == ["stop"]
    assert take_over(slow.board, slow.clock.move) == {"trial0000-rung0": pytest.approx(2.0)}
    assert slow.board.words() == []


def test_a_hand_learns_why_the_search_is_over(stage):
    def turn():
        if stage.remote.places:
            stage.board.end(1, "the budget is spent")
            stage.leads = False

    stage.turn = turn
    assert stage.attendance.attend() == "ended"
    assert stage.attendance.because == "the budget is spent"


def test_a_leader_that_resigns_is_followed(stage):
    def turn():
        if stage.remote.places:
            stage.board.end(1, "")
            stage.leads = False

    stage.turn = turn
    assert stage.attendance.attend() == "leaderless"
    assert lead(stage.board) == 2


def test_nobody_leads_beside_a_leader_that_lives(tmp_path, monkeypatch):
    board = Board(file_address(tmp_path / "study.db"), "s")
    elsewhere = Holder("another machine", 1, 1)
    monkeypatch.setattr(boards, "this_process", lambda: elsewhere)
    assert board.take_lead(None) == 1
    with pytest.raises(SearchRunning, match="budgetlm worker"):
        lead(board, lambda _seconds: board.beat(1))  # it beats while it is watched
    assert lead(board, lambda _seconds: None) == 2


def test_a_leader_that_was_followed_finds_out(stage):
    stage.board.join()
    stage.clock.move(2.0)
    stage.remote.wait(0.0)
    assert stage.board.take_lead(stage.board.lead()) == 2
    stage.clock.move(2.0)
    with pytest.raises(LeaseLost, match="leads this search by now"):
        stage.remote.wait(0.0)


def test_own_places_come_before_those_that_are_lent(stage):
    own = Inline(stage.clock)
    crew = Crew(own, stage.remote)
    hand = stage.board.join()
    stage.clock.move(2.0)
    crew.wait(0.0)
    assert list(crew.places) == [0, 1]
    assert crew.delay(1) > crew.delay(0) == 0
    crew.start(1, Written(), 5.0)
    assert stage.board.look(hand).job
    crew.start(0, Written(), 5.0)
    assert crew.wait(0.0)[-1] == (0, Ended(DONE))
