"""A link between a process and a server: a TCP proxy that cuts, delays, or stops one direction or both."""

from __future__ import annotations

__all__ = ["Fault", "Link", "connect_port"]

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum

from tests.histories.links.cable import Cable

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Fault(Enum):
    """What a link does with the data that it receives."""

    NONE = "passes everything on"
    CUT = "resets every connection, and each new one"
    SILENT = "passes nothing on, in either direction; connections stay open"
    NO_REQUESTS = "passes nothing on towards the server"
    NO_REPLIES = "passes nothing on towards the process: what it sends takes effect, and no answer comes"
    SLOW = "passes every piece on with a delay"


_LOSSES = {Fault.SILENT: (True, True), Fault.NO_REQUESTS: (True, False), Fault.NO_REPLIES: (False, True)}
"""Whether requests and replies are lost, by the fault."""


class Link:
    """
    Listens on a port of its own, and connects each connection with a new one from *connect*.

    Data that a fault holds back is passed on once the fault ends, as TCP does after a partition. The kernel of this machine
    still acknowledges it. With a *cable* the link listens at its far end, and the packets are lost on the way to it instead.
    """

    def __init__(self, connect: Connect, delay_seconds: float = 0.2, cable: Cable | None = None) -> None:
        self._connect = connect
        self._cable = cable
        self._delay_seconds = delay_seconds
        self._fault = Fault.NONE
        self._changed = asyncio.Condition()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.host = "127.0.0.1" if cable is None else cable.host
        self.port = 0

    async def start(self) -> Link:
        listening = socket.create_server((self.host, 0)) if self._cable is None else self._cable.listen()
        self._server = await asyncio.start_server(self._accept, sock=listening)
        self.port = listening.getsockname()[1]
        return self

    async def set(self, fault: Fault) -> None:
        """Begin *fault*, or end the present one with `Fault.NONE`."""
        if self._cable is not None:
            requests, replies = _LOSSES.get(fault, (False, False))
            await asyncio.to_thread(self._cable.lose, requests=requests, replies=replies)
            fault = Fault.NONE if fault in _LOSSES else fault
        async with self._changed:
            self._fault = fault
            self._changed.notify_all()
        if fault is Fault.CUT:
            for writer in list(self._writers):
                writer.transport.abort()

    async def close(self) -> None:
        """Reset all connections and stop listening."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        _keep_alive(writer.get_extra_info("socket"))
        try:
            if self._fault is Fault.CUT:
                return
            with suppress(OSError):
                to_reader, to_writer = await self._connect()
                self._writers.add(to_writer)
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._pass(reader, to_writer, Fault.NO_REQUESTS))
                        group.create_task(self._pass(to_reader, writer, Fault.NO_REPLIES))
                except* OSError:
                    pass
                finally:
                    self._writers.discard(to_writer)
                    to_writer.transport.abort()
        except asyncio.CancelledError:
            pass  # the end of `close`; asyncio would report it
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stopped_by: Fault) -> None:
        while data := await reader.read(65536):
            if self._fault is not Fault.NONE:
                await self._hold(stopped_by)
            writer.write(data)
            await writer.drain()
        if self._fault is not Fault.NONE:
            await self._hold(stopped_by)
        if writer.can_write_eof():
            writer.write_eof()

    async def _hold(self, stopped_by: Fault) -> None:
        if self._fault is Fault.SLOW:
            await asyncio.sleep(self._delay_seconds)
        async with self._changed:
            await self._changed.wait_for(lambda: self._fault not in (Fault.SILENT, stopped_by))


def _keep_alive(connection: socket.socket) -> None:
    """Notice within about ten seconds that the process is gone, as each server of the system does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3), (socket.TCP_USER_TIMEOUT, 10_000):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


async def connect_port(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection to *port* of this machine, without Nagle's delay."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return reader, writer
