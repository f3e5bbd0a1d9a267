"""The HTTP client of the load test: requests, responses in any pieces, lost connections."""

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
    """Yield a client of a server that runs *handler* for each TCP connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except asyncio.IncompleteReadError:
            pass  # the client has disconnected
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


def respond_with(*pieces: bytes) -> Handler:
    """Return a handler that answers every request with *pieces*, each sent separately."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"?")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)

    return handler


def test_a_post_has_the_path_the_host_and_the_content_length() -> None:
    """Path, Host and Content-Length come from the URL and the body; the Host header contains no credentials."""
    request = post(URL("http://me:secret@server.example:8080/base") / "v1" / "orders", b'{"a":1}')
    assert request == (
        b"POST /base/v1/orders HTTP/1.1\r\nHost: server.example:8080\r\nContent-Type: application/json\r\n"
        b'Content-Length: 7\r\n\r\n{"a":1}'
    )


def test_a_post_carries_the_api_key() -> None:
    """In the Authorization header, as a bearer token."""
    head, _, body = post(URL("http://server.example"), b"{}", "0123456789abcdef").partition(b"\r\n\r\n")
    assert b"Authorization: Bearer 0123456789abcdef" in head.split(b"\r\n")
    assert body == b"{}"


@pytest.mark.parametrize("size", [1, 2, 7, len(OK)])
async def test_a_response_may_arrive_in_any_pieces(size: int) -> None:
    """TCP keeps the order of the bytes, not the boundaries between writes."""
    async with serving(respond_with(*(OK[start : start + size] for start in range(0, len(OK), size)))) as connection:
        for _ in range(3):
            assert (await connection.send(b"?"))[:3] == (202, b"{}", 1.0)


async def test_a_response_has_the_time_of_its_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time at which the data arrived, not the time at which the waiting task continues."""
    now = [1.0]
    monkeypatch.setattr("app.cli.loadtest.http_client.perf_counter", lambda: now[0])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        now[0] = 2.0
        writer.write(OK)
        await writer.drain()

    async with serving(answer) as connection:
        response = await connection.send(b"?")
        now[0] = 3.0
    assert response.at == 2.0


async def test_the_retry_after_header_is_read() -> None:
    """The response has its value in seconds."""
    answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
    async with serving(respond_with(answer)) as connection:
        assert (await connection.send(b"?"))[:3] == (503, b"", 7.0)


async def test_the_client_reconnects_after_the_server_has_closed_the_connection() -> None:
    """``Connection: close`` ends the connection; the next request opens a new one."""
    connections = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"?")
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await writer.drain()

    async with serving(once) as connection:
        assert (await connection.send(b"?")).status == 202
        assert (await connection.send(b"?")).status == 202
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
async def test_an_unreadable_response_cuts_the_connection(answer: bytes) -> None:
    """The client does not guess the end of a response that it cannot parse."""
    async with serving(respond_with(answer)) as connection:
        with pytest.raises(ConnectionCut):
            await connection.send(b"?")


async def test_a_server_that_closes_the_connection_without_a_response_is_an_error() -> None:
    """A missing response raises `ConnectionCut`; the client does not wait for it."""

    async def disconnect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"?")

    async with serving(disconnect) as connection:
        with pytest.raises(ConnectionCut, match="the server closed the connection"):
            await connection.send(b"?")


async def test_a_request_that_waits_too_long_is_cut() -> None:
    """A server that never answers does not block the run; a request within the limit is not cut."""
    received = asyncio.Event()

    async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"?")
        received.set()
        await reader.readuntil(b"never")

    async with serving(stay_silent) as connection:
        sending = asyncio.create_task(connection.send(b"?"))
        await received.wait()
        connection.cut_if_older(3600)
        assert not sending.done()
        connection.cut_if_older(-1)
        with pytest.raises(ConnectionCut, match="no response within"):
            await sending


async def test_a_refused_connection_is_an_os_error(unused_tcp_port: int) -> None:
    """It is handled like a connection that was cut."""
    with pytest.raises(OSError, match=r"refused|Connect"):
        await Connection(URL(f"http://127.0.0.1:{unused_tcp_port}")).send(b"?")
