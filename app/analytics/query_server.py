"""
Query a file, also while another process writes it.

While a process writes the file, DuckDB lets no other one open it. So that process answers queries on a Unix socket beside
the file, which only its own user can connect to. A request is one line of JSON, ``{"sql": ..., "limit": ...}``; the answer has one
line of JSON for each `app.analytics.query.Line`.
"""

from __future__ import annotations

__all__ = ["QueryServer", "ask", "socket_path"]

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from app.analytics.connection import connect
from app.analytics.errors import FileInUse, FileUnusable, QueryRefused
from app.analytics.query import Line, answer

if TYPE_CHECKING:
    import duckdb

QUERIES_MAX = 4
"""Queries that run at once; further ones wait."""

QUERY_SECONDS_MAX = 300.0

REQUEST_BYTES_MAX = 1 << 20

PATIENCE_SECONDS = 5.0
"""How long `ask` waits for a process that has just opened the file, or is about to close it."""

_RETRY_SECONDS = 0.1


def socket_path(file: Path) -> Path:
    """Return the path of the socket of *file*."""
    return file.with_name(f"{file.name}.sock")


def ask(file: Path, sql: str, *, limit: int, memory: str = "1GB") -> Iterator[Line]:
    """
    Yield the answer to *sql*, with up to *limit* rows: from the process that writes *file*, or else from the file itself.

    Raises:
        FileInUse: A process has the file open, and does not answer.
        FileUnusable: There is no such file, it is damaged, or it is another user's.
    """
    if not os.path.exists(file):
        raise FileUnusable(f"{file}: there is no such file: `analytics run` makes it, --file and ANALYTICS_FILE name it")
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            if _is_connected(connection, socket_path(file)):
                yield from _asked(connection, file, sql, limit)
                return
        try:
            opened = connect(file, memory, is_writing=False)
        except FileInUse:
            if time.monotonic() > until:
                raise
            time.sleep(_RETRY_SECONDS)
            continue
        with closing(opened):
            yield from answer(opened, sql, limit)
            return


def _is_connected(connection: socket.socket, path: Path) -> bool:
    """Connect to *path*; return False if no process listens there."""
    try:
        _at(path, connection.connect)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except PermissionError:
        raise FileUnusable(f"{path}: belongs to another user: ask as the user that runs `analytics run`") from None
    return True


def _asked(connection: socket.socket, file: Path, sql: str, limit: int) -> Iterator[Line]:
    request = json.dumps({"sql": sql, "limit": limit}).encode() + b"\n"
    if len(request) > REQUEST_BYTES_MAX:
        raise QueryRefused(f"has {len(request)} bytes, and may have {REQUEST_BYTES_MAX}")
    is_complete = False
    with suppress(ConnectionError):
        connection.sendall(request)
        with connection.makefile("rb") as lines:
            for line in lines:
                part: Line = json.loads(line)
                is_complete = "is_complete" in part or "error" in part
                yield part
    if not is_complete:
        raise FileInUse(f"{file}: the process that writes it ended during the query: ask again")


class QueryServer:
    """Answers queries about *file* on connections beside *connection*."""

    def __init__(self, file: Path, connection: duckdb.DuckDBPyConnection) -> None:
        self._path = socket_path(file)
        self._connection = connection
        self._free = asyncio.Semaphore(QUERIES_MAX)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. A socket that a killed process has left is replaced: this process alone has the file open."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            _at(self._path, listener.bind)
        except OSError as error:
            listener.close()
            logger.warning("no queries are answered while the file is written", socket=str(self._path), detail=str(error))
            return
        finally:
            os.umask(before)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=REQUEST_BYTES_MAX)

    async def close(self) -> None:
        """End the queries that run, and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        self._path.unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def running(self) -> int:
        """How many queries are running, or wait to run."""
        return len(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            request = json.loads(await reader.readline())
            async with self._free:
                await self._answer(str(request["sql"]), int(request["limit"]), reader, writer)
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.debug("a query was not answered", error=repr(error))
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, sql: str, limit: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cursor = self._connection.cursor()
        lines = answer(cursor, sql, limit)
        gone = asyncio.ensure_future(reader.read())  # it ends when the client closes the connection
        until = asyncio.get_running_loop().time() + QUERY_SECONDS_MAX
        try:
            while (line := await _next(lines, cursor, gone, until)) is not None:
                writer.write(json.dumps(line).encode() + b"\n")
                await writer.drain()
        finally:
            gone.cancel()
            cursor.close()


async def _next(
    lines: Iterator[Line], cursor: duckdb.DuckDBPyConnection, gone: asyncio.Future[bytes], until: float
) -> Line | None:
    """Return the next of *lines*; interrupt the query if the client is *gone*, at the time *until*, or when cancelled."""
    call = asyncio.ensure_future(asyncio.to_thread(next, lines, None))
    try:
        seconds = until - asyncio.get_running_loop().time()
        either: list[asyncio.Future[Any]] = [call, gone]
        await asyncio.wait(either, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _stop(call, cursor)
    return call.result()


async def _stop(call: asyncio.Future[Any], cursor: duckdb.DuckDBPyConnection) -> None:
    """Interrupt the query of *call* until it has ended, also if this is cancelled meanwhile: its thread would go on for ever."""
    cancelled: asyncio.CancelledError | None = None
    while not call.done():  # again and again: an interrupt before the query has begun is lost
        cursor.interrupt()
        try:
            await asyncio.wait([call], timeout=_RETRY_SECONDS)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _at(path: Path, connect_or_bind: Callable[[str], None]) -> None:
    """Call *connect_or_bind* with *path*, or on Linux with a shorter name for it: the path of a socket has at most 107 bytes."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        short = f"/proc/self/fd/{folder}/{path.name}"
        connect_or_bind(short if os.path.exists(f"/proc/self/fd/{folder}") else str(path))
    finally:
        os.close(folder)
