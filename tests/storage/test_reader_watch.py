"""A reader that holds a snapshot for long shows in two gauges, on either database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from app.storage.errors import StorageUnavailable
from app.storage.sql.database import Database
from app.storage.sql.postgres import Postgres
from app.storage.sql.reader_watch import WAL_BYTES_USUAL, ReaderWatch
from tests.postgres import PostgresServer


async def write(database: Database, megabytes: int) -> None:
    for _ in range(megabytes):
        await database.write(lambda c: c.exec_driver_sql("INSERT INTO t VALUES (zeroblob(1048576))"))


async def test_a_reader_of_a_sqlite_file_lets_the_wal_grow(path: Path) -> None:
    """The size shows at once, and the age begins when the file is larger than it ever is without a reader."""
    now = 0.0
    database = Database(f"sqlite:///{path}")
    watch = ReaderWatch(database, lambda: now)
    await database.write(lambda c: c.exec_driver_sql("CREATE TABLE t (b BLOB)"))
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM t").fetchall()
        await write(database, 20)
        assert watch.wal_bytes() > WAL_BYTES_USUAL
        for now in (10.0, 20.0, 30.0):
            await watch.sample()
            assert watch.oldest_snapshot_seconds == now
    await write(database, 5)  # checkpointed now: the file begins anew
    await write(database, 5)
    with closing(sqlite3.connect(path)) as shell:
        shell.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    now = 40.0
    await watch.sample()
    assert watch.oldest_snapshot_seconds == 0
    await database.close()


async def test_a_database_that_is_out_of_reach_keeps_the_last_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader may still be there."""

    async def fails(*_: Any) -> Any:
        raise StorageUnavailable("gone")

    async def found(*_: Any) -> Any:
        return 7.0

    database: Any = SimpleNamespace(dialect=Postgres(), read=found)
    watch = ReaderWatch(database, lambda: 0.0)
    await watch.sample()
    database.read = fails
    await watch.sample()
    assert watch.oldest_snapshot_seconds == 7.0


def test_the_free_share_of_the_disk_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system keeps some blocks for root; without a file there is no share."""
    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(f_blocks=200, f_bavail=30, f_bfree=40))
    database: Any = SimpleNamespace(dialect=SimpleNamespace(wal_path="data/orders.db-wal"))
    assert ReaderWatch(database, lambda: 0.0).disk_free_ratio() == 0.15
    database.dialect.wal_path = None
    assert ReaderWatch(database, lambda: 0.0).disk_free_ratio() is None


async def test_a_reader_of_postgresql_shows_by_its_age(postgres: PostgresServer) -> None:
    """Our own reader, which holds a snapshot for a moment only, does not count."""
    database = Database(postgres.create_database())
    watch = ReaderWatch(database, lambda: 0.0)
    await watch.sample()
    before = watch.oldest_snapshot_seconds
    with psycopg.connect(postgres.url()) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT pg_sleep(0.5)")
        await watch.sample()
        assert watch.oldest_snapshot_seconds > max(0.4, before)
    assert watch.wal_bytes() == 0
    await database.close()
