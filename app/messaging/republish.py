"""
What a module has said, said again: for a stream that was lost.

Sent events stay in the outbox for a day. They go out again under the ids that they had: what the stream still knows it does
not keep twice, and whoever has heard one knows it when he hears it again.
"""

from __future__ import annotations

__all__ = ["Silent", "count", "republish"]

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import Column, Connection, DateTime, MetaData, String, Table, func, select, type_coerce

from app.messaging.cloudevents import message_of
from app.storage.module_store import Store
from app.storage.outbox import Parcel, tables_of
from app.storage.state_rows import instant
from bus.errors import Retry
from bus.port import Bus, Clock

PAGE = 500
IN_FLIGHT_MAX = 1_000
AGAIN_SECONDS = 0.25
PATIENCE_SECONDS = 60.0


class Silent(Exception):
    """The bus has taken nothing for a long time; its message is one line."""


async def count(store: Store, since: datetime) -> int:
    """Return how many events *store*'s module has sent at *since* or later."""
    return await store.database.read(partial(_count, _outbox(store), since))


async def republish(
    store: Store,
    bus: Bus,
    clock: Clock,
    since: datetime,
    *,
    on_sent: Callable[[int], Any],
    patience_seconds: float = PATIENCE_SECONDS,
) -> int:
    """
    Publish again what *store*'s module has sent at *since* or later; return how much that was.

    However long ago it happened: what a stream has lost is what it was given, and an event may be said for later, or wait.

    Up to `IN_FLIGHT_MAX` are on their way at once, and each is sent until the bus has it; *on_sent* is called with the
    number of those that it has just taken.

    Raises:
        Silent: The bus has taken nothing for *patience_seconds*.
        Unavailable: The database is out of reach.
    """
    taken = 0
    taken_at = clock.monotonic()

    async def send(parcel: Parcel) -> None:
        nonlocal taken, taken_at
        while True:
            try:
                await bus.publish(message_of(parcel))
                break
            except Retry as error:
                if clock.monotonic() - taken_at > patience_seconds:
                    raise Silent(f"nothing was taken for {patience_seconds:g} s: {error}") from None
                await clock.sleep(AGAIN_SECONDS)
        taken += 1
        taken_at = clock.monotonic()
        on_sent(1)

    room = asyncio.Semaphore(IN_FLIGHT_MAX)
    try:
        async with asyncio.TaskGroup() as flying:
            async for parcel in _sent(store, since):
                await room.acquire()
                flying.create_task(send(parcel)).add_done_callback(lambda _: room.release())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return taken


async def _sent(store: Store, since: datetime) -> AsyncIterator[Parcel]:
    """Yield what was sent, a page at a time, by key."""
    after = ""
    while True:
        page = await store.database.read(partial(_page, _outbox(store), since, after))
        for parcel in page:
            yield parcel
        if len(page) < PAGE:
            return
        after = page[-1].id


def _outbox(store: Store) -> Table:
    return tables_of(store.module.name, MetaData())[1]


def _count(outbox: Table, since: datetime, connection: Connection) -> int:
    found: int = connection.execute(select(func.count()).where(_wanted(outbox, since, connection))).scalar_one()
    return found


def _page(outbox: Table, since: datetime, after: str, connection: Connection) -> list[Parcel]:
    columns = [_readable(outbox.c[name], connection) for name in Parcel._fields]
    query = select(*columns).where(_wanted(outbox, since, connection), outbox.c.id > after).order_by(outbox.c.id).limit(PAGE)
    return [Parcel(*map(_as_kept, row)) for row in connection.execute(query)]


def _wanted(outbox: Table, since: datetime, connection: Connection) -> Any:
    """Return the condition; without a ``sent_at``, what was not sent yet never meets it."""
    is_text = connection.dialect.name == "sqlite"
    return _readable(outbox.c.sent_at, connection) >= (instant(since.astimezone(UTC)) if is_text else since)


def _readable(column: Column[Any], connection: Connection) -> Any:
    """Return *column*; in SQLite a moment is the text that `app.storage.state_rows.instant` has made of it."""
    if connection.dialect.name == "sqlite" and isinstance(column.type, DateTime):
        return type_coerce(column, String)
    return column


def _as_kept(value: Any) -> Any:
    """Return *value* as a `Parcel` has it."""
    if isinstance(value, datetime):
        return instant(value.astimezone(UTC))
    return bytes(value) if isinstance(value, memoryview) else value
