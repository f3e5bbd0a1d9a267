"""NATS as the environment names it, for a command that needs it for a moment."""

from __future__ import annotations

__all__ = ["BrokerOutOfReach", "connection_name", "jetstream", "publisher", "servers"]

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext

from app.clock import SystemClock
from bus.errors import BusError
from bus.jetstream.bus import JetStreamBus
from bus.jetstream.connection import Connection, Servers
from bus.port import Bus, DeadLetter
from config.settings import Settings

CONNECT_SECONDS_MAX = 5.0
PING_SECONDS = 5.0


class BrokerOutOfReach(Exception):
    """No server answers, or none lets us in; its message is one line."""


def servers(settings: Settings) -> Servers:
    """Return where NATS is, and how to get in."""
    return Servers(
        urls=tuple(map(str, settings.nats_url)),
        user=settings.nats_user,
        password=None if settings.nats_password is None else str(settings.nats_password),
        creds=settings.nats_creds,
        tls_ca=settings.nats_tls_ca,
    )


def connection_name(settings: Settings) -> str:
    """Return what this process is called at the broker; its inboxes are named after it, and a user's rights after those."""
    return settings.modules[0] if len(settings.modules) == 1 else "fulfilment"


@asynccontextmanager
async def jetstream(settings: Settings) -> AsyncIterator[JetStreamContext]:
    """
    Enter for a connection to JetStream; it is closed at the end.

    Raises:
        OutOfReach: There is none within `CONNECT_SECONDS_MAX`.
    """

    async def up(client: Client) -> None:
        """Nothing has to be told to anybody."""

    connection = Connection(
        SystemClock(),
        servers(settings),
        name="fulfilment",
        inbox_prefix="_INBOX",
        ping_seconds=PING_SECONDS,
        connect_seconds_max=CONNECT_SECONDS_MAX / 2,
        on_connected=up,
        on_disconnected=lambda: None,
    )
    try:
        await _in_time(connection.open())
        yield connection.js
    finally:
        await connection.close()


@asynccontextmanager
async def publisher(settings: Settings) -> AsyncIterator[Bus]:
    """
    Enter for a bus that is connected, on which to publish and nothing else.

    Raises:
        OutOfReach: As `jetstream` does.
    """
    bus = JetStreamBus(
        SystemClock(),
        _NoDeadLetters(),
        servers(settings),
        replicas=settings.nats_replicas,
        connect_seconds_max=CONNECT_SECONDS_MAX / 2,
        name=connection_name(settings),
    )
    try:
        await _in_time(bus.connect())
        yield bus
    finally:
        await bus.close(0.5)


class _NoDeadLetters:
    """For a bus on which nobody hears anything."""

    async def add(self, dead_letter: DeadLetter) -> None:
        raise AssertionError("nobody hears anything here")


async def _in_time(connecting: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await connecting
    except TimeoutError:
        raise BrokerOutOfReach("NATS is out of reach: no server answers") from None
    except (BusError, OSError) as error:
        raise BrokerOutOfReach(f"NATS is out of reach: {error}") from None
