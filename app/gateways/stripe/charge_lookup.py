"""Look up the charges of many orders in one list, with one scan for all look-ups that are waiting."""

from __future__ import annotations

__all__ = ["ChargeLookup"]

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from attrs import define

from app.gateways.port import GatewayError, GatewayTimeout

Row = Mapping[str, Any]


@define(eq=False)
class _Lookup:
    order_id: str
    since: int
    rows: asyncio.Future[list[Row]]


class ChargeLookup:
    """
    Find the charges of orders in the provider's list, and coalesce concurrent look-ups.

    One scan of the list serves all look-ups that were requested before it began, so that a thousand orders whose
    responses got lost cost a few scans and not a thousand.
    """

    def __init__(self, list_rows: Callable[[int], AsyncIterator[Row]]) -> None:
        self._list_rows = list_rows
        self._waiting: list[_Lookup] = []
        self._scanning: asyncio.Task[None] | None = None

    async def find(self, order_id: str, since: int) -> list[Row]:
        """
        Return all rows created at *since* (seconds since 1970) or later that name *order_id*.

        Raises:
            GatewayError: The list could not be read to its end.
        """
        lookup = _Lookup(order_id, since, asyncio.get_running_loop().create_future())
        self._waiting.append(lookup)
        if self._scanning is None or self._scanning.done():
            self._scanning = asyncio.create_task(self._scan_while_waiting())
        return await lookup.rows

    async def close(self) -> None:
        """Cancel the scan and the look-ups that it serves. Idempotent."""
        if self._scanning is not None:
            self._scanning.cancel()
            await asyncio.gather(self._scanning, return_exceptions=True)

    async def _scan_while_waiting(self) -> None:
        while self._waiting:
            # A look-up that is requested during a scan waits for the next one: its row may be on a page already read.
            batch, self._waiting = self._waiting, []
            try:
                found = await self._scan(batch)
            except asyncio.CancelledError:
                for lookup in batch:
                    lookup.rows.cancel()
                raise
            except Exception as error:
                _fail(batch, error)
            else:
                _complete(batch, found)

    async def _scan(self, batch: Sequence[_Lookup]) -> Mapping[str, list[Row]]:
        """Read the list once; return the rows of each order in *batch*."""
        found: dict[str, list[Row]] = {lookup.order_id: [] for lookup in batch}
        async for row in self._list_rows(min(lookup.since for lookup in batch)):
            metadata = row.get("metadata")
            order_id = metadata.get("order_id") if isinstance(metadata, Mapping) else None
            if isinstance(order_id, str) and order_id in found:
                found[order_id].append(row)
        return found


def _complete(batch: Sequence[_Lookup], found: Mapping[str, list[Row]]) -> None:
    for lookup in batch:
        if not lookup.rows.done():
            lookup.rows.set_result(found[lookup.order_id])


def _fail(batch: Sequence[_Lookup], error: Exception) -> None:
    """Fail each look-up with an exception of its own."""
    for lookup in batch:
        if lookup.rows.done():
            continue
        if isinstance(error, GatewayError):
            lookup.rows.set_exception(error.copy())
        else:
            lookup.rows.set_exception(GatewayTimeout(f"the list cannot be read: {type(error).__name__}"))
