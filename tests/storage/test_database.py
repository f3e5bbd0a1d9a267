"""What rides along, how it ends, and how SQLite is opened; what every database promises stands in the store's contract."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from app.storage.errors import DatabaseConfigError, StorageUnavailable
from app.storage.sql.database import RUN_LAST, Database


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    """A database with one table of different numbers."""
    database = Database(f"sqlite:///{path}")
    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
    yield database
    await database.close()


def insert(n: int) -> Any:
    def work(connection: Connection) -> int:
        connection.exec_driver_sql("INSERT INTO number VALUES (?)", (n,))
        return n

    return work


async def numbers(database: Database) -> list[int]:
    return await database.read(lambda c: [row[0] for row in c.exec_driver_sql("SELECT n FROM number ORDER BY n")])


async def test_a_rider_goes_with_the_next_transaction(database: Database) -> None:
    """It causes none by itself, and is committed with somebody else's."""
    commits: list[Any] = []
    event.listen(database.engine, "commit", commits.append)
    database.defer(insert(1))
    assert await numbers(database) == []
    commits.clear()
    await database.write(insert(2))
    assert len(commits) == 1
    assert await numbers(database) == [1, 2]


async def test_who_asks_to_be_last_sees_what_was_told_to_ride_before(database: Database) -> None:
    """However busy the writer was meanwhile, and whoever else asks at the same time."""
    has_begun, is_free = threading.Event(), threading.Event()

    def committing(connection: Connection) -> None:
        has_begun.set()
        assert is_free.wait(10)

    event.listen(database.engine, "commit", committing)

    def count(connection: Connection) -> int:
        return int(connection.exec_driver_sql("SELECT count(*) FROM number").scalar_one())

    busy = asyncio.create_task(database.write(insert(0)))
    assert await asyncio.to_thread(has_begun.wait, 10)
    database.defer(insert(1))
    last, first = asyncio.create_task(database.write(count, RUN_LAST)), asyncio.create_task(database.write(count))
    await asyncio.sleep(0)
    is_free.set()
    assert await busy == 0
    assert (await first, await last) == (1, 2)


async def test_a_flush_takes_what_rides(database: Database) -> None:
    """Without riders it asks for no transaction."""
    commits: list[Any] = []
    event.listen(database.engine, "commit", commits.append)
    await database.flush()
    assert commits == []
    database.defer(insert(1))
    await database.flush()
    assert await numbers(database) == [1]


async def test_a_failing_rider_harms_nobody(database: Database) -> None:
    """Whoever it rides with gets what he asked for."""
    database.defer(insert(1))
    database.defer(insert(1))
    assert await database.write(insert(2)) == 2
    assert await numbers(database) == [1, 2]


async def test_a_rider_waits_out_a_database_that_is_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It rides again with the first transaction that succeeds."""
    monkeypatch.setattr("app.storage.sql.sqlite.BUSY_SECONDS", 0.02)
    database = Database(f"sqlite:///{path}")
    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    database.defer(insert(1))
    with pytest.raises(StorageUnavailable):
        await database.write(insert(2))
    assert not database.is_healthy
    other.execute("ROLLBACK")
    other.close()
    assert (await database.write(insert(3)), database.is_healthy) == (3, True)
    assert await numbers(database) == [1, 3]
    await database.close()


async def test_what_was_refused_is_well_once_something_was_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock and an answer are to be had on a full disk, too; a check asks for a proof, and changes nothing."""
    monkeypatch.setattr("app.storage.sql.sqlite.BUSY_SECONDS", 0.02)
    database = Database(f"sqlite:///{path}")
    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable):
        await database.check()
    healths = [database.is_healthy]
    other.execute("ROLLBACK")
    assert await database.write(lambda c: c.exec_driver_sql("SELECT count(*) FROM number").scalar_one()) == 0
    healths.append(database.is_healthy)
    (before,) = other.execute("PRAGMA data_version").fetchone()
    await database.check()
    assert [*healths, database.is_healthy] == [False, False, True]
    assert other.execute("PRAGMA data_version").fetchone() != (before,)
    other.close()
    await database.close()


async def test_a_handle_that_was_hung_up_does_not_come_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After trouble the file is opened anew."""
    monkeypatch.setattr("app.storage.sql.sqlite.BUSY_SECONDS", 0.02)
    database = Database(f"sqlite:///{path}")
    opened: list[Any] = []
    event.listen(database.engine, "connect", lambda connection, record: opened.append(connection))
    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable):
        await database.write(insert(1))
    other.close()
    assert await database.write(insert(2)) == 2
    first, _ = opened
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        first.execute("SELECT 1")
    await database.close()


async def test_the_loop_goes_on_while_somebody_else_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is locked makes the work wait for its turn, and nobody else."""
    monkeypatch.setattr("app.storage.sql.sqlite.BUSY_SECONDS", 30.0)
    database = Database(f"sqlite:///{path}")
    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    asked_at = time.monotonic()
    writing = asyncio.create_task(database.write(insert(1)))
    assert await numbers(database) == []
    assert time.monotonic() - asked_at < 20
    assert not writing.done()
    other.execute("ROLLBACK")
    other.close()
    assert await writing == 1
    await database.close()


async def test_who_reads_waits_for_a_lock_and_who_writes_has_it(database: Database) -> None:
    """A read takes its lock only as it goes on; a transaction that writes has begun with all that it needs."""

    def patience(connection: Connection) -> Any:
        return connection.exec_driver_sql("PRAGMA busy_timeout").scalar()

    for _ in range(2):
        assert await database.read(patience) == 2000
        assert await database.write(patience) == 0


async def test_closing_finishes_what_was_asked_for(path: Path) -> None:
    """What was asked for before is committed; what comes after is refused; closing twice is closing once."""
    database = Database(f"sqlite:///{path}")
    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
    asked = [asyncio.create_task(database.write(insert(n))) for n in range(20)]
    await asyncio.sleep(0)
    await database.close()
    await database.close()
    assert await asyncio.gather(*asked) == list(range(20))
    with pytest.raises(StorageUnavailable):
        await database.write(insert(99))


async def test_a_commit_is_on_the_disk_before_it_is_answered(database: Database) -> None:
    """WAL with synchronous=FULL: SQLite calls it 2."""
    found = await database.write(
        lambda c: (c.exec_driver_sql("PRAGMA synchronous").scalar(), c.exec_driver_sql("PRAGMA journal_mode").scalar())
    )
    assert found == (2, "wal")


def test_what_nobody_here_speaks_is_refused_in_one_line() -> None:
    """The operator reads the reason, not a traceback."""
    with pytest.raises(DatabaseConfigError, match="must begin with sqlite:/// or postgresql://"):
        Database("mysql://localhost/orders")
