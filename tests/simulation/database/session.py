"""One connection to a simulated database server: statements of several transactions that overlap, over one SQLite file."""

from __future__ import annotations

__all__ = ["FOR_UPDATE", "SKIP_LOCKED", "Cursor", "Session"]

import re
import sqlite3
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tests.simulation.database.errors import Disconnected, Row
from tests.simulation.world.scope import Scope

if TYPE_CHECKING:
    from tests.simulation.database.server import DatabaseServer

FOR_UPDATE, SKIP_LOCKED = " /* for update */", " /* skip locked */"
_LOCKING = re.compile(r"(.*\bFROM (\w+)\s+WHERE )(.*?)((?:\s+ORDER BY [^)]*?)?(?:\s+LIMIT [^)]*?)?) /\* (for update|skip locked) \*/(.*)", re.DOTALL)


class Cursor(sqlite3.Cursor):
    """A cursor that takes all rows of a statement at once: the file may belong to another transaction later."""

    _rows: Iterator[Any] = iter(())

    def execute(self, sql: str, parameters: Any = ()) -> Cursor:
        return self._call(lambda text: sqlite3.Cursor.execute(self, text, parameters), sql)

    def executemany(self, sql: str, parameters: Any) -> Cursor:
        return self._call(lambda text: sqlite3.Cursor.executemany(self, text, parameters), sql)

    def _call(self, call: Callable[[str], Any], sql: str) -> Cursor:
        session: Session = self.connection  # type: ignore[assignment]

        def run() -> list[Any]:
            call(session.with_locks(sql))
            return sqlite3.Cursor.fetchall(self)

        self._rows = iter(session.execute_statement(run))
        return self

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._rows

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        return [row for row, _ in zip(self._rows, range(size or 1), strict=False)]

    def fetchall(self) -> list[Any]:
        return list(self._rows)


class Session(sqlite3.Connection):
    """
    A connection of the process *scope* to *server*.

    What its transaction has written is in the file while no other transaction needs the file, and in *images* otherwise.
    """

    server: DatabaseServer
    scope: Scope
    is_reading = False
    has_ended = False
    transaction: Any = None
    """What is under way; see `tests.simulation.database.server.Transaction`."""
    last_transaction = 0
    last_number = 0
    waits_for: Session | None = None

    def prepare(self, server: DatabaseServer, scope: Scope) -> None:
        """Belong to *scope*; notice which rows each statement writes or locks."""
        self.server, self.scope = server, scope
        self._images: dict[Row, Any] = {}
        self.seen: list[tuple[Row, bool]] = []
        """The rows that the statement locks, and whether it writes them."""
        self.create_function("lock_row", 2, lambda table, key: self._see(table, key, is_written=False))
        self.create_function("wrote_row", 2, lambda table, key: self._see(table, key, is_written=True))
        self.create_function("lock_if_free", 2, self._lock_if_free)
        for table, key in server.keys.items():
            for event, row in ("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD"):
                self.physically(
                    f"CREATE TEMP TRIGGER {table}_{event} AFTER {event} ON main.{table} BEGIN SELECT wrote_row('{table}', {row}.{key}); END"
                )

    def _see(self, table: str, key: Any, *, is_written: bool) -> int:
        self.seen.append(((table, key), is_written))
        return 1

    def _lock_if_free(self, table: str, key: Any) -> int:
        if not self.server.locks.is_free((table, key), self):
            self.server.saw("skips a locked row")
            return 0
        return self._see(table, key, is_written=False)

    def with_locks(self, sql: str) -> str:
        """Return *sql*, which locks the rows that it selects ``FOR UPDATE``."""
        if "/* " not in sql:
            return sql
        head, table, condition, rest, kind, tail = _parts(sql)
        function = "lock_row" if kind == "for update" else "lock_if_free"
        return f"{head}({condition}) AND {function}('{table}', {table}.{self.server.keys[table]}){rest}{tail}"

    # As the driver is called

    def cursor(self, factory: Any = Cursor) -> Any:
        return super().cursor(factory)

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        return self.cursor().execute(sql, parameters)

    def begin(self, *, is_reading: bool) -> None:
        """Begin a transaction, which waits for nothing."""
        self.is_reading = is_reading
        self.server.begin(self)

    def commit(self) -> None:
        self.server.commit(self)

    def rollback(self) -> None:
        if self.transaction is not None and not self.scope.is_killed:
            self.server.roll_back(self)

    def close(self) -> None:
        """End the session at the server; if the process was killed, the server notices that later."""
        if not self.scope.is_killed:
            self.server.end(self)
            self.close_file()

    def execute_statement(self, run: Callable[[], Any]) -> Any:
        """Return what *run* returns, which executes one statement."""
        if self.transaction is None:
            if self.has_ended:
                raise Disconnected("the connection is closed")
            return run()
        return self.server.execute(self, run)

    # The file

    def physically(self, sql: str, parameters: Any = ()) -> Any:
        """Execute *sql* on the file at once."""
        return sqlite3.Cursor.execute(super().cursor(), sql, parameters)

    def enter(self) -> None:
        """Put what the transaction has written into the file, in a transaction of the file."""
        self.physically("BEGIN IMMEDIATE")
        for (table, key), image in self._images.items():
            self._take_out(table, key)
            if image is not None:
                self._put(table, image)

    def leave(self) -> None:
        """Take what the transaction has written out of the file."""
        for table, key in self.transaction.written:
            self._images[table, key] = self._image(table, key)
        self.physically("ROLLBACK")

    def attempt(self, run: Callable[[], Any], candidates: Collection[Row] | None) -> tuple[Any, list[Row], Exception | None]:
        """
        Execute a statement with *run*, of which `keep` or `take_back` decides.

        Return what it has found, the rows that it locks, in their order, and its error. Of the rows of other transactions it sees only
        *candidates*, if they are given: it has begun before the others were committed.
        """
        self.physically("SAVEPOINT statement")
        found, error = self._run(run)
        if later := {row for row, _ in self.seen if candidates is not None and row not in candidates}:
            self.take_back()
            self.physically("SAVEPOINT statement")
            images = {(table, key): self._take_out(table, key) for table, key in later}
            found, error = self._run(run)
            seen = list(self.seen)
            for (table, _), image in images.items():
                if image is not None:  # None for one that the statement inserts
                    self._put(table, image)
            self.seen = seen
        return found, [row for row, _ in self.seen], error

    def _run(self, run: Callable[[], Any]) -> tuple[Any, Exception | None]:
        self.seen.clear()
        try:
            return run(), None
        except Exception as error:
            return None, error

    def keep(self) -> None:
        """Note that the statement has had its effect."""
        self.physically("RELEASE statement")
        self.transaction.written |= dict.fromkeys(row for row, is_written in self.seen if is_written)

    def take_back(self) -> None:
        """Undo the statement."""
        self.physically("ROLLBACK TO statement")
        self.physically("RELEASE statement")

    def _image(self, table: str, key: Any) -> Any:
        return self.physically(f"SELECT * FROM {table} WHERE {self.server.keys[table]} = ?", (key,)).fetchone()

    def _take_out(self, table: str, key: Any) -> Any:
        image = self._image(table, key)
        self.physically(f"DELETE FROM {table} WHERE {self.server.keys[table]} = ?", (key,))
        return image

    def _put(self, table: str, image: Any) -> None:
        self.physically(f"INSERT INTO {table} VALUES ({', '.join('?' * len(image))})", image)

    def forget(self) -> None:
        """Note that the transaction is over."""
        self._images.clear()

    def close_file(self) -> None:
        """Close the file."""
        super().close()


@lru_cache(4096)
def _parts(sql: str) -> tuple[str, ...]:
    """Return *sql* up to the condition of the select that locks rows, its table, its condition, its order, how it locks, and the rest."""
    found = _LOCKING.fullmatch(sql)
    assert found is not None, f"the rows of this statement cannot be locked: {sql}"
    return found.groups()
