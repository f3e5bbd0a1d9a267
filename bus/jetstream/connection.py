"""
The line to NATS: opened once with patience, then kept up for ever.

The client reconnects by itself, with one exception: an error line of the server that it does not know closes it for
good. Then a new one is opened in its place, and whoever subscribed on the old one does so again.
"""

from __future__ import annotations

__all__ = ["Connection", "Servers"]

import asyncio
import logging
import random
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import nats.errors
from attrs import define, field, frozen
from nats.aio.client import Client
from nats.js import JetStreamContext

from bus.errors import BrokerUnreachable
from bus.jetstream.nats_client import NatsClient
from bus.port import Clock
from bus.tasks import cancel_tasks

CONNECT_SECONDS_MAX = 300.0
_WAIT_SECONDS = 0.1
_WAIT_SECONDS_MAX = 10.0
_HANDSHAKE_SECONDS = 2
_RECONNECT_SECONDS = 0.5
_PENDING_BYTES_MAX = 1 << 20
_DENIED = "permissions violation"

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Servers:
    """Where NATS is, and how to get in. Files are given by their paths."""

    urls: tuple[str, ...]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    creds: str | None = None
    tls_ca: str | None = None


class SendObserver(Protocol):
    """Whoever wants to know what became of something that was given to `Connection.send`."""

    @property
    def is_over(self) -> bool:
        """True when it need not be sent any more."""

    def fail(self, error: Exception) -> None:
        """It cannot be sent."""


@define(eq=False)
class _Item:
    subject: str
    body: bytes
    reply: str
    headers: dict[str, str] | None
    sent: SendObserver | None


class _Refused(Exception):
    """Ends a round of attempts to connect: no server has let us in."""


class Connection:
    """
    One line to NATS, its writer, and who is to be told when it comes up or goes down.

    *on_up* is called after each connecting and reconnecting, with a new client or the same; *on_down* each time it is
    lost. Everything is written by one task, in the order of `send`; what is sent while the line is down is lost or
    late.
    """

    def __init__(
        self,
        clock: Clock,
        servers: Servers,
        *,
        name: str,
        inbox_prefix: str,
        ping_seconds: float,
        connect_seconds_max: float = CONNECT_SECONDS_MAX,
        on_up: Callable[[Client], Awaitable[None]],
        on_down: Callable[[], None],
        rng: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._servers = servers
        self._name = name
        self.inbox_prefix = inbox_prefix
        self._ping_seconds = ping_seconds
        self._connect_seconds_max = connect_seconds_max
        self._on_up = on_up
        self._on_down = on_down
        self._rng = rng or random.Random()
        self._client: NatsClient | None = None
        self._items: deque[_Item] = deque()
        self._has_items = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._is_closed = False
        self.reconnects = 0
        self.denied: dict[str, None] = {}

    @property
    def is_up(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def js(self) -> JetStreamContext:
        """
        The client's JetStream management calls, each with a time limit.

        Raises:
            nats.errors.ConnectionClosedError: There is no client yet, or no more.
        """
        if self._client is None:
            raise nats.errors.ConnectionClosedError
        return self._client.jetstream(timeout=5)

    async def open(self) -> None:
        """
        Connect; wait between attempts, each time longer, with jitter.

        Raises:
            Unreachable: It took longer than it may.
        """
        await self._open(self._clock.monotonic() + self._connect_seconds_max)

    def send(
        self, subject: str, body: bytes, reply: str = "", headers: dict[str, str] | None = None, sent: SendObserver | None = None
    ) -> None:
        """Write a message as soon as possible. *sent* hears of what can never be written."""
        if not self._items:
            self._has_items.set()
        self._items.append(_Item(subject, body, reply, headers, sent))

    async def close(self) -> None:
        """Write what is left and hang up; takes a second or two at most when nobody answers."""
        self._is_closed = True
        client, self._client = self._client, None
        if client is not None and client.is_connected:
            with suppress(nats.errors.Error, TimeoutError, OSError):
                async with asyncio.timeout(_HANDSHAKE_SECONDS):
                    await self._write_all(client)
                    await client.flush(_HANDSHAKE_SECONDS)
        await cancel_tasks([task for task in (self._writer, self._reopening) if task is not None])
        if client is not None:
            with suppress(Exception):  # whatever it is that cannot be tidied up any more
                async with asyncio.timeout(_HANDSHAKE_SECONDS):
                    await client.close()
            client.hang_up()

    # Up and down

    async def _open(self, deadline: float) -> None:
        wait_seconds = _WAIT_SECONDS
        while not self._is_closed:
            try:
                await self._try_to_open()
                return
            except (_Refused, TimeoutError, OSError, nats.errors.Error) as error:
                left_seconds = deadline - self._clock.monotonic()
                if left_seconds <= 0:
                    raise BrokerUnreachable(f"no NATS server lets us in: {error}") from error
                if wait_seconds == _WAIT_SECONDS:
                    _log.warning("NATS is out of reach, trying again: %s", error)
            await self._clock.sleep(min(left_seconds, wait_seconds * self._rng.uniform(0.5, 1.0)))
            wait_seconds = min(_WAIT_SECONDS_MAX, wait_seconds * 2)

    async def _try_to_open(self) -> None:
        """
        Go once around all servers.

        Raises:
            Exception: None of them lets us in.
        """
        servers = self._servers
        client = NatsClient()
        is_open = False
        refusals = 0

        async def on_error(error: Exception) -> None:
            nonlocal refusals
            if is_open:
                self._note(error)
                return
            refusals += 1
            if refusals >= len(servers.urls):
                raise _Refused(str(error) or repr(error))

        async def on_disconnected() -> None:
            if is_open:
                self._went_down()

        async def on_reconnected() -> None:
            self.reconnects += 1
            await self._came_up(client)

        async def on_closed() -> None:
            if is_open and not self._is_closed:
                self._went_down()
                self._reopening = asyncio.get_running_loop().create_task(self._reopen(), name="NATS reopening")

        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS * 4 * len(servers.urls)):
                await client.connect(
                    list(servers.urls),
                    name=self._name,
                    user=servers.user,
                    password=servers.password,
                    user_credentials=servers.creds,
                    tls=ssl.create_default_context(cafile=servers.tls_ca) if servers.tls_ca else None,
                    inbox_prefix=self.inbox_prefix,
                    connect_timeout=_HANDSHAKE_SECONDS,
                    reconnect_time_wait=_RECONNECT_SECONDS,  # type: ignore[arg-type]
                    max_reconnect_attempts=-1,
                    ping_interval=self._ping_seconds,  # type: ignore[arg-type]
                    max_outstanding_pings=1,
                    pending_size=_PENDING_BYTES_MAX,
                    flush_timeout=_HANDSHAKE_SECONDS,
                    error_cb=on_error,
                    disconnected_cb=on_disconnected,
                    reconnected_cb=on_reconnected,
                    closed_cb=on_closed,
                )
            if self._is_closed:
                raise _Refused("closed in the meantime")
        except BaseException:
            with suppress(Exception):
                async with asyncio.timeout(_WAIT_SECONDS):  # after a failed TLS handshake the transport never says that it is closed
                    await client.close()
            raise
        is_open = True
        self._client = client
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write(), name="NATS writer")
        await self._came_up(client)

    async def _reopen(self) -> None:
        _log.warning("NATS has closed the connection for good; opening a new one")
        await self._open(float("inf"))
        self.reconnects += 1

    async def _came_up(self, client: Client) -> None:
        assert client.connected_url is not None
        _log.info("connected to NATS at %s", client.connected_url.hostname)
        self.denied.clear()
        if not self._is_closed:
            await self._on_up(client)

    def _went_down(self) -> None:
        if not self._is_closed:
            _log.warning("the connection to NATS is lost")
            self._on_down()

    def _note(self, error: Exception) -> None:
        text = str(error)
        if _DENIED in text and text not in self.denied:
            self.denied[text] = None
            _log.warning("NATS: %s", text)
        elif isinstance(error, (nats.errors.Error, OSError, TimeoutError)):
            _log.debug("NATS: %r", error)
        else:
            _log.error("NATS: a callback has failed", exc_info=error)

    # Writing

    async def _write(self) -> None:
        while True:
            await self._has_items.wait()
            self._has_items.clear()
            if self._client is not None:
                await self._write_all(self._client)

    async def _write_all(self, client: NatsClient) -> None:
        items = self._items
        while items:
            item = items.popleft()
            sent = item.sent
            if sent is not None and sent.is_over:
                continue
            try:
                await client.post(item.subject, item.body, item.reply, item.headers)
            except Exception as error:  # the client's own errors, and whatever a strange subject or header brings about
                if sent is not None:
                    sent.fail(error)
