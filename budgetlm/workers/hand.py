"""A hand of somebody else's search: finds its job on the board, has it done here, and says how it goes.

It stops by itself when it hears of nobody for a while, so that whoever is given its run then is alone with it.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.exc import DBAPIError

from budgetlm.budget.clock import Clock
from budgetlm.workers.board import KILL, STOP, Board, Lead
from budgetlm.workers.job import Ended, Failure, Job, Workers
from budgetlm.workers.remote import BEAT_SECONDS, SILENT_SECONDS, written

STOP_SECONDS, KILL_SECONDS = 0.3 * SILENT_SECONDS, 0.7 * SILENT_SECONDS
"""After so long without a word of the leader a job is asked to stop; and ended by force."""
TICK_SECONDS = 0.2
GRACE_SECONDS = 20.0
"""How long a job may take to save what it has when this process is to end."""

End = Literal["ended", "leaderless", "stopped"]
"""The search has come to its end; nobody leads it; this process was asked to stop."""
ReadJob = Callable[[Mapping[str, Any]], Job]


@dataclass
class _Task:
    """The job that is being done."""

    number: int
    run: str
    asked: str = ""


class Attendance:
    """One process's time as a hand.

    Args:
        board: of the study, without patience: where nothing can be said, that is known at once.
        workers: one place.
        read_job: the job that a document describes.
        clock: of this process.
        should_stop: whether to leave.
        sleep: lets seconds pass.
    """

    def __init__(
        self,
        board: Board,
        workers: Workers,
        read_job: ReadJob,
        clock: Clock,
        should_stop: Callable[[], bool],
        sleep: Callable[[float], None],
    ) -> None:
        self._board, self._workers, self._read_job = board, workers, read_job
        self._clock, self._should_stop, self._sleep = clock, should_stop, sleep
        self._hand, self._beats = 0, 0
        self._task: _Task | None = None
        self._said: list[dict[str, Any]] = []
        self._ended = False
        self._heard = self._spoke = clock.now()
        """When the leader was last heard of, and when something was last said."""
        self._lead: Lead | None = None
        self.jobs = 0
        """That were done."""
        self.because = ""
        """Why the search came to its end."""

    def attend(self) -> End:
        """Be a hand until there is a reason not to be."""
        end: End | None = None
        leaving: float | None = None
        while not end:
            self._work()
            if self._should_stop():
                leaving = self._clock.now() if leaving is None else leaving
                self._halt(by_force=self._clock.now() - leaving > GRACE_SECONDS)
                if not self._task and not self._said:
                    end = "stopped"
            with suppress(DBAPIError):  # what was to be said waits
                end = end or self._meet(joins=leaving is None)
            self._mind_silence()
        self._leave()
        return end

    # --- here ---

    def _work(self) -> None:
        """Hear what the job says."""
        if not self._task:
            self._sleep(TICK_SECONDS)
            return
        for _, event in self._workers.wait(TICK_SECONDS):
            self._said.append({**written(event), "run": self._task.run})
            if isinstance(event, Ended):
                self._ended = True
                self.jobs += 1

    def _halt(self, *, by_force: bool) -> None:
        """Have the job stop."""
        wanted = KILL if by_force else STOP
        if not self._task or self._ended or self._task.asked in (wanted, KILL):
            return
        self._task.asked = wanted
        if by_force:
            self._workers.kill(why="it was ended by its search")
        else:
            self._workers.stop()

    def _mind_silence(self) -> None:
        silent = self._clock.now() - self._heard
        if silent > STOP_SECONDS:
            self._halt(by_force=silent > KILL_SECONDS)

    def _leave(self) -> None:
        self._workers.close()
        if self._hand:
            with suppress(DBAPIError):  # it will be found to be silent
                self._board.leave(self._hand)

    # --- on the board ---

    def _meet(self, *, joins: bool) -> End | None:
        """Say what there is to say, see who leads, and find out what is wanted."""
        now = self._clock.now()
        if self._ended or now - self._spoke >= BEAT_SECONDS or not self._hand:
            if joins and not self._hand and not self._task:
                self._hand, self._beats = self._board.join(), 0
            if self._hand:
                self._speak(now)
            if end := self._follow(now):
                return end
        if self._hand:
            self._obey()
        return None

    def _speak(self, now: float) -> None:
        task = self._task.number if self._task else 0
        if self._board.say(self._hand, task, self._said, self._beats, ended=self._ended):
            self._beats, self._spoke, self._said = self._beats + 1, now, []
            if self._ended:
                self._task, self._ended = None, False
        else:
            self._dismissed()

    def _dismissed(self) -> None:
        """It was taken for dead: what it does is somebody else's by now."""
        self._hand, self._said = 0, []
        if self._task and not self._ended:
            self._workers.kill(why="its search has given it to another worker")
            while not any(isinstance(event, Ended) for _, event in self._workers.wait(TICK_SECONDS)):
                pass
        self._task, self._ended = None, False

    def _follow(self, now: float) -> End | None:
        """See who leads."""
        before, self._lead = self._lead, self._board.lead()
        lead = self._lead
        if lead and lead.ended and before and not before.ended:
            self.because = lead.ended
        if before is None or lead is None or (lead.term, lead.beats) != (before.term, before.beats):
            self._heard = now
        resigned = lead is None or lead.beats < 0 or lead.holder.alive() is False
        if not resigned and now - self._heard <= SILENT_SECONDS:
            return None
        self._halt(by_force=False)
        if self._task:
            return None
        return (
            "ended" if self.because else "leaderless"
        )  # an end that was there before it came may be that of an earlier search

    def _obey(self) -> None:
        hand = self._board.look(self._hand)
        if hand is None:
            self._dismissed()
        elif self._task and hand.asked:
            self._halt(by_force=hand.asked == KILL)
        elif hand.job and not self._task and not self._should_stop():
            self._begin(hand.job, hand.document)

    def _begin(self, number: int, document: str) -> None:
        posted = json.loads(document)
        self._task = _Task(number, posted["job"]["label"]["run"])
        try:
            self._workers.start(0, self._read_job(posted["job"]), posted["seconds"])
        except Exception as error:  # noqa: BLE001  # whatever it is, the leader is to know
            failure = Failure("exception", f"the job could not be begun on this worker: {error!r}")
            self._said.append({**written(Ended(failure)), "run": self._task.run})
            self._ended = True
