"""A closed connection to NATS leaves no socket open, whatever the server does."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from app.clock import SystemClock
from bus.errors import BrokerUnreachable
from bus.jetstream.connection import Connection, Servers
from tests.nats import NatsServer

MANY_BYTES = 64 << 20


def connection_to(url: str) -> Connection:
    async def on_connected(client: Client) -> None:
        pass

    return Connection(
        SystemClock(),
        Servers(urls=(url,)),
        name="test",
        inbox_prefix="_INBOX",
        ping_seconds=30.0,
        connect_seconds_max=0.0,
        on_connected=on_connected,
        on_disconnected=lambda: None,
    )


def next_descriptor() -> int:
    """Return the number that the next file or socket gets: the lowest that is free."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        yield server


async def test_closing_does_not_wait_for_a_server_that_hangs(nats_server: NatsServer) -> None:
    """What the server has not read within the time limit is dropped, and the socket is closed."""
    before = next_descriptor()
    connection = connection_to(nats_server.url)
    await connection.open()
    nats_server.pause()
    try:
        for _ in range(MANY_BYTES // 500_000):
            connection.send("subject", b"x" * 500_000)
        async with asyncio.timeout(10):
            await connection.close()
        await asyncio.sleep(0)
        assert next_descriptor() == before
    finally:
        nats_server.resume()


@pytest.mark.parametrize("greeting", [b"", b'INFO {"max_payload": 1048576, "tls_required": true}\r\n'], ids=["mute", "tls"])
async def test_a_server_that_refuses_the_connection_leaves_no_socket_open(greeting: bytes) -> None:
    """It accepts the TCP connection and sends nothing, or nothing more once TLS is required."""

    def serve(server: socket.socket) -> None:
        client, _ = server.accept()
        with client:
            client.sendall(greeting)
            while client.recv(1 << 16):
                pass

    before = next_descriptor()
    with socket.create_server(("127.0.0.1", 0)) as server:
        serving = asyncio.create_task(asyncio.to_thread(serve, server))
        connection = connection_to(f"nats://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(BrokerUnreachable):
            await connection.open()
        await connection.close()
        async with asyncio.timeout(5):
            await serving  # it has read the end of the connection
    assert next_descriptor() == before
