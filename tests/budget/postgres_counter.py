"""Count what goes over the connections to a PostgreSQL server, from libpq's trace of their protocol."""

from __future__ import annotations

__all__ = ["PostgresCounter"]

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import pq

_MESSAGE = re.compile(r"([FB])\t(\d+)\t(\w+)(.*)")
_WRITTEN = re.compile(r'"(?:INSERT 0|UPDATE|DELETE) (\d+)"')


class PostgresCounter:
    """
    Counts what the connections given to `attach` send and receive.

    ``round_trips`` is how often the process waits for the server. An ``Execute`` is a statement; BEGIN and COMMIT are not
    counted as statements. Each transaction that has written is one fsync, which the server may share with others.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._connections: list[psycopg.Connection[Any]] = []

    def attach(self, connection: psycopg.Connection[Any]) -> None:
        """Count what *connection* does within `counting`."""
        self._connections.append(connection)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count within this block."""
        files = []
        for connection in self._connections:
            if not connection.closed:
                file = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
                connection.pgconn.trace(file.fileno())
                connection.pgconn.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
                files.append((connection, file))
        yield
        for connection, file in files:
            connection.pgconn.untrace()
            with file:
                file.seek(0)
                self._count(file.read())

    def _count(self, trace: str) -> None:
        counts, direction = self._counts, "B"
        has_written = False
        for line in trace.splitlines():
            match = _MESSAGE.match(line)
            if match is None:  # the further lines of a statement
                continue
            sender, length, kind, rest = match.groups()
            counts["wire_bytes"] += int(length) + 1
            counts["round_trips"] += (sender, direction) == ("B", "F")
            direction = sender
            if sender == "F":
                continue
            if kind == "DataRow":
                counts["rows_read"] += 1
            elif kind == "CommandComplete":
                if '"COMMIT"' in rest:
                    counts["transactions"] += 1
                    counts["fsyncs"] += has_written
                    has_written = False
                elif '"BEGIN"' not in rest and '"ROLLBACK"' not in rest:
                    counts["statements"] += 1
                    written = _WRITTEN.search(rest)
                    if written is not None:
                        counts["rows_written"] += int(written[1])
                        has_written = has_written or written[1] != "0"
