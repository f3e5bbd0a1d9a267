"""
Watch the files of a SQLite database: a process keeps the files that it has opened, whatever happens to their names.

When the file is moved away or replaced, SQLite writes on into the old one, unnoticed. When the file beside it with the
latest commits (``-wal``) is deleted, these commits are gone with the process. So each transaction verifies, before it
begins and once it is committed, that the names still mean the same files (device and inode).

A file that is written over in its place keeps its identity: a backup that is copied onto it, a truncation. SQLite goes on
with what it has in memory and in the ``-wal``, and what is left on the disk cannot be read by the next process. The database
file of a running server never becomes smaller, begins with the same text, and its change counter never goes back.
"""

from __future__ import annotations

__all__ = ["FileWatch", "WatchedConnection", "create_private", "open_watched"]

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_Identity = tuple[int, int]

_SIDE_FILES = ("-wal", "-shm")
_FRESH_NS = 1_000_000_000
"""A folder that was changed within this time may change once more without a new time stamp."""

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 28
"""The text, and up to the change counter: https://sqlite.org/fileformat.html, section 1.3."""


class FileWatch:
    """The identity of the database file at *path* and of the files beside it."""

    def __init__(self, path: Path) -> None:
        self.lost = ""
        """What has happened to the files; empty while all is well. Without them nothing may be opened or closed."""
        self.opening_or_closing = threading.RLock()
        """
        Held while a connection is opened or closed. SQLite deletes the files beside the database when the last connection is
        closed; a connection that another thread opens at this moment must find the old files or none.
        """
        self._path = str(path)
        self._folder = str(path.parent)
        self._known: dict[str, _Identity] = {}
        self._open = 0
        self._is_side_file_lost = False
        self._seen: tuple[int, ...] | None = None
        self._file: int | None = None
        """The database file, open for its header. To close it would give up SQLite's locks on it, so only the end of this does."""
        self._size = self._counter = 0

    @property
    def is_known(self) -> bool:
        """True once the file was opened: from then on it must not be created again."""
        return self._path in self._known

    @property
    def path(self) -> str:
        """The path of the database file."""
        return self._path

    def opened(self) -> None:
        """Note that a connection was opened. Call it, and `closed`, while `opening_or_closing` is held."""
        self._open += 1
        self._known.setdefault(self._path, _identity(os.stat(self._path)))
        if self._file is None:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._file)
        self._seen = None

    def closed(self) -> None:
        """Note that a connection was closed; the last one has deleted the files beside the database, the next makes new ones."""
        self._open = max(0, self._open - 1)
        if self._open == 0:
            for suffix in _SIDE_FILES:
                self._known.pop(self._path + suffix, None)
        self._seen = None

    def add(self, path: str) -> None:
        """Watch the file at *path*, too."""
        self._known[path] = _identity(os.stat(path))
        self._seen = None

    def verify(self, driver: sqlite3.Connection | None = None) -> None:
        """
        Ensure that every name still means the same file, and the database file is not written over. Costs a look at the
        folder and at the file unless one of them has changed.

        Committed pages in a deleted ``-wal`` are saved through *driver*, which has it open.

        Raises:
            sqlite3.OperationalError: A file was moved, deleted, replaced or written over.
        """
        try:
            folder = os.stat(self._folder)
            file = None if self._file is None else os.fstat(self._file)
        except OSError:
            self._lose("the folder of the database file is gone")
        seen = (folder.st_dev, folder.st_ino, folder.st_mtime_ns, *((file.st_mtime_ns, file.st_size) if file else ()))
        if seen == self._seen:
            return
        self._verify_each(driver)
        if file is not None:
            self._verify_content(file.st_size)
        self.lost = ""
        is_settled = time.time_ns() - folder.st_mtime_ns > _FRESH_NS and not os.path.islink(self._path)
        self._seen = seen if is_settled else None

    def _verify_each(self, driver: sqlite3.Connection | None) -> None:
        main = _identity_at(self._path)
        if self.is_known and main != self._known[self._path]:
            self._lose("the database file was moved away or deleted" if main is None else "the database file was replaced")
        for path in (self._path + suffix for suffix in _SIDE_FILES):
            found = _identity_at(path)
            if path not in self._known:
                if found is not None and self._open:  # until then another process may delete them
                    self._known[path] = found
            elif found != self._known[path]:
                if driver is not None and not self._is_side_file_lost:
                    driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                self._is_side_file_lost = True
        for path, identity in list(self._known.items()):  # another thread may open or close a connection
            if not path.startswith(self._path + "-") or path.endswith(_SIDE_FILES):
                continue
            if _identity_at(path) != identity:
                self._lose("a lock file of the database was deleted or replaced: another process may serve it, too")
        if self._is_side_file_lost:
            self._lose("the -wal or -shm file of the database was deleted or replaced; restart the process")

    def _verify_content(self, size: int) -> None:
        assert self._file is not None
        header = os.pread(self._file, _HEADER_BYTES, 0)
        counter = int.from_bytes(header[24:])
        is_new = not (size or self._size)
        if not is_new and (size < self._size or not header.startswith(_MAGIC) or counter < self._counter):
            self._lose("the database file was truncated or written over; stop the process, then restore a backup")
        self._size, self._counter = size, counter

    def _lose(self, reason: str) -> None:
        self.lost = reason
        self._seen = None
        raise sqlite3.OperationalError(reason)


class WatchedConnection(sqlite3.Connection):
    """A connection that reports its end to a `FileWatch`."""

    watch: FileWatch

    def close(self) -> None:
        """Close it; the watch takes note."""
        with self.watch.opening_or_closing:
            super().close()
            self.watch.closed()


def open_watched(path: Path, watch: FileWatch, pragmas: Sequence[str], options: dict[str, Any]) -> WatchedConnection:
    """
    Connect to the SQLite file at *path*, in the driver's autocommit mode, and execute *pragmas*.

    The file is created, readable by its owner only, unless *watch* has seen it before. *options* go to `sqlite3.connect`.

    Raises:
        sqlite3.Error: The file is not what it was (see `FileWatch.verify`), or SQLite cannot open it.
    """
    with watch.opening_or_closing:
        if watch.is_known:
            watch.verify()
        else:
            create_private(path)
        uri = f"{path.absolute().as_uri()}?mode=rw"
        options = {**options, "uri": True, "factory": WatchedConnection}
        connection: WatchedConnection = sqlite3.connect(uri, **options)
        connection.watch = watch
        try:
            connection.isolation_level = None  # the driver must not begin transactions by itself
            for pragma in pragmas:
                connection.execute(pragma)
        except sqlite3.Error:
            sqlite3.Connection.close(connection)
            raise
        watch.opened()
    return connection


def create_private(path: str | os.PathLike[str]) -> None:
    """
    Create the file at *path* so that only its owner can read it, unless it exists.

    SQLite gives the files beside a database (WAL, shared memory, journal) the mode of the database. A path that cannot be
    used is left to SQLite, whose error gives the reason.
    """
    with suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _identity(stat: os.stat_result) -> _Identity:
    return stat.st_dev, stat.st_ino


def _identity_at(path: str) -> _Identity | None:
    try:
        return _identity(os.stat(path))
    except OSError:
        return None
