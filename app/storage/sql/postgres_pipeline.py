"""
The pipeline of a PostgreSQL connection: statements that are sent together and answered together.

A round trip costs more than most statements: the server's process has to be scheduled, then this one, and in this one the
thread has to get the interpreter's lock back. So a statement without a result waits here for the next one that has a
result, or for the commit, and all of them go to the server in one piece. A transaction that loads, decides and writes
needs two round trips: BEGIN with the selects, and the writes with COMMIT.

An error ends the piece: the server skips the statements after the one that failed, the COMMIT included. It is raised for
the piece as a whole; the caller rolls back.

psycopg has a pipeline mode of its own. It waits at each statement for the connection to become writable, and releases the
interpreter's lock for that; here that happens once for all statements.
"""

from __future__ import annotations

__all__ = ["ANSWER_SECONDS", "Pending", "Pipeline", "TimedConnection"]

import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many, send

T = TypeVar("T")

Rows = list[tuple[Any, ...]]

ANSWER_SECONDS = 12.0
"""How long a server may leave a statement unanswered before its connection is closed."""

_FAILED = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.PIPELINE_ABORTED)


class TimedConnection(psycopg.Connection[Any]):
    """A connection with a time limit for each reply: a server process that is halted keeps its sockets open."""

    answer_seconds: float | None = None
    run = ""
    """What `app.storage.sql.postgres.RUN_SQL` selects, as the connection was opened."""

    def wait(self, gen: Any, *arguments: Any, **more: Any) -> Any:
        """Wait as psycopg does; after ``answer_seconds`` close the connection and raise as if it had broken."""
        seconds = ANSWER_SECONDS if self.answer_seconds is None else self.answer_seconds
        return super().wait(self._within(gen, time.monotonic() + seconds), *arguments, **more)

    def _within(self, gen: Generator[Any, Any, T], until: float) -> Generator[Any, Any, T]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > until:
                    self.close()
                    raise psycopg.OperationalError("the server does not answer")
                wanted = gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result


class Pending:
    """A statement that was queued; `rows` is known once it was sent."""

    __slots__ = ("is_prepared", "parameters", "rows", "sql")

    def __init__(self, sql: str, parameters: Sequence[bytes | None], *, is_prepared: bool) -> None:
        self.sql = sql
        self.is_prepared = is_prepared
        self.parameters = parameters
        self.rows: Rows | None = None


class Pipeline:
    """The pipeline of *connection*, which must be in autocommit mode: BEGIN and COMMIT are sent like all other statements."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._transformer = Transformer(connection)
        self._queue: list[Pending] = []
        self._names: dict[str, bytes] = {}
        """The statements that this connection has prepared: SQL → name."""
        self._numbers = count()
        self._id: Pending | None = None

    def begin(self, sql: str, id_sql: str | None = None) -> None:
        """Begin a transaction with *sql*; *id_sql* selects its id."""
        self._queue = [Pending(sql, (), is_prepared=False)]
        self._id = None
        if id_sql is not None:
            self._id = Pending(id_sql, (), is_prepared=True)
            self._queue.append(self._id)

    def queue(self, sql: str, parameters: Sequence[bytes | None] = ()) -> Pending:
        """Execute *sql*, with its *parameters* in PostgreSQL's text format as ``$1`` and so on, at the next `exchange`."""
        statement = Pending(sql, parameters, is_prepared=bool(parameters))
        self._queue.append(statement)
        return statement

    def rows(self, statement: Pending) -> Rows:
        """Return the rows of *statement*; send what is queued if it was not sent yet."""
        if statement.rows is None:
            self.exchange()
            assert statement.rows is not None, "the statement was rolled back"
        return statement.rows

    @property
    def transaction_id(self) -> str | None:
        """The id of the transaction; None if the server has not answered yet, or was not asked."""
        return None if self._id is None or self._id.rows is None else self._id.rows[0][0]

    def exchange(self) -> None:
        """
        Send what is queued, and wait for the results of all of it.

        Raises:
            psycopg.Error: That of the first statement that failed; those after it were skipped.
        """
        statements, self._queue = self._queue, []
        if statements:
            self._connection.wait(self._run(statements))

    def commit(self) -> None:
        """
        Send what is queued together with COMMIT.

        Raises:
            psycopg.Error: As for `exchange`; nothing is committed unless the connection broke.
        """
        try:
            if self._id is not None and self._id.rows is None:
                self.exchange()  # the outcome of a commit whose answer is lost is asked for by the id of the transaction
            self.queue("COMMIT")
            self.exchange()
        except psycopg.Error:
            if not self._connection.closed:
                with suppress(psycopg.Error):  # the first error is the one to be raised
                    self.rollback()
            raise

    def rollback(self) -> None:
        """Drop what is queued, and end the transaction if the server knows of it."""
        self._queue.clear()
        if self._connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            self.queue("ROLLBACK")
            self.exchange()

    def _run(self, statements: Sequence[Pending]) -> Generator[Any, Any, None]:
        """
        Send *statements* and set their results; raise the first error once all results were received.

        Those with parameters, and that for the id, are prepared first unless the connection knows them.
        """
        driver = self._connection.pgconn
        driver.enter_pipeline_mode()
        expected: list[
            tuple[Pending, bytes]
        ] = []  # a result for each: of the statement, or of preparing it under a name
        for statement in statements:
            expected.append((statement, b""))
            if not statement.is_prepared:
                driver.send_query_params(statement.sql.encode(), None)
                continue
            name = self._names.get(statement.sql)
            if name is None:
                name = b"f%d" % next(self._numbers)
                driver.send_prepare(name, statement.sql.encode())
                expected.insert(-1, (statement, name))
            driver.send_query_prepared(name, statement.parameters)
        driver.pipeline_sync()
        yield from send(driver)
        error: psycopg.Error | None = None
        for statement, name in expected:
            results = yield from fetch_many(driver)
            if not results:
                raise error or psycopg.OperationalError("the server has closed the connection")
            (result,) = results
            if result.status in _FAILED:
                error = error or error_from_result(result, encoding="utf-8")
            elif name:
                self._names[statement.sql] = name
            else:
                self._transformer.set_pgresult(result)
                statement.rows = self._transformer.load_rows(0, result.ntuples, tuple)
        yield from fetch_many(driver)  # the end of the piece
        driver.exit_pipeline_mode()
        if error is not None:
            raise error
