"""Leading a search: whoever does says so on the study's board, charges what a leader before it could not, and takes the hands that others lend."""

import time
from contextlib import suppress
from types import TracebackType

from budgetlm.budget.clock import Clock
from budgetlm.budget.ledger import HEARTBEAT_SECONDS, SEARCH, Ledger
from budgetlm.config import StudyConfig
from budgetlm.errors import LeaseLost, StudyError
from budgetlm.workers.board import Board
from budgetlm.workers.job import Workers
from budgetlm.workers.remote import Crew, Remote, lead, take_over


class Lead:
    """The lead of a study's search, held within its `with` block.

    Raises:
        SearchRunning: somebody else has it.
    """

    def __init__(self, config: StudyConfig, ledger: Ledger, clock: Clock) -> None:
        self._board, self._clock = Board(config.database, config.name), clock
        # In a file of the study's folder the folder's lock has told already that nobody else is at it.
        self._term = lead(self._board, time.sleep if config.search.storage else lambda _seconds: None)
        for run, seconds in take_over(self._board).items():
            if seconds > HEARTBEAT_SECONDS:  # so much its lease was charged when the leader was found dead
                lease = ledger.lease(SEARCH, 0.0, run=run)
                lease.charge(run, {"lost": seconds - HEARTBEAT_SECONDS})
                lease.settle()
        self._ended = False

    def crew(self, own: Workers) -> Workers:
        """This process's own workers, and all that others lend."""
        return Crew(own, Remote(self._board, self._term, self._clock))

    def end(self, because: str) -> None:
        """Say why the search has come to its end; without a reason, that somebody else is to lead it."""
        self._board.end(self._term, because)
        self._ended = True

    def __enter__(self) -> "Lead":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._ended and not isinstance(error, LeaseLost):
            with suppress(StudyError):  # what went wrong first is what counts; hands notice that nobody leads
                self._board.end(self._term, f"its search failed: {error}")
        self._board.close()
