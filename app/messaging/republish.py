"""
Publish the sent events of a module again from its outbox, after a stream was lost.

The outbox keeps sent events for a day. They are published with their original ids: the stream drops an id that it still
knows, and the inbox of a consumer recognises an event that was processed before.
"""

from __future__ import annotations

__all__ = ["PublishStalled", "count", "republish"]

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from loguru import logger
from sqlalchemy import Column, Connection, DateTime, String, Table, func, select, type_coerce

from app.messaging.cloudevents import to_message
from app.storage.module_store import ModuleStore
from app.storage.state_rows import to_db_timestamp
from app.storage.tables import OutboxMessage, shared_message_tables
from bus.errors import PublishRefused, PublishRetryable
from bus.port import Bus, Clock

PAGE = 500
IN_FLIGHT_MAX = 1_000
RETRY_SECONDS = 0.25
PATIENCE_SECONDS = 60.0


class PublishStalled(Exception):
    """The bus has accepted no message for too long. The message is one line."""


async def count(store: ModuleStore, since: datetime) -> int:
    """Return how many events the module of *store* has sent at *since* or later."""
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
    Publish again the events that the module of *store* has sent at *since* or later; return their number.

    The time of sending counts, not the time of the event: a stream loses what was published to it, and an event may have
    been scheduled or waited in the outbox before it was sent.

    Up to `IN_FLIGHT_MAX` events are in flight at once. Each is retried until the bus has accepted it; then *on_sent* is
    called with 1.

    Raises:
        PublishStalled: The bus has accepted nothing for *patience_seconds*.
        StorageUnavailable: The database is out of reach.
    """
    accepted = 0
    accepted_at = clock.monotonic()

    async def send(outbox_message: OutboxMessage) -> None:
        nonlocal accepted, accepted_at
        while True:
            try:
                await bus.publish(to_message(outbox_message))
                break
            except PublishRefused as error:
                logger.error("the bus refuses an event that it once accepted", event_id=outbox_message.event_id, detail=str(error))
                return
            except PublishRetryable as error:
                if clock.monotonic() - accepted_at > patience_seconds:
                    raise PublishStalled(f"the bus accepted nothing for {patience_seconds:g} s: {error}") from None
                await clock.sleep(RETRY_SECONDS)
        accepted += 1
        accepted_at = clock.monotonic()
        on_sent(1)

    in_flight = asyncio.Semaphore(IN_FLIGHT_MAX)
    try:
        async with asyncio.TaskGroup() as tasks:
            async for outbox_message in _sent_messages(store, since):
                await in_flight.acquire()
                tasks.create_task(send(outbox_message)).add_done_callback(lambda _: in_flight.release())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return accepted


async def _sent_messages(store: ModuleStore, since: datetime) -> AsyncIterator[OutboxMessage]:
    """Yield the sent messages in the order of their ids, read page by page."""
    after = ""
    while True:
        page = await store.database.read(partial(_page, _outbox(store), since, after))
        for outbox_message in page:
            yield outbox_message
        if len(page) < PAGE:
            return
        after = page[-1].id


def _outbox(store: ModuleStore) -> Table:
    return shared_message_tables(store.module.name)[1]


def _count(outbox: Table, since: datetime, connection: Connection) -> int:
    number: int = connection.execute(select(func.count()).where(_is_sent_since(outbox, since, connection))).scalar_one()
    return number


def _page(outbox: Table, since: datetime, after: str, connection: Connection) -> list[OutboxMessage]:
    columns = [_readable(outbox.c[name], connection) for name in OutboxMessage._fields]
    query = (
        select(*columns)
        .where(_is_sent_since(outbox, since, connection), outbox.c.id > after)
        .order_by(outbox.c.id)
        .limit(PAGE)
    )
    return [OutboxMessage(*map(_to_stored_value, row)) for row in connection.execute(query)]


def _is_sent_since(outbox: Table, since: datetime, connection: Connection) -> Any:
    """Return the SQL condition; a row that is not sent has no ``sent_at`` and never meets it."""
    is_text = connection.dialect.name == "sqlite"
    return _readable(outbox.c.sent_at, connection) >= (to_db_timestamp(since.astimezone(UTC)) if is_text else since)


def _readable(column: Column[Any], connection: Connection) -> Any:
    """Return *column*; in SQLite a timestamp is the text that `app.storage.state_rows.to_db_timestamp` returns."""
    if connection.dialect.name == "sqlite" and isinstance(column.type, DateTime):
        return type_coerce(column, String)
    return column


def _to_stored_value(value: Any) -> Any:
    """Return *value* in the type that `OutboxMessage` has for it."""
    if isinstance(value, datetime):
        return to_db_timestamp(value.astimezone(UTC))
    return bytes(value) if isinstance(value, memoryview) else value
