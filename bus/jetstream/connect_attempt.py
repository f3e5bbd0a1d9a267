"""One attempt to connect to NATS, which tries each server once."""

from __future__ import annotations

__all__ = ["HANDSHAKE_SECONDS", "ClientCallbacks", "ConnectAttempt", "ConnectRefused"]

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from attrs import frozen

from bus.jetstream.nats_client import NatsClient

HANDSHAKE_SECONDS = 2
_TLS_CLOSE_SECONDS = 0.1


class ConnectRefused(Exception):
    """No server accepts the connection, or it was closed meanwhile."""


@frozen
class ClientCallbacks:
    """The callbacks to the owner of a client: *on_refused* during the attempt, everything else once it is open."""

    on_refused: Callable[[Exception], None]
    on_error: Callable[[Exception], None]
    on_disconnected: Callable[[], None]
    on_reconnected: Callable[[NatsClient], Awaitable[None]]
    on_closed: Callable[[], None]


class ConnectAttempt:
    """
    One attempt to connect *client* with *options*.

    It has the callbacks of its client: until the client is open, they count refusals; afterwards they call *callbacks*.
    """

    def __init__(
        self,
        client: NatsClient,
        options: Mapping[str, Any],
        callbacks: ClientCallbacks,
        is_closed: Callable[[], bool],
    ) -> None:
        """*is_closed* returns True when the connection is not wanted any more."""
        self._client = client
        self._options = options
        self._callbacks = callbacks
        self._is_closed = is_closed
        self._servers_count = len(options["servers"])
        self._is_open = False
        self._refusals = 0

    async def run(self) -> NatsClient:
        """
        Return the client, connected to the first server that accepts.

        Raises:
            ConnectRefused: No server accepts the connection, or it was closed meanwhile.
            Exception: Another error of the client, the network or the certificates.
        """
        client = self._client
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS * 4 * self._servers_count):
                await client.connect(
                    **self._options,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_reconnected,
                    closed_cb=self._on_closed,
                )
            if self._is_closed():
                raise ConnectRefused("closed in the meantime")
        except BaseException:
            with suppress(Exception):
                # After a failed TLS handshake the transport never reports that it is closed.
                async with asyncio.timeout(_TLS_CLOSE_SECONDS):
                    await client.close()
            raise
        self._is_open = True
        return client

    async def _on_error(self, error: Exception) -> None:
        if self._is_open:
            self._callbacks.on_error(error)
            return
        self._refusals += 1
        self._callbacks.on_refused(error)
        if self._refusals >= self._servers_count:
            raise ConnectRefused(str(error) or repr(error))

    async def _on_disconnected(self) -> None:
        if self._is_open:
            self._callbacks.on_disconnected()

    async def _on_reconnected(self) -> None:
        await self._callbacks.on_reconnected(self._client)

    async def _on_closed(self) -> None:
        if self._is_open:
            self._callbacks.on_closed()
