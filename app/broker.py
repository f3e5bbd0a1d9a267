"""NATS as the environment names it, for a command that needs it for a moment."""

from __future__ import annotations

__all__ = ["OutOfReach", "jetstream", "servers"]

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nats.aio.client import Client
from nats.js import JetStreamContext

from app.clock import SystemClock
from bus.connection import Connection, Servers
from bus.errors import BusError
from config.settings import Settings

CONNECT_SECONDS_MAX = 5.0
PING_SECONDS = 5.0


class OutOfReach(Exception):
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
        on_up=up,
        on_down=lambda: None,
    )
    try:
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await connection.open()
        except TimeoutError:
            raise OutOfReach("NATS is out of reach: no server answers") from None
        except (BusError, OSError) as error:
            raise OutOfReach(f"NATS is out of reach: {error}") from None
        yield connection.js
    finally:
        await connection.close()
