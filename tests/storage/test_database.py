"""Deferred work, closing, and what is special to SQLite; promises of every database are in `tests.storage.contract`."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from sqlalchemy import Connection, event

from app.storage.errors import DatabaseConfigError, StorageRefused, StorageUnavailable
from app.storage.sql.database import RUN_LAST, Database
from tests.runtime.harness import until


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    """A database with one table of unique numbers."""
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


async def test_deferred_work_joins_the_next_transaction(database: Database) -> None:
    """It causes no transaction itself, and is committed with other work."""
    commits: list[Any] = []
    event.listen(database.engine, "commit", commits.append)
    database.defer(insert(1))
    assert await numbers(database) == []
    commits.clear()
    await database.write(insert(2))
    assert len(commits) == 1
    assert await numbers(database) == [1, 2]


async def test_work_that_runs_last_sees_work_that_was_deferred_before(database: Database) -> None:
    """This holds for a busy writer, and for any other work that waits."""
    has_begun, is_free = threading.Event(), threading.Event()

    def committing(connection: Connection) -> None:
        has_begun.set()
        assert is_free.wait(30)

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


def read_missing_table(connection: Connection) -> None:
    connection.exec_driver_sql("SELECT * FROM missing")


def insert_into_missing_column(connection: Connection) -> None:
    connection.exec_driver_sql("INSERT INTO number (missing) VALUES (1)")


async def test_work_beside_refused_work_is_done(database: Database) -> None:
    """Only the table of one module is missing; the work of others that shared the transaction is done without it."""
    works = insert(1), read_missing_table, insert(2)
    results = await asyncio.gather(*(database.write(work) for work in works), return_exceptions=True)
    assert [type(result) for result in results] == [int, StorageRefused, int]
    assert await numbers(database) == [1, 2]
    assert database.is_refused


async def test_a_refusal_is_logged_once(database: Database) -> None:
    """The work is tried again and again; another reason is logged, too."""
    lines: list[str] = []
    id = logger.add(lambda message: lines.append(message.record["extra"]["error"]), level="ERROR", format="")
    for work in read_missing_table, read_missing_table, insert_into_missing_column, read_missing_table:
        with pytest.raises(StorageRefused):
            await database.write(work)
    logger.remove(id)
    assert lines == ["no such table: missing", "table number has no column named missing"]


async def test_work_whose_caller_has_gone_does_not_fail_other_work(database: Database) -> None:
    """Its client has closed the connection, or the caller's time is over: it is done, and all the others get their results."""
    for execute in database.write, database.read:
        work = insert if execute == database.write else (lambda n: lambda connection: n)
        callers = [asyncio.create_task(execute(work(n))) for n in range(3)]
        await asyncio.sleep(0)
        callers[0].cancel()
        async with asyncio.timeout(30):
            assert await asyncio.gather(*callers[1:]) == [1, 2]
            assert await execute(work(9)) == 9
    assert await numbers(database) == [0, 1, 2, 9]


async def test_a_transaction_has_a_limited_number_of_jobs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """All callers of a transaction wait for its last job."""
    monkeypatch.setattr("app.storage.sql.database.JOBS_MAX", 4)
    commits: list[Any] = []
    event.listen(database.engine, "commit", commits.append)
    assert await asyncio.gather(*(database.write(insert(n)) for n in range(10))) == list(range(10))
    assert len(commits) == 3


async def test_work_that_comes_as_a_thread_falls_idle_is_done(database: Database) -> None:
    """The thread has seen that nothing waits, and the loop has not noted yet that it must be woken."""
    reader = database._reader
    assert await database.read(lambda connection: 1) == 1
    await until(lambda: reader._is_idle)
    reader._is_idle = False
    reading = asyncio.create_task(database.read(lambda connection: 2))
    await asyncio.sleep(0)
    reader._set_idle()
    assert await asyncio.wait_for(reading, 30) == 2


async def test_what_was_refused_is_tried_with_a_new_connection(database: Database) -> None:
    """What the old one has prepared may be the cause."""
    opened: list[Any] = []
    event.listen(database.engine, "connect", lambda connection, record: opened.append(connection))
    for number in 1, 2:
        with pytest.raises(StorageRefused):
            await database.write(read_missing_table)
        assert await database.write(insert(number)) == number
        assert len(opened) == number


async def test_a_flush_runs_deferred_work(database: Database) -> None:
    """Without deferred work it begins no transaction."""
    commits: list[Any] = []
    event.listen(database.engine, "commit", commits.append)
    await database.flush()
    assert commits == []
    database.defer(insert(1))
    await database.flush()
    assert await numbers(database) == [1]


async def test_deferred_work_that_fails_does_not_fail_other_work(database: Database) -> None:
    """The other work in its transaction succeeds."""
    database.defer(insert(1))
    database.defer(insert(1))
    assert await database.write(insert(2)) == 2
    assert await numbers(database) == [1, 2]


async def test_deferred_work_waits_until_the_database_is_available(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs with the first transaction that succeeds."""
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


async def test_a_database_is_healthy_again_after_a_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock and a read succeed on a full disk, too; so a check writes, and changes no data."""
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


async def test_a_closed_file_handle_is_not_used_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure the file is reopened."""
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


async def test_the_loop_goes_on_while_another_connection_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the work that needs the lock waits for it."""
    monkeypatch.setattr("app.storage.sql.sqlite.BUSY_SECONDS", 30.0)
    database = Database(f"sqlite:///{path}")
    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began_at = time.monotonic()
    writing = asyncio.create_task(database.write(insert(1)))
    assert await numbers(database) == []
    assert time.monotonic() - began_at < 20
    assert not writing.done()
    other.execute("ROLLBACK")
    other.close()
    assert await writing == 1
    await database.close()


async def test_a_reader_waits_for_locks_and_a_writer_does_not(database: Database) -> None:
    """A read takes its lock with its first statement; a writing transaction has all locks once it has begun."""

    def busy_timeout_ms(connection: Connection) -> Any:
        return connection.exec_driver_sql("PRAGMA busy_timeout").scalar()

    for _ in range(2):
        assert await database.read(busy_timeout_ms) == 2000
        assert await database.write(busy_timeout_ms) == 0


async def test_close_finishes_the_submitted_work(path: Path) -> None:
    """Later work is refused; a second close does nothing."""
    database = Database(f"sqlite:///{path}")
    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
    tasks = [asyncio.create_task(database.write(insert(n))) for n in range(20)]
    await asyncio.sleep(0)
    await database.close()
    await database.close()
    assert await asyncio.gather(*tasks) == list(range(20))
    with pytest.raises(StorageUnavailable):
        await database.write(insert(99))


async def test_a_commit_is_on_disk_before_its_result_is_returned(database: Database) -> None:
    """WAL mode with synchronous=FULL, which SQLite reports as 2."""
    found = await database.write(
        lambda c: (c.exec_driver_sql("PRAGMA synchronous").scalar(), c.exec_driver_sql("PRAGMA journal_mode").scalar())
    )
    assert found == (2, "wal")


def test_an_unsupported_database_is_refused_in_one_line() -> None:
    """The operator reads the reason, not a traceback."""
    with pytest.raises(DatabaseConfigError, match="must begin with sqlite:/// or postgresql://"):
        Database("mysql://localhost/orders")
