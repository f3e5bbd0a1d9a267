"""Count what a process does: calls of functions, statements and rows of SQLite, and what SQLite writes to the disk."""

from __future__ import annotations

__all__ = ["CallCounter", "SqliteCounter"]

import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from attrs import frozen

from tests.sqlite_files import observe

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "bus", "config", "modules")


class CallCounter:
    """
    Counts function calls: ``calls`` of the project's own code, and ``library_calls`` of everything else.

    A call counts as the project's own if a function of the project is called or calls, a function written in C included.
    So its number does not depend on what a library does inside. Calls of the tests do not count.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._owners: dict[CodeType, str] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count within this block, in this thread."""
        sys.setprofile(self._on_event)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            owner = self._owner(frame.f_code)
            caller = frame.f_back
            if owner == "tests":
                return
            if owner == "own" or (caller is not None and self._owner(caller.f_code) == "own"):
                self._counts["calls"] += 1
            else:
                self._counts["library_calls"] += 1
        elif event == "c_call" and self._owner(frame.f_code) == "own":
            self._counts["calls"] += 1

    def _owner(self, code: CodeType) -> str:
        owner = self._owners.get(code)
        if owner is None:
            owner = self._owners[code] = _owner_of(code.co_filename)
        return owner


def _owner_of(file: str) -> str:
    """Return whose code *file* has: that of the ``tests``, the project's ``own``, or that of a ``library``."""
    if file.startswith("<attrs generated"):  # methods that attrs has written for a class
        return "own" if file.split()[-1].partition(".")[0] in PACKAGES else "library"
    path = Path(file)
    if not path.is_relative_to(ROOT):
        return "library"
    first = path.relative_to(ROOT).parts[0]
    return "own" if first in PACKAGES else "tests" if first == "tests" else "library"


class SqliteCounter:
    """
    Counts what SQLite does in this process, for connections that are opened after `install`.

    ``statements`` and ``transactions`` come from SQLite's trace, ``rows_read`` and ``rows_written`` from the connections.
    ``fsyncs`` and ``disk_bytes`` come from the methods of SQLite's own files (https://www.sqlite.org/vfs.html), so a
    checkpoint counts as well.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._connections: list[sqlite3.Connection] = []

    def attach(self, connection: sqlite3.Connection) -> None:
        """Count the statements and rows of *connection*."""
        self._connections.append(connection)
        connection.set_trace_callback(self._on_statement)
        connection.row_factory = self._on_row

    def total_changes(self) -> int:
        """Return how many rows the open connections have written so far."""
        total = 0
        for connection in self._connections:
            with suppress(sqlite3.ProgrammingError):  # it is closed
                total += connection.total_changes
        return total

    def _on_statement(self, sql: str) -> None:
        if sql.startswith("BEGIN"):
            return
        self._counts["transactions" if sql == "COMMIT" else "statements"] += 1

    def _on_row(self, cursor: sqlite3.Cursor, row: Any) -> Any:
        self._counts["rows_read"] += 1
        return row

    def install(self) -> None:
        """Count what is written and synced in each file that SQLite opens from now on."""
        observe(lambda path: _CountedFile(self._counts))


@frozen
class _CountedFile:
    """Counts for an open file."""

    _counts: Counter[str]

    def write(self, offset: int, address: int, count: int) -> None:
        self._counts["disk_bytes"] += count

    def truncate(self, size: int) -> None:
        pass

    def sync(self) -> None:
        self._counts["fsyncs"] += 1

    def close(self) -> None:
        pass
