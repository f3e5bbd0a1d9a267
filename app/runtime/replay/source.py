"""
Read the history of one database transaction by transaction, with the rows of all modules that took part.

`ReplaySource` is all that a replay needs of a history; `DatabaseHistory` reads the tables of a database, whether a server
writes to them or not, and what was archived of them.
"""

from __future__ import annotations

__all__ = ["DatabaseHistory", "ReplaySource", "Transaction", "events_of", "rest_of"]

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from attrs import field, frozen
from sqlalchemy import Connection

from app.clock import SystemClock
from app.storage.archive.history_content import ENTRY_LENGTHS, PLAIN, Entry, decoded
from app.storage.archive.history_table import HistoryTable
from app.storage.archive.parquet_archive import Archive, Archives
from app.storage.errors import StorageUnavailable
from app.storage.module_store import ModuleStore
from app.storage.sql.database import Database

FETCHED_MAX = 64
"""Rows of each history that are read at once."""

WRITERS_SECONDS = 5.0
"""How long a reader waits for the transactions that were writing when it began; each takes milliseconds."""

_POLL_SECONDS = 0.005
_LAST = 2**62


@frozen
class Transaction:
    """One transaction of the history."""

    number: int
    at: str
    """When it was decided, as the database stores a time."""
    entries: Mapping[str, Sequence[Entry]]
    """What each module has decided; `app.storage.archive.history_content` describes the entries."""
    damaged: Mapping[str, str] = field(factory=dict)
    """Why the row of a module cannot be read."""


class ReplaySource(Protocol):
    """The history of one database, archived or not."""

    modules: Collection[str]
    """The modules whose decisions are wanted; rows of others are there because theirs refer to them."""

    def last_finished(self) -> int:
        """
        Return the largest number up to which no transaction is unfinished.

        Raises:
            StorageUnavailable: A transaction does not end.
        """

    def transactions(self, after: int, until: int, snapshot: Connection | None = None) -> Iterator[Transaction]:
        """
        Yield the transactions that follow number *after*, up to number *until*, in their order.

        Read within *snapshot*, an open transaction of the database; without one, each part is read in one of its own.
        """


class DatabaseHistory:
    """The histories of *modules*, and of what else *database* has, to which their rows refer."""

    def __init__(
        self,
        database: Database,
        stores: Mapping[str, ModuleStore],
        now: Callable[[], datetime] = SystemClock().now,
        archive: Archive | None = None,
    ) -> None:
        """
        Read the histories of the modules that have *stores* in *database*; what *archive* has is read there.

        Rows that are too old at *now* are not read.

        Raises:
            ArchiveUnusable: The archive cannot be read.
        """
        self.modules = frozenset(stores)
        self.archive = archive
        self._archives = Archives({}, ()) if archive is None else archive.archives()
        self.database = database
        dialect = database.dialect
        self._now = now
        with self.database.engine.execution_options(reading=True).connect() as connection, connection.begin():
            names = {name.removesuffix("_history") for (name,) in connection.exec_driver_sql(dialect.histories_sql)}
        tables = {name: store.history for name, store in stores.items()}
        self._tables = tables | {name: HistoryTable(name, dialect) for name in sorted(names - self.modules)}
        self._union = " UNION ALL ".join(f"SELECT max(number) AS last FROM {table.name}" for table in self._tables.values())

    def first_shown(self, connection: Connection) -> tuple[int, str] | None:
        """Return the number and the time of the first transaction that is read; None while there is none."""
        now, first = self._now(), []
        for name, table in self._tables.items():
            archived = self._archives.of(name)
            first += [*table.numbers(connection, archived.through + 1, _LAST, 1, now)]
            first += [] if archived.first_number is None else [archived.first_number]
        if not first:
            return None
        number = min(first)
        return number, next(at for name in self._tables for _, at, _ in self._stored(connection, name, number - 1, number))

    def count(self) -> int:
        """Return about how many transactions are read."""
        with self.database.engine.execution_options(reading=True).connect() as connection, connection.begin():
            first = self.first_shown(connection)
            return 0 if first is None else self.largest(connection) - first[0] + 1

    def largest(self, connection: Connection) -> int:
        """Return the largest number that *connection* sees; 0 while there is none."""
        number: int = connection.exec_driver_sql(f"SELECT coalesce(max(last), 0) FROM ({self._union}) AS found").scalar_one()
        return number

    def last_finished(self) -> int:
        writers_sql = self.database.dialect.writers_sql([table.name for table in self._tables.values()])
        with self.database.engine.execution_options(reading=True).connect() as connection:
            with connection.begin():
                number = self.largest(connection)
            if writers_sql is None:
                return number

            def writing() -> set[str]:
                with connection.begin():
                    return {name for (name,) in connection.exec_driver_sql(writers_sql)}

            writers, until = writing(), time.monotonic() + WRITERS_SECONDS
            while writers:
                if time.monotonic() > until:
                    raise StorageUnavailable("The history is being written to by a transaction that does not end.")
                time.sleep(_POLL_SECONDS)
                writers &= writing()
        return number

    def transactions(self, after: int, until: int, snapshot: Connection | None = None) -> Iterator[Transaction]:
        if snapshot is not None:
            yield from self._pages(lambda after: self._fetch(snapshot, after, until), after)
            return
        with self.database.engine.execution_options(reading=True).connect() as connection:

            def fetch(after: int) -> tuple[list[Transaction], int | None]:
                with connection.begin():
                    return self._fetch(connection, after, until)

            yield from self._pages(fetch, after)

    def _pages(
        self, fetch: Callable[[int], tuple[list[Transaction], int | None]], after: int | None
    ) -> Iterator[Transaction]:
        while after is not None:
            found, after = fetch(after)
            yield from found

    def _stored(self, connection: Connection, name: str, after: int, until: int) -> list[tuple[int, str, bytes]]:
        """Return the next rows of the history *name*: number, time and content."""
        archived, found = self._archives.of(name), []
        if self.archive is not None and after < archived.through:
            numbers = self.archive.sizes(archived, after + 1, min(until, archived.through), FETCHED_MAX)
            rows = sorted(self.archive.rows(archived, numbers), key=lambda row: row[0])
            found = [(number, at, PLAIN + content) for number, at, content in rows]
        after = max(after, archived.through)
        if len(found) < FETCHED_MAX and after < until:
            found += self._tables[name].stored(connection, after, until, FETCHED_MAX - len(found))
        return found

    def _fetch(self, connection: Connection, after: int, until: int) -> tuple[list[Transaction], int | None]:
        """Return the next transactions, and the number to go on after; None at the end."""
        found = self._fetch_once(connection, after, until)
        # What is archived meanwhile may be deleted from the tables; then it is read again, from the archive.
        while self.archive is not None and not self.archive.is_current(self._archives):
            self._archives = self.archive.archives()
            found = self._fetch_once(connection, after, until)
        return found

    def _fetch_once(self, connection: Connection, after: int, until: int) -> tuple[list[Transaction], int | None]:
        rows: list[tuple[int, str, str, bytes]] = []
        end = until
        for name in self._tables:
            found = self._stored(connection, name, after, until)
            rows += [(number, at, name, content) for number, at, content in found]
            if len(found) == FETCHED_MAX:
                end = min(end, found[-1][0])
        # Those of one transaction have one time; a module that was moved here has brought numbers that are in use.
        grouped: dict[tuple[int, str], list[tuple[str, bytes]]] = {}
        for number, at, name, content in sorted(rows, key=lambda row: row[:2]):
            if number <= end:
                grouped.setdefault((number, at), []).append((name, content))
        transactions = [
            _transaction(number, at, contents)
            for (number, at), contents in grouped.items()
            if any(name in self.modules for name, _ in contents)
        ]
        return transactions, end if end < until else None


def _transaction(number: int, at: str, contents: Sequence[tuple[str, bytes]]) -> Transaction:
    entries: dict[str, Sequence[Entry]] = {}
    damaged: dict[str, str] = {}
    for name, content in contents:
        try:
            entries[name] = decoded(content)
        except ValueError as error:
            damaged[name] = str(error)
    return Transaction(number, at, entries, damaged)


def events_of(entry: Entry) -> Sequence[Any]:
    """Return the events and timers that *entry*, a decision, has emitted."""
    length = ENTRY_LENGTHS[entry[0]]
    return entry[length + 2] if len(entry) == length + 3 else ()


def rest_of(entry: Entry) -> Sequence[Any]:
    """Return what stands in *entry*, a decision, after what it was about."""
    return entry[ENTRY_LENGTHS[entry[0]] :]
