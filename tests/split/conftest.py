"""Brokers and houses that end with their test, and clients that hang up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nats import NatsServer
from tests.process.client import Client
from tests.split.system import System

Build = Callable[..., System]
"""Make a house in parts on the test's NATS, unless ``nats_urls`` names others; nothing runs yet."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies here: it starts processes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.process)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[NatsServer]:
    """One NATS server that runs."""
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def build(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Build]:
    """Make houses; they end with the test, come what may."""
    built: list[System] = []

    def make(nats_urls: tuple[str, ...] = (), **options: Any) -> System:
        urls = nats_urls or request.getfixturevalue("broker").urls
        built.append(System(tmp_path / f"house-{len(built)}", urls, **options))
        return built[-1]

    yield make
    for system in built:
        system.end()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[System], Client]]:
    """Make clients; they hang up when the test is over."""
    clients: list[Client] = []

    def make(system: System) -> Client:
        clients.append(Client(system))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()
