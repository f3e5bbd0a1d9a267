"""
Measure how fast ``analytics run`` makes its file anew: ``python -m tests.bench.analytics --events 1000000``.

Real orders are placed under load; their rows in the histories are then written again under other ids and times until there are so
many events. ``--archived`` writes all closed days as the Parquet files of an archive, as ``history archive --purge`` does; the
``--recent`` events are of the day after these, and stay in the tables. What was built in ``--folder`` is used again by the next call with the
same folder. Printed are events a second, processor time an event, the largest memory of the process, how many events are where,
and the sizes of the databases and of the file.
"""

from __future__ import annotations

__all__ = ["build", "run"]

import argparse
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb
import orjson
from attrs import frozen
from backports.zstd import compress

from app.analytics.event_tables import event_tables
from app.messaging.event_registry import build_registry
from app.storage.archive.history_content import (
    COMPRESSED,
    COMPRESSED_MIN,
    PLAIN,
    POSITIONS,
    HistoryEvent,
    Row,
    TransactionHistory,
    decoded,
)
from app.storage.archive.history_table import EMPTY, PURGE_MARGIN
from app.storage.archive.parquet_files import DatasetWriter
from app.storage.archive.parquet_manifest import MANIFESTS, Manifest, read_manifest, write_manifest
from bus.ids import derived_id
from tests.bench.serving import load
from tests.process.server import Server, environment_of

ORDERS = 500
"""Orders that are really placed."""

DAY_EVENTS = 1_000_000
"""Events of a day of the history."""

_MODULES = ("orders", "inventory", "payments")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[78][0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_DAY = timedelta(days=1)
_ORDINALS_MAX = 100


def build(folder: Path, events: int, recent: int | None = None) -> None:
    """
    Build a history of about so many *events* in *folder*: ``fulfilment.db``, and ``archive`` with all but the *recent* ones.

    Without *recent*, the history ends now, and everything stays in the tables.
    """
    path = folder / "fulfilment.db"
    _place(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in ("journal_mode = MEMORY", "synchronous = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        orders = _Orders(connection)
        copies = -(-events // orders.count)
        step = _DAY * orders.count / DAY_EVENTS
        end = datetime.now(UTC) if recent is None else _last_midnight() + _DAY * recent / DAY_EVENTS
        moments = [end - step * copy for copy in range(copies, 0, -1)]
        archived = 0 if recent is None else sum(moment < _last_midnight() for moment in moments)
        connection.execute("BEGIN")
        for module in _MODULES:
            connection.execute(f"DELETE FROM {module}_history")
        for row in _write_archive(folder / "archive", orders, moments[:archived]):
            connection.execute(f"INSERT INTO {row[0]}_history VALUES (?, ?, ?)", (*row[1:], EMPTY))
        for copy in range(archived, copies):
            for module, number, at, text in orders.rows(copy, moments[copy]):
                content = PLAIN + text.encode() if len(text) < COMPRESSED_MIN else COMPRESSED + compress(text.encode())
                connection.execute(f"INSERT INTO {module}_history VALUES (?, ?, ?)", (number, at, content))
        connection.execute("COMMIT")
        connection.execute("VACUUM")
        connection.execute("PRAGMA journal_mode = WAL")


def _last_midnight() -> datetime:
    """Return the end of the last day that ``history archive`` takes now."""
    return datetime.combine((datetime.now(UTC) - PURGE_MARGIN).date(), datetime.min.time(), UTC)


def _place(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), DATABASE_URL=f"sqlite:///{path}").start()
        try:
            load(server.url, ORDERS)
        finally:
            server.send(signal.SIGTERM)
            server.wait()


def _write_archive(folder: Path, orders: _Orders, moments: Sequence[datetime]) -> list[tuple[str, int, str]]:
    """Write what ``history archive`` would of a copy of *orders* at each of *moments*; return the last row of each module."""
    lasts: dict[str, tuple[int, str]] = {}
    copy = 0
    for day, copies in groupby(moments, datetime.date):
        after = copy * orders.last_number
        names = [(dataset, module) for dataset in ("rows", "events") for module in _MODULES]
        writers = {(dataset, module): DatasetWriter(folder, dataset, module, day.isoformat()) for dataset, module in names}
        for moment in copies:
            for module, number, at, text in orders.rows(copy, moment):
                writers["rows", module].add((number, at, text), len(text))
                lasts[module] = number, at
            for module, values in orders.events(copy, moment):
                writers["events", module].add(values, len(values[-1]) + 200)
            copy += 1
        for module in _MODULES:
            rows, events = (writers[dataset, module].close() for dataset in ("rows", "events"))
            write_manifest(folder, Manifest(module, day, after, copy * orders.last_number, *lasts[module], rows, events))
    return [(module, *last) for module, last in lasts.items()]


class _Ids(dict[str, str]):
    """The ids of a copy, by those that were copied: their time is *milliseconds* later."""

    def __init__(self, milliseconds: int) -> None:
        self._milliseconds = milliseconds

    def __missing__(self, id: str) -> str:
        head = f"{int(id[:8] + id[9:13], 16) + self._milliseconds:012x}"
        found = self[id] = f"{head[:8]}-{head[8:]}{id[13:]}"
        return found

    def text(self, parts: Sequence[str]) -> str:
        """Return a text whose *parts* are, in turn, text and ids."""
        again = [*parts]
        again[1::2] = [self[id] for id in parts[1::2]]
        return "".join(again)


@frozen
class _Event:
    """An event of the orders that were placed."""

    event: HistoryEvent
    derived: str | None
    """What its id is derived with from that of its cause; None if the id is in the row."""
    is_local: bool
    """True if its cause is an event of the same transaction."""
    key: Sequence[str]
    data: Sequence[str]


class _Orders:
    """The rows and the events of orders that were placed, to be copied to other times."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._rows: list[tuple[str, int, datetime, list[str]]] = []
        transactions: dict[int, list[Row]] = {}
        for module in _MODULES:
            for number, at, content in connection.execute(f"SELECT number, at, content FROM {module}_history ORDER BY number"):
                entries = decoded(content)
                transactions.setdefault(number, []).append(Row(module, number, at, entries))
                self._rows.append((module, number, datetime.fromisoformat(at), _parts(orjson.dumps(entries).decode())))
        self._events = [event for number in sorted(transactions) for event in _events(transactions[number])]
        self._began = min(at for _, _, at, _ in self._rows)
        self.last_number = max(transactions)
        self.count = len(self._events)

    def rows(self, copy: int, moment: datetime) -> Iterator[tuple[str, int, str, str]]:
        """Yield module, number, time and text of the rows of a *copy* that begins at *moment*."""
        moved, ids = self._moved(moment)
        for module, number, at, parts in self._rows:
            yield (
                module,
                copy * self.last_number + number,
                (at + moved).isoformat(timespec="microseconds"),
                ids.text(parts),
            )

    def events(self, copy: int, moment: datetime) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Yield the module of the events of a *copy*, and the values of the columns in the archive."""
        moved, ids = self._moved(moment)
        local: dict[str, str] = {}
        seqs = copy * self.last_number * POSITIONS
        at, text = "", ""
        for each in self._events:
            event = each.event
            if event.at != at:
                at = event.at
                text = (datetime.fromisoformat(at) + moved).isoformat(timespec="microseconds")
            cause = local[event.cause_id] if each.is_local else ids[event.cause_id]
            id = ids[event.event_id] if each.derived is None else derived_id(cause, each.derived)
            local[event.event_id] = id
            subject, key, data = event.subject, ids.text(each.key), ids.text(each.data)
            yield event.module, (seqs + event.seq, id, cause, ids[event.correlation_id], subject, key, text, data)

    def _moved(self, moment: datetime) -> tuple[timedelta, _Ids]:
        moved = moment - self._began
        return moved, _Ids(moved // timedelta(milliseconds=1))


def _parts(text: str) -> list[str]:
    """Return *text* in parts: every second one is an id."""
    return [part for gap, id in zip(_UUID.split(text), [*_UUID.findall(text), ""], strict=True) for part in (gap, id)][:-1]


def _events(rows: Sequence[Row]) -> Iterator[_Event]:
    """Yield the events of the transaction with *rows*."""
    known: set[str] = set()
    for event in TransactionHistory(rows).events():
        names = (f"{event.module}.{ordinal}" for ordinal in range(_ORDINALS_MAX))
        derived = next((name for name in names if derived_id(event.cause_id, name) == event.event_id), None)
        yield _Event(event, derived, event.cause_id in known, _parts(event.key), _parts(orjson.dumps(event.data).decode()))
        known.add(event.event_id)


def run(folder: Path, *arguments: str, **settings: str) -> tuple[float, float, float]:
    """Run the program in *folder*; return its seconds, its processor time in seconds, and its largest memory in MiB."""
    environment = environment_of({"DATABASE_URL": "sqlite:///fulfilment.db", **settings})
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "app", *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _measure(folder: Path, memory: str) -> None:
    file = folder / "analytics.duckdb"
    archive = {"HISTORY_ARCHIVE": "archive"} if (folder / "archive").exists() else {}
    began = ["analytics", "run", "--once", "--from-zero", "--file", file.name]
    seconds, processor, peak = run(folder, *began, ANALYTICS_MEMORY=memory, **archive)
    tables = [table.name for table in event_tables(build_registry(()))]
    with duckdb.connect(str(file), read_only=True) as connection:
        counts = " + ".join(f"(SELECT count(*) FROM {name})" for name in tables)
        count = connection.execute(f"SELECT {counts}").fetchall()[0][0]
    manifests = [read_manifest(path) for path in (folder / "archive" / MANIFESTS).rglob("*.json")]
    archived = sum(each.event_count for each in manifests)
    size = sum(part.bytes for each in manifests for part in each.parts)
    sizes = f"database {_mib(folder / 'fulfilment.db')}, archive {size >> 20} MiB, file {_mib(file)}"
    print(
        f"{count} events, {archived} of them in the archive, in {seconds:.1f} s: {count / seconds:.0f} events/s,"
        f" {processor / count * 1e6:.2f} us of processor time an event, peak {peak:.0f} MiB; {sizes}",
        flush=True,
    )


def _mib(path: Path) -> str:
    return f"{path.stat().st_size >> 20} MiB"


def main() -> None:
    """Build a history, and measure."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.analytics", description="Measure how fast analytics run is.")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--archived", action="store_true", help="all but the recent events are in an archive")
    parser.add_argument("--recent", type=int, help="with --archived: events that stay in the tables; by default a fiftieth")
    parser.add_argument("--folder", type=Path, help="where the history is built, and stays; it is used again if it is there")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--memory", default="1GB", help="ANALYTICS_MEMORY")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "fulfilment.db").exists():
            began = time.monotonic()
            recent = options.events // 50 if options.recent is None else options.recent
            build(folder, options.events, recent if options.archived else None)
            print(f"built in {time.monotonic() - began:.0f} s", flush=True)
        for _ in range(options.times):
            _measure(folder, options.memory)


if __name__ == "__main__":
    main()
