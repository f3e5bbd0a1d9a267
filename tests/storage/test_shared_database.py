"""A real PostgreSQL server keeps what the simulated one promises to several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

import pytest
from attrs import define, field, frozen
from sqlalchemy import Connection

from app.storage.sql.database import Database
from app.storage.sql.postgres_statements import pipeline_of
from tests.databases import migrated_url
from tests.postgres import PostgresServer
from tests.simulation.database.clients import Client, Stand, Waiting, Work, given
from tests.simulation.database.contract import SharedDatabaseContract

T = TypeVar("T")

PATIENCE_SECONDS = 30.0


@frozen
class _Waiting(Generic[T]):
    """A statement that runs in the thread of its client."""

    client: PostgresClient
    future: Future[T]

    def is_waiting(self) -> bool:
        return not self.future.done() and self.client.is_blocked()

    def result(self) -> T:
        return self.future.result(PATIENCE_SECONDS)


class PostgresClient(Client):
    """A connection to *server*, each statement in a thread of its own."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self._server = server
        self._thread = ThreadPoolExecutor(1, "client")
        super().__init__(Database(url))
        self._pid = self.connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]

    def call(self, work: Callable[[], T]) -> T:
        return self._thread.submit(work).result(PATIENCE_SECONDS)

    def execute(self, work: Work[T]) -> T:
        found = super().execute(work)
        pipeline_of(self.connection).exchange()  # what has no result would wait for the next statement
        return found

    def start(self, work: Work[T]) -> Waiting[T]:
        waiting = _Waiting(self, self._thread.submit(self.execute, work))
        while not waiting.future.done() and not self.is_blocked():
            pass
        return waiting

    def is_blocked(self) -> bool:
        """Return whether the connection waits for another one."""
        return bool(self._server.query(f"SELECT cardinality(pg_blocking_pids({self._pid})) > 0")[0][0])

    def cut(self) -> None:
        self._server.query(f"SELECT pg_terminate_backend({self._pid}, 10000)")

    def halt(self) -> None:
        self.do(lambda connection: connection.exec_driver_sql("SET idle_in_transaction_session_timeout = '50ms'"))
        self._wait_for_end()

    def close(self) -> None:
        super().close()
        self._wait_for_end()

    def _wait_for_end(self) -> None:
        self._server.wait_for(f"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = {self._pid}")

    def fail_to_serialize(self, connection: Connection) -> None:
        connection.exec_driver_sql("DO $$ BEGIN RAISE 'could not serialize access' USING ERRCODE = '40001'; END $$")

    def end(self) -> None:
        """End the connection, which may be gone, and the thread."""
        with suppress(Exception):
            self.call(self.connection.invalidate)
        with suppress(Exception):
            self.call(self.connection.close)
        self._thread.shutdown()
        self.engine.dispose()


@define
class PostgresStand:
    """A database on the common server."""

    server: PostgresServer
    url: str
    clients: list[PostgresClient] = field(factory=list)

    def client(self) -> Client:
        self.clients.append(PostgresClient(self.server, self.url))
        return self.clients[-1]


@pytest.fixture
def stand(postgres: PostgresServer) -> Iterator[PostgresStand]:
    stand = PostgresStand(postgres, migrated_url(postgres))
    yield stand
    for client in stand.clients:
        client.end()


class TestPostgres(SharedDatabaseContract):
    """The contract suite of a shared database on PostgreSQL."""

    def test_rows_are_locked_in_the_order_of_their_keys_with_any_plan(self, stand: Stand) -> None:
        """One that reads the rows as they lie on the disk would lock them in that order."""
        one, other, third = stand.client(), stand.client(), stand.client()
        given(one, one.insert("C", "B", "A"))
        one.do(one.lock("B"))
        other.do(lambda connection: connection.exec_driver_sql("SET LOCAL enable_indexscan = off"))
        waiting = other.start(other.lock("A", "B", "C"))
        assert waiting.is_waiting()
        third.do(third.lock("C"))
        third.commit()
        assert third.start(third.lock("A")).is_waiting()
        one.commit()
        assert waiting.result() == {"A": 0, "B": 0, "C": 0}


