"""The board of a study: who leads its search, who lends it a hand, and what they have to say to each other, in the study's database.

One process leads: it alone asks, tells, charges and decides. Others, on this machine or on any that reaches the database and the
study's folder, are hands: each does one job at a time. A leader that dies is followed by one of them, for all that it knew is on the disk.
Nothing here is a moment: whether somebody lives is told by a count of heartbeats that goes on or does not.
"""

import json
import platform
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, Engine, Integer, MetaData, String, Table, Text, select
from sqlalchemy.exc import DatabaseError

from budgetlm.budget.database import open_database, outlast, unwritten
from budgetlm.budget.holder import Holder, this_process

_METADATA = MetaData()
_LEADS = Table(
    "budgetlm_leads",
    _METADATA,
    Column("study", String(64), primary_key=True),
    Column("term", Integer, nullable=False),
    Column("machine", String(128), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started", Integer, nullable=False),
    Column("beats", Integer, nullable=False),
    Column("ended", String(512), nullable=False),
)
_HANDS = Table(
    "budgetlm_hands",
    _METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("study", String(64), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("machine", String(128), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started", Integer, nullable=False),
    Column("beats", Integer, nullable=False),
    Column("job", Integer, nullable=False),
    Column("asked", String(8), nullable=False),
    Column("document", Text, nullable=False),
)
_WORDS = Table(
    "budgetlm_words",
    _METADATA,
    Column("id", Integer, primary_key=True),
    Column("study", String(64), nullable=False, index=True),
    Column("hand", Integer, nullable=False),
    Column("job", Integer, nullable=False),
    Column("document", Text, nullable=False),
)
STOP, KILL = "stop", "kill"
"""What a hand may be asked: to let its job save what it has and return; to end it at once."""
T = TypeVar("T")


@dataclass(frozen=True)
class Lead:
    """Who leads a study's search."""

    term: int
    """Counts the leaders that there were."""
    holder: Holder
    beats: int
    ended: str
    """Why the search came to its end; empty while it goes on, or is only without a leader."""


@dataclass(frozen=True)
class Hand:
    """A place at which somebody else does jobs."""

    id: int
    name: str
    """Of its machine, and its process."""
    holder: Holder
    beats: int
    job: int
    """Number of the one that it has; 0 for none."""
    asked: str
    document: str
    """The job, as JSON."""


@dataclass(frozen=True)
class Word:
    """What a hand has said of a job."""

    id: int
    hand: int
    job: int
    what: Any
    """A value of JSON."""


class Board:
    """The board of one study.

    Args:
        address: of the study's database.
        study: its name.
        patience: seconds for which a server may be away before that is an error; 0 for a hand, which waits by itself.
    """

    def __init__(self, address: str, study: str, patience: float = 120.0) -> None:
        self._engine: Engine = open_database(address, _METADATA)
        self._study, self._patience = study, patience

    @property
    def is_shared(self) -> bool:
        """Whether it lies on a server, so that a leader may be looked for by those who do not see its machine."""
        return self._engine.dialect.name != "sqlite"

    # --- the lead ---

    def lead(self) -> Lead | None:
        """Who leads, or did last; None where nobody ever has."""
        row = self._read(select(_LEADS).where(_LEADS.c.study == self._study))
        return (
            Lead(row[0].term, Holder(row[0].machine, row[0].pid, row[0].started), row[0].beats, row[0].ended)
            if row
            else None
        )

    def take_lead(self, before: Lead | None) -> int | None:
        """Lead from now on, in place of `before`; returns the term, or None if somebody else was faster."""
        holder, term = this_process(), (before.term if before else 0) + 1
        who = {"machine": holder.machine, "pid": holder.pid, "started": holder.started}
        values = {"term": term, **who, "beats": 0, "ended": ""}

        def take(connection: Connection, _again: bool) -> int | None:
            now = connection.execute(select(_LEADS).where(_LEADS.c.study == self._study)).first()
            if now and (now.term, now.machine, now.pid, now.started) == (term, *who.values()):
                return term
            if now is None and before is None:
                connection.execute(_LEADS.insert().values(study=self._study, **values))
                return term
            mine = (_LEADS.c.study == self._study) & (_LEADS.c.term == (before.term if before else -1))
            return term if connection.execute(_LEADS.update().where(mine).values(**values)).rowcount else None

        return self._write(take)

    def beat(self, term: int) -> bool:
        """A heartbeat of the leader of that term; False if it does not lead any more."""
        mine = (_LEADS.c.study == self._study) & (_LEADS.c.term == term)
        row = _LEADS.update().where(mine).values(beats=_LEADS.c.beats + 1)
        return self._write(lambda connection, _again: bool(connection.execute(row).rowcount))

    def end(self, term: int, because: str) -> None:
        """Tell all hands that the search has come to its end; without a reason, that it only wants another leader."""
        mine = (_LEADS.c.study == self._study) & (_LEADS.c.term == term)
        gone = {"machine": "", "pid": 0, "started": 0}
        row = _LEADS.update().where(mine).values(ended=because[:512], beats=-1, **gone)
        self._write(lambda connection, _again: connection.execute(row))

    # --- hands, as the leader sees them ---

    def hands(self) -> list[Hand]:
        """All hands of the study."""
        rows = self._read(select(_HANDS).where(_HANDS.c.study == self._study).order_by(_HANDS.c.id))
        return [_hand(row) for row in rows]

    def post(self, hand: int, job: int, document: Mapping[str, Any]) -> bool:
        """Give a hand a job; False if the hand is gone."""
        row = _HANDS.update().where(_HANDS.c.id == hand).values(job=job, asked="", document=json.dumps(document))
        return self._write(lambda connection, _again: bool(connection.execute(row).rowcount))

    def ask(self, hand: int, what: str) -> None:
        """Ask a hand to stop its job, or to end it."""
        row = _HANDS.update().where(_HANDS.c.id == hand).values(asked=what)
        self._write(lambda connection, _again: connection.execute(row))

    def dismiss(self, hand: int) -> None:
        """Forget a hand, which finds itself gone when it looks again, and all that it has said."""

        def forget(connection: Connection, _again: bool) -> None:
            connection.execute(_HANDS.delete().where(_HANDS.c.id == hand))
            connection.execute(_WORDS.delete().where(_WORDS.c.hand == hand))

        self._write(forget)

    def words(self, read: Sequence[int] = ()) -> list[Word]:
        """What the hands have said, oldest first.

        Args:
            read: numbers of words that were read before, which are forgotten now.
        """

        def look(connection: Connection, _again: bool) -> list[Word]:
            if read:
                connection.execute(_WORDS.delete().where(_WORDS.c.id.in_(read)))
            rows = connection.execute(select(_WORDS).where(_WORDS.c.study == self._study).order_by(_WORDS.c.id)).all()
            return [Word(row.id, row.hand, row.job, json.loads(row.document)) for row in rows]

        return self._write(look) if read else outlast(self._engine, lambda again: self._looking(look, again), self._patience)

    # --- a hand itself ---

    def join(self) -> int:
        """Be a hand; returns its number."""
        id, holder = secrets.randbelow(2**31 - 1) + 1, this_process()
        values = {"study": self._study, "beats": 0, "job": 0, "asked": "", "document": ""}
        who = {"machine": holder.machine, "pid": holder.pid, "started": holder.started}
        row = _HANDS.insert().values(id=id, name=f"{platform.node()} {holder.pid}", **who, **values)

        def enter(connection: Connection, again: bool) -> None:
            if not (again and connection.scalar(select(_HANDS.c.id).where(_HANDS.c.id == id))):
                connection.execute(row)

        self._write(enter)
        return id

    def look(self, hand: int) -> Hand | None:
        """What is written of a hand; None if it was dismissed."""
        row = self._read(select(_HANDS).where(_HANDS.c.id == hand))
        return _hand(row[0]) if row else None

    def say(self, hand: int, job: int, whats: Sequence[Any], beats: int, *, ended: bool = False) -> bool:
        """A hand's heartbeat, and what it has to say of its job; False if it was dismissed.

        Args:
            whats: values of JSON.
            beats: how often it has said something before.
            ended: whether it is free now.
        """
        mine = _HANDS.c.id == hand
        free = {"job": 0, "document": "", "asked": ""} if ended else {}
        row = _HANDS.update().where(mine).values(beats=beats + 1, **free)
        words = [{"study": self._study, "hand": hand, "job": job, "document": json.dumps(what)} for what in whats]

        def speak(connection: Connection, again: bool) -> bool:
            if again and connection.scalar(select(_HANDS.c.beats).where(mine)) == beats + 1:
                return True
            if not connection.execute(row).rowcount:
                return False
            if words:
                connection.execute(_WORDS.insert(), words)
            return True

        return self._write(speak)

    def leave(self, hand: int) -> None:
        """Be a hand no longer; what was said stays to be read."""
        self._write(lambda connection, _again: connection.execute(_HANDS.delete().where(_HANDS.c.id == hand)))

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    # --- the database ---

    def _read(self, rows: Any) -> Sequence[Any]:
        def look(connection: Connection, _again: bool) -> Sequence[Any]:
            return connection.execute(rows).all()

        return outlast(self._engine, lambda again: self._looking(look, again), self._patience)

    def _looking(self, look: Callable[[Connection, bool], T], again: bool) -> T:
        with self._engine.connect() as connection:
            return look(connection, again)

    def _write(self, change: Callable[[Connection, bool], T]) -> T:
        def once(again: bool) -> T:
            with self._engine.begin() as connection:
                return change(connection, again)

        try:
            return outlast(self._engine, once, self._patience)
        except DatabaseError as error:
            if not self._patience:
                raise
            raise unwritten(self._engine, error) from error


def _hand(row: Any) -> Hand:
    return Hand(row.id, row.name, Holder(row.machine, row.pid, row.started), row.beats, row.job, row.asked, row.document)
