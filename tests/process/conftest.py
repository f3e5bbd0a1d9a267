"""Fixtures: servers that are killed and clients that are closed at the end of the test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.process.client import Client, connecting
from tests.process.server import Server

Serve = Callable[..., Server]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder with `process`: it starts processes."""
    folder = f"{Path(__file__).parent}{os.sep}"
    for item in items:
        if str(item.path).startswith(folder):
            item.add_marker(pytest.mark.process)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that starts a server with the given environment; it is killed at the end of the test."""
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
    """Return a function that makes clients; they are closed at the end of the test."""
    async with connecting() as make:
        yield make


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a file that leave its state unchanged."""
    server = Server(tmp_path_factory.mktemp("shared")).start()
    yield server
    server.end()


@pytest.fixture
async def shared_client(shared_server: Server, connect: Callable[[Server], Client]) -> Client:
    """A client of the shared server."""
    return connect(shared_server)


@pytest.fixture
def server(serve: Serve) -> Server:
    """A server with the default settings."""
    return serve()


@pytest.fixture
async def client(server: Server, connect: Callable[[Server], Client]) -> Client:
    """A client of the server with the default settings."""
    return connect(server)
