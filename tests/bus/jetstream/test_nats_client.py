"""Our short cuts through nats-py's client do what the client does, and survive what it does not."""

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
        await client.connect(server.url, pending_size=10_000, error_cb=_ignored)
        yield client, server
        with suppress(TypeError, ConnectionError):  # asyncio's own, when something is left to write to who has gone
            await client.close()


async def _ignored(error: Exception) -> None:
    """A killed server is what some of these tests are about."""


@pytest.mark.parametrize("headers", HEADERS)
async def test_a_post_arrives_as_a_publish_does(clients: tuple[NatsClient, NatsServer], headers: dict[str, str] | None) -> None:
    """Subject, reply, headers and body; and no header value brings another header along."""
    client, _ = clients
    heard: asyncio.Queue[Msg] = asyncio.Queue()
    await client.subscribe("here", cb=heard.put)
    await client.publish("here", b"body\r\n", "there", headers)
    await client.publish_fast("here", b"body\r\n", "there", headers)
    first, second = [await asyncio.wait_for(heard.get(), 5) for _ in range(2)]
    assert (second.subject, second.reply, second.data) == (first.subject, first.reply, first.data)
    assert second.headers == first.headers
    assert "Injected" not in (second.headers or {})


@pytest.mark.parametrize("block", BLOCKS)
async def test_a_block_is_read_as_the_client_reads_it(block: bytes) -> None:
    """Whatever others may have sent, be it not even text."""
    assert await NatsClient()._process_headers(block) == await Client()._process_headers(block)


@pytest.mark.parametrize("block", [b"NATS/1.0 \xff\xfe\r\n\r\n", b"x", b"NATS/1.0 1\xff0 a\r\n\r\n", b"\xff" * 40])
async def test_rubbish_in_the_place_of_headers_is_no_headers(block: bytes) -> None:
    """The client would stop reading."""
    assert not await NatsClient()._process_headers(block)


async def test_what_is_too_large_is_refused_before_the_server_hangs_up(clients: tuple[NatsClient, NatsServer]) -> None:
    """Headers count: the server closes the connection of whoever sends more than it takes."""
    client, _ = clients
    body = b"x" * (client.max_payload - 100)
    with pytest.raises(nats.errors.MaxPayloadError):
        await client.publish_fast("here", body, "", {"long": "x" * 200})
    await client.publish_fast("here", body, "", {"short": "x"})
    await client.flush(5)
    assert client.is_connected


@pytest.mark.parametrize("subject", ["", "two words", "line\r\nPING", "tab\t"])
async def test_a_subject_cannot_carry_a_command(clients: tuple[NatsClient, NatsServer], subject: str) -> None:
    """Nothing is written."""
    client, _ = clients
    with pytest.raises(nats.errors.BadSubjectError):
        await client.publish_fast(subject, b"")


async def test_a_header_name_cannot_carry_a_line(clients: tuple[NatsClient, NatsServer]) -> None:
    """Nothing is written."""
    client, _ = clients
    for name in ("two words", "line\r\nOther", "line\nOther", "", "colon:"):
        with pytest.raises(nats.errors.BadHeaderError):
            await client.publish_fast("here", b"", "", {name: "x", "good": "y"})


async def test_the_buffer_is_bounded_while_the_server_is_away(clients: tuple[NatsClient, NatsServer]) -> None:
    """What does not fit is refused at once."""
    client, server = clients
    server.kill()
    async with asyncio.timeout(5):
        while client.is_connected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    refused = 0
    for _ in range(20):
        try:
            await client.publish_fast("here", b"x" * 1_000)
        except nats.errors.Error:
            refused += 1
    assert refused >= 10


async def test_who_waits_for_a_server_that_hangs_can_be_cancelled(clients: tuple[NatsClient, NatsServer]) -> None:
    """The client itself would swallow the cancellation, and its caller go on."""
    client, server = clients
    server.pause()
    try:

        async def speak() -> None:
            while True:
                await client.publish_fast("here", b"x" * 500_000)

        speaking = asyncio.create_task(speak())
        await asyncio.sleep(0.5)  # until no buffer between us and the server takes any more
        assert not speaking.done()
        speaking.cancel()
        await asyncio.wait([speaking], timeout=2)
        assert speaking.cancelled()
    finally:
        server.resume()


async def test_a_server_that_takes_us_back_and_says_nothing_is_left() -> None:
    """Before the next attempt its socket is closed; the client itself would leave that to the garbage collector."""
    came = 0
    tried_twice = asyncio.Event()

    async def greet_the_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        if came == 1:
            writer.write(b'INFO {"max_payload": 1048576, "headers": true}\r\n')
            while await reader.readline() != b"PING\r\n":
                pass
            writer.write(b"PONG\r\n")
            await writer.drain()
        else:
            if came == 3:
                tried_twice.set()
            await reader.read()
        writer.close()

    async def note(error: Exception) -> None:
        pass

    client = NatsClient()
    async with await asyncio.start_server(greet_the_first, "127.0.0.1", 0) as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await client.connect(url, connect_timeout=1, reconnect_time_wait=0, max_reconnect_attempts=-1, error_cb=note)
        async with asyncio.timeout(10):
            await tried_twice.wait()
        await client.close()
        await asyncio.sleep(0)
