"""The simulated database server promises what a real PostgreSQL keeps, on a virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import pytest
from attrs import define, field, frozen
from sqlalchemy import Connection
from sqlalchemy.util import greenlet_spawn

from tests.databases import migrated_file
from tests.simulation.database.clients import Client, Stand, Waiting, Work
from tests.simulation.database.contract import SharedDatabaseContract
from tests.simulation.database.dialect import open_shared
from tests.simulation.database.server import IDLE_IN_TRANSACTION_SECONDS, DatabaseFault, DatabaseServer
from tests.simulation.database.session import Session
from tests.simulation.world.loop import SimulatedLoop
from tests.simulation.world.scope import Scope, install

T = TypeVar("T")


@frozen
class _Waiting(Generic[T]):
    """A statement that runs in a coroutine of its own."""

    client: SimulatedClient
    task: asyncio.Task[T]

    def is_waiting(self) -> bool:
        return not self.task.done() and self.client.session.waits_for is not None

    def result(self) -> T:
        return self.client.stand.loop.run_until_complete(self.task)


class SimulatedClient(Client):
    """A connection of the process *scope* to the server of *stand*."""

    def __init__(self, stand: SimulatedStand, scope: Scope) -> None:
        self.stand, self._scope = stand, scope
        super().__init__(open_shared(stand.server, scope))
        self.session: Session = self.connection.connection.dbapi_connection  # type: ignore[assignment]

    def call(self, work: Callable[[], T]) -> T:
        found: T = self.stand.loop.run_until_complete(greenlet_spawn(work))
        return found

    def start(self, work: Work[T]) -> Waiting[T]:
        waiting: _Waiting[T] = _Waiting(self, self.stand.loop.create_task(greenlet_spawn(self.execute, work)))

        while not waiting.task.done() and self.session.waits_for is None:
            self.stand.loop.run_until_complete(asyncio.sleep(0.001))
        return waiting

    def cut(self) -> None:
        self.stand.server.end(self.session)

    def halt(self) -> None:
        async def wait() -> None:
            self._scope.pause()
            self.stand.server.notice_pause(self._scope)
            await asyncio.sleep(IDLE_IN_TRANSACTION_SECONDS + 0.001)
            self._scope.resume()

        self.stand.loop.run_until_complete(wait())

    def fail_to_serialize(self, connection: Connection) -> None:
        self.stand.faults.append(DatabaseFault.CONFLICT)
        connection.exec_driver_sql("SELECT 1")


@define
class SimulatedStand:
    """A server on an event loop of its own."""

    path: Path
    loop: SimulatedLoop = field(factory=SimulatedLoop)
    faults: list[DatabaseFault] = field(factory=list)
    server: DatabaseServer = field()
    _clients: int = 0

    @server.default
    def _new_server(self) -> DatabaseServer:
        return DatabaseServer("inventory", self.path, random.Random(1), self._fault, lambda what: None, lambda name, rows: None)

    def _fault(self, scope: Scope, possible: Collection[DatabaseFault]) -> DatabaseFault | None:
        return self.faults.pop() if self.faults and self.faults[-1] in possible else None

    def client(self) -> Client:
        self._clients += 1
        return SimulatedClient(self, Scope(str(self._clients), lambda point: None))


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    path = tmp_path / "inventory.db"
    migrated_file(path)
    stand = SimulatedStand(path)
    install(stand.loop)
    yield stand
    stand.server.end_sessions()
    stand.loop.close()


class TestSimulatedDatabase(SharedDatabaseContract):
    """The contract suite, where a real server is simulated."""


