"""`NatsClient` does what the client of nats-py does, and survives what that does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus.jetstream.nats_client import NatsClient
from tests.nats import NatsServer

HEADERS = [
    None,
    {"a": "b"},
    {"ce-id": "e-1", "Mixed-Case": "a: b=c%20d;e", "empty": ""},
    {"name": "  spaces around  ", "umlaut": "Grüße, 世界", "tab": "a\tb"},
    {"split": "one\r\nInjected: two", "other": "\n"},
]

BLOCKS = [
    b"NATS/1.0\r\na: b\r\n\r\n",
    b"NATS/1.0\r\na:b\r\nA:\tc\r\n\r\n",
    b"NATS/1.0\r\na: b\r\na: c\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\na: b:c\r\n\r\n",
    b"NATS/1.0\r\nvalue: \xff\xfe\r\na: b\r\n\r\n",
    b"NATS/1.0\r\n\xc3\xbc: x\r\na: b\r\n\r\n",
    b"NATS/1.0\r\n\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n",
    b"",
]


@pytest.fixture
async def clients(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[NatsClient, NatsServer]]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        client = NatsClient()
        await client.connect(server.url, pending_size=10_000, error_cb=_ignore)
        yield client, server
        with suppress(TypeError, ConnectionError):  # from asyncio, when something is left to write to a killed server
            await client.close()


async def _ignore(error: Exception) -> None:
    """The errors of a killed server are expected here."""


@pytest.mark.parametrize("headers", HEADERS)
async def test_publish_fast_sends_what_publish_sends(clients: tuple[NatsClient, NatsServer], headers: dict[str, str] | None) -> None:
    """Subject, reply, headers and body arrive the same; and no header value injects another header."""
    client, _ = clients
    received: asyncio.Queue[Msg] = asyncio.Queue()
    await client.subscribe("subject", cb=received.put)
    await client.publish("subject", b"body\r\n", "reply", headers)
    await client.publish_fast("subject", b"body\r\n", "reply", headers)
    first, second = [await asyncio.wait_for(received.get(), 30) for _ in range(2)]
    assert (second.subject, second.reply, second.data) == (first.subject, first.reply, first.data)
    assert second.headers == first.headers
    assert "Injected" not in (second.headers or {})


@pytest.mark.parametrize("block", BLOCKS)
async def test_a_header_block_is_parsed_as_the_client_parses_it(block: bytes) -> None:
    """Other programs may send any header block, also one that is not text."""
    assert await NatsClient()._process_headers(block) == await Client()._process_headers(block)


@pytest.mark.parametrize("block", [b"NATS/1.0 \xff\xfe\r\n\r\n", b"x", b"NATS/1.0 1\xff0 a\r\n\r\n", b"\xff" * 40])
async def test_an_unreadable_header_block_counts_as_no_headers(block: bytes) -> None:
    """The client itself would stop reading from the connection."""
    assert not await NatsClient()._process_headers(block)


async def test_a_message_that_is_too_large_is_rejected_locally(clients: tuple[NatsClient, NatsServer]) -> None:
    """The size includes the headers; the server closes the connection of a client that sends too much."""
    client, _ = clients
    body = b"x" * (client.max_payload - 100)
    with pytest.raises(nats.errors.MaxPayloadError):
        await client.publish_fast("subject", body, "", {"long": "x" * 200})
    await client.publish_fast("subject", body, "", {"short": "x"})
    await client.flush(5)
    assert client.is_connected


@pytest.mark.parametrize("subject", ["", "two words", "line\r\nPING", "tab\t"])
async def test_a_subject_cannot_inject_a_command(clients: tuple[NatsClient, NatsServer], subject: str) -> None:
    """Nothing is written."""
    client, _ = clients
    with pytest.raises(nats.errors.BadSubjectError):
        await client.publish_fast(subject, b"")


async def test_a_header_name_cannot_inject_a_line(clients: tuple[NatsClient, NatsServer]) -> None:
    """Nothing is written."""
    client, _ = clients
    for name in ("two words", "line\r\nOther", "line\nOther", "", "colon:"):
        with pytest.raises(nats.errors.BadHeaderError):
            await client.publish_fast("subject", b"", "", {name: "x", "good": "y"})


async def test_the_buffer_is_bounded_while_disconnected(clients: tuple[NatsClient, NatsServer]) -> None:
    """A message that does not fit is rejected at once."""
    client, server = clients
    server.kill()
    async with asyncio.timeout(30):
        while client.is_connected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    rejected = 0
    for _ in range(20):
        try:
            await client.publish_fast("subject", b"x" * 1_000)
        except nats.errors.Error:
            rejected += 1
    assert rejected >= 10


async def test_a_write_to_a_server_that_hangs_can_be_cancelled(clients: tuple[NatsClient, NatsServer]) -> None:
    """The client itself would swallow the cancellation, and the task would go on."""
    client, server = clients
    server.pause()
    try:

        async def write() -> None:
            while True:
                await client.publish_fast("subject", b"x" * 500_000)

        writing = asyncio.create_task(write())
        await asyncio.sleep(0.5)  # until every buffer on the way to the server is full
        assert not writing.done()
        writing.cancel()
        await asyncio.wait([writing], timeout=30)
        assert writing.cancelled()
    finally:
        server.resume()


async def test_a_server_that_hangs_on_reconnect_is_abandoned() -> None:
    """Its socket is closed before the next attempt; the client itself would leave that to the garbage collector."""
    connections = 0
    tried_twice = asyncio.Event()

    async def accept_the_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            writer.write(b'INFO {"max_payload": 1048576, "headers": true}\r\n')
            while await reader.readline() != b"PING\r\n":
                pass
            writer.write(b"PONG\r\n")
            await writer.drain()
        else:
            if connections == 3:
                tried_twice.set()
            await reader.read()
        writer.close()

    async def on_error(error: Exception) -> None:
        pass

    client = NatsClient()
    async with await asyncio.start_server(accept_the_first, "127.0.0.1", 0) as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await client.connect(url, connect_timeout=1, reconnect_time_wait=0, max_reconnect_attempts=-1, error_cb=on_error)
        async with asyncio.timeout(30):
            await tried_twice.wait()
        await client.close()
        await asyncio.sleep(0)
