"""Short NATS connections for commands, opened from the settings."""

from __future__ import annotations

__all__ = ["BrokerOutOfReach", "connection_name", "jetstream", "publisher", "servers", "session"]

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from loguru import logger
from nats.aio.client import Client
from nats.js import JetStreamContext

from app.clock import SystemClock
from bus.errors import BusError
from bus.jetstream.bus import JetStreamBus
from bus.jetstream.connection import Connection
from bus.jetstream.servers import Servers, ServerSource
from bus.port import Bus, Clock, DeadLetter
from config.environment import read_again
from config.files import BadSetting
from config.settings import Settings

CONNECT_SECONDS_MAX = 5.0
PING_SECONDS = 5.0


class BrokerOutOfReach(Exception):
    """No NATS server answers, or none accepts the credentials. The message is one line."""


def servers(settings: Settings) -> Servers:
    """Return the addresses and the credentials of NATS; a file with the password is read again at each call."""
    password = None if settings.nats_password is None else str(settings.nats_password)
    try:
        password = read_again(settings, "NATS_PASSWORD") or password
    except BadSetting as error:
        logger.warning("the NATS password from before stays in use", detail=str(error))
    return Servers(
        urls=tuple(map(str, settings.nats_url)),
        user=settings.nats_user,
        password=password,
        creds=settings.nats_creds,
        tls_ca=settings.nats_tls_ca,
    )


def connection_name(settings: Settings) -> str:
    """
    Return the connection name of this process: its module, or "fulfilment" if it runs several.

    The inbox subjects begin with it, and the permissions of a NATS user refer to those subjects.
    """
    return settings.modules[0] if len(settings.modules) == 1 else "fulfilment"


@asynccontextmanager
async def jetstream(settings: Settings) -> AsyncIterator[JetStreamContext]:
    """
    Connect to JetStream for a short time and yield the context; close the connection at the end.

    Raises:
        BrokerOutOfReach: There is no connection within `CONNECT_SECONDS_MAX`.
    """
    async with session(lambda: servers(settings), SystemClock()) as connection:
        yield connection.js


@asynccontextmanager
async def session(source: ServerSource, clock: Clock) -> AsyncIterator[Connection]:
    """
    Connect to one of the servers of *source* and yield the connection; close it at the end.

    Its ``js`` is that of another client once a server has refused the earlier one, because of an old password for example.

    Raises:
        BrokerOutOfReach: There is no connection within `CONNECT_SECONDS_MAX`.
    """

    async def ignore(client: Client) -> None:
        """Do nothing: the session has no subscriptions to set up."""

    connection = Connection(
        clock,
        source,
        name="fulfilment",
        inbox_prefix="_INBOX",
        ping_seconds=PING_SECONDS,
        connect_seconds_max=CONNECT_SECONDS_MAX / 2,
        on_connected=ignore,
        on_disconnected=lambda: None,
    )
    try:
        await _within_time_limit(connection.open())
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def publisher(settings: Settings) -> AsyncIterator[Bus]:
    """
    Connect to NATS and yield a bus for publishing only; close it at the end.

    Raises:
        BrokerOutOfReach: There is no connection within `CONNECT_SECONDS_MAX`.
    """
    bus = JetStreamBus(
        SystemClock(),
        _NoDeadLetters(),
        lambda: servers(settings),
        replicas=settings.nats_replicas,
        connect_seconds_max=CONNECT_SECONDS_MAX / 2,
        name=connection_name(settings),
    )
    try:
        await _within_time_limit(bus.connect())
        yield bus
    finally:
        await bus.close(0.5)


class _NoDeadLetters:
    """The dead-letter store of a bus without subscriptions."""

    async def add(self, dead_letter: DeadLetter) -> None:
        raise AssertionError("a bus without subscriptions has no dead letters")


async def _within_time_limit(connecting: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await connecting
    except TimeoutError:
        raise BrokerOutOfReach("NATS is out of reach: no server answers; check NATS_URL") from None
    except (BusError, OSError) as error:
        raise BrokerOutOfReach(f"NATS is out of reach: {error}") from None
