"""From the outbox to the bus: nothing that was committed is forgotten, and nothing is sent that should not be."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from app.messaging.cloudevents import event_id_and_trace
from app.messaging.outbox_relay import (
    EXPRESS_IN_FLIGHT_MAX,
    IN_FLIGHT_MAX,
    PURGE_SECONDS,
    SCAN_MAX,
    SCAN_SECONDS,
    OutboxRelay,
)
from app.storage.outbox import OutboxMessage
from app.telemetry.metrics import Metrics
from bus.errors import BusClosed, PublishRetryable
from bus.port import Message, Subscription
from modules.orders.events import CancelRequested, OrderCreated
from modules.values import Line
from tests.clock import VirtualClock
from tests.runtime.harness import CONTEXT, NO_CONTENT, Harness, harness_at, oid, product, submitted

CREATED = ["orders.created.v1", "orders.created.v2"]
"""One event, in the two versions that it is said in."""


def created(order_id: str) -> OrderCreated:
    return OrderCreated(
        order_id=order_id, customer_id="c-1", items=(Line("A", 1),), version="v2", shipping_address=None
    )


class Ledger:
    """A bus that takes everything and answers when it is told to."""

    is_connected = True
    problems = ()

    def __init__(self) -> None:
        self.published: list[tuple[Message, asyncio.Future[None]]] = []

    def publish(self, message: Message) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.published.append((message, future))
        return future

    async def subscribe(self, consumer: str, subjects: Sequence[str]) -> Subscription:
        raise NotImplementedError

    async def close(self, grace_seconds: float = 5.0) -> None:
        raise NotImplementedError

    @property
    def subjects(self) -> list[str]:
        return [message.subject for message, _ in self.published]

    async def answer(self) -> None:
        """Answer everything that was published so far."""
        for _, future in self.published:
            if not future.done():
                future.set_result(None)
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def relay_of(harness: Harness, bus: Ledger) -> OutboxRelay:
    return OutboxRelay(harness.stores["orders"], bus, harness.clock, Metrics())


async def turn(relay: OutboxRelay, clock: VirtualClock, seconds: float = SCAN_SECONDS) -> None:
    """Let *seconds* pass, and the relay look."""
    await clock.advance(seconds)
    await relay.step()


async def test_what_a_killed_process_left_is_sent_at_start(path: Path, clock: VirtualClock) -> None:
    """The new process finds it in the table, and sends it under the same ids."""
    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted(oid(1)))
        [(id, body)] = await harness.rows("SELECT id, body FROM orders_outbox WHERE subject = 'orders.created.v1'")
    async with harness_at(path, clock) as harness:
        bus = Ledger()
        relay = relay_of(harness, bus)
        await relay.step()
        [message] = [message for message, _ in bus.published if message.subject == "orders.created.v1"]
        assert (message.id, message.body, message.key) == (id, body, oid(1))
        assert event_id_and_trace(message)[1].correlation_id == CONTEXT.correlation_id


async def test_what_the_bus_took_is_marked_and_stays_away(path: Path, clock: VirtualClock) -> None:
    """It is not sent again, neither by this process nor by the next."""
    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted())
        bus = Ledger()
        relay = relay_of(harness, bus)
        await relay.step()
        assert relay.pending == 2
        await bus.answer()
        assert relay.pending == 0
        for _ in range(3):
            await turn(relay, clock)
        assert sorted(bus.subjects) == CREATED
        await relay.stop()
    async with harness_at(path, clock) as harness:
        bus = Ledger()
        await relay_of(harness, bus).step()
        assert bus.subjects == []


async def test_stopping_writes_down_what_the_bus_took(path: Path, clock: VirtualClock) -> None:
    """Even if that was a moment ago; and nothing is sent any more."""
    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted())
        bus = Ledger()
        relay = relay_of(harness, bus)
        await relay.step()
        await bus.answer()
        await relay.stop()
        await relay.stop()
        assert sorted(subject for subject, sent_at in await harness.outbox("orders") if sent_at) == CREATED
        relay.publish([outbox_message("late")])
        assert len(bus.published) == 2


async def test_stopping_writes_down_what_rides_already(path: Path, clock: VirtualClock) -> None:
    """The marks that were told to ride wait for somebody else's transaction, and now there comes none any more."""
    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted())
        bus = Ledger()
        relay = relay_of(harness, bus)
        await relay.step()
        await bus.answer()
        await relay.step()
        await relay.stop()
        assert sorted(subject for subject, sent_at in await harness.outbox("orders") if sent_at) == CREATED


async def test_what_is_on_its_way_is_not_sent_twice(path: Path, clock: VirtualClock) -> None:
    """However often the relay looks into the table meanwhile, and though it was handed over as well."""
    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted())
        bus = Ledger()
        relay = relay_of(harness, bus)
        due = await harness.database.read(lambda c: harness.stores["orders"].fetch_due(c, clock.now(), 10, timedelta(0)))
        relay.publish(due)
        for _ in range(5):
            await turn(relay, clock)
        assert len(bus.published) == 2
        assert relay.pending == 2


async def test_what_the_bus_refused_is_sent_again(path: Path, clock: VirtualClock) -> None:
    """Under the same id; it stays pending all the while."""
    async with harness_at(path, clock) as harness:
        await harness.submit("inventory", product())
        await harness.submit("inventory", created(oid(1)))
        bus = Ledger()
        relay = OutboxRelay(harness.stores["inventory"], bus, clock, Metrics())
        await relay.step()
        for trouble in (PublishRetryable("full"), BusClosed("gone"), RuntimeError("a bug")):
            bus.published[-1][1].set_exception(trouble)
            await asyncio.sleep(0)
            assert relay.pending == 1
            await turn(relay, clock)
        assert len({message.id for message, _ in bus.published}) == 1
        assert len(bus.published) == 4


async def test_what_is_not_due_stays_until_it_is(path: Path, clock: VirtualClock) -> None:
    """A time-out is an outbox row with a later date."""
    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted())
        bus = Ledger()
        relay = relay_of(harness, bus)
        await turn(relay, clock)
        await bus.answer()
        await turn(relay, clock, 890)
        assert sorted(bus.subjects) == CREATED
        assert relay.pending == 0
        await turn(relay, clock, 10)
        assert bus.subjects[2:] == ["orders.timed_out.v1"]


async def test_what_was_withdrawn_never_goes(path: Path, clock: VirtualClock) -> None:
    """An order that is over does not time out; its neighbour does."""
    async with harness_at(path, clock) as harness:
        for n in (1, 2):
            await harness.submit("orders", submitted(oid(n)))
        await harness.submit("orders", CancelRequested(order_id=oid(1), why=None))
        bus = Ledger()
        relay = relay_of(harness, bus)
        await turn(relay, clock, 1000)
        timed_out = [message.key for message, _ in bus.published if message.subject == "orders.timed_out.v1"]
        assert timed_out == [oid(2)]


async def test_what_was_withdrawn_in_its_own_batch_never_goes(path: Path, clock: VirtualClock) -> None:
    """Placed and cancelled in one pass: there is nothing left to time out."""
    async with harness_at(path, clock) as harness:
        runner = harness.runners["orders"]
        cancel = CancelRequested(order_id=oid(1), why=None)
        both = [
            asyncio.create_task(runner.submit(submitted(oid(1)), id=oid(1), trace=CONTEXT, respond=NO_CONTENT)),
            asyncio.create_task(runner.submit(cancel, id=oid(2), trace=CONTEXT, respond=NO_CONTENT)),
        ]
        await asyncio.sleep(0)
        await runner.step()
        await asyncio.gather(*both)
        assert {subject for subject, _ in await harness.outbox("orders")} == {*CREATED, "orders.cancelled.v1"}


async def test_after_a_day_what_was_sent_goes_and_what_was_not_stays(path: Path, clock: VirtualClock) -> None:
    """Sent rows are kept for 24 hours; unsent ones for as long as it takes."""
    async with harness_at(path, clock) as harness:
        bus = Ledger()
        relay = relay_of(harness, bus)
        began = f"{int(clock.now().timestamp() * 1000):012x}"
        ids = [f"{began[:8]}-{began[8:]}-7000-8000-{n:012}" for n in range(2)]
        said = [outbox_message(id, due_at=clock.now().isoformat(timespec="microseconds")) for id in ids]
        await harness.database.write(lambda c: keep(harness, said, c))
        relay.publish(said)
        bus.published[0][1].set_result(None)
        await asyncio.sleep(0)
        await turn(relay, clock)
        await turn(relay, clock, 23 * 3600)
        assert len(await harness.outbox("orders")) == 2
        await turn(relay, clock, 3600 + PURGE_SECONDS)
        await turn(relay, clock, PURGE_SECONDS)
        assert await harness.rows("SELECT id FROM orders_outbox") == [(ids[1],)]


async def test_after_two_days_what_was_heard_is_forgotten(path: Path, clock: VirtualClock) -> None:
    """An idempotency key holds for 24 hours at least, and not for ever."""
    async with harness_at(path, clock) as harness:
        relay = relay_of(harness, Ledger())
        await harness.submit("orders", submitted(), key="k", fingerprint="f")
        await turn(relay, clock, 24 * 3600)
        assert await harness.rows("SELECT count(*) FROM orders_inbox") == [(1,)]
        await turn(relay, clock, 24 * 3600 + PURGE_SECONDS)
        await turn(relay, clock, PURGE_SECONDS)
        assert await harness.rows("SELECT count(*) FROM orders_inbox") == [(0,)]


async def test_the_express_lane_passes_a_bulk_that_fills_the_air(path: Path, clock: VirtualClock) -> None:
    """Beyond the limit bulk waits in the table, and express still goes; pending counts both."""
    async with harness_at(path, clock) as harness:
        bus = Ledger()
        relay = relay_of(harness, bus)
        relay.publish([outbox_message(f"bulk-{n}") for n in range(IN_FLIGHT_MAX + 5)])
        assert len(bus.published) == IN_FLIGHT_MAX
        relay.publish([outbox_message("fast", subject="orders.created.v1.express")])
        assert bus.published[-1][0].id == "fast"
        assert relay.pending == IN_FLIGHT_MAX + 6
        relay.publish([outbox_message(f"fast-{n}", subject="orders.created.v1.express") for n in range(EXPRESS_IN_FLIGHT_MAX)])
        assert len(bus.published) == IN_FLIGHT_MAX + EXPRESS_IN_FLIGHT_MAX
        for _, future in bus.published:
            future.set_result(None)
        await asyncio.sleep(0)


async def test_a_long_table_is_sent_to_its_end(path: Path, clock: VirtualClock) -> None:
    """More than one look takes is found by the next ones, each event once, and the count is right all along."""
    async with harness_at(path, clock) as harness:
        early = (clock.now() - timedelta(seconds=1)).isoformat(timespec="microseconds")
        said = [outbox_message(f"p-{n:05}", due_at=early) for n in range(3000)]
        await harness.database.write(lambda c: keep(harness, said, c))
        bus = Ledger()
        relay = relay_of(harness, bus)
        for _ in range(10):
            await relay.step()
            assert relay.pending == 3000
            await clock.advance(0.05)
        assert len(bus.published) == len({message.id for message, _ in bus.published}) == 3000
        await bus.answer()
        await turn(relay, clock)
        await turn(relay, clock)
        assert relay.pending == 0
        assert await harness.rows("SELECT count(*) FROM orders_outbox WHERE sent_at IS NULL") == [(0,)]


@pytest.mark.parametrize("count", [3000, IN_FLIGHT_MAX + 3000])
async def test_what_is_on_its_way_is_not_read_again_and_again(
    path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """However much is on its way, or waits for it: once all that may fly does, the table is looked into once a second."""
    async with harness_at(path, clock) as harness:
        early = (clock.now() - timedelta(seconds=1)).isoformat(timespec="microseconds")
        await harness.database.write(lambda c: keep(harness, [outbox_message(f"p-{n:05}", due_at=early) for n in range(count)], c))
        bus = Ledger()
        relay = relay_of(harness, bus)
        for _ in range(count // SCAN_MAX + 1):
            await relay.step()
            await clock.advance(0.05)
        assert len(bus.published) == min(count, IN_FLIGHT_MAX)
        looks: list[int] = []
        due = harness.stores["orders"].fetch_due

        def counted(*these: Any) -> list[OutboxMessage]:
            looks.append(1)
            return due(*these)

        monkeypatch.setattr(harness.stores["orders"], "fetch_due", counted)
        for _ in range(20):
            await relay.step()
            await clock.advance(SCAN_SECONDS / 20)
        assert len(looks) == 1
        await bus.answer()


def outbox_message(id: str, subject: str = "orders.created.v1", due_at: str = "2026-01-01T12:00:00.000000+00:00") -> OutboxMessage:
    return OutboxMessage(id, id, subject, oid(1), b"{}", None, CONTEXT.correlation_id, id, CONTEXT.traceparent, due_at, due_at)


def keep(harness: Harness, said: list[OutboxMessage], connection: Connection) -> None:
    harness.stores["orders"].save(connection, states={}, inbox_entries=(), cancelled_timers=(), outgoing=said)


async def test_nothing_is_tried_while_the_bus_is_away(path: Path, clock: VirtualClock) -> None:
    """What is said meanwhile counts as pending, for the backlog's cap; once the bus is back it goes out, each once."""
    async with harness_at(path, clock) as harness:
        bus = Ledger()
        bus.is_connected = False
        relay = relay_of(harness, bus)
        for number in range(3):
            await harness.submit("orders", submitted(oid(number)))
        await turn(relay, clock)
        await turn(relay, clock)
        assert (bus.published, relay.pending) == ([], 6)
        bus.is_connected = True
        await turn(relay, clock)
        assert sorted(bus.subjects) == sorted(CREATED * 3)
        await bus.answer()
        await turn(relay, clock)
        assert relay.pending == 0
