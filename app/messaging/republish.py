"""
What a module has said, said again: for a stream that was lost.

Sent events stay in the outbox for a day. They go out again under the ids that they had: what the stream still knows it does
not keep twice, and whoever has heard one knows it when he hears it again.
"""

from __future__ import annotations

__all__ = ["PublishStalled", "count", "republish"]

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import Column, Connection, DateTime, MetaData, String, Table, func, select, type_coerce

from app.messaging.cloudevents import to_message
from app.storage.module_store import ModuleStore
from app.storage.outbox import OutboxMessage
from app.storage.state_rows import to_db_timestamp
from app.storage.tables import message_tables
from bus.errors import PublishRetryable
from bus.port import Bus, Clock

PAGE = 500
IN_FLIGHT_MAX = 1_000
AGAIN_SECONDS = 0.25
PATIENCE_SECONDS = 60.0


class PublishStalled(Exception):
    """The bus has taken nothing for a long time; its message is one line."""


async def count(store: ModuleStore, since: datetime) -> int:
    """Return how many events *store*'s module has sent at *since* or later."""
    return await store.database.read(partial(_count, _outbox(store), since))


async def republish(
    store: ModuleStore,
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

    async def send(outbox_message: OutboxMessage) -> None:
        nonlocal taken, taken_at
        while True:
            try:
                await bus.publish(to_message(outbox_message))
                break
            except PublishRetryable as error:
                if clock.monotonic() - taken_at > patience_seconds:
                    raise PublishStalled(f"nothing was taken for {patience_seconds:g} s: {error}") from None
                await clock.sleep(AGAIN_SECONDS)
        taken += 1
        taken_at = clock.monotonic()
        on_sent(1)

    room = asyncio.Semaphore(IN_FLIGHT_MAX)
    try:
        async with asyncio.TaskGroup() as flying:
            async for outbox_message in _sent(store, since):
                await room.acquire()
                flying.create_task(send(outbox_message)).add_done_callback(lambda _: room.release())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return taken


async def _sent(store: ModuleStore, since: datetime) -> AsyncIterator[OutboxMessage]:
    """Yield what was sent, a page at a time, by key."""
    after = ""
    while True:
        page = await store.database.read(partial(_page, _outbox(store), since, after))
        for outbox_message in page:
            yield outbox_message
        if len(page) < PAGE:
            return
        after = page[-1].id


def _outbox(store: ModuleStore) -> Table:
    return message_tables(store.module.name, MetaData())[1]


def _count(outbox: Table, since: datetime, connection: Connection) -> int:
    found: int = connection.execute(select(func.count()).where(_wanted(outbox, since, connection))).scalar_one()
    return found


def _page(outbox: Table, since: datetime, after: str, connection: Connection) -> list[OutboxMessage]:
    columns = [_readable(outbox.c[name], connection) for name in OutboxMessage._fields]
    query = select(*columns).where(_wanted(outbox, since, connection), outbox.c.id > after).order_by(outbox.c.id).limit(PAGE)
    return [OutboxMessage(*map(_as_kept, row)) for row in connection.execute(query)]


def _wanted(outbox: Table, since: datetime, connection: Connection) -> Any:
    """Return the condition; without a ``sent_at``, what was not sent yet never meets it."""
    is_text = connection.dialect.name == "sqlite"
    return _readable(outbox.c.sent_at, connection) >= (to_db_timestamp(since.astimezone(UTC)) if is_text else since)


def _readable(column: Column[Any], connection: Connection) -> Any:
    """Return *column*; in SQLite a moment is the text that `app.storage.state_rows.to_db_timestamp` has made of it."""
    if connection.dialect.name == "sqlite" and isinstance(column.type, DateTime):
        return type_coerce(column, String)
    return column


def _as_kept(value: Any) -> Any:
    """Return *value* as a `OutboxMessage` has it."""
    if isinstance(value, datetime):
        return to_db_timestamp(value.astimezone(UTC))
    return bytes(value) if isinstance(value, memoryview) else value
