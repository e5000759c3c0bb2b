"""Workers that are other processes' own: the leader's side of the board, where jobs are posted and words are read."""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from budgetlm.budget.clock import Clock
from budgetlm.budget.holder import this_process
from budgetlm.errors import LeaseLost, SearchRunning
from budgetlm.records import CurvePoint, RunRecord
from budgetlm.workers.board import KILL, STOP, Board, Hand, Lead
from budgetlm.workers.job import Ended, Event, Failure, Job, Note, Spent, Workers

BEAT_SECONDS = 1.0
"""Between heartbeats, of the leader and of hands."""
SILENT_SECONDS = 20.0
"""Who cannot be seen from here, and gave no heartbeat for so long, is taken for dead. A hand that hears of nobody has long stopped by then."""
LOOK_SECONDS = 0.2
"""How often the leader looks at the board while hands are at work."""
DELAY_SECONDS = 2.5
"""What it may take, at most, until a hand has found its job and the leader has read its last word."""


class Posted(Job, Protocol):
    """A job that can be written down."""

    def document(self) -> dict[str, Any]:
        """The job in JSON."""


@dataclass
class _Seen:
    """A hand, as the leader knows it."""

    hand: Hand
    heard: float
    job: int = 0
    """Number of the job that it was given; 0 for none."""
    why: str = ""
    """Why that was ended by force."""


class Remote:
    """Places that other processes lend.

    Args:
        board: of the study.
        term: for which this process leads.
        clock: of the search.
        sleep: lets seconds pass, e.g. `time.sleep`.
    """

    def __init__(self, board: Board, term: int, clock: Clock, sleep: Callable[[float], None] = time.sleep) -> None:
        self._board, self._term, self._clock, self._sleep = board, term, clock, sleep
        self._seen: dict[int, _Seen] = {}
        self._read: list[int] = []
        self._said: list[tuple[int, Event]] = []
        self._looked, self._beat = -BEAT_SECONDS, -BEAT_SECONDS
        self._jobs = 0

    @property
    def places(self) -> Collection[int]:
        """One for each hand."""
        return list(self._seen)

    def delay(self, place: int) -> float:  # noqa: ARG002
        """Of finding the job, and of its last word."""
        return DELAY_SECONDS

    def start(self, place: int, job: Job, most_seconds: float) -> None:
        """Post a job for a hand that is free."""
        seen = self._seen[place]
        assert not seen.job, f"place {place} is taken"
        self._jobs += 1
        seen.job = self._term * 1_000_000 + self._jobs
        written = {"seconds": most_seconds, "job": cast("Posted", job).document()}
        if not self._board.post(seen.hand.id, seen.job, written):
            self._lose(place, "left")

    def wait(self, seconds: float) -> list[tuple[int, Event]]:
        """What the hands have said; waits `seconds` for it where nothing has been said yet."""
        self._look()
        if not self._said and seconds:
            self._sleep(seconds)
            self._look()
        said, self._said = self._said, []
        return said

    def stop(self) -> None:
        """Ask all jobs to save what they have and return."""
        for seen in self._seen.values():
            if seen.job:
                self._board.ask(seen.hand.id, STOP)

    def kill(self, place: int | None = None, why: str = "it was ended by the search") -> None:
        """Have the job of a place, or of all, ended at once."""
        for at, seen in self._seen.items():
            if place in (at, None) and seen.job:
                seen.why = seen.why or why
                self._board.ask(seen.hand.id, KILL)

    def close(self) -> None:
        """Leave nothing running."""
        self.kill()

    def _look(self) -> None:
        now = self._clock.now()
        if now - self._looked < (LOOK_SECONDS if any(s.job for s in self._seen.values()) else BEAT_SECONDS):
            return
        if now - self._looked > SILENT_SECONDS / 2:  # it was the leader that heard nothing
            for seen in self._seen.values():
                seen.heard = now
        self._looked = now
        if now - self._beat >= BEAT_SECONDS and (self._seen or self._board.is_shared):
            self._beat = now
            if not self._board.beat(self._term):
                raise LeaseLost(
                    "another process leads this search by now: this one was not heard of for a while. It was stopped so that no "
                    "device-second is spent twice; `budgetlm worker` lends it a hand."
                )
        self._see({hand.id: hand for hand in self._board.hands()}, now)

    def _see(self, hands: Mapping[int, Hand], now: float) -> None:
        """Take in who is there and what they have said. Words are read after hands: one that has left has said all that it had to."""
        places = {seen.hand.id: place for place, seen in self._seen.items()}
        for id, hand in hands.items():
            if id not in places:
                place = next(n for n in range(len(self._seen) + 1) if n not in self._seen)
                self._seen[place] = _Seen(hand, now)
            elif hand.beats != self._seen[places[id]].hand.beats:
                self._seen[places[id]].hand, self._seen[places[id]].heard = hand, now
        words = self._board.words(self._read)
        self._read = [word.id for word in words]
        for word in words:
            place_of = places.get(word.hand)
            if place_of is not None and word.job == self._seen[place_of].job:
                self._hear(place_of, word.what)
        for place, seen in list(self._seen.items()):
            if seen.hand.id not in hands:
                self._lose(place, "left")
            elif seen.hand.holder.alive() is False:
                self._lose(place, "was ended")
            elif now - seen.heard > SILENT_SECONDS:
                self._lose(place, f"was not heard of for {now - seen.heard:.0f} s")

    def _hear(self, place: int, what: Mapping[str, Any]) -> None:
        event, seen = event_from(what), self._seen[place]
        if isinstance(event, Ended):
            seen.job = 0
            if seen.why and isinstance(event.outcome, Failure):
                event = Ended(Failure("hang", seen.why))
            seen.why = ""
        self._said.append((place, event))

    def _lose(self, place: int, what: str) -> None:
        seen = self._seen.pop(place)
        self._board.dismiss(seen.hand.id)
        if seen.job:
            self._said.append((place, Ended(Failure("killed", f"its worker, {seen.hand.name}, {what}"))))


class Crew:
    """Places of this process and those that others lend: theirs come after ours.

    Args:
        own: of this process; their number does not change.
        lent: by others.
    """

    def __init__(self, own: Workers, lent: Remote) -> None:
        self._own, self._lent, self._first = own, lent, len(own.places)
        self._busy: set[int] = set()

    @property
    def places(self) -> Collection[int]:
        """All of them."""
        return [*self._own.places, *(self._first + place for place in self._lent.places)]

    def delay(self, place: int) -> float:
        """That of whose place it is."""
        return self._own.delay(place) if place < self._first else self._lent.delay(place - self._first)

    def start(self, place: int, job: Job, most_seconds: float) -> None:
        """Begin a job at a free place."""
        if place < self._first:
            self._busy.add(place)
            self._own.start(place, job, most_seconds)
        else:
            self._lent.start(place - self._first, job, most_seconds)

    def wait(self, seconds: float) -> list[tuple[int, Event]]:
        """What the places have said."""
        said = [(self._first + place, event) for place, event in self._lent.wait(0.0 if self._busy else seconds)]
        own = self._own.wait(0.0 if said else seconds) if self._busy else []
        self._busy -= {place for place, event in own if isinstance(event, Ended)}
        return [*said, *own]

    def stop(self) -> None:
        """Ask all jobs to save what they have and return."""
        self._lent.stop()
        self._own.stop()

    def kill(self, place: int | None = None, why: str = "it was ended by the search") -> None:
        """End the job of a place, or all of them, at once."""
        if place is None or place < self._first:
            self._own.kill(place, why)
        if place is None or place >= self._first:
            self._lent.kill(None if place is None else place - self._first, why)

    def close(self) -> None:
        """Leave nothing running."""
        self._own.close()
        self._lent.close()


def written(event: Event) -> dict[str, Any]:
    """An event in JSON."""
    if isinstance(event, Spent):
        return {"spent": dict(event.by_purpose)}
    if isinstance(event, CurvePoint):
        return {"point": dataclasses.asdict(event)}
    if isinstance(event, Note):
        return {"note": event.text}
    kind = "failure" if isinstance(event.outcome, Failure) else "record"
    return {kind: dataclasses.asdict(event.outcome)}


def event_from(what: Mapping[str, Any]) -> Event:
    """The event that was written."""
    if "spent" in what:
        return Spent(what["spent"])
    if "point" in what:
        return CurvePoint(**what["point"])
    if "note" in what:
        return Note(what["note"])
    return Ended(Failure(**what["failure"]) if "failure" in what else RunRecord(**what["record"]))


def lead(board: Board, sleep: Callable[[float], None] = time.sleep) -> int:
    """Become the leader of a study; returns the term.

    Raises:
        SearchRunning: somebody leads it, or has become its leader just now.
    """
    before = board.lead()
    if before and is_leading(before, board, sleep):
        raise SearchRunning(
            "another search is running on this study, on another machine. `budgetlm worker` lends it a hand."
        )
    term = board.take_lead(before)
    if term is None:
        raise SearchRunning("another search has just begun on this study. `budgetlm worker` lends it a hand.")
    return term


def is_leading(lead: Lead, board: Board, sleep: Callable[[float], None]) -> bool:
    """Whether the leader that was found lives; one that cannot be seen from here is watched for a while."""
    if lead.beats < 0 or lead.holder == this_process() or lead.holder.alive() is False:
        return False
    if lead.holder.alive():
        return True
    sleep(SILENT_SECONDS)
    now = board.lead()
    return now is not None and (now.term, now.beats) != (lead.term, lead.beats)


def take_over(board: Board, sleep: Callable[[float], None] = time.sleep) -> dict[str, float]:
    """Let all hands stop what they do for a leader that is gone, and sum up what nobody has charged.

    Returns:
        Device-seconds, by the run that they were spent on.
    """
    waited, first = 0.0, {hand.id: hand for hand in board.hands()}
    for hand in first.values():
        if hand.job:
            board.ask(hand.id, STOP)
    while any(hand.job and hand.holder.alive() is not False for hand in board.hands()) and waited < SILENT_SECONDS:
        sleep(LOOK_SECONDS)
        waited += LOOK_SECONDS
    for hand in board.hands():
        if hand.job:  # it has had its time, and will find itself gone
            board.dismiss(hand.id)
    spent: dict[str, float] = {}
    words = board.words()
    for word in words:
        if "spent" in word.what:
            spent[word.what["run"]] = spent.get(word.what["run"], 0.0) + sum(word.what["spent"].values())
    board.words([word.id for word in words])
    return spent
