"""
A minimal HTTP client: send prepared bytes over a keep-alive connection and read a short response.

The load test shares its machine with the server it measures, so the processor time it spends is missing there. With
aiohttp's client a POST takes 95 µs of processor time, most of it for headers, cookies and URLs that are the same every
time; this client takes about a sixth of that. It reads only HTTP/1.1 responses with a Content-Length. Creating the
stock and polling the orders go through aiohttp.
"""

from __future__ import annotations

__all__ = ["Connection", "ConnectionCut", "Response", "post"]

import asyncio
from time import perf_counter
from typing import NamedTuple, cast

from yarl import URL

from app.cli.http_client import credentials

CONNECT_SECONDS = 10.0
RESPONSE_BYTES_MAX = 1 << 20


class ConnectionCut(ConnectionError):
    """The connection ended before the response; whether the server processed the request is unknown."""


class Response(NamedTuple):
    """A response: *retry_after* in seconds (1 without the header), received *at* this value of perf_counter."""

    status: int
    body: bytes
    retry_after: float
    at: float


def post(url: URL, body: bytes, key: str | None = None) -> bytes:
    """Return the bytes of a POST of the JSON *body* to *url*, with the API key *key*; they can be sent repeatedly."""
    host = url.raw_authority.rpartition("@")[2]
    headers = {"Host": host, "Content-Type": "application/json", **credentials(key)}
    head = f"POST {url.raw_path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection:
    """Sends one request at a time to the host of *url*; reconnects when the last connection has ended."""

    def __init__(self, url: URL) -> None:
        self._host = url.host or ""
        self._port = url.port or 80
        self._ssl = True if url.scheme == "https" else None
        self._protocol: _Protocol | None = None
        self._sent_at = 0.0

    async def send(self, request: bytes) -> Response:
        """
        Send *request* and return the response.

        Raises:
            OSError: There was no response; whether the server processed the request is unknown.
        """
        loop = asyncio.get_running_loop()
        if self._protocol is None or self._protocol.is_closed:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, self._protocol = await loop.create_connection(_Protocol, self._host, self._port, ssl=self._ssl)
        self._sent_at = perf_counter()
        return await self._protocol.send(request)

    def cut_if_older(self, seconds: float) -> None:
        """Cut the connection if its request has waited longer than *seconds*; cheaper than a timer for each request."""
        waited = perf_counter() - self._sent_at
        if self._protocol is not None and self._protocol.is_waiting and waited > seconds:
            self._protocol.fail(ConnectionCut(f"no response within {seconds:g} s"))

    def close(self) -> None:
        """Close the connection; a pending request fails with `ConnectionCut`."""
        if self._protocol is not None:
            self._protocol.fail(ConnectionCut("closed"))


class _Protocol(asyncio.Protocol):
    """The asyncio protocol of one TCP connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._buffer = b""
        self._error: ConnectionCut | None = None

    @property
    def is_closed(self) -> bool:
        return self._error is not None

    @property
    def is_waiting(self) -> bool:
        return self._waiter is not None

    def send(self, request: bytes) -> asyncio.Future[Response]:
        waiter: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        if self._transport is None or self._error is not None:
            waiter.set_exception(self._error or ConnectionCut("not connected"))
        else:
            self._waiter = waiter
            self._transport.write(request)
        return waiter

    def fail(self, error: ConnectionCut) -> None:
        self._error = self._error or error
        waiter, self._waiter = self._waiter, None
        if self._transport is not None:
            self._transport.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(ConnectionCut(str(exc) if exc else "the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._keep(data)
            return
        head = data[: end + 2].lower()
        length = _number(head, b"\r\ncontent-length:")
        if length is None or not head.startswith(b"http/1.1 "):
            self.fail(ConnectionCut("the response is not HTTP/1.1 with a Content-Length"))
        elif len(data) < end + 4 + length:
            self._keep(data)
        else:
            wait = _number(head, b"\r\nretry-after:")
            body = data[end + 4 : end + 4 + length]
            # Responses arrive in bursts; the time until the waiting task runs is not the server's, so stamp it here.
            response = Response(int(head[9:12]), body, 1.0 if wait is None else float(wait), perf_counter())
            waiter, self._waiter, self._buffer = self._waiter, None, b""
            if b"\r\nconnection: close" in head:
                self.fail(ConnectionCut("the server closed the connection"))
            if waiter is not None and not waiter.done():
                waiter.set_result(response)

    def _keep(self, data: bytes) -> None:
        self._buffer = data
        if len(data) > RESPONSE_BYTES_MAX:
            self.fail(ConnectionCut("the response is too long"))


def _number(head: bytes, name: bytes) -> int | None:
    """Return the integer value of the header *name* in the lower-cased *head*, or None."""
    start = head.find(name)
    if start < 0:
        return None
    value = head[start + len(name) : head.find(b"\r\n", start + 2)].strip()
    return int(value) if value.isdigit() else None
