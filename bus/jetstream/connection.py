"""
The connection to NATS: opened once with retries, then kept up until it is closed.

The client reconnects by itself, with one exception: an error line of the server that it does not know makes it close
permanently. Then a new client is opened in its place, and `Connection` calls *on_connected* with it, so that the subscriptions
of the old one can be made again.
"""

from __future__ import annotations

__all__ = ["Connection", "SendObserver"]

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import nats.errors
from nats.js import JetStreamContext

from bus.errors import BrokerUnreachable
from bus.jetstream.connect_attempt import HANDSHAKE_SECONDS, ClientCallbacks, ConnectAttempt, ConnectRefused
from bus.jetstream.nats_client import NatsClient
from bus.jetstream.servers import Servers, ServerSource, advice, credentials
from bus.port import Clock
from bus.tasks import cancel_tasks

CONNECT_SECONDS_MAX = 300.0
_RETRY_SECONDS = 0.1
_RETRY_SECONDS_MAX = 10.0
_RECONNECT_SECONDS = 0.5
_PENDING_BYTES_MAX = 1 << 20
_DENIED = "permissions violation"
_REFUSALS_MAX = 20

_log = logging.getLogger(__name__)


class SendObserver(Protocol):
    """Follows a message that was given to `Connection.send`."""

    @property
    def is_done(self) -> bool:
        """True when the message need not be sent any more."""

    def fail(self, error: Exception) -> None:
        """Note that the message cannot be sent."""


_Item = tuple[str, bytes, str, dict[str, str] | None, SendObserver | None]
"""Subject, body, reply subject, headers, and what follows the message."""


class Connection:
    """
    One connection to NATS, and the task that writes to it.

    *on_connected* is called after each connect and reconnect, with a new client or the same one; *on_disconnected* each
    time the connection is lost. One task writes everything, in the order of `send`; what is sent while the connection is
    lost may be lost, or written later.
    """

    def __init__(
        self,
        clock: Clock,
        servers: Servers | ServerSource,
        *,
        name: str,
        inbox_prefix: str,
        ping_seconds: float,
        connect_seconds_max: float = CONNECT_SECONDS_MAX,
        on_connected: Callable[[NatsClient], Awaitable[None]],
        on_disconnected: Callable[[], None],
        rng: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._servers: ServerSource = servers if callable(servers) else lambda: servers
        self._name = name
        self.inbox_prefix = inbox_prefix
        self._ping_seconds = ping_seconds
        self._connect_seconds_max = connect_seconds_max
        self._notify_connected = on_connected
        self._notify_disconnected = on_disconnected
        self._rng = rng or random.Random()
        self._client: NatsClient | None = None
        self._items: deque[_Item] = deque()
        self._has_items = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._is_closed = False
        self.reconnects = 0
        self.denied: dict[str, None] = {}
        """What the server has denied for lack of permission since the last connect: the texts of its errors."""
        self._refusals: set[str] = set()

    @property
    def is_up(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def js(self) -> JetStreamContext:
        """
        The client's JetStream management calls, each with a time limit of 5 seconds.

        Raises:
            nats.errors.ConnectionClosedError: There is no client yet, or no more.
        """
        if self._client is None:
            raise nats.errors.ConnectionClosedError
        return self._client.jetstream(timeout=5)

    async def open(self) -> None:
        """
        Connect; between attempts wait longer each time, with jitter.

        Raises:
            BrokerUnreachable: It has taken longer than *connect_seconds_max*.
        """
        await self._open(self._clock.monotonic() + self._connect_seconds_max)

    def send(
        self,
        subject: str,
        body: bytes,
        reply: str = "",
        headers: dict[str, str] | None = None,
        observer: SendObserver | None = None,
    ) -> None:
        """Write a message as soon as possible. *observer* learns of a message that can never be written."""
        if not self._items:
            self._has_items.set()
        self._items.append((subject, body, reply, headers, observer))

    async def close(self) -> None:
        """Write what is left and disconnect; takes a second or two at most when the server does not answer."""
        self._is_closed = True
        client, self._client = self._client, None
        if client is not None and client.is_connected:
            with suppress(nats.errors.Error, TimeoutError, OSError):
                async with asyncio.timeout(HANDSHAKE_SECONDS):
                    await self._write_all(client)
                    await client.flush(HANDSHAKE_SECONDS)
        await cancel_tasks([task for task in (self._writer, self._reopening) if task is not None])
        if client is not None:
            with suppress(Exception):  # nothing can be done about an error at this point
                async with asyncio.timeout(HANDSHAKE_SECONDS):
                    await client.close()
            client.abort()

    # Opening

    async def _open(self, deadline: float) -> None:
        retry_seconds = _RETRY_SECONDS
        while not self._is_closed:
            try:
                await self._use(await self._connect())
                return
            except (ConnectRefused, TimeoutError, OSError, nats.errors.Error) as error:
                left_seconds = deadline - self._clock.monotonic()
                if left_seconds <= 0:
                    raise BrokerUnreachable(f"no NATS server accepts the connection: {error}") from error
                self._report_refusal(error)
            await self._clock.sleep(min(left_seconds, retry_seconds * self._rng.uniform(0.5, 1.0)))
            retry_seconds = min(_RETRY_SECONDS_MAX, retry_seconds * 2)

    async def _connect(self) -> NatsClient:
        callbacks = ClientCallbacks(
            on_refused=self._report_refusal,
            on_error=self._on_error,
            on_disconnected=self._on_disconnected,
            on_reconnected=self._on_reconnected,
            on_closed=self._on_closed,
        )
        return await ConnectAttempt(NatsClient(self._renewed), self._options(), callbacks, lambda: self._is_closed).run()

    async def _use(self, client: NatsClient) -> None:
        """Make *client* the current one, and start the task that writes to it."""
        self._client = client
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write(), name="NATS writer")
        await self._on_connected(client)

    def _options(self) -> dict[str, Any]:
        """Return the options of the client."""
        servers = self._servers()
        return {
            "servers": list(servers.urls),
            "name": self._name,
            **credentials(servers),
            "user_credentials": servers.creds,  # the client reads this file at each connection
            "inbox_prefix": self.inbox_prefix,
            "connect_timeout": HANDSHAKE_SECONDS,
            "reconnect_time_wait": _RECONNECT_SECONDS,
            "max_reconnect_attempts": -1,
            "ping_interval": self._ping_seconds,
            "max_outstanding_pings": 1,
            "pending_size": _PENDING_BYTES_MAX,
            "flush_timeout": HANDSHAKE_SECONDS,
        }

    def _renewed(self) -> dict[str, Any]:
        """Return the options that may have changed since the last connection; none if their files cannot be read now."""
        try:
            return credentials(self._servers())
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            _log.warning("the files for NATS cannot be read; the credentials from before stay in use: %s", error)
            return {}

    def _report_refusal(self, error: Exception) -> None:
        """Log why a server refuses, once for each reason until the next connect, with what to check."""
        text = str(error) or repr(error)
        if text not in self._refusals and len(self._refusals) < _REFUSALS_MAX:
            self._refusals.add(text)
            _log.warning("NATS is out of reach, trying again: %s; %s", text, advice(text))

    async def _reopen(self) -> None:
        _log.warning("NATS has closed the connection permanently; opening a new one")
        await self._open(float("inf"))
        self.reconnects += 1

    # Callbacks of an open client

    async def _on_connected(self, client: NatsClient) -> None:
        assert client.connected_url is not None
        _log.info("connected to NATS at %s", client.connected_url.hostname)
        self.denied.clear()
        self._refusals.clear()
        if not self._is_closed:
            await self._notify_connected(client)

    async def _on_reconnected(self, client: NatsClient) -> None:
        self.reconnects += 1
        await self._on_connected(client)

    def _on_disconnected(self) -> None:
        if not self._is_closed:
            _log.warning("the connection to NATS is lost")
            self._notify_disconnected()

    def _on_closed(self) -> None:
        if not self._is_closed:
            self._on_disconnected()
            self._reopening = asyncio.get_running_loop().create_task(self._reopen(), name="NATS reopening")

    def _on_error(self, error: Exception) -> None:
        text = str(error)
        if _DENIED in text and text not in self.denied:
            self.denied[text] = None
            _log.warning("NATS: %s", text)
        elif isinstance(error, (nats.errors.Error, OSError, TimeoutError)):
            if not self.is_up and not self._is_closed:
                self._report_refusal(error)
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
        """Write everything that waits with one write to the socket, or with one for each full buffer."""
        items = self._items
        while items:
            subject, body, reply, headers, observer = items.popleft()
            if observer is not None and observer.is_done:
                continue
            try:
                if client.write(subject, body, reply, headers):
                    await client.flush_written()
            except Exception as error:  # an error of the client, or whatever a malformed subject or header causes
                if observer is not None:
                    observer.fail(error)
        with suppress(OSError, RuntimeError):  # the socket is closed; the client notices when it reads
            await client.flush_written()
