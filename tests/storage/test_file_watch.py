"""The files of a SQLite database change under the process: nothing is accepted that would be lost, nothing is ruined."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from app.storage.errors import StorageUnavailable
from app.storage.sql.database import Database
from app.storage.sql.file_watch import FileWatch, open_watched

Change = Callable[[Path], None]


def count(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        [(found,)] = connection.execute("SELECT count(*) FROM t")
        return int(found)


def move_away(path: Path) -> None:
    path.rename(path.with_name("away.db"))


def move_all_away(path: Path) -> None:
    for each in list(path.parent.glob("test.db*")):
        each.rename(each.with_name(each.name.replace("test", "away")))


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"VACUUM INTO '{path.with_name('backup.db')}'")
    path.with_name("backup.db").replace(path)


def replace_with_its_wal(path: Path) -> None:
    """Put a copy there that has a -wal of its own."""
    backup = path.with_name("backup.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"VACUUM INTO '{backup}'")
    with closing(sqlite3.connect(backup, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO t VALUES (99)")
        for suffix in ("", "-wal"):
            shutil.copy(f"{backup}{suffix}", f"{backup}.copy{suffix}")
    move_all_away(path)
    for suffix in ("", "-wal"):
        Path(f"{backup}.copy{suffix}").rename(f"{path}{suffix}")


def delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


def delete_wal(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def delete_shm(path: Path) -> None:
    Path(f"{path}-shm").unlink()


def replace_wal(path: Path) -> None:
    Path(f"{path}-wal").unlink()
    Path(f"{path}-wal").write_bytes(b"")


def delete_side_files(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def delete_lock(path: Path) -> None:
    Path(f"{path}-orders.lock").unlink()


CHANGES = [move_away, move_all_away, delete, replace, replace_with_its_wal, delete_folder, move_folder, delete_wal, delete_shm, replace_wal]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "test.db"


async def database_at(path: Path) -> Database:
    database = Database(f"sqlite:///{path}")
    await database.write(lambda c: c.exec_driver_sql("CREATE TABLE t (n INTEGER)"))
    await insert(database, 1)
    await database.read(lambda c: c.exec_driver_sql("SELECT 1").all())
    return database


async def insert(database: Database, number: int) -> None:
    await database.write(lambda c: c.exec_driver_sql("INSERT INTO t VALUES (?)", (number,)))


@pytest.mark.parametrize("change", CHANGES)
async def test_a_write_is_refused_once_the_files_have_changed(path: Path, change: Change) -> None:
    """The next write fails, and all later ones; the reason is known; no file appears or changes at the old path."""
    database = await database_at(path)
    change(path)
    before = {each.name: each.read_bytes() for each in path.parent.glob("test.db*")} if path.parent.exists() else {}
    for _ in range(3):
        with pytest.raises(StorageUnavailable):
            await insert(database, 2)
        with pytest.raises(StorageUnavailable):
            await database.check()
    assert database.problem
    await database.close()
    after = {each.name: each.read_bytes() for each in path.parent.glob("test.db*")} if path.parent.exists() else {}
    assert after.keys() == before.keys()
    if change not in (delete_wal, delete_shm, replace_wal):
        assert after == before


@pytest.mark.parametrize("change", [delete_wal, delete_shm, replace_wal])
async def test_what_was_committed_before_the_wal_was_deleted_is_saved(path: Path, change: Change) -> None:
    """It is written into the database file while the process still has the -wal open."""
    database = await database_at(path)
    for number in range(2, 10):
        await insert(database, number)
    change(path)
    with pytest.raises(StorageUnavailable):
        await insert(database, 99)
    delete_side_files(path)
    assert count(path) == 9
    await database.close()


@pytest.mark.parametrize("change", [move_away, move_all_away])
async def test_the_work_goes_on_when_the_files_are_moved_back(path: Path, change: Change) -> None:
    """Everything that was accepted is there."""
    database = await database_at(path)
    change(path)
    with pytest.raises(StorageUnavailable):
        await insert(database, 2)
    for each in list(path.parent.glob("away.db*")):
        each.rename(each.with_name(each.name.replace("away", "test")))
    await database.check()
    await insert(database, 3)
    assert database.problem == ""
    assert await database.read(lambda c: c.exec_driver_sql("SELECT n FROM t ORDER BY n").scalars().all()) == [1, 3]
    await database.close()


async def test_a_commit_into_a_file_that_was_just_moved_is_not_reported_as_stored(path: Path) -> None:
    """The file is moved while the transaction runs."""
    database = await database_at(path)

    def work(connection: object) -> None:
        connection.exec_driver_sql("INSERT INTO t VALUES (2)")  # type: ignore[attr-defined]
        move_all_away(path)

    with pytest.raises(StorageUnavailable):
        await database.write(work)
    await database.close()


async def test_other_files_in_the_folder_may_come_and_go(path: Path) -> None:
    """Backups, logs, and a folder that is touched."""
    database = await database_at(path)
    for number in range(5):
        (path.parent / f"backup-{number}.db").write_bytes(b"x")
        await insert(database, number)
        (path.parent / f"backup-{number}.db").unlink()
        os.utime(path.parent, ns=(0, 0))
        await insert(database, number)
    await database.close()


async def test_connections_that_two_threads_open_and_close_are_no_loss(path: Path) -> None:
    """The last connection that is closed deletes the -wal and -shm files, while another thread opens the database."""
    database = await database_at(path)
    await database.close()

    def reconnect() -> None:
        for _ in range(150):
            with database.engine.connect() as connection:
                assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar_one() == 1

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(reconnect) for _ in range(2)]:
            each.result()
    assert database.dialect.lost == ""


def test_a_connection_is_opened_and_closed_by_one_thread_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From before SQLite opens the files until the watch has noted it, and likewise when it closes them."""
    watch, steps = FileWatch(path), list[tuple[str, int]]()

    class Noted:
        held = 0

        def __enter__(self) -> None:
            self.held += 1

        def __exit__(self, *_: object) -> None:
            self.held -= 1

    watch.opening_or_closing = lock = Noted()  # type: ignore[assignment]
    connect, opened, closed = sqlite3.connect, watch.opened, watch.closed

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            steps.append((name, lock.held))
            return call(*arguments, **options)

        return wrapped

    monkeypatch.setattr(sqlite3, "connect", noted("connect", connect))
    monkeypatch.setattr(watch, "opened", noted("opened", opened))
    monkeypatch.setattr(watch, "closed", noted("closed", closed))
    open_watched(path, watch, (), {}).close()
    assert steps == [("connect", 1), ("opened", 1), ("closed", 1)]
    assert lock.held == 0


@pytest.mark.parametrize("change", [move_away, delete, delete_wal])
async def test_a_second_change_at_the_same_moment_is_noticed(path: Path, change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a folder has the resolution of the kernel's clock tick: what happens within one does not change it."""
    monkeypatch.setattr("app.storage.sql.file_watch._FRESH_NS", 3_600 * 10**9)
    database = await database_at(path)
    await insert(database, 2)
    before = path.parent.stat()
    change(path)
    os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StorageUnavailable):
        await insert(database, 3)
    await database.close()


@pytest.fixture
def linked(path: Path, tmp_path: Path) -> Path:
    """A file to which `path` is a link."""
    target = tmp_path / "volume" / "test.db"
    target.parent.mkdir()
    target.touch()
    path.symlink_to(target)
    return target


async def test_a_file_behind_a_link_is_watched(path: Path, linked: Path) -> None:
    """What happens to it changes another folder than that of the link."""
    database = await database_at(path)
    os.utime(path.parent, ns=(0, 0))
    await insert(database, 2)
    move_away(linked)
    with pytest.raises(StorageUnavailable):
        await insert(database, 3)
    await database.close()


async def test_a_deleted_lock_file_stops_the_writes(path: Path) -> None:
    """Another process could serve the database, too."""
    database = await database_at(path)
    claim = database.dialect.acquire_exclusive(database.engine, "orders", 0.1)
    assert claim is not None
    await insert(database, 2)
    delete_lock(path)
    with pytest.raises(StorageUnavailable):
        await insert(database, 3)
    assert "lock file" in database.problem
    await database.close()
    claim.close()


def insert_text(number: int, size: int, connection: Connection) -> None:
    connection.exec_driver_sql("INSERT INTO t VALUES (?, hex(zeroblob(?)))", (number, size))


@pytest.mark.parametrize("change", ["copy a backup over it", "truncate", "empty", "overwrite its head", "copy a fresh backup over it"])
async def test_a_file_that_is_written_over_in_its_place_stops_the_writes(tmp_path: Path, change: str) -> None:
    """It keeps its identity, and SQLite goes on without an error, but the next process could not read it."""
    path = tmp_path / "test.db"
    database = Database(f"sqlite:///{path}")
    await database.write(lambda c: c.exec_driver_sql("CREATE TABLE t (n INTEGER, text TEXT)"))
    backup = tmp_path / "backup.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"VACUUM INTO '{backup}'")
    for number in range(20):
        await database.write(partial(insert_text, number, 900))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        if change == "copy a fresh backup over it":
            backup.unlink()
            connection.execute(f"VACUUM INTO '{backup}'")
    await database.write(lambda c: c.exec_driver_sql("INSERT INTO t VALUES (99, '')"))
    match change:
        case "truncate":
            os.truncate(path, 4096)
        case "empty":
            os.truncate(path, 0)
        case "overwrite its head":
            with path.open("r+b") as file:
                file.write(b"x" * 4096)
        case _:
            path.write_bytes(backup.read_bytes())
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            await database.write(lambda c: c.exec_driver_sql("INSERT INTO t VALUES (100, '')"))
    assert database.problem == "the database file was truncated or written over; stop the process, then restore a backup"
    await database.close()


async def test_a_checkpoint_and_a_backup_by_another_program_are_no_loss(tmp_path: Path) -> None:
    """Also the file's growth, and a long series of commits with checkpoints of its own."""
    path = tmp_path / "test.db"
    database = Database(f"sqlite:///{path}")
    await database.write(lambda c: c.exec_driver_sql("CREATE TABLE t (n INTEGER, text TEXT)"))
    for number in range(60):
        await database.write(partial(insert_text, number, 50_000))
        if number % 20 == 0:
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.execute(f"VACUUM INTO '{tmp_path}/backup-{number}.db'")
                connection.execute("INSERT INTO t VALUES (0, 'by an operator')")
                connection.commit()
    assert await database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM t").scalar()) == 63
    assert database.problem == ""
    await database.close()
