"""
Find the events about one order in the histories of one database.

A history has no index by event or by order; it has one by moment. An order's timeline has the moments of the transactions of
the module ``orders``. Where that module has a process of its own, the others decide at moments of their own: their inbox has
the moment at which they have processed an event, by its id, for two days. So the search goes from moments to events, from
the ids of the events to further moments, and so on, until it finds nothing new. What was longer ago is looked for between the
first moment and the last, in the transactions next to both.
"""

from __future__ import annotations

__all__ = ["EventSearch", "Found"]

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from attrs import define, field
from sqlalchemy import Connection

from app.storage.archive.history_content import Decided, HistoryEvent, Row, TransactionHistory
from app.storage.archive.history_table import HistoryTable
from app.storage.sql.database import Database
from app.storage.sql.dialect import Dialect
from app.storage.state_rows import to_db_timestamp
from bus.ids import derived_id

ROUNDS_MAX = 16
MOMENTS_MAX = 200
NUMBERS_MAX = 64
"""Transactions that one search reads."""

NEIGHBOURS_MAX = 8
"""Transactions that are read at each end of the time of an order, where nothing else leads to its events."""

Results = Callable[[str], Iterable[str]]
"""Returns, for the id of an event, the ids that answers to it may have, such as the outcome of a charge."""


@define
class Found:
    """Events by their id, decisions by module and the id of the event that was decided about, timers by their id."""

    events: dict[str, HistoryEvent] = field(factory=dict)
    decided: dict[tuple[str, str], Decided] = field(factory=dict)
    timers: dict[str, tuple[Decided, str, str]] = field(factory=dict)
    """Each with the decision that has set it, its subject and when it is due."""
    rows: dict[tuple[str, str, int], Row] = field(factory=dict)
    """What the histories have about the order, by time, module and number, to be imported elsewhere."""
    is_complete: bool = True
    """False if a row refers to one that is not there, or if there was more than one search may read."""


class EventSearch:
    """Searches *histories*, by module, all of them in *database*; *results* lead from requests to their answers."""

    def __init__(self, database: Database, histories: Mapping[str, HistoryTable], results: Results = lambda id: ()) -> None:
        self._histories = dict(histories)
        self._database = database
        self._results = results

    async def find(self, key: str, moments: Collection[datetime], ids: Collection[str]) -> Found:
        """
        Return what is known of the order *key*, from *moments* of its transactions, and *ids* of events that led to others.

        Raises:
            StorageUnavailable: The database is out of reach.
            ValueError: A row is damaged, or was written by a newer release.
        """
        texts = [to_db_timestamp(moment) for moment in sorted(moments)][:MOMENTS_MAX]
        return await self._database.read(lambda connection: self._find(connection, key, texts, list(ids)))

    def _find(self, connection: Connection, key: str, moments: Sequence[str], ids: Sequence[str]) -> Found:
        dialect, found = self._database.dialect, Found()
        run = _Run(connection, dialect, self._tables(connection, dialect), self._results)
        run.add(key, found, moments, ids)
        missing = {*self._histories} - {event.module for event in found.events.values()}
        if missing and moments:
            run.add_neighbours(key, found, min(moments), max(moments), [name for name in self._histories if name in missing])
        return found

    def _tables(self, connection: Connection, dialect: Dialect) -> dict[str, HistoryTable]:
        names = {name.removesuffix("_history") for (name,) in connection.exec_driver_sql(dialect.histories_sql)}
        return self._histories | {name: HistoryTable(name, dialect) for name in sorted(names - {*self._histories})}


class _Run:
    """One search, within one read."""

    def __init__(
        self, connection: Connection, dialect: Dialect, tables: Mapping[str, HistoryTable], results: Results
    ) -> None:
        self._connection = connection
        self._dialect = dialect
        self._tables = tables
        self._results = results
        self._seen_moments: set[str] = set()
        self._seen_ids: set[str] = set()
        self._seen_numbers: set[int] = set()

    def add(self, key: str, found: Found, moments: Sequence[str], ids: Sequence[str]) -> None:
        """Add to *found* what *moments* and *ids* lead to."""
        new_moments, new_ids = {*moments}, {*ids}
        for _ in range(ROUNDS_MAX):
            new_moments |= self._processed_at(new_ids - self._seen_ids)
            self._seen_ids |= new_ids
            numbers = self._numbers(new_moments - self._seen_moments)
            self._seen_moments |= new_moments
            new_moments, new_ids = set(), self._read(key, found, numbers)
            if not new_ids - self._seen_ids:
                return
        found.is_complete = False

    def add_neighbours(self, key: str, found: Found, first: str, last: str, modules: Sequence[str]) -> None:
        """Add to *found* what the transactions of *modules* next to *first* and *last* lead to."""
        numbers: set[int] = set()
        # A module decides after it was asked, and the answer arrives after that: never outside of these by more than clocks differ.
        early, late = (_moved(each, by) for each, by in ((first, -1.0), (last, 1.0)))
        for name in modules:
            table = self._tables[name].name
            for order in "ASC", "DESC":
                sql = f"SELECT number FROM {table} WHERE at >= ? AND at <= ? ORDER BY at {order} LIMIT {NEIGHBOURS_MAX}"
                found_numbers = self._connection.exec_driver_sql(self._dialect.to_driver_sql(sql), (early, late))
                numbers |= {number for (number,) in found_numbers}
        new_ids = self._read(key, found, sorted(numbers))
        if new_ids - self._seen_ids:
            self.add(key, found, (), sorted(new_ids))

    def _processed_at(self, ids: Collection[str]) -> set[str]:
        if not ids:
            return set()
        found: set[str] = set()
        at, marks = self._dialect.timestamp_sql("heard_at"), ", ".join("?" * len(ids))
        for name in self._tables:
            sql = self._dialect.to_driver_sql(f"SELECT {at} FROM {name}_inbox WHERE id IN ({marks})")
            found |= {str(moment) for (moment,) in self._connection.exec_driver_sql(sql, tuple(ids))}
        return found

    def _numbers(self, moments: Collection[str]) -> list[int]:
        if not moments:
            return []
        marks = ", ".join("?" * len(moments))
        found: set[int] = set()
        for table in self._tables.values():
            sql = self._dialect.to_driver_sql(f"SELECT number FROM {table.name} WHERE at IN ({marks})")
            found |= {number for (number,) in self._connection.exec_driver_sql(sql, tuple(moments))}
        return sorted(found)

    def _read(self, key: str, found: Found, numbers: Sequence[int]) -> set[str]:
        """Add to *found* what the transactions *numbers* have about *key*; return the ids that may lead to others."""
        new = [number for number in numbers if number not in self._seen_numbers]
        room = NUMBERS_MAX - len(self._seen_numbers)
        if len(new) > room:
            new, found.is_complete = new[: max(0, room)], False
        if not new:
            return set()
        self._seen_numbers |= {*new}
        rows: dict[tuple[int, str], list[Row]] = {}
        for table in self._tables.values():
            for row in table.rows(self._connection, new):
                # Those of one transaction have one time; a module that was moved here has brought numbers that are in use.
                rows.setdefault((row.number, row.at), []).append(row)
        ids: set[str] = set()
        for _, transaction in sorted(rows.items()):
            history = TransactionHistory(transaction)
            try:
                events, decided = history.about(key)
            except ValueError:  # the row of a producer is gone, or in another database
                found.is_complete = False
                continue
            found.rows |= {(row.at, row.module, row.number): row for row in history.rows_about(key)}
            for event in events:
                found.events[event.event_id] = event
                ids |= {event.event_id, event.cause_id, *self._results(event.event_id)}
            for each in decided:
                found.decided[each.id, each.module] = each
                ids.add(each.id)
                for emitted in each.emitted:
                    if emitted.position is None and emitted.due_at is not None:
                        id = derived_id(each.id, f"{each.module}.{emitted.ordinal}")
                        found.timers[id] = (each, emitted.subject, emitted.due_at)
                        ids |= {id, *self._results(id)}
        return ids


def _moved(moment: str, seconds: float) -> str:
    return to_db_timestamp(datetime.fromisoformat(moment) + timedelta(seconds=seconds))
