"""What a connection does around its requests: half-closed clients, expectations, too many headers."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from app.web import server
from app.web.server import Runner
from tests.web.conftest import Start, Web, assert_problem
from tests.web.endpoints.raw import read_response, send_raw

BODY = b'{"owner": "o", "items": [{"n": 1}]}'
HEAD = b"POST /v1/shipments HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(BODY)
ESTABLISHED = 1
"""Of a connection's state in `TCP_INFO` (linux/tcp.h)."""

GET = b"GET /v1/shipments HTTP/1.1\r\nHost: a\r\n\r\n"


async def half_close(web: Web, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send *sent* and close this side; return once the server has noticed, and before it can answer a POST."""
    web.service.gate.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", web.server.port)
    writer.write(sent)
    writer.write_eof()
    for _ in range(3):  # requests on another connection: what was sent before them has arrived
        await web.request("GET", "/livez")
    web.service.gate.set()
    return reader, writer


async def test_a_client_that_has_closed_its_side_is_answered(web: Web) -> None:
    """The response says that the connection closes, and then it does."""
    reader, writer = await half_close(web, HEAD + b"\r\n" + BODY)
    response = await read_response(reader)
    assert (response.status, response.headers["Connection"]) == (202, "close")
    assert await reader.read() == b""
    writer.close()


async def test_every_request_before_the_close_is_answered(web: Web) -> None:
    """Several on one connection, in their order."""
    reader, writer = await half_close(web, GET + HEAD + b"\r\n" + BODY + GET)
    found = [await read_response(reader) for _ in range(3)]
    assert [response.status for response in found] == [200, 202, 200]
    assert [response.headers.get("Connection") for response in found] == [None, None, "close"]
    assert await reader.read() == b""
    writer.close()


async def test_a_body_that_was_cut_off_is_400(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    """The rest can no longer arrive: the answer does not wait for it, nothing is submitted, and no error is logged."""
    reader, writer = await half_close(web, HEAD + b"\r\n" + BODY[:5])
    async with asyncio.timeout(30):
        response = await read_response(reader)
    assert (response.status, response.json["code"]) == (400, "malformed_request")
    assert await reader.read() == b""
    assert web.service.submitted == []
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    writer.close()


async def test_a_connection_without_a_request_is_closed(web: Web) -> None:
    """Before the first request and after the last one, and in the middle of a request's headers."""
    for sent in (b"", b"GET /v1/ship", GET):
        reader, writer = await asyncio.open_connection("127.0.0.1", web.server.port)
        writer.write(sent)
        if sent is GET:
            await read_response(reader)
        writer.write_eof()
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()


async def test_connections_that_wait_when_the_listener_closes_are_served(web: Web) -> None:
    """Their clients have connected and sent a request; a listener that closes resets what waits in its queue."""
    clients = [socket.create_connection(("127.0.0.1", web.server.port)) for _ in range(3)]
    for client in clients:  # the server accepts none of them until this test awaits something
        client.sendall(GET)
    assert isinstance(web.server.runner, Runner)
    await web.server.runner.drain(0)
    for client in clients:
        reader, writer = await asyncio.open_connection(sock=client)
        assert (await read_response(reader)).status == 200
        writer.close()
        await writer.wait_closed()


async def test_no_connection_begins_between_the_last_accept_and_the_close_of_the_listener(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The close would reset it. Its client tries again a second later and is refused, or reaches the next process."""
    accept_waiting = server._accept_waiting
    late = socket.socket()
    late.setblocking(False)
    connected = []

    class Listener(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            try:
                return super().accept()
            except BlockingIOError:
                late.connect_ex(("127.0.0.1", web.server.port))
                connected.append(late.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED)
                raise

    async def accept_from_listener(listening: socket.socket, server: Any) -> None:
        with Listener(fileno=listening.detach()) as listener:
            await accept_waiting(listener, server)

    monkeypatch.setattr(server, "_accept_waiting", accept_from_listener)
    assert isinstance(web.server.runner, Runner)
    with late:
        await web.server.runner.drain(0)
    assert connected == [False]


async def test_a_drain_that_is_cancelled_leaves_the_port_to_the_next_process(web: Web) -> None:
    """While a listener waits for the end of handshakes, it is open twice."""
    assert isinstance(web.server.runner, Runner)
    drain = asyncio.create_task(web.server.runner.drain(0))
    await asyncio.sleep(0)  # the drain begins
    drain.cancel()
    await asyncio.wait([drain])
    await web.server.runner.cleanup()
    with socket.socket() as next_process:
        next_process.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        next_process.bind(("127.0.0.1", web.server.port))
        next_process.listen()


async def test_a_body_is_asked_for_only_if_it_is_needed(start: Start) -> None:
    """100 Continue comes after everything that can refuse the request without its body."""
    web = await start(requires_key=True)
    expect = HEAD + b"Expect: 100-continue\r\n"
    key = b"Authorization: Bearer a-key-for-the-shop-front\r\n"
    for head, status in (
        (expect, 401),
        (expect.replace(b"json", b"jso") + key, 415),
        (expect + key + b"Idempotency-Key: a b\r\n", 400),
        (expect + key + b"Content-Encoding: gzip\r\n", 415),
        (expect.replace(b"shipments", b"nothing") + key, 404),
    ):
        assert (await send_raw(web, head + b"\r\n")).status == status

    reader, writer = await asyncio.open_connection("127.0.0.1", web.server.port)
    writer.write(expect + key + b"\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(BODY)
    assert (await read_response(reader)).status == 202
    writer.close()


async def test_a_body_that_came_along_is_not_asked_for(web: Web) -> None:
    """The client did not wait (RFC 9110, section 10.1.1)."""
    assert (await send_raw(web, HEAD + b"Expect: 100-continue\r\n\r\n" + BODY)).status == 202


@pytest.mark.parametrize("count", [200, 5000])
async def test_too_many_headers_are_431(web: Web, count: int) -> None:
    """The problem names what is wrong, and the connection closes."""
    headers = b"".join(b"X-%d: y\r\n" % n for n in range(count))
    response = await send_raw(web, b"GET /livez HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n")
    assert (response.status, response.json["code"]) == (431, "malformed_request")
    assert_problem(response)
