"""
Simulated TCP between processes and a server: in order, late, and with faults.

Each host has one link to the server, and its connections run over it. What a connection carries arrives in order, after a
delay. A link can be cut, which both ends notice at once; or silent in one direction or both, which neither notices: what is
sent then arrives when the link is healed, if the connection still exists, as TCP sends it again.
"""

from __future__ import annotations

__all__ = ["Connection", "Link", "Network", "Pipe", "ServerSide"]

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

from attrs import define, field

from bus.port import Clock

DELAY_SECONDS = 0.0005


class ServerSide(Protocol):
    """What the server does with a connection."""

    @property
    def is_up(self) -> bool:
        """Whether the server accepts connections."""

    def accept(self, connection: Connection) -> None:
        """Greet the client of *connection*."""

    def receive(self, connection: Connection, data: bytes) -> None:
        """Process *data* from the client of *connection*."""

    def forget(self, connection: Connection) -> None:
        """Note that *connection* is closed."""


@define(eq=False)
class Pipe:
    """One direction of a connection."""

    clock: Clock
    delay: Callable[[], float]
    deliver: Callable[[bytes], None]
    ended: Callable[[], None]
    is_silent: bool = False
    is_closed: bool = False
    _waiting: deque[tuple[float, bytes | None]] = field(factory=deque)
    _timer: asyncio.Handle | None = None

    def send(self, data: bytes | None) -> None:
        """Deliver *data* after the delay, and after what was sent before; None is the end."""
        if not self.is_closed:
            earliest = self._waiting[-1][0] if self._waiting else 0.0
            self._waiting.append((max(earliest, self.clock.monotonic() + self.delay()), data))
            self._start()

    def heal(self) -> None:
        """Deliver what was sent while the pipe was silent."""
        self.is_silent = False
        self._start()

    def close(self) -> None:
        """Drop what has not arrived."""
        self.is_closed = True
        self._waiting.clear()

    def _start(self) -> None:
        if self._waiting and self._timer is None and not self.is_silent:
            self._timer = asyncio.get_running_loop().call_at(self._waiting[0][0], self._arrive, context=Context())  # of no process

    def _arrive(self) -> None:
        self._timer = None
        if self.is_silent:
            return
        now = self.clock.monotonic()
        chunks: list[bytes] = []
        is_ended = False
        while self._waiting and not is_ended and self._waiting[0][0] <= now:
            data = self._waiting.popleft()[1]
            is_ended = data is None
            chunks.append(data or b"")
        if data := b"".join(chunks):
            self.deliver(data)
        if is_ended:
            self.ended()
        self._start()


class Connection(asyncio.Transport):
    """One connection; this is the transport of its client's end, and the server calls `send`."""

    def __init__(self, link: Link, server: ServerSide, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self._link, self._server, self._protocol = link, server, protocol
        self._is_closing = False
        self.up = Pipe(
            link.clock, link.delay, lambda data: server.receive(self, data), lambda: server.forget(self), link.is_silent_up
        )
        self.down = Pipe(link.clock, link.delay, self._arrived, lambda: self._end(None), link.is_silent_down)

    @property
    def host(self) -> str:
        """The name of the client's host."""
        return self._link.host

    def send(self, data: bytes) -> None:
        """Send *data* from the server to the client."""
        self.down.send(data)

    def _arrived(self, data: bytes) -> None:
        if not self._is_closing and self._link.before_read():
            self._protocol.data_received(data)  # type: ignore[attr-defined]

    # The client's end

    def write(self, data: Any) -> None:
        if not self._is_closing and (sent := self._link.before_write(bytes(data))):
            self.up.send(sent)

    def close(self) -> None:
        """Close the client's end; the server receives what was written before that."""
        self._end(None)

    def abort(self) -> None:
        self._end(None)

    def drop(self) -> None:
        """Close both ends at once; what is under way is lost."""
        self._end(ConnectionResetError("the connection is cut"))
        self.up.close()
        self._server.forget(self)

    def _end(self, error: Exception | None) -> None:
        if not self._is_closing:
            self._is_closing = True
            self.down.close()
            self.up.send(None)
            if not self.up.is_silent:
                self._link.connections.pop(self, None)
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, error, context=Context())

    def is_closing(self) -> bool:
        return self._is_closing

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        """Do nothing: a reader that is full still accepts what arrives."""

    def resume_reading(self) -> None:
        """Do nothing, as `pause_reading`."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol


@define(eq=False)
class Link:
    """The way between one host and the server."""

    clock: Clock
    rng: random.Random
    host: str
    delay_seconds: float = DELAY_SECONDS
    jitter_seconds: float = 0.0
    is_cut: bool = False
    is_silent_up: bool = False
    is_silent_down: bool = False
    before_write: Callable[[bytes], bytes] = lambda data: data
    """Called with what the host is about to send; returns what it sends."""
    before_read: Callable[[], bool] = lambda: True
    """Called when data arrives; returns False for a host that does not read it."""
    connections: dict[Connection, None] = field(factory=dict)

    def delay(self) -> float:
        """Return how long the next bytes take."""
        return self.delay_seconds + (self.rng.expovariate(1 / self.jitter_seconds) if self.jitter_seconds else 0.0)

    def cut(self) -> None:
        """Close the connections, and refuse others until the link is healed."""
        self.is_cut = True
        self.drop()

    def drop(self) -> None:
        """Close the connections; others may be opened."""
        for connection in list(self.connections):
            connection.drop()

    def silence(self, *, up: bool = True, down: bool = True) -> None:
        """Deliver nothing to the server (*up*), or to the client (*down*), until the link is healed."""
        self.is_silent_up, self.is_silent_down = up, down
        for connection in self.connections:
            connection.up.is_silent, connection.down.is_silent = up, down

    def slow_down(self) -> None:
        """Take a second or so for each message from now on."""
        self.delay_seconds, self.jitter_seconds = 0.2, 1.0

    def heal(self) -> None:
        """Deliver what was held back, and accept connections again."""
        self.is_cut = self.is_silent_up = self.is_silent_down = False
        for connection in list(self.connections):
            connection.up.heal()
            connection.down.heal()


class Network:
    """The links of all hosts to one server. *rng* decides the delays."""

    def __init__(self, clock: Clock, rng: random.Random, server: ServerSide) -> None:
        self._clock, self._rng, self._server = clock, rng, server
        self.links: dict[str, Link] = {}

    def link(self, host: str) -> Link:
        """Return the link of *host*, which is made when it is first needed."""
        if host not in self.links:
            self.links[host] = Link(self._clock, self._rng, host)
        return self.links[host]

    async def connect(self, host: str, protocol: asyncio.BaseProtocol) -> asyncio.Transport:
        """
        Return a connection of *protocol* from *host* to the server; over a silent link that never returns.

        Raises:
            ConnectionRefusedError: The link is cut, or the server is down.
        """
        link = self.link(host)
        await self._clock.sleep(link.delay())
        if link.is_cut or not self._server.is_up:
            raise ConnectionRefusedError("connection refused")
        while link.is_silent_up or link.is_silent_down:
            await self._clock.sleep(1.0)
        connection = Connection(link, self._server, protocol)
        link.connections[connection] = None
        protocol.connection_made(connection)
        self._server.accept(connection)
        return connection
