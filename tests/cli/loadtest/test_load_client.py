"""The small HTTP client reads what the server may send, in whatever pieces it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from yarl import URL

from app.cli.loadtest.http_client import Connection, ConnectionCut, post

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Connection]:
    """Enter for a connection to a server that does as *handler* says with each connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except asyncio.IncompleteReadError:
            pass  # the client has left
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    connection = Connection(URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    try:
        yield connection
    finally:
        connection.close()
        server.close()
        await server.wait_closed()


def saying(*pieces: bytes) -> Handler:
    """Answer every request with *pieces*, each sent on its own."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"?")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)

    return handler


def test_a_post_is_whole_and_counted() -> None:
    """Path, host and length as the URL and the body have them; no password in the Host."""
    request = post(URL("http://me:secret@shop.example:8080/base") / "v1" / "orders", b'{"a":1}')
    assert request == (
        b"POST /base/v1/orders HTTP/1.1\r\nHost: shop.example:8080\r\nContent-Type: application/json\r\n"
        b'Content-Length: 7\r\n\r\n{"a":1}'
    )


def test_a_post_brings_the_key_that_it_is_given() -> None:
    """As every other client does."""
    head, _, body = post(URL("http://shop.example"), b"{}", "0123456789abcdef").partition(b"\r\n\r\n")
    assert b"Authorization: Bearer 0123456789abcdef" in head.split(b"\r\n")
    assert body == b"{}"


@pytest.mark.parametrize("size", [1, 2, 7, len(OK)])
async def test_an_answer_may_come_in_any_pieces(size: int) -> None:
    """TCP promises an order of bytes, and no packets."""
    async with serving(saying(*(OK[start : start + size] for start in range(0, len(OK), size)))) as connection:
        for _ in range(3):
            assert (await connection.ask(b"?"))[:3] == (202, b"{}", 1.0)


async def test_an_answer_bears_the_time_at_which_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many others came with it, and however late somebody looks at it."""
    now = [1.0]
    monkeypatch.setattr("app.cli.loadtest.http_client.perf_counter", lambda: now[0])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        now[0] = 2.0
        writer.write(OK)
        await writer.drain()

    async with serving(answer) as connection:
        found = await connection.ask(b"?")
        now[0] = 3.0
    assert found.at == 2.0


async def test_retry_after_is_read() -> None:
    """A refusal says how long it holds."""
    answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
    async with serving(saying(answer)) as connection:
        assert (await connection.ask(b"?"))[:3] == (503, b"", 7.0)


async def test_a_connection_that_the_server_closes_is_opened_again() -> None:
    """``Connection: close`` ends the connection, not the client."""
    connections = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"?")
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await writer.drain()

    async with serving(once) as connection:
        assert (await connection.ask(b"?")).status == 202
        assert (await connection.ask(b"?")).status == 202
    assert connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\nContent-Length: many\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\nContent-Length: 0\r\n\r\n",
        b"x" * (1 << 21),
    ],
    ids=["chunked", "no number", "another protocol", "endless"],
)
async def test_an_answer_it_cannot_read_cuts_the_connection(answer: bytes) -> None:
    """What is not understood is not guessed at."""
    async with serving(saying(answer)) as connection:
        with pytest.raises(ConnectionCut):
            await connection.ask(b"?")


async def test_a_server_that_hangs_up_is_told() -> None:
    """No answer is an error, never a wait."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"?")

    async with serving(hang_up) as connection:
        with pytest.raises(ConnectionCut, match="the server closed it"):
            await connection.ask(b"?")


async def test_a_request_that_waits_too_long_is_cut() -> None:
    """A server that never answers does not hold the run for ever, and one that is quick enough is left alone."""
    asked = asyncio.Event()

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"?")
        asked.set()
        await reader.readuntil(b"never")

    async with serving(silence) as connection:
        asking = asyncio.create_task(connection.ask(b"?"))
        await asked.wait()
        connection.cut_if_older(3600)
        assert not asking.done()
        connection.cut_if_older(-1)
        with pytest.raises(ConnectionCut, match="no answer within"):
            await asking


async def test_nobody_there_is_an_os_error(unused_tcp_port: int) -> None:
    """A refused connection is of the same family as a cut one."""
    with pytest.raises(OSError, match=r"refused|Connect"):
        await Connection(URL(f"http://127.0.0.1:{unused_tcp_port}")).ask(b"?")
