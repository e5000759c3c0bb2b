"""A study's database: SQLite in its folder, or a PostgreSQL server that several machines reach; opened, and outlasted while it is away.

Sources: SQLAlchemy 2, "Dealing with Disconnects"; libpq, "Parameter Key Words" (`connect_timeout`, `tcp_user_timeout`, `keepalives_*`).
"""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, MetaData, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.pool import NullPool

from budgetlm.errors import ConfigError, StudyError

SERVER = "postgresql+psycopg"
"""The one kind of server, in the words of SQLAlchemy: dialect and driver."""
ANSWER_SECONDS = 5
"""A server that does not answer for so long is taken to be away."""
OUTAGE_SECONDS, RETRY_SECONDS = 120.0, 0.5
"""How long a server may be away before those who need it give up, and how often they look."""
FIRST_SECONDS = 10.0
"""The same for the first time that it is asked, when the address may be wrong."""

T = TypeVar("T")


def check_storage(storage: str) -> None:
    """Refuse an address that is no database of ours, or that says more than a study's file should know.

    Args:
        storage: `postgresql+psycopg://user@host/database`; empty for the file in the study's folder.

    Raises:
        ConfigError: what is wrong with it.
    """
    example = f"E.g. {SERVER}://me@db.example/budgetlm"
    if not storage:
        return
    try:
        url = make_url(storage)
    except ArgumentError:
        raise ConfigError(f"search.storage is {storage!r}, which is no address of a database. {example}.") from None
    if url.drivername != SERVER:
        raise ConfigError(
            f"search.storage begins with {url.drivername!r}; what is known is {SERVER}, and the file in the study's folder, if "
            f"nothing is said. {example}."
        )
    if url.password is not None:
        raise ConfigError(
            "search.storage holds a password, and a study's file would keep it for all to read. Leave it out, and put it into "
            "~/.pgpass or the variable PGPASSWORD of every machine."
        )
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise ConfigError("PostgreSQL needs its driver: `pip install 'budgetlm[postgresql]'`.") from None


def file_address(path: Path) -> str:
    """The address of a SQLite database."""
    return f"sqlite:///{path.resolve()}"


def engine_options(address: str) -> dict[str, Any]:
    """How to connect to a database, as `create_engine` takes it."""
    if address.startswith("sqlite"):
        return {"connect_args": {"timeout": 60}}
    alive = {"keepalives_idle": ANSWER_SECONDS, "keepalives_interval": 2, "keepalives_count": 2}
    patience = {"connect_timeout": ANSWER_SECONDS, "tcp_user_timeout": 1000 * ANSWER_SECONDS}
    return {"pool_pre_ping": True, "connect_args": {**alive, **patience}}


def open_database(address: str, tables: MetaData, *, durable: bool = True) -> Engine:
    """An engine on a study's database, with its tables; SQLite in write-ahead mode, so that readers never block the search.

    Args:
        address: as SQLAlchemy has it.
        tables: made where they are not there yet.
        durable: whether what was written must survive a power cut; not where it is thrown away anyhow.

    Raises:
        StudyError: it is no database, or cannot be written or reached.
    """
    engine = create_engine(address, **engine_options(address))
    if engine.dialect.name == "sqlite":
        Path(str(engine.url.database)).parent.mkdir(parents=True, exist_ok=True)

        @event.listens_for(engine, "connect")
        def _write_ahead(connection, _record):  # type: ignore[no-untyped-def]  # SQLAlchemy's own untyped protocol
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")

    try:
        outlast(engine, lambda _again: make_tables(engine, tables), FIRST_SECONDS)
    except DatabaseError as error:
        raise unusable(engine, error) from error
    return engine


def make_tables(engine: Engine, tables: MetaData) -> None:
    """Make those tables that are not there yet, though another process may be at it too."""
    try:
        tables.create_all(engine)
    except (IntegrityError, ProgrammingError):  # PostgreSQL: another process has made one just now
        tables.create_all(engine)


def open_for_reading(address: str) -> Engine:
    """An engine that reads a study's database and never keeps a search waiting: of SQLite it cannot write at all."""
    if not address.startswith("sqlite"):
        return create_engine(address, poolclass=NullPool, **engine_options(address))
    path = Path(str(make_url(address).database))
    readonly = f"{path.resolve().as_uri()}?mode=ro"
    return create_engine("sqlite://", creator=lambda: sqlite3.connect(readonly, uri=True, timeout=10), poolclass=NullPool)


def unusable(engine: Engine, error: DatabaseError) -> StudyError:
    """The error of a person whose database is none, or is not there."""
    if engine.dialect.name != "sqlite" and isinstance(error, OperationalError):
        return StudyError(
            f"the database server at {engine.url.render_as_string()} cannot be used: {_said(error)}. Check that it runs, that this "
            "machine reaches it, and that `psql` with the same address does."
        )
    where = engine.url.database or "the study's file"
    return StudyError(
        f"{where} cannot be used as a study's database ({_said(error)}). If it was damaged, move the study's folder "
        "away and start again; the records in `runs.jsonl` there are still readable."
    )


def unwritten(engine: Engine, error: DatabaseError) -> StudyError:
    """The error of a write that did not succeed."""
    if engine.dialect.name != "sqlite":
        return StudyError(
            f"the database server could not be used for {OUTAGE_SECONDS:.0f} s: {_said(error)}. Nothing in it was damaged; repeat "
            "the command when it is back: it goes on where it stopped."
        )
    return StudyError(
        f"the study's database could not be written: {_said(error)}. Nothing in it was damaged. Free some space or "
        "allow writing, then repeat the command: it goes on where it stopped."
    )


def _said(error: DatabaseError) -> str:
    return str(error.orig).strip().splitlines()[0] if error.orig and str(error.orig).strip() else type(error).__name__


def outlast(engine: Engine, work: Callable[[bool], T], seconds: float = OUTAGE_SECONDS) -> T:
    """Do something with a database, again and again while its server is away.

    Args:
        work: is told whether it is done again; what it did before may have been kept all the same, for an answer can be lost as well.
        seconds: for which the server may be away.

    Raises:
        DBAPIError: the server stays away; or whatever else went wrong, at once.
    """
    began, again = time.monotonic(), False
    while True:
        try:
            return work(again)
        except Exception as error:
            if not is_away(engine, error) or time.monotonic() - began > seconds:
                raise
        again = True
        time.sleep(RETRY_SECONDS)


def is_away(engine: Engine, error: BaseException) -> bool:
    """Whether an error says that a server cannot be reached just now, or has dropped what it was doing."""
    if engine.dialect.name == "sqlite":
        return False
    found: list[BaseException | None] = [error, error.__cause__]
    return any(isinstance(e, OperationalError) or (isinstance(e, DBAPIError) and e.connection_invalidated) for e in found)
