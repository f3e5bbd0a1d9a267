"""A closed connection to NATS leaves no socket open, whatever the server does."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from nats.aio.client import Client

from app.clock import SystemClock
from bus.errors import BrokerUnreachable
from bus.jetstream.connection import Connection
from bus.jetstream.servers import Servers
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


@pytest.mark.slow
async def test_closing_does_not_wait_for_a_server_that_hangs(nats_server: NatsServer) -> None:
    """What the server has not read within the time limit is dropped, and the socket is closed."""
    before = next_descriptor()
    connection = connection_to(nats_server.url)
    await connection.open()
    nats_server.pause()
    try:
        for _ in range(MANY_BYTES // 500_000):
            connection.send("subject", b"x" * 500_000)
        async with asyncio.timeout(30):
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
        async with asyncio.timeout(30):
            await serving  # it has read the end of the connection
    assert next_descriptor() == before


class Watched:
    """A connection whose credentials are read again each time, and the servers' certificates, too."""

    def __init__(self, server: NatsServer, folder: Path, *, scheme: str = "nats") -> None:
        self.connected = asyncio.Event()
        self.lost = asyncio.Event()
        self.folder = folder

        async def on_connected(client: Client) -> None:
            self.connected.set()

        def servers() -> Servers:
            ca = folder / "ca.pem"
            return Servers(
                urls=(f"{scheme}://127.0.0.1:{server.port}",),
                user="module",
                password=(folder / "password").read_text(),
                tls_ca=str(ca) if ca.exists() else None,
            )

        self.connection = Connection(
            SystemClock(),
            servers,
            name="test",
            inbox_prefix="_INBOX",
            ping_seconds=30.0,
            on_connected=on_connected,
            on_disconnected=self.lost.set,
        )


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait until a line with *text* was logged."""
    while text.lower() not in caplog.text.lower():  # noqa: ASYNC110 - logging sets no event
        await asyncio.sleep(0.01)


def require_password(server: NatsServer, password: str) -> None:
    server.config = f'authorization {{ user: module, password: "{password}" }}'


async def test_a_replaced_password_is_used_at_the_next_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is replaced on the server first: the refusal is logged once, at WARNING, with what to check."""
    server = NatsServer(tmp_path)
    require_password(server, "first-password")
    (tmp_path / "password").write_text("first-password")
    with server.start():
        watched = Watched(server, tmp_path)
        async with asyncio.timeout(30):
            await watched.connection.open()
            watched.connected.clear()
            require_password(server, "second-password")
            await asyncio.to_thread(server.restart)
            await logged(caplog, "Authorization Violation")
            (tmp_path / "password").unlink()  # while the file is being replaced
            await logged(caplog, "cannot be read")
            (tmp_path / "password").write_text("second-password")
            await watched.connected.wait()
        await watched.connection.close()
    refusals = [record for record in caplog.records if "Authorization Violation" in record.getMessage()]
    assert [record.levelname for record in refusals if record.levelname != "DEBUG"] == ["WARNING"]
    assert "check the user and the password" in refusals[0].getMessage()


async def test_a_replaced_ca_is_used_at_the_next_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The certificates are replaced on both sides, as when a CA expires; the process goes on."""

    def certify() -> trustme.CA:
        authority = trustme.CA()
        pair = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
        pair.write_to_path(tmp_path / "server.pem")
        return authority

    (tmp_path / "password").write_text("")
    server = NatsServer(tmp_path)
    pem = tmp_path / "server.pem"
    server.config = f'tls {{ cert_file: "{pem}", key_file: "{pem}" }}'
    certify().cert_pem.write_to_path(tmp_path / "ca.pem")
    with server.start():
        watched = Watched(server, tmp_path, scheme="tls")
        async with asyncio.timeout(30):
            await watched.connection.open()
            watched.connected.clear()
            authority = certify()
            await asyncio.to_thread(server.restart)
            await logged(caplog, "certificate verify failed")
            authority.cert_pem.write_to_path(tmp_path / "ca.pem")
            await watched.connected.wait()
        await watched.connection.close()
    refusals = [record for record in caplog.records if "check the file of CA certificates" in record.getMessage()]
    assert [record.levelname for record in refusals] == ["WARNING"]
