"""Servers that end with their test, and clients that hang up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.process.client import Client
from tests.process.server import Server

Serve = Callable[..., Server]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies here: it starts processes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.process)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a server with the given environment; it ends with the test, come what may."""
    started: list[Server] = []

    def start(**settings: str) -> Server:
        server = Server(tmp_path, **settings)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.end()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[Server], Client]]:
    """Make clients; they hang up when the test is over."""
    clients: list[Client] = []

    def make(server: Server) -> Client:
        clients.append(Client(server))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a file that leave nothing behind."""
    server = Server(tmp_path_factory.mktemp("house")).start()
    yield server
    server.end()


@pytest.fixture
async def visitor(system: Server, connect: Callable[[Server], Client]) -> Client:
    """A client of the server that others use as well."""
    return connect(system)


@pytest.fixture
def server(serve: Serve) -> Server:
    """A server with the defaults."""
    return serve()


@pytest.fixture
async def client(server: Server, connect: Callable[[Server], Client]) -> Client:
    """A client of a server with the defaults."""
    return connect(server)
