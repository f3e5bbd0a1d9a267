"""
Stripe's list of PaymentIntents: read in pages, filtered by time, and by several readers at once where it is long.

A list that was read is remembered: which PaymentIntents name which order, and from when to when it was read. The next
reader reads only what came after that. Stripe's list is sorted newest first; see `ListCursor` for servers that sort or
filter it differently.
"""

from __future__ import annotations

__all__ = ["IntentList", "Row"]

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from app.gateways.port import GatewayTimeout
from app.gateways.stripe.http_session import StripeRefusal, misconfigured
from app.gateways.stripe.list_cursor import ListCursor

Row = Mapping[str, Any]

PAGE = 100
SMALL_PAGE = 25
"""A compatible server that cannot filter may take seconds for a page of a long list; it must stay below our time limits."""

ALONE_PAGES = 4
"""This many pages are read one after the other before several readers start."""

READERS = 8
"""How many parts of a long list are read at the same time: one page after the other takes minutes for 45,000 charges."""

OVERLAP_SECONDS = 2
"""The second of the newest charge may get further ones after it was read, and its neighbour, too, from another server."""


class IntentList:
    """Read the list with *get*, which makes one request of it and returns the page."""

    def __init__(self, get: Callable[[Mapping[str, Any]], Awaitable[Any]]) -> None:
        self._get = get
        self._can_filter = True
        self._cursor = ListCursor()

    def ids(self, order_id: str) -> list[str]:
        """Return the ids of the order's PaymentIntents that were read so far; their states may have changed since."""
        return self._cursor.ids(order_id)

    async def unread(self, since: int) -> AsyncIterator[Row]:
        """Yield the PaymentIntents created at *since* (seconds since 1970) or later that were not read before."""
        if self._can_filter:
            start = self._cursor.unread_since(since)
            newest = start
            async for row in self._recent(start):
                if self._can_filter:
                    created = row.get("created")
                    newest = max(newest, created - OVERLAP_SECONDS if type(created) is int else newest)
                    self._cursor.add(row)
                yield row
            if self._can_filter:
                self._cursor.mark_read(since, newest)
                return
            # The first request has shown that the server cannot filter; `_recent` has yielded nothing.
        first = last = None
        async for row in self._pages({}, self._cursor.after):
            first, last = first or row, row
            self._cursor.add(row)
            yield row
        if first is not None and last is not None:
            self._cursor.advance(first, last)

    async def period(self, since: int, until: int) -> AsyncIterator[Row]:
        """Yield the PaymentIntents created from *since* until *until*, with their charges; more if the server cannot filter."""
        expand = {"expand": ["data.latest_charge"]}
        if self._can_filter:
            async for row in self._pages({"created": {"gte": since, "lt": until}, **expand}):
                yield row
        if not self._can_filter:
            async for row in self._pages(expand):
                yield row

    async def _recent(self, since: int) -> AsyncIterator[Row]:
        """Yield the rows created at *since* or later: the newest pages, then the older ones with several readers."""
        count, oldest = 0, None
        async for row in self._pages({"created": {"gte": since}}):
            yield row
            count, oldest = count + 1, row.get("created")
            if count == ALONE_PAGES * PAGE:
                break
        if count < ALONE_PAGES * PAGE or type(oldest) is not int:
            return
        width = max(1, -(-(oldest + 1 - since) // READERS))
        bounds = [(start, min(start + width, oldest + 1)) for start in range(since, oldest + 1, width)]
        parts = await asyncio.gather(*(self._part(start, end) for start, end in bounds))
        for part in parts:
            for row in part:
                yield row

    async def _part(self, since: int, until: int) -> list[Row]:
        return [row async for row in self._pages({"created": {"gte": since, "lt": until}})]

    async def _pages(self, params: Mapping[str, Any], after: str | None = None) -> AsyncIterator[Row]:
        """Yield the rows of all pages; with *after*, of those behind the row of that id."""
        while True:
            limit = {"limit": PAGE if self._can_filter else SMALL_PAGE}
            page = await self._page({**params, **limit, **({} if after is None else {"starting_after": after})})
            if page is None:
                return
            rows, has_more = page
            for row in rows:
                yield row
            if not rows or not has_more:
                return
            after = str(rows[-1].get("id"))

    async def _page(self, params: Mapping[str, Any]) -> tuple[list[Row], bool] | None:
        """
        Return the rows of one page and whether there are more; None if the server has no filter.

        Raises:
            GatewayError: The list cannot be read.
        """
        try:
            page = await self._get(params)
        except StripeRefusal as refusal:
            if self._can_filter and "created" in params and "starting_after" not in params and refusal.fault.status == 400:
                self._can_filter = False  # a compatible server that has no filter: read the whole list
                return None
            raise misconfigured(refusal.fault) from None
        rows = page.get("data") if isinstance(page, Mapping) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise GatewayTimeout("malformed response: not a list")
        return rows, bool(page.get("has_more"))
