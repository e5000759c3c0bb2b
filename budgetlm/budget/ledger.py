"""The ledger: the durable account of a study's device-seconds, and the only place where budgets are known.

Three tables in the study's own database: accounts (the search has one, every final its own), what was charged to each by
run and purpose, and leases. Device-seconds are leased before they are used: a lease is a remainder that falls with every
heartbeat as its use is charged, and is given back when its holder ends. What is stored is durations and remainders, never
a moment, so no change of date or time zone, no suspension and no restart can create or destroy budget.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    ScalarSelect,
    String,
    Table,
    case,
    func,
    inspect,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError

from budgetlm.budget import database
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


T = TypeVar("T")


def open_ledger(address: str, scope: str = "", *, durable: bool = True) -> "Ledger":
    """The ledger in a database, which is made if it is not there.

    Args:
        address: of the database (`budget/database.py`).
        scope: the study's name, where studies share a database.
        durable: whether what was written must survive a power cut; not where it is thrown away anyhow.

    Raises:
        StudyError: there is a file that is no database, or it cannot be written or reached.
    """
    return Ledger(database.open_database(address, _METADATA, durable=durable), scope)


def read_ledger(address: str, scope: str = "") -> "Ledger":
    """The ledger in a database that is there, for reading only; it never keeps a search waiting.

    Raises:
        StudyError: there is no ledger.
    """
    engine = database.open_for_reading(address)
    try:
        with engine.connect() as connection:
            connection.execute(select(_ACCOUNTS.c.account).limit(1))
    except DatabaseError as error:
        raise database.unusable(engine, error) from error
    return Ledger(engine, scope)


def has_account(address: str, scope: str = "", account: str = SEARCH) -> bool:
    """Whether a database knows of an account.

    Raises:
        StudyError: there is no database, or it cannot be reached.
    """
    engine = database.open_for_reading(address)
    try:
        there = inspect(engine).has_table(_ACCOUNTS.name)
    except DatabaseError as error:
        raise database.unusable(engine, error) from error
    return there and account in Ledger(engine, scope).accounts()


class Ledger:
    """Accounts, charges and leases.

    Args:
        engine: on the database.
        scope: of accounts; those of another scope in the same database are never seen.
    """

    def __init__(self, engine: Engine, scope: str = "") -> None:
        self._engine, self._prefix = engine, f"{scope}/" if scope else ""

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
        row = self._insert(_ACCOUNTS).values(account=self._key(account), budget_seconds=seconds, stopped_because="")
        row = row.on_conflict_do_update(index_elements=["account"], set_={"budget_seconds": seconds, "stopped_because": ""})
        self._write(lambda connection, _again: connection.execute(row))

    def stop(self, account: str, because: str) -> None:
        """Note why the account stopped being spent; an empty text while it is open."""
        row = _ACCOUNTS.update().where(_ACCOUNTS.c.account == self._key(account)).values(stopped_because=because[:512])
        self._write(lambda connection, _again: connection.execute(row))

    def accounts(self) -> list[str]:
        """Names of all accounts."""
        mine = select(_ACCOUNTS.c.account).where(_ACCOUNTS.c.account.startswith(self._prefix, autoescape=True))
        named = self._read(lambda connection: connection.scalars(mine.order_by(_ACCOUNTS.c.account)).all())
        return [name.removeprefix(self._prefix) for name in named]

    def balance(self, account: str = SEARCH) -> Balance:
        """One account as it stands.

        Raises:
            StudyError: there is no such account.
        """
        key = self._key(account)
        sums = select(_CHARGES.c.purpose, func.sum(_CHARGES.c.seconds)).where(_CHARGES.c.account == key)

        def look(connection: Connection) -> Balance:
            row = connection.execute(select(_ACCOUNTS).where(_ACCOUNTS.c.account == key)).first()
            if row is None:
                known = ", ".join(self.accounts()) or "none"
                raise StudyError(f"the ledger has no account {account!r}. Known: {known}.")
            charged = {p: float(s) for p, s in connection.execute(sums.group_by(_CHARGES.c.purpose))}
            by_purpose = {str(p): charged.get(p, 0.0) for p in PURPOSES}
            spent, leased = sum(charged.values()), float(connection.scalar(select(_leased(key))) or 0.0)
            return Balance(account, row.budget_seconds, spent, leased, by_purpose, row.stopped_because)

        return self._read(look)

    def by_run(self, account: str = SEARCH) -> dict[str, dict[str, float]]:
        """What every run of an account was charged: device-seconds by purpose."""
        runs: dict[str, dict[str, float]] = {}
        rows = select(_CHARGES).where(_CHARGES.c.account == self._key(account))
        for row in self._read(lambda connection: connection.execute(rows).all()):
            runs.setdefault(row.run, {})[row.purpose] = row.seconds
        return runs

    def charged_to(self, account: str, run: str) -> float:
        """Device-seconds that one run was charged."""
        mine = (_CHARGES.c.account == self._key(account)) & (_CHARGES.c.run == run)
        return float(
            self._read(lambda connection: connection.scalar(select(func.sum(_CHARGES.c.seconds)).where(mine))) or 0.0
        )

    # --- leases ---

    def lease(self, account: str, seconds: float, *, run: str = "study", devices: int = 1) -> "Lease":
        """Set `seconds` aside for the process that asks, all of them or none.

        Args:
            seconds: device-seconds, those of all `devices` together.
            devices: how many are held at once; a second of the holder's clock is so many device-seconds.

        Raises:
            BudgetExhausted: that much is not left beside what others have leased.
        """
        # A number of its own beforehand, so that it is known again if the answer to writing it is lost.
        key, holder, id = self._key(account), this_process(), secrets.randbelow(2**31 - 1) + 1
        values = {"run": run, "devices": devices, "left_seconds": seconds, "beats": 0}
        who = {"machine": holder.machine, "pid": holder.pid, "started": holder.started}
        row = _LEASES.insert().values(id=id, account=key, **values, **who)

        def take(connection: Connection, again: bool) -> None:
            if again and connection.scalar(select(_LEASES.c.id).where(_LEASES.c.id == id)):
                return
            _lock(connection, key, account)
            left = _unleased(connection, key)
            if seconds > left:
                raise BudgetExhausted(f"{seconds:.1f} device-seconds are wanted, and {max(0.0, left):.1f} are left.")
            connection.execute(row)

        self._write(take)
        return Lease(self, account, id, devices)

    def open_leases(self) -> list[OpenLease]:
        """All leases that were not given back."""
        mine = select(_LEASES).where(_LEASES.c.account.startswith(self._prefix, autoescape=True)).order_by(_LEASES.c.id)
        return [
            OpenLease(
                r.id,
                r.account.removeprefix(self._prefix),
                r.run,
                r.devices,
                r.left_seconds,
                r.beats,
                Holder(r.machine, r.pid, r.started),
            )
            for r in self._read(lambda connection: connection.execute(mine).all())
        ]

    def release(self, lease: OpenLease) -> float:
        """Charge a dead holder's lease one heartbeat interval beyond its last one, and give back the rest.

        Returns:
            Device-seconds charged; 0 if somebody else has released it meanwhile.
        """
        key = self._key(lease.account)

        def end(connection: Connection, _again: bool) -> float:
            _lock(connection, key, lease.account)
            left = connection.scalar(select(_LEASES.c.left_seconds).where(_LEASES.c.id == lease.id))
            if left is None:
                return 0.0
            connection.execute(_LEASES.delete().where(_LEASES.c.id == lease.id))
            seconds = min(float(left), HEARTBEAT_SECONDS * lease.devices)
            self._charge(connection, key, lease.run, {"lost": seconds})
            return seconds

        return self._write(end)

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

    # --- the database ---

    def close(self) -> None:
        """Let go of the database's connections; the next use opens others."""
        self._engine.dispose()

    def _key(self, account: str) -> str:
        return self._prefix + account

    def _insert(self, table: Table) -> "postgresql.Insert | sqlite.Insert":
        """An insert that can say what is to happen where the row is there already; both dialects have it in the same words."""
        return sqlite.insert(table) if self._engine.dialect.name == "sqlite" else postgresql.insert(table)

    def _charge(self, connection: Connection, key: str, run: str, used: Mapping[Purpose, float]) -> None:
        # In one order always: two that write the same rows the other way round would wait for each other.
        rows: Sequence[dict[str, object]] = [
            {"account": key, "run": run, "purpose": purpose, "seconds": seconds}
            for purpose, seconds in sorted(used.items())
            if seconds
        ]
        if rows:
            row = self._insert(_CHARGES)
            add = {"seconds": _CHARGES.c.seconds + row.excluded.seconds}
            connection.execute(row.on_conflict_do_update(index_elements=["account", "run", "purpose"], set_=add), rows)

    def _read(self, look: Callable[[Connection], T]) -> T:
        """What is found in the database."""

        def once(_again: bool) -> T:
            with self._engine.connect() as connection:
                return look(connection)

        return database.outlast(self._engine, once)

    def _write(self, change: Callable[[Connection, bool], T]) -> T:
        """One transaction, durable when this returns.

        Args:
            change: what it does; told whether it is done again, perhaps after it was done, because a server's answer was lost.
        """

        def once(again: bool) -> T:
            with self._engine.begin() as connection:
                return change(connection, again)

        try:
            return database.outlast(self._engine, once)
        except DatabaseError as error:
            raise database.unwritten(self._engine, error) from error


class Lease:
    """Device-seconds set aside for this process."""

    def __init__(self, ledger: Ledger, account: str, id: int, devices: int) -> None:
        self._ledger, self._account, self._id, self._devices = ledger, account, id, devices
        self._key, self._beats = ledger._key(account), 0  # the two are one thing in two classes

    def charge(self, run: str, spent: Mapping[Purpose, float]) -> None:
        """Charge what `run` has spent since the last time: a heartbeat. Durable when this returns.

        Args:
            spent: seconds of the holder's clock by purpose; negative where time given before to one purpose is another's.

        Raises:
            LeaseLost: this process was taken for dead, and the lease released.
        """
        assert set(spent) <= set(PURPOSES), spent
        used = {purpose: seconds * self._devices for purpose, seconds in spent.items()}
        left, mine = _LEASES.c.left_seconds - sum(used.values()), _LEASES.c.id == self._id
        beat = _LEASES.update().where(mine, _LEASES.c.beats == self._beats)
        beat = beat.values(left_seconds=case((left < 0, 0.0), else_=left), beats=_LEASES.c.beats + 1, run=run)

        def give(connection: Connection, again: bool) -> None:
            if again and connection.scalar(select(_LEASES.c.beats).where(mine)) == self._beats + 1:
                return  # only the answer was lost
            if not connection.execute(beat).rowcount:
                raise LeaseLost(
                    f"the lease of {run!r} was released by another process, which took this one for dead. The search was "
                    "stopped so that no device-second is spent twice; repeat the command to go on."
                )
            self._ledger._charge(connection, self._key, run, used)

        self._ledger._write(give)
        self._beats += 1

    def hold(self, seconds: float) -> bool:
        """Make the lease hold exactly `seconds`, more or less than it does now; False, and unchanged, if not enough is left."""
        mine = _LEASES.c.id == self._id

        def change(connection: Connection, _again: bool) -> bool:
            _lock(connection, self._key, self._account)
            own = connection.scalar(select(_LEASES.c.left_seconds).where(mine)) or 0.0
            if seconds > _unleased(connection, self._key) + own:
                return False
            return bool(connection.execute(_LEASES.update().where(mine).values(left_seconds=seconds)).rowcount)

        return self._ledger._write(change)

    def settle(self) -> None:
        """Give back what was not used."""
        row = _LEASES.delete().where(_LEASES.c.id == self._id)
        self._ledger._write(lambda connection, _again: connection.execute(row))


def _lock(connection: Connection, key: str, account: str) -> None:
    """Let no other transaction lease from the account until this one ends: a write comes first, in any database."""
    row = _ACCOUNTS.update().where(_ACCOUNTS.c.account == key).values(account=key)
    if not connection.execute(row).rowcount:
        raise StudyError(f"the ledger has no account {account!r}.")


def _leased(key: str) -> ScalarSelect[float]:
    return select(func.sum(_LEASES.c.left_seconds)).where(_LEASES.c.account == key).scalar_subquery()


def _unleased(connection: Connection, key: str) -> float:
    """What an account has left, by one statement: a charge that ends between two would be seen by one of them alone."""
    budget = select(_ACCOUNTS.c.budget_seconds).where(_ACCOUNTS.c.account == key).scalar_subquery()
    charged = select(func.sum(_CHARGES.c.seconds)).where(_CHARGES.c.account == key).scalar_subquery()
    found = connection.execute(select(budget, charged, _leased(key))).one()
    return float(found[0] or 0.0) - float(found[1] or 0.0) - float(found[2] or 0.0)
