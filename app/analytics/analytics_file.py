"""
The DuckDB file: the tables of the events, how far each source is read, and the events that no version reads.

One process writes it. What that process has read, and how far it is, are committed in one transaction: after a crash at any
point the file has an event exactly if the position of its source is beyond it. Batches that follow each other at once share a
transaction: what fills a block of 122,880 rows is then written into the file compressed, and not into the log first.

An event that comes again, from this source or another one, is recognised by its id. Ids begin with a time, and DuckDB knows the range
of each block of rows; so the check reads the blocks of about the same time only, however large the table is.
"""

from __future__ import annotations

__all__ = ["FORMAT", "AnalyticsFile", "Position", "Taken"]

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from attrs import define, frozen

from app.analytics.connection import connect, unusable
from app.analytics.errors import FileUnusable
from app.analytics.event_tables import EventTable, damaged_sql, event_tables, insert_sql, quoted
from app.analytics.events import SCHEMA, EventConverter, Incoming, Unreadable
from bus.contracts.registry import ContractRegistry
from bus.subjects import EXPRESS

FORMAT = 1
"""The number of the layout of `_TABLES`; a file with a larger one is of a newer release."""

_IDS = ("event_id", "cause_id", "correlation_id", "entity_key")
"""
Columns that are compressed with Zstandard, as UUIDs in the data are. DuckDB would look for repeated texts in them, and finds none:
the file is written in half of the time, is a quarter smaller, and is read as fast.
"""

_REFUSED = SCHEMA.append(pa.field("reason", pa.string()))

_TABLES = """
CREATE TABLE IF NOT EXISTS analytics_format (format INTEGER NOT NULL, file_id VARCHAR NOT NULL);
CREATE TABLE IF NOT EXISTS analytics_gaps (
    source VARCHAR NOT NULL, first BIGINT NOT NULL, last BIGINT NOT NULL, noted_at TIMESTAMPTZ NOT NULL
);
CREATE TABLE IF NOT EXISTS analytics_sources (
    source VARCHAR PRIMARY KEY, position BIGINT NOT NULL, last_event_id VARCHAR NOT NULL, details VARCHAR NOT NULL,
    read_at TIMESTAMPTZ NOT NULL
);
CREATE TABLE IF NOT EXISTS unreadable_events (
    event_id VARCHAR, cause_id VARCHAR, correlation_id VARCHAR, entity_key VARCHAR, module VARCHAR, subject VARCHAR, seq BIGINT,
    occurred_at VARCHAR, data VARCHAR, reason VARCHAR
);
"""


@frozen
class Position:
    """How far a source is read."""

    source: str
    position: int
    """The number of the last event that was read, in the source's own order."""
    last_event_id: str = ""
    """Its id, by which a source that was replaced is recognised."""
    details: str = ""
    """What else the source has to know when it goes on."""


@frozen
class Taken:
    """What became of the events of one call of `AnalyticsFile.take`."""

    stored: Mapping[str, int]
    """The new events by table."""
    unreadable: Sequence[tuple[str, str]]
    """Subject and reason of the events that were kept as unreadable."""

    @property
    def count(self) -> int:
        """The number of new events."""
        return sum(self.stored.values())


@define
class _Rows:
    """
    What a view of the connection shows: *table*, which changes.

    A table that is registered within a transaction stays in memory until its end, so these are registered before it begins.
    """

    table: pa.Table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


class AnalyticsFile:
    """The open file. Its methods run in one thread at a time; queries have a connection each."""

    def __init__(self, path: Path | None, contracts: ContractRegistry, *, memory: str = "1GB", from_zero: bool = False) -> None:
        """
        Open the file at *path*, or a database in memory, and bring its tables up to date; with *from_zero*, empty it first.

        *memory* is the largest amount that DuckDB uses, in its own words (``1GB``); what needs more goes to the folder
        ``<path>.tmp``.

        Raises:
            FileInUse: Another process writes it.
            FileUnusable: It is damaged, of a newer release, or cannot be written.
        """
        self.path = path
        self.tables = event_tables(contracts)
        self._by_subject = {subject: table for table in self.tables for subject in (table.subject, table.subject + EXPRESS)}
        self._converter = EventConverter(contracts, self.tables)
        self.connection = connect(path, memory)
        self._has_begun = False
        """Whether a transaction is open."""
        self._views = {"incoming": _Rows(SCHEMA.empty_table()), "refused": _Rows(_REFUSED.empty_table())}
        self.id = ""
        """What distinguishes this file from others."""
        try:
            if from_zero:
                self._empty()
            self._prepare()
            self._take_again()
        except duckdb.Error as error:
            self.connection.close()
            raise unusable(path, error) from error
        except FileUnusable:
            self.connection.close()
            raise

    def close(self) -> None:
        """Write what is in the log into the file, and close it."""
        self.connection.close()

    def positions(self) -> dict[str, Position]:
        """Return how far each source is read, by its name."""
        rows = self.connection.execute("SELECT source, position, last_event_id, details FROM analytics_sources").fetchall()
        return {row[0]: Position(*row) for row in rows}

    def take(
        self,
        events: Incoming,
        position: Position | None = None,
        *,
        unreadable: Iterable[Mapping[str, Any]] = (),
        gap: tuple[int, int] | None = None,
        is_followed: bool = False,
    ) -> Taken:
        """
        Store those of *events* that the file does not have yet, and *position*, in one transaction.

        What is already known to be *unreadable* has the columns of `SCHEMA` and ``reason``; *gap* is what the source has deleted
        unread. With *is_followed* the transaction stays open: the next call goes on with it.

        Raises:
            FileUnusable: The file cannot be written; nothing of the transaction is stored.
        """
        try:
            taken = self._take(events, position, unreadable, gap)
        except duckdb.Error as error:
            raise unusable(self.path, error) from error
        if not is_followed:
            self.commit()
        return taken

    def commit(self) -> None:
        """
        Commit what was taken, if a transaction is open.

        Raises:
            FileUnusable: The file cannot be written; nothing of the transaction is stored.
        """
        if self._has_begun:
            try:
                self.connection.execute("COMMIT")
            except duckdb.Error as error:
                self._roll_back()
                raise unusable(self.path, error) from error
            self._end()

    def _begin(self) -> None:
        if not self._has_begun:
            for name, view in self._views.items():
                self.connection.register(name, view)
            self.connection.execute("BEGIN")
            self._has_begun = True

    def _roll_back(self) -> None:
        with suppress(duckdb.Error):  # after some errors there is no transaction any more
            self.connection.execute("ROLLBACK")
        self._end()

    def _end(self) -> None:
        self._has_begun = False
        with suppress(duckdb.Error):  # the file is closed after a fatal error
            for name in self._views:
                self.connection.unregister(name)

    def _take(
        self, events: Incoming, position: Position | None, known: Iterable[Mapping[str, Any]], gap: tuple[int, int] | None
    ) -> Taken:
        by_subject, found = self._newest(events)
        unreadable = [*map(dict, known), *found]
        stored: Counter[str] = Counter()
        connection = self.connection
        self._begin()
        try:
            for table in self.tables:
                if parts := [part for lane in ("", EXPRESS) for part in by_subject.get(table.subject + lane, ())]:
                    stored[table.name], damaged = self._insert(table, pa.concat_tables(parts))
                    unreadable += damaged
            if unreadable:
                self._keep(unreadable)
            if position is not None:
                values = [position.source, position.position, position.last_event_id, position.details]
                connection.execute("INSERT OR REPLACE INTO analytics_sources VALUES (?, ?, ?, ?, now())", values)
            if position is not None and gap is not None:
                connection.execute("INSERT INTO analytics_gaps VALUES (?, ?, ?, now())", [position.source, *gap])
        except BaseException:  # also a KeyboardInterrupt: half of a batch must not be committed
            self._roll_back()
            raise
        return Taken(dict(stored), [(each["subject"], each["reason"]) for each in unreadable])

    def _newest(self, events: Incoming) -> tuple[dict[str, list[pa.Table]], list[dict[str, Any]]]:
        """Return *events* in their newest versions by subject, and apart from them those that no version reads."""
        newest: dict[str, list[pa.Table]] = {}
        converted: dict[str, list[dict[str, Any]]] = {}
        unreadable = []
        for subject, table in events.by_subject.items():
            if subject in self._converter.newest:
                newest[subject] = [table]
                continue
            for row in table.to_pylist():
                try:
                    changed, data = self._converter.converted(subject, row["data"])
                    converted.setdefault(changed, []).append({**row, "subject": changed, "data": data})
                except Unreadable as error:
                    unreadable.append({**row, "reason": str(error)})
        for subject, rows in converted.items():
            newest.setdefault(subject, []).append(pa.Table.from_pylist(rows, SCHEMA))
        return newest, unreadable

    def _insert(self, table: EventTable, rows: pa.Table) -> tuple[int, list[dict[str, Any]]]:
        """Insert *rows*, all of them events of *table*; return how many are new, and those that the columns do not take."""
        connection = self.connection
        bounds = pc.min_max(rows["event_id"]).as_py()
        self._views["incoming"].table = rows
        count: int = connection.execute(insert_sql(table), [bounds["min"], bounds["max"]]).fetchall()[0][0]
        if count == rows.num_rows:
            return count, []
        damaged = [dict(zip(SCHEMA.names, row, strict=True)) for row in connection.execute(damaged_sql(table)).fetchall()]
        return count, [{**row, "reason": self._converter.violation(row["subject"], row["data"])} for row in damaged]

    def _keep(self, unreadable: Sequence[dict[str, Any]]) -> None:
        self._views["refused"].table = pa.Table.from_pylist(list(unreadable), _REFUSED)
        same = "SELECT 1 FROM unreadable_events AS old WHERE (old.event_id, old.subject) = (refused.event_id, refused.subject)"
        once = f"SELECT DISTINCT ON (event_id, subject) * FROM refused WHERE NOT EXISTS ({same})"
        self.connection.execute(f"INSERT INTO unreadable_events {once}")

    def _take_again(self) -> None:
        """Take the events that an older release has kept as unreadable and this one reads; a repetition changes nothing."""
        columns = ", ".join(SCHEMA.names)
        found = self.connection.execute(f"SELECT {columns} FROM unreadable_events").fetchall()
        rows = [row for row in (dict(zip(SCHEMA.names, values, strict=True)) for values in found) if self._converter.reads(row)]
        if rows:
            self._take(Incoming.of(pa.Table.from_pylist(rows, SCHEMA)), None, (), None)
            self.commit()
            for row in rows:
                table = self._by_subject[self._converter.converted(row["subject"], row["data"])[0]]
                # Its columns may not take what the schema permits: then the event stays here.
                is_stored = f"EXISTS (SELECT 1 FROM {table.name} AS stored WHERE stored.event_id = unreadable_events.event_id)"
                key = [row["event_id"], row["subject"]]
                self.connection.execute(f"DELETE FROM unreadable_events WHERE event_id = ? AND subject = ? AND {is_stored}", key)

    def _empty(self) -> None:
        """Drop everything, positions and rows in one transaction: the file is then as if it was new."""
        self.connection.execute("BEGIN")
        for kind, drop in (("VIEW", "DROP VIEW"), ("BASE TABLE", "DROP TABLE")):
            names = self.connection.execute("SELECT table_name FROM information_schema.tables WHERE table_type = ?", [kind])
            for (name,) in names.fetchall():
                self.connection.execute(f"{drop} {quoted(name)}")
        self.connection.execute("COMMIT")
        self.connection.execute("CHECKPOINT")

    def _prepare(self) -> None:
        """Create what is missing: tables, and columns that a schema has gained."""
        connection = self.connection
        connection.execute("BEGIN")
        connection.execute(_TABLES)
        if not (rows := connection.execute("SELECT format, file_id FROM analytics_format").fetchall()):
            connection.execute("INSERT INTO analytics_format VALUES (?, ?)", row := (FORMAT, token_hex(4)))
            rows = [row]
        format, self.id = rows[0]
        if format > FORMAT:
            raise FileUnusable(
                f"{self.path}: was written by a newer release (format {format}; this release knows {FORMAT}): use that"
                " release, or another file"
            )
        found: dict[str, set[str]] = {}
        for name, column in connection.execute("SELECT table_name, column_name FROM information_schema.columns").fetchall():
            found.setdefault(name, set()).add(column)
        for table in self.tables:
            columns = {name: f"{quoted(name)} {type}" for name, type in table.types().items()}
            if table.name not in found:
                ids = [*_IDS, *(column.name for column in table.columns if column.is_id)]
                columns |= {name: f"{columns[name]} USING COMPRESSION zstd" for name in ids}
                connection.execute(f"CREATE TABLE {table.name} ({', '.join(columns.values())})")
                continue
            for name, column in columns.items():
                if name not in found[table.name]:
                    connection.execute(f"ALTER TABLE {table.name} ADD COLUMN {column}")
        connection.execute("COMMIT")
