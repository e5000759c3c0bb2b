"""The ledger: the durable account of a study's device-seconds, and the only place where budgets are known.

Three tables in the study's own database: accounts (the search has one, every final its own), what was charged to each by
run and purpose, and leases. Device-seconds are leased before they are used: a lease is a remainder that falls with every
heartbeat as its use is charged, and is given back when its holder ends. What is stored is durations and remainders, never
a moment, so no change of date or time zone, no suspension and no restart can create or destroy budget.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    case,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool

from budgetlm.budget.clock import PURPOSES, Purpose
from budgetlm.budget.holder import Holder, this_process
from budgetlm.errors import BudgetExhausted, LeaseLost, StudyError

SEARCH = "search"
"""The account that a search is charged to."""
HEARTBEAT_SECONDS = 1.0
"""How often a holder charges what it has used, and what is charged beyond the last time when it dies."""
SILENT_BEATS = 10
"""A holder that cannot be seen from here is taken for dead after so many intervals without a heartbeat."""

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
_LEASES = Table(
    "budgetlm_leases",
    _METADATA,
    Column("id", Integer, primary_key=True),
    Column("account", String(128), nullable=False),
    Column("run", String(128), nullable=False),
    Column("devices", Integer, nullable=False),
    Column("left_seconds", Float, nullable=False),
    Column("beats", Integer, nullable=False),
    Column("machine", String(128), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started", Integer, nullable=False),
)


@dataclass(frozen=True)
class Balance:
    """One account at one moment. All in device-seconds."""

    account: str
    budget_seconds: float
    charged_seconds: float
    leased_seconds: float
    """Set aside by those who are at work."""
    by_purpose: dict[str, float]
    stopped_because: str

    @property
    def remaining_seconds(self) -> float:
        """What may still be leased; never below 0."""
        return max(0.0, self.budget_seconds - self.charged_seconds - self.leased_seconds)


@dataclass(frozen=True)
class OpenLease:
    """A lease as somebody else sees it."""

    id: int
    account: str
    run: str
    devices: int
    left_seconds: float
    beats: int
    holder: Holder


def database_url(path: Path) -> str:
    """The address of a study's SQLite database."""
    return f"sqlite:///{path.resolve()}"


def open_database(path: Path, *, durable: bool = True) -> Engine:
    """An engine on a study's database, in write-ahead mode, so that readers never block the search.

    Args:
        durable: whether what was written must survive a power cut; not where it is thrown away anyhow.

    Raises:
        StudyError: the file is there but is not a database, or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(database_url(path), connect_args={"timeout": 60})

    @event.listens_for(engine, "connect")
    def _write_ahead(connection, _record):  # type: ignore[no-untyped-def]  # SQLAlchemy's own untyped protocol
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")

    try:
        _METADATA.create_all(engine)
    except DatabaseError as error:
        raise _unusable(path, error) from error
    return engine


def open_for_reading(path: Path) -> Engine:
    """An engine that can only read a study's database, and so never keeps a search waiting.

    Raises:
        StudyError: it is no such database.
    """
    address = f"{path.resolve().as_uri()}?mode=ro"
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(address, uri=True, timeout=10), poolclass=NullPool)
    try:
        with engine.connect() as connection:
            connection.execute(select(_ACCOUNTS.c.account).limit(1))
    except DatabaseError as error:
        raise _unusable(path, error) from error
    return engine


def _unusable(path: Path, error: DatabaseError) -> StudyError:
    return StudyError(
        f"{path} cannot be used as a study's database ({error.orig}). If it was damaged, move the study's folder "
        "away and start again; the records in `runs.jsonl` there are still readable."
    )


class Ledger:
    """Accounts, charges and leases."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- accounts ---

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
        with self._write() as connection:
            connection.execute(
                row.on_conflict_do_update(
                    index_elements=["account"], set_={"budget_seconds": seconds, "stopped_because": ""}
                )
            )

    def stop(self, account: str, because: str) -> None:
        """Note why the account stopped being spent; an empty text while it is open."""
        with self._write() as connection:
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
            leased = _leased(connection, account)
        by_purpose = {str(p): charged.get(p, 0.0) for p in PURPOSES}
        return Balance(account, row.budget_seconds, sum(charged.values()), leased, by_purpose, row.stopped_because)

    def by_run(self, account: str = SEARCH) -> dict[str, dict[str, float]]:
        """What every run of an account was charged: device-seconds by purpose."""
        runs: dict[str, dict[str, float]] = {}
        with self._engine.connect() as connection:
            for row in connection.execute(select(_CHARGES).where(_CHARGES.c.account == account)):
                runs.setdefault(row.run, {})[row.purpose] = row.seconds
        return runs

    def charged_to(self, account: str, run: str) -> float:
        """Device-seconds that one run was charged."""
        total = select(func.sum(_CHARGES.c.seconds)).where(_CHARGES.c.account == account, _CHARGES.c.run == run)
        with self._engine.connect() as connection:
            return float(connection.scalar(total) or 0.0)

    # --- leases ---

    def lease(self, account: str, seconds: float, *, run: str = "study", devices: int = 1) -> "Lease":
        """Set `seconds` aside for the process that asks, all of them or none.

        Args:
            seconds: device-seconds, those of all `devices` together.
            devices: how many are held at once; a second of the holder's clock is so many device-seconds.

        Raises:
            BudgetExhausted: that much is not left beside what others have leased.
        """
        with self._write() as connection:
            _lock(connection, account)
            left = _unleased(connection, account)
            if seconds > left:
                raise BudgetExhausted(f"{seconds:.1f} device-seconds are wanted, and {max(0.0, left):.1f} are left.")
            holder = this_process()
            row = _LEASES.insert().values(
                account=account,
                run=run,
                devices=devices,
                left_seconds=seconds,
                beats=0,
                machine=holder.machine,
                pid=holder.pid,
                started=holder.started,
            )
            key = connection.execute(row).inserted_primary_key
            assert key is not None
        return Lease(self, account, int(key[0]), devices)

    def open_leases(self) -> list[OpenLease]:
        """All leases that were not given back."""
        with self._engine.connect() as connection:
            return [
                OpenLease(r.id, r.account, r.run, r.devices, r.left_seconds, r.beats, Holder(r.machine, r.pid, r.started))
                for r in connection.execute(select(_LEASES).order_by(_LEASES.c.id))
            ]

    def release(self, lease: OpenLease) -> float:
        """Charge a dead holder's lease one heartbeat interval beyond its last one, and give back the rest.

        Returns:
            Device-seconds charged; 0 if somebody else has released it meanwhile.
        """
        with self._write() as connection:
            _lock(connection, lease.account)
            left = connection.scalar(select(_LEASES.c.left_seconds).where(_LEASES.c.id == lease.id))
            if left is None:
                return 0.0
            connection.execute(_LEASES.delete().where(_LEASES.c.id == lease.id))
            seconds = min(float(left), HEARTBEAT_SECONDS * lease.devices)
            _charge(connection, lease.account, lease.run, {"lost": seconds})
        return seconds

    def release_the_dead(self, wait: Callable[[float], None]) -> list[tuple[OpenLease, float]]:
        """Release the leases of all holders that are no more.

        Those of this boot are looked up; of the others it is watched for a while whether they still give heartbeats.

        Args:
            wait: lets so many seconds pass, e.g. `time.sleep`.

        Returns:
            What was released, with the device-seconds charged for it.
        """
        doubtful = [lease for lease in self.open_leases() if lease.holder.alive() is None]
        if doubtful:
            wait(SILENT_BEATS * HEARTBEAT_SECONDS)
        beats = {lease.id: lease.beats for lease in doubtful}
        dead = [
            lease
            for lease in self.open_leases()
            if lease.holder.alive() is False or (lease.holder.alive() is None and beats.get(lease.id) == lease.beats)
        ]
        return [(lease, self.release(lease)) for lease in dead]

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """One transaction, durable when the block has ended."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            raise StudyError(
                f"the study's database could not be written: {error.orig}. Nothing in it was damaged. Free some space or "
                "allow writing, then repeat the command: it goes on where it stopped."
            ) from error


class Lease:
    """Device-seconds set aside for this process."""

    def __init__(self, ledger: Ledger, account: str, id: int, devices: int) -> None:
        self._ledger, self._account, self._id, self._devices = ledger, account, id, devices

    def charge(self, run: str, spent: Mapping[Purpose, float]) -> None:
        """Charge what `run` has spent since the last time: a heartbeat. Durable when this returns.

        Args:
            spent: seconds of the holder's clock by purpose; negative where time given before to one purpose is another's.

        Raises:
            LeaseLost: this process was taken for dead, and the lease released.
        """
        assert set(spent) <= set(PURPOSES), spent
        used = {purpose: seconds * self._devices for purpose, seconds in spent.items()}
        left = _LEASES.c.left_seconds - sum(used.values())
        beat = _LEASES.update().where(_LEASES.c.id == self._id)
        with self._ledger._write() as connection:  # the two are one thing in two classes
            changed = connection.execute(
                beat.values(left_seconds=case((left < 0, 0.0), else_=left), beats=_LEASES.c.beats + 1, run=run)
            ).rowcount
            if not changed:
                raise LeaseLost(
                    f"the lease of {run!r} was released by another process, which took this one for dead. The search was "
                    "stopped so that no device-second is spent twice; repeat the command to go on."
                )
            _charge(connection, self._account, run, used)

    def hold(self, seconds: float) -> bool:
        """Make the lease hold exactly `seconds`, more or less than it does now; False, and unchanged, if not enough is left."""
        with self._ledger._write() as connection:
            _lock(connection, self._account)
            own = connection.scalar(select(_LEASES.c.left_seconds).where(_LEASES.c.id == self._id)) or 0.0
            if seconds > _unleased(connection, self._account) + own:
                return False
            row = _LEASES.update().where(_LEASES.c.id == self._id).values(left_seconds=seconds)
            return bool(connection.execute(row).rowcount)

    def settle(self) -> None:
        """Give back what was not used."""
        with self._ledger._write() as connection:
            connection.execute(_LEASES.delete().where(_LEASES.c.id == self._id))


def _lock(connection: Connection, account: str) -> None:
    """Let no other transaction lease from the account until this one ends: a write comes first, in any database."""
    row = _ACCOUNTS.update().where(_ACCOUNTS.c.account == account).values(account=account)
    if not connection.execute(row).rowcount:
        raise StudyError(f"the ledger has no account {account!r}.")


def _leased(connection: Connection, account: str) -> float:
    return float(connection.scalar(select(func.sum(_LEASES.c.left_seconds)).where(_LEASES.c.account == account)) or 0.0)


def _unleased(connection: Connection, account: str) -> float:
    budget = connection.scalar(select(_ACCOUNTS.c.budget_seconds).where(_ACCOUNTS.c.account == account))
    charged = connection.scalar(select(func.sum(_CHARGES.c.seconds)).where(_CHARGES.c.account == account))
    return float(budget or 0.0) - float(charged or 0.0) - _leased(connection, account)


def _charge(connection: Connection, account: str, run: str, used: Mapping[Purpose, float]) -> None:
    rows: Sequence[dict[str, object]] = [
        {"account": account, "run": run, "purpose": purpose, "seconds": seconds}
        for purpose, seconds in used.items()
        if seconds
    ]
    if rows:
        row = sqlite.insert(_CHARGES)
        add = {"seconds": _CHARGES.c.seconds + row.excluded.seconds}
        connection.execute(row.on_conflict_do_update(index_elements=["account", "run", "purpose"], set_=add), rows)
