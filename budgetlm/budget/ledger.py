"""The ledger: the durable account of a study's device-seconds, and the only place where budgets are known.

Two tables in the study's own database: one row for each account (the search has one, every final its own) and one row
for each account, run and purpose with the seconds charged so far. What is stored is durations, never start times, so no
change of the date or of the time zone can create or destroy budget.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Column, Engine, Float, MetaData, String, Table, create_engine, event, func, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DatabaseError

from budgetlm.budget.clock import PURPOSES, Purpose
from budgetlm.errors import StudyError

SEARCH = "search"
"""The account that a search is charged to."""

_METADATA = MetaData()
_ACCOUNTS = Table(
    "budgetlm_accounts",
    _METADATA,
    Column("account", String(128), primary_key=True),
    Column("budget_seconds", Float, nullable=False),
    Column("stopped_because", String(512), nullable=False, default=""),
)
_CHARGES = Table(
    "budgetlm_charges",
    _METADATA,
    Column("account", String(128), primary_key=True),
    Column("run", String(128), primary_key=True),
    Column("purpose", String(32), primary_key=True),
    Column("seconds", Float, nullable=False),
)


@dataclass(frozen=True)
class Balance:
    """One account at one moment. All in device-seconds."""

    account: str
    budget_seconds: float
    charged_seconds: float
    by_purpose: dict[str, float]
    stopped_because: str

    @property
    def remaining_seconds(self) -> float:
        """What may still be spent; never below 0."""
        return max(0.0, self.budget_seconds - self.charged_seconds)


def database_url(path: Path) -> str:
    """The address of a study's SQLite database."""
    return f"sqlite:///{path.resolve()}"


def open_database(path: Path) -> Engine:
    """An engine on a study's database, in write-ahead mode, so that readers never block the search.

    Raises:
        StudyError: the file is there but is not a database.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(database_url(path), connect_args={"timeout": 60})

    @event.listens_for(engine, "connect")
    def _write_ahead(connection, _record):  # type: ignore[no-untyped-def]  # SQLAlchemy's own untyped protocol
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    try:
        _METADATA.create_all(engine)
    except DatabaseError as error:
        raise StudyError(
            f"{path} cannot be used as a study's database ({error.orig}). If it was damaged, move the study's folder "
            "away and start again; the records in `runs.jsonl` there are still readable."
        ) from error
    return engine


class Ledger:
    """Reads and writes the account of device-seconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set_budget(self, account: str, seconds: float) -> None:
        """Give an account its budget, or a new one.

        Raises:
            StudyError: `seconds` is less than what the account has spent already.
        """
        before = self.balance(account) if account in self.accounts() else None
        if before and before.budget_seconds == seconds:
            return  # why it stopped still holds
        charged = before.charged_seconds if before else 0.0
        if seconds < charged:
            raise StudyError(
                f"a budget of {seconds / 3600:.4g} h is less than the {charged / 3600:.4g} h already spent. "
                f"Ask for more than {charged / 3600:.4g} h, or leave the budget as it is."
            )
        row = sqlite.insert(_ACCOUNTS).values(account=account, budget_seconds=seconds, stopped_because="")
        with self._engine.begin() as connection:
            connection.execute(
                row.on_conflict_do_update(
                    index_elements=["account"], set_={"budget_seconds": seconds, "stopped_because": ""}
                )
            )

    def charge(self, account: str, run: str, purpose: Purpose, seconds: float) -> None:
        """Add `seconds` to what `run` has spent on `purpose`; durable when this returns."""
        assert purpose in PURPOSES, purpose
        assert seconds >= 0, seconds
        row = sqlite.insert(_CHARGES).values(account=account, run=run, purpose=purpose, seconds=seconds)
        with self._engine.begin() as connection:
            connection.execute(
                row.on_conflict_do_update(
                    index_elements=["account", "run", "purpose"],
                    set_={"seconds": _CHARGES.c.seconds + row.excluded.seconds},
                )
            )

    def charger(self, account: str) -> Callable[[str, Purpose, float], None]:
        """`charge` with its account filled in: what a `Meter` wants."""
        return lambda run, purpose, seconds: self.charge(account, run, purpose, seconds)

    def stop(self, account: str, because: str) -> None:
        """Note why the account stopped being spent; an empty text while it is open."""
        with self._engine.begin() as connection:
            connection.execute(
                _ACCOUNTS.update().where(_ACCOUNTS.c.account == account).values(stopped_because=because[:512])
            )

    def accounts(self) -> list[str]:
        """Names of all accounts."""
        with self._engine.connect() as connection:
            return list(connection.scalars(select(_ACCOUNTS.c.account).order_by(_ACCOUNTS.c.account)))

    def balance(self, account: str = SEARCH) -> Balance:
        """One account as it stands.

        Raises:
            StudyError: there is no such account.
        """
        with self._engine.connect() as connection:
            row = connection.execute(select(_ACCOUNTS).where(_ACCOUNTS.c.account == account)).first()
            if row is None:
                raise StudyError(f"the ledger has no account {account!r}. Known: {', '.join(self.accounts()) or 'none'}.")
            sums = connection.execute(
                select(_CHARGES.c.purpose, func.sum(_CHARGES.c.seconds))
                .where(_CHARGES.c.account == account)
                .group_by(_CHARGES.c.purpose)
            )
            charged = {purpose: float(seconds) for purpose, seconds in sums}
        by_purpose = {str(p): charged.get(p, 0.0) for p in PURPOSES}
        return Balance(account, row.budget_seconds, sum(by_purpose.values()), by_purpose, row.stopped_because)
