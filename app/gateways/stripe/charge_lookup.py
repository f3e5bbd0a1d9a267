"""Many look for something in one long list: they go through it together."""

from __future__ import annotations

__all__ = ["ChargeLookup"]

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from attrs import define

from app.gateways.port import GatewayError, GatewayTimeout

Row = Mapping[str, Any]


@define(eq=False)
class _Lookup:
    order_id: str
    since: int
    found: asyncio.Future[list[Row]]


class ChargeLookup:
    """
    Find the charges of orders in the provider's list.

    One walk through the list serves everybody who asked before it began, so that a thousand orders whose answers got
    lost cost a few walks and not a thousand.
    """

    def __init__(self, rows: Callable[[int], AsyncIterator[Row]]) -> None:
        self._rows = rows
        self._waiting: list[_Lookup] = []
        self._walk: asyncio.Task[None] | None = None

    async def find(self, order_id: str, since: int) -> list[Row]:
        """
        Return all rows made at *since* (seconds since 1970) or later that name *order_id*.

        Raises:
            GatewayTrouble: The list could not be read to its end.
        """
        wanted = _Lookup(order_id, since, asyncio.get_running_loop().create_future())
        self._waiting.append(wanted)
        if self._walk is None or self._walk.done():
            self._walk = asyncio.create_task(self._walks())
        return await wanted.found

    async def close(self) -> None:
        """Look no further."""
        if self._walk is not None:
            self._walk.cancel()
            await asyncio.gather(self._walk, return_exceptions=True)

    async def _walks(self) -> None:
        while self._waiting:
            # Whoever comes while we walk may want what stands on a page that we have turned already.
            batch, self._waiting = self._waiting, []
            found: dict[str, list[Row]] = {wanted.order_id: [] for wanted in batch}
            failure: Exception | None = None
            try:
                async for row in self._rows(min(wanted.since for wanted in batch)):
                    metadata = row.get("metadata")
                    order_id = metadata.get("order_id") if isinstance(metadata, Mapping) else None
                    if isinstance(order_id, str) and order_id in found:
                        found[order_id].append(row)
            except Exception as error:  # everybody who waits gets it; a fresh one each, for it collects frames
                failure = error
            except asyncio.CancelledError:
                for wanted in batch:
                    wanted.found.cancel()
                raise
            for wanted in batch:
                if wanted.found.done():
                    continue
                if failure is None:
                    wanted.found.set_result(found[wanted.order_id])
                elif isinstance(failure, GatewayError):
                    wanted.found.set_exception(type(failure)(str(failure), failure.retry_after_seconds))
                else:
                    wanted.found.set_exception(GatewayTimeout(f"the list cannot be read: {type(failure).__name__}"))
