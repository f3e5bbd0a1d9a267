"""
Every way in which the attempts of a transaction can end, one after the other, on a database whose answers the test chooses.

Whatever happens: the caller learns what was stored, no transaction stays open, and no connection is used that may be the cause.
"""

from __future__ import annotations

from enum import Enum, auto
from itertools import product
from typing import Any

import pytest

from app.storage.errors import CommitOutcomeUnknown, StorageRefused, StorageUnavailable
from app.storage.sql.dialect import CACHE_GENERATION, Failure
from app.storage.sql.transactions import ATTEMPTS_MAX, RETRY_SECONDS_MAX, Job, JobResult, Transactor, drive


class End(Enum):
    """How an attempt ends."""

    STORED = auto()
    BEGIN_FAILS = auto()
    HALF_BEGUN = auto()
    """The work's own error is raised by the begin, after SQLAlchemy has noted a transaction."""
    WORK_FAILS = auto()
    CONFLICT = auto()
    REFUSED = auto()
    GONE = auto()
    CUT = auto()
    """The connection breaks during the work."""
    COMMIT_FAILS = auto()
    COMMIT_CONFLICTS = auto()
    REPLY_LOST = auto()
    """It breaks during the commit, which has happened,"""
    COMMIT_LOST = auto()
    """has not happened,"""
    COMMIT_UNKNOWN = auto()
    """or nothing is known about."""


REPEATED = {End.CONFLICT, End.CUT, End.COMMIT_CONFLICTS, End.COMMIT_LOST}
"""After these the transaction is repeated."""
RESULTS = {
    End.STORED: None, End.REPLY_LOST: None, End.BEGIN_FAILS: StorageUnavailable, End.HALF_BEGUN: ValueError, End.WORK_FAILS: ValueError,
    End.REFUSED: StorageRefused, End.GONE: StorageUnavailable, End.COMMIT_FAILS: StorageUnavailable, End.COMMIT_UNKNOWN: CommitOutcomeUnknown,
}  # fmt: skip
"""What the others give to the caller."""


class DatabaseError(Exception):
    """An error of the database."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class Transaction:
    """A transaction of *connection*; it stays open until it is committed or rolled back."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        connection.open = self

    def commit(self) -> None:
        database = self.connection.database
        match database.end:
            case End.COMMIT_FAILS:
                raise DatabaseError(Failure.UNAVAILABLE)
            case End.COMMIT_CONFLICTS:
                raise DatabaseError(Failure.RETRY)
            case End.COMMIT_LOST | End.REPLY_LOST | End.COMMIT_UNKNOWN:
                self.connection.is_cut = True
                raise DatabaseError(Failure.UNAVAILABLE)
        self.connection.open = None
        database.committed.append(database.attempts)

    def rollback(self) -> None:
        self.connection.open = None


class Connection:
    """A connection to *database*."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.info: dict[str, Any] = {}
        self.open: Transaction | None = None
        self.is_cut = self.is_closed = False

    def begin(self) -> Transaction:
        assert self.open is None, "an earlier transaction is still open"
        assert not self.is_cut
        self.database.attempts += 1
        if self.database.end is End.BEGIN_FAILS:
            raise DatabaseError(Failure.UNAVAILABLE)
        transaction = Transaction(self)
        if self.database.end is End.HALF_BEGUN:
            raise ValueError("begin")
        return transaction

    def in_transaction(self) -> bool:
        return self.open is not None

    def close(self) -> None:
        self.is_closed = True


class Database:
    """Implements `Dialect` and `Engine` as far as a transactor uses them; its attempts end as *script* lists, and all after that are stored."""

    lost = ""

    def __init__(self, script: tuple[End, ...]) -> None:
        self.script = script
        self.attempts = 0
        self.committed: list[int] = []
        self.connections: list[Connection] = []

    @property
    def end(self) -> End:
        return self.script[self.attempts - 1] if self.attempts <= len(self.script) else End.STORED

    def connect(self) -> Connection:
        self.connections.append(Connection(self))
        return self.connections[-1]

    def begin_nowait(self, connection: Connection) -> None:
        return None

    def work(self, connection: Any) -> int:
        match self.end:
            case End.WORK_FAILS:
                raise ValueError("work")
            case End.CUT:
                connection.is_cut = True
                raise DatabaseError(Failure.UNAVAILABLE)
            case End.CONFLICT | End.REFUSED | End.GONE as end:
                failures = {End.CONFLICT: Failure.RETRY, End.REFUSED: Failure.REFUSED, End.GONE: Failure.UNAVAILABLE}
                raise DatabaseError(failures[end])
        return self.attempts

    def classify(self, error: Exception) -> Failure | None:
        return error.failure if isinstance(error, DatabaseError) else None

    def is_conflict(self, error: Exception) -> bool:
        return False

    def is_disconnected(self, connection: Connection) -> bool:
        return connection.is_cut

    def transaction_id(self, connection: Connection) -> int:
        return self.attempts

    def was_committed(self, engine: Any, tx_id: int) -> bool | None:
        if self.end is End.REPLY_LOST:
            self.committed.append(tx_id)
        return {End.REPLY_LOST: True, End.COMMIT_LOST: False, End.COMMIT_UNKNOWN: None}[self.end]

    def has_written(self, connection: Connection) -> bool:
        return True

    def verify_commit(self, connection: Connection) -> None:
        pass


def transactor_of(database: Any) -> Transactor:
    return Transactor(database, database)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.storage.sql.transactions.time.sleep", lambda seconds: None)


def only(results: list[JobResult]) -> JobResult:
    [found] = results
    return found


@pytest.mark.parametrize("first", End)
def test_the_caller_learns_what_was_stored_and_nothing_stays_open(first: End) -> None:
    """For each sequence of three ends; then another transaction of the same transactor succeeds."""
    for script in product([first], End, End):
        database = Database(script)
        transactor = transactor_of(database)
        _, result, error = only(drive(transactor.execute_together([Job(database.work, None)])))
        last = next((end for end in script if end not in REPEATED), End.STORED)
        number = [*script, End.STORED].index(last) + 1
        wanted = RESULTS[last]
        assert database.attempts == number, script
        assert type(error) is (wanted or type(None)), script
        assert (result, database.committed) == ((number, [number]) if wanted is None else (None, [])), script
        in_use = database.connections[-1]
        for connection in database.connections:
            assert connection.is_closed or (connection is in_use and connection.open is None), script
        # What may be the cause is not used again. After a conflict, or an error of the work, nothing is wrong with the connection.
        keeps = last in (End.STORED, End.WORK_FAILS)
        assert in_use.is_closed == (not keeps), script
        assert transactor.is_healthy == (wanted in (None, ValueError, StorageRefused))
        assert transactor.is_refused == (wanted is StorageRefused)
        database.script = ()
        before = database.committed[:]
        assert only(drive(transactor.execute_together([Job(database.work, None)])))[2] is None
        assert (len(database.committed), transactor.is_healthy) == (len(before) + 1, True)


@pytest.mark.parametrize("end", [End.WORK_FAILS, End.CONFLICT, End.COMMIT_CONFLICTS])
def test_each_roll_back_begins_a_new_generation_of_the_cache(end: End) -> None:
    """What the transaction has put into a cache is not in the database; the connection is used again."""
    database = Database((end,))
    transactor, generation = transactor_of(database), object()

    def work(connection: Any) -> int:
        connection.info.setdefault(CACHE_GENERATION, generation)
        return database.work(connection)

    drive(transactor.execute_together([Job(work, None)]))
    [connection] = database.connections
    assert connection.info[CACHE_GENERATION] is not generation


@pytest.mark.parametrize("end", [end for end in End if end in REPEATED])
def test_the_attempts_have_a_limit(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number, and a time: each may wait for a lock, and its callers wait for an answer."""
    for seconds, attempts in ((0.0, ATTEMPTS_MAX), (RETRY_SECONDS_MAX * 0.4, 3), (RETRY_SECONDS_MAX * 2, 1)):
        database = Database((end,) * 99)
        monkeypatch.setattr(
            "app.storage.sql.transactions.time.monotonic",
            lambda database=database, seconds=seconds: 1_000.0 + database.attempts * seconds,
        )
        _, _, error = only(drive(transactor_of(database).execute_together([Job(database.work, None)])))
        assert type(error) is StorageUnavailable
        assert database.attempts == attempts


def test_of_several_jobs_each_gets_what_it_would_get_alone() -> None:
    """One that fails takes no other with it, and none is stored twice; while the database is out of reach, none is tried."""
    for end in (End.WORK_FAILS, End.REFUSED):
        database = Database((end, End.STORED, end, End.STORED))
        jobs = [Job(database.work, None) for _ in range(3)]
        results = drive(transactor_of(database).execute_together(jobs))
        assert [job for job, _, _ in results] == jobs
        assert [type(error) for _, _, error in results] == [type(None), RESULTS[end], type(None)]
        assert database.committed == [2, 4]
    for end in (End.GONE, End.COMMIT_UNKNOWN):
        database = Database((end,))
        results = drive(transactor_of(database).execute_together([Job(database.work, None) for _ in range(3)]))
        assert [type(error) for _, _, error in results] == [RESULTS[end]] * 3
        assert database.attempts == 1
