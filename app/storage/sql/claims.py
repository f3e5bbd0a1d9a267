"""The exclusive right to serve modules from a database: a lock file beside a SQLite file, an advisory lock of PostgreSQL."""

from __future__ import annotations

__all__ = ["AdvisoryLock", "FileLock"]

import sqlite3
import time
from contextlib import suppress

from sqlalchemy import Connection, Engine

from app.storage.errors import DatabaseConfigError

_POLL_SECONDS = 0.05


class FileLock:
    """The lock of the empty database file at *path*; it ends with the process, however that ends."""

    def __init__(self, path: str, name: str, seconds: float) -> None:
        self._lock = sqlite3.connect(path, timeout=seconds, isolation_level=None, check_same_thread=False)
        try:
            self._lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._lock.close()
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            raise DatabaseConfigError(f"another process serves {name} from this file") from None

    def renew(self) -> bool:
        """True: only the process itself gives it up. A lock file that is replaced stops all writes."""
        return True

    def close(self) -> None:
        """Give it up."""
        self._lock.close()


class AdvisoryLock:
    """The advisory lock *number* of a session of its own; it ends with the connection, however that ends."""

    def __init__(self, engine: Engine, name: str, number: int, seconds: float) -> None:
        self._engine = engine
        self._number = number
        until = time.monotonic() + seconds
        while (connection := self._try()) is None:
            if time.monotonic() >= until:
                raise DatabaseConfigError(f"another process serves {name} from this database")
            time.sleep(_POLL_SECONDS)
        self._connection = connection

    def renew(self) -> bool:
        """
        Return whether the lock is held: it is acquired again where its session has ended, and no other process has it.

        Raises:
            Exception: The server is out of reach; whether it will be held again is unknown.
        """
        try:
            self._connection.exec_driver_sql("SELECT 1")
            self._connection.commit()
            return True
        except Exception:  # SQLAlchemy's, or the driver's own if the transaction cannot begin
            self.close()
        connection = self._try()
        if connection is None:
            return False
        self._connection = connection
        return True

    def close(self) -> None:
        """Give it up."""
        with suppress(Exception):  # the session may have ended
            self._connection.close()

    def _try(self) -> Connection | None:
        """Return a session that has the lock, or None if another one has it."""
        connection = self._engine.connect()
        try:
            is_held = connection.exec_driver_sql("SELECT pg_try_advisory_lock(%s)", (self._number,)).scalar()
            connection.commit()  # the lock belongs to the session, not to the transaction
        except BaseException:
            connection.close()
            raise
        if is_held:
            return connection
        connection.close()
        return None
