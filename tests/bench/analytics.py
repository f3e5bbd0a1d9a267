"""
Measure how fast ``analytics run`` makes its file anew: ``python -m tests.bench.analytics --events 1000000``.

Real orders are placed under load; their rows in the histories are then written again under other ids and times until there are so
many events. ``--archived`` moves all closed days into an archive of Parquet files with ``history archive --purge``; the ``--recent``
events are of the day after these, and stay in the tables. What was built in ``--folder`` is used again by the next call with the
same folder. Printed are events a second, processor time an event, the largest memory of the process, how many events are where,
and the sizes of the databases and of the file.
"""

from __future__ import annotations

__all__ = ["build"]

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
from pathlib import Path

import duckdb
import orjson
from backports.zstd import compress

from app.analytics.event_tables import event_tables
from app.messaging.event_registry import build_registry
from app.storage.archive.history_content import COMPRESSED, COMPRESSED_MIN, ENTRY_LENGTHS, PLAIN, decoded
from app.storage.archive.history_table import PURGE_MARGIN
from app.storage.archive.parquet_manifest import MANIFESTS, read_manifest
from tests.bench.serving import load
from tests.process.server import Server, environment_of

ORDERS = 500
"""Orders that are really placed."""

DAY_EVENTS = 1_000_000
"""Events of a day of the history."""

_MODULES = ("orders", "inventory", "payments")
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[78][0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_DAY = timedelta(days=1)

Template = tuple[str, int, datetime, list[bytes]]
"""Module, number and time of a row, and the JSON text of its entries: every second part is an id."""


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
        templates, count = _templates(connection)
        copies = -(-events // count)
        step = _DAY * count / DAY_EVENTS
        end = datetime.now(UTC) if recent is None else _last_midnight() + _DAY * recent / DAY_EVENTS
        first = end - step * copies
        connection.execute("BEGIN")
        for module in _MODULES:
            connection.execute(f"DELETE FROM {module}_history")
            connection.executemany(f"INSERT INTO {module}_history VALUES (?, ?, ?)", _rows(module, templates, copies, first, step))
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    if recent is not None:
        (folder / "archive").mkdir()
        _run(folder, "history", "archive", "--purge", HISTORY_ARCHIVE="archive")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("VACUUM")


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


def _templates(connection: sqlite3.Connection) -> tuple[list[Template], int]:
    """Return the rows of all histories, and the number of events in them."""
    found, count = [], 0
    for module in _MODULES:
        for number, at, content in connection.execute(f"SELECT number, at, content FROM {module}_history ORDER BY number"):
            entries = decoded(content)
            for entry in entries:
                emitted = entry[ENTRY_LENGTHS[entry[0]] + 2 :] if entry[0] in ENTRY_LENGTHS else [[[0]]]
                count += sum(event[0] is not None for events in emitted for event in events)
            text = orjson.dumps(entries)
            parts = [part for gap, id in zip(_UUID.split(text), [*_UUID.findall(text), b""], strict=True) for part in (gap, id)]
            found.append((module, number, datetime.fromisoformat(at), parts))
    return found, count


def _rows(
    module: str, templates: Sequence[Template], copies: int, first: datetime, step: timedelta
) -> Iterator[tuple[int, str, bytes]]:
    """Yield the rows of *module* again, *copies* times, each time *step* later."""
    began = min(at for _, _, at, _ in templates)
    last = max(number for _, number, _, _ in templates)
    own = [template for template in templates if template[0] == module]
    for copy in range(copies):
        moved = first + step * copy - began
        milliseconds = moved // timedelta(milliseconds=1)
        ids: dict[bytes, bytes] = {}
        for _, number, at, parts in own:
            again = parts.copy()
            for place in range(1, len(parts) - 1, 2):
                id = parts[place]
                if id not in ids:
                    head = f"{int(id[:8] + id[9:13], 16) + milliseconds:012x}"
                    ids[id] = f"{head[:8]}-{head[8:]}".encode() + id[13:]
                again[place] = ids[id]
            text = b"".join(again)
            content = PLAIN + text if len(text) < COMPRESSED_MIN else COMPRESSED + compress(text)
            yield copy * last + number, (at + moved).isoformat(timespec="microseconds"), content


def _run(folder: Path, *arguments: str, **settings: str) -> tuple[float, float, float]:
    """Run the program in *folder*; return its seconds, its processor time in seconds, and its largest memory in MiB."""
    environment = environment_of({"DATABASE_URL": "sqlite:///fulfilment.db", **settings})
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "app", *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _measure(folder: Path, memory: str) -> None:
    file = folder / "analytics.duckdb"
    archive = {"HISTORY_ARCHIVE": "archive"} if (folder / "archive").exists() else {}
    began = ["analytics", "run", "--once", "--from-zero", "--file", file.name]
    seconds, processor, peak = _run(folder, *began, ANALYTICS_MEMORY=memory, **archive)
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
