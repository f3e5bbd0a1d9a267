"""Fixtures: brokers and systems that are stopped, and clients that are closed, at the end of the test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nats import NatsServer
from tests.process.client import Client, connecting
from tests.split.system import System

Build = Callable[..., System]
"""Makes a system on the NATS server of the test, or on ``nats_urls``; does not start it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder with `process`: it starts processes."""
    folder = f"{Path(__file__).parent}{os.sep}"
    for item in items:
        if str(item.path).startswith(folder):
            item.add_marker(pytest.mark.process)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[NatsServer]:
    """A running NATS server."""
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def build(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Build]:
    """Return a function that makes systems; their processes are killed at the end of the test."""
    built: list[System] = []
    for name in {"broker", "cluster"} & set(request.fixturenames):
        # It is to end after the systems: another server may get its port, and they would reconnect to that.
        request.getfixturevalue(name)

    def make(nats_urls: tuple[str, ...] = (), **options: Any) -> System:
        urls = nats_urls or request.getfixturevalue("broker").urls
        built.append(System(tmp_path / f"system-{len(built)}", urls, **options))
        return built[-1]

    yield make
    for system in built:
        system.end()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[System], Client]]:
    """Return a function that makes clients; they are closed at the end of the test."""
    async with connecting() as make:
        yield make
