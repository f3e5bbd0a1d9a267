"""The outbox relay publishes every committed row, and no row that it should not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from loguru import logger
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
from app.storage.clock_watch import build_clock_watch
from app.storage.errors import StorageUnavailable
from app.storage.module_store import INBOX_RETENTION
from app.storage.sql.database import RUN_LAST
from app.storage.tables import OutboxMessage
from app.telemetry.metrics import Metrics
from bus.errors import BusClosed, PublishRefused, PublishRetryable
from bus.port import DeadLetter, Message, Subscription
from modules.orders.events import CancelRequested, OrderCreated
from modules.values import Line
from tests.clock import VirtualClock
from tests.databases import migrated_url
from tests.postgres import PostgresServer
from tests.runtime.harness import CONTEXT, NO_CONTENT, Harness, harness_at, oid, product, submitted

CREATED = ["orders.created.v1", "orders.created.v2"]
"""One event, in the two versions in which it is published."""


def created(order_id: str) -> OrderCreated:
    return OrderCreated(
        order_id=order_id, customer_id="c-1", items=(Line("A", 1),), version="v2", shipping_address=None
    )


class ManualBus:
    """A bus that records every message, and accepts it when the test calls `accept`."""

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

    async def accept(self) -> None:
        """Accept every message that was published so far."""
        for _, future in self.published:
            if not future.done():
                future.set_result(None)
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def relay_of(harness: Harness, bus: ManualBus) -> OutboxRelay:
    return OutboxRelay(harness.stores["orders"], bus, harness.dead_letter_store, harness.clock, Metrics())


async def step_after(relay: OutboxRelay, clock: VirtualClock, seconds: float = SCAN_SECONDS) -> None:
    """Let *seconds* pass, and the relay take one step."""
    await clock.advance(seconds)
    await relay.step()


async def test_rows_of_a_killed_process_are_published_at_start(path: Path, clock: VirtualClock) -> None:
    """The new process finds them in the table and publishes them under the same ids."""
    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted(oid(1)))
        [(id, body)] = await harness.rows("SELECT id, body FROM orders_outbox WHERE subject = 'orders.created.v1'")
    async with harness_at(path, clock) as harness:
        bus = ManualBus()
        relay = relay_of(harness, bus)
        await relay.step()
        [message] = [message for message, _ in bus.published if message.subject == "orders.created.v1"]
        assert (message.id, message.body, message.key) == (id, body, oid(1))
        assert event_id_and_trace(message)[1].correlation_id == CONTEXT.correlation_id


async def test_an_idle_relay_wakes_up_a_few_times_a_second(
    path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It marks soon what the bus has accepted; with nothing in flight its steps would only cost processor time."""
    async with harness_at(path, clock) as harness:
        async def scanned(work: Any, order_key: str = "") -> Any:
            return 0 if order_key != RUN_LAST else Mock(rows=[], count=0, rows_per_event=0.0, count_seconds=0.0, oldest_seconds=0.0)

        monkeypatch.setattr(harness.database, "write", scanned)  # without a thread, which the clock does not see
        relay, steps = relay_of(harness, bus := ManualBus()), Counter[str]()
        monkeypatch.setattr(relay, "step", partial(counted_step, relay.step, steps))
        harness.run(relay.run())
        await clock.advance(10.0)
        assert steps.total() <= 10 / SCAN_SECONDS * 4 + 1

        relay.publish([outbox_message("m-1")])
        steps.clear()
        await clock.advance(1.0)
        assert steps.total() >= 15, "while a message is in flight its mark must not wait"
        await bus.accept()


async def counted_step(step: Callable[[], Awaitable[None]], steps: Counter[str]) -> None:
    """Take a step, and count it."""
    steps["steps"] += 1
    await step()


async def test_a_row_that_the_bus_refuses_becomes_a_dead_letter_and_the_others_go_on(path: Path, clock: VirtualClock) -> None:
    """It is published once, logged once, and leaves the table; a replay publishes it for every consumer."""
    async with harness_at(path, clock) as harness:
        early = "2026-01-01T11:00:00.000000+00:00"
        rows = [outbox_message(f"large-{n:05}", due_at=early) for n in range(1_500)]
        rows += [outbox_message(f"small-{n}") for n in range(20)]
        await harness.database.write(lambda c: save(harness, rows, c))
        bus = ManualBus()
        relay = relay_of(harness, bus)
        accepted: list[str] = []
        for _ in range(40):
            await step_after(relay, clock)
            for message, future in bus.published:
                if future.done():
                    continue
                if message.id.startswith("large"):
                    future.set_exception(PublishRefused("2,000,000 bytes"))
                else:
                    future.set_result(None)
                    accepted.append(message.id)
            await asyncio.sleep(0)
            if len(accepted) == 20:
                break
        assert clock.monotonic() <= 5  # the small ones do not wait until the large ones are put aside
        for _ in range(40):
            await step_after(relay, clock)
        assert len(bus.published) == len(rows)
        assert relay.pending == 0
        found = await harness.rows("SELECT count(*) FROM orders_dead_letter WHERE consumer = 'orders-outbox' AND error = 'not_publishable'")
        assert found == [(1_500,)]
        assert await harness.rows("SELECT count(*) FROM orders_outbox") == [(20,)]
        [stored] = await harness.dead_letter_store.list(None, None, None, 1)
        assert await harness.dead_letter_store.replay(stored.dead_letter.id)
        bus.published.clear()
        await step_after(relay, clock)
        [(message, _)] = bus.published
        assert (message.subject, message.body, message.headers["ce-id"]) == ("orders.created.v1", b"{}", stored.dead_letter.message.id)


async def test_the_backlog_counts_events_and_not_their_versions(path: Path, clock: VirtualClock) -> None:
    """An event in two versions is two rows."""
    async with harness_at(path, clock) as harness:
        for n in range(7):
            await harness.submit("orders", submitted(oid(n)))
        bus = ManualBus()
        bus.is_connected = False
        relay = relay_of(harness, bus)
        await relay.step()
        assert (relay.pending, relay.pending_events) == (14, 7)


async def test_a_long_backlog_is_not_counted_at_each_scan(path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that takes a tenth of a second is made every five seconds; the number is correct in between, too."""
    async with harness_at(path, clock) as harness:
        counts: list[float] = []
        count_due = harness.stores["orders"].count_due

        def counted(connection: Connection, now: datetime) -> int:
            counts.append(clock.monotonic())
            return count_due(connection, now)

        now = iter(n * 0.1 for n in range(1_000))
        monkeypatch.setattr("app.messaging.outbox_relay.time.perf_counter", lambda: next(now))
        monkeypatch.setattr(harness.stores["orders"], "count_due", counted)
        early = "2026-01-01T11:00:00.000000+00:00"
        await harness.database.write(lambda c: save(harness, [outbox_message(f"p-{n:05}", due_at=early) for n in range(3_000)], c))
        bus = ManualBus()
        relay = relay_of(harness, bus)
        for _ in range(12):
            await relay.step()
            assert relay.pending + len([1 for _, future in bus.published if future.done()]) == 3_000
            for _, future in bus.published[:1_000]:
                if not future.done():
                    future.set_result(None)
            await asyncio.sleep(0)
            await clock.advance(SCAN_SECONDS)
        assert len(counts) == 3
        await bus.accept()
        await step_after(relay, clock, 10)
        assert relay.pending == 0


async def test_a_row_stays_until_its_dead_letter_is_stored(path: Path, clock: VirtualClock) -> None:
    """While the dead letter cannot be stored the row is neither published again nor lost."""

    class Failing:
        failures = 2

        async def add(self, dead_letter: DeadLetter) -> None:
            self.failures -= 1
            if self.failures >= 0:
                raise StorageUnavailable("no")

    async with harness_at(path, clock) as harness:
        await harness.database.write(lambda c: save(harness, [outbox_message("large")], c))
        bus = ManualBus()
        relay = OutboxRelay(harness.stores["orders"], bus, Failing(), clock, Metrics())
        await relay.step()
        bus.published[0][1].set_exception(PublishRefused("too large"))
        lines = list[str]()
        sink = logger.add(lambda line: lines.append(line.record["message"]), level="ERROR", filter="app.messaging.outbox_relay")
        for left in (1, 1, 0, 0):
            await asyncio.sleep(0)
            await step_after(relay, clock)
            assert await harness.rows("SELECT count(*) FROM orders_outbox") == [(left,)]
        logger.remove(sink)
        assert len(bus.published) == 1
        assert lines == ["the dead letter of an event that the bus refuses is not stored"]


async def test_a_replica_without_the_bus_beats_nevertheless(postgres: PostgresServer, clock: VirtualClock) -> None:
    """Otherwise an outage of the bus would look like a jump of the clock at the next start."""
    async with harness_at(migrated_url(postgres), clock) as harness:
        limit = timedelta(minutes=10)
        await harness.database.write(lambda c: harness.stores["orders"].heartbeat.resume(c, clock.now(), limit))
        bus = ManualBus()
        bus.is_connected = False
        relay = relay_of(harness, bus)
        for _ in range(12):
            await step_after(relay, clock, 60)
        resume = partial(harness.stores["orders"].heartbeat.resume, now=clock.now(), limit=limit)
        assert await harness.database.write(resume) == (timedelta(0), 0)


async def test_an_accepted_row_is_marked_and_never_published_again(path: Path, clock: VirtualClock) -> None:
    """Neither this process nor the next one publishes it."""
    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted())
        bus = ManualBus()
        relay = relay_of(harness, bus)
        await relay.step()
        assert relay.pending == 2
        await bus.accept()
        assert relay.pending == 0
        for _ in range(3):
            await step_after(relay, clock)
        assert sorted(bus.subjects) == CREATED
        await relay.stop()
    async with harness_at(path, clock) as harness:
        bus = ManualBus()
        await relay_of(harness, bus).step()
        assert bus.subjects == []


async def test_marks_that_cannot_be_written_are_written_later(path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bus has accepted while the database is unavailable is not published again once it is back."""

    async def fails(*_: Any) -> Any:
        raise StorageUnavailable("away")

    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted())
        relay = relay_of(harness, bus := ManualBus())
        await relay.step()
        await bus.accept()
        with monkeypatch.context() as away:
            away.setattr(harness.database, "write", fails)
            for _ in range(3):
                await step_after(relay, clock)
        for _ in range(3):
            await step_after(relay, clock)
        assert sorted(bus.subjects) == CREATED
        assert all(sent_at for subject, sent_at in await harness.outbox("orders") if subject in CREATED)


@pytest.mark.parametrize(
    ("outcome", "is_published"), [(True, False), (False, True), (LookupError("a bug"), True), ("cancelled", True)]
)
async def test_a_row_that_is_handed_over_is_published_only_if_it_was_not_processed(
    path: Path, clock: VirtualClock, outcome: Any, is_published: bool
) -> None:
    """While its event is processed, the row counts as pending, and a scan leaves it alone."""
    async with harness_at(path, clock) as harness:
        bus = ManualBus()
        relay = relay_of(harness, bus)
        await harness.submit("orders", submitted())
        rows = await committed_rows(harness)
        processed = [asyncio.get_running_loop().create_future() for _ in rows]
        for row, future in zip(rows, processed, strict=True):
            relay.hand_over(row, partial(_same, future))
        await step_after(relay, clock)
        await step_after(relay, clock)
        assert (relay.pending, bus.subjects) == (2, [])
        for future in processed:
            if outcome == "cancelled":
                future.cancel()
            elif isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        await asyncio.sleep(0)
        assert sorted(bus.subjects) == (CREATED if is_published else [])
        await bus.accept()
        await relay.stop()
        assert all(sent_at for subject, sent_at in await harness.outbox("orders") if subject in CREATED)


async def test_a_row_that_cannot_be_handed_over_is_published(path: Path, clock: VirtualClock) -> None:
    """Nothing takes it; or a scan has published it already, and then nothing may take it."""
    async with harness_at(path, clock) as harness:
        bus = ManualBus()
        relay = relay_of(harness, bus)
        await harness.submit("orders", submitted())
        rows = await committed_rows(harness)
        offered: list[OutboxMessage] = []
        for row in (*rows, *rows):
            relay.hand_over(row, partial(offered.append, row))
        assert offered == rows
        assert sorted(bus.subjects) == CREATED


async def test_a_row_that_was_handed_over_does_not_wait_for_the_bus(path: Path, clock: VirtualClock) -> None:
    """Readiness must not blame the bus for a provider that takes minutes to answer."""
    async with harness_at(path, clock) as harness:
        relay = relay_of(harness, ManualBus())
        await harness.submit("orders", submitted())
        processed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        for row in await committed_rows(harness):
            relay.hand_over(row, partial(_same, processed))
        await step_after(relay, clock, 100.0)
        assert (relay.pending, relay.waiting_seconds()) == (2, 0.0)
        processed.set_result(False)
        await asyncio.sleep(0)
        await step_after(relay, clock, 100.0)
        assert relay.waiting_seconds() >= 100.0


def _same(future: asyncio.Future[bool]) -> asyncio.Future[bool]:
    return future


async def committed_rows(harness: Harness) -> list[OutboxMessage]:
    """Return the rows of ``orders.created`` that are due."""
    store = harness.stores["orders"]
    return await harness.database.read(
        lambda connection: store.fetch_due(connection, harness.clock.now(), 10, timedelta(0))
    )


async def test_stopping_marks_the_rows_that_the_bus_has_accepted(path: Path, clock: VirtualClock) -> None:
    """It marks the newest of them, too, and publishes nothing any more."""
    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted())
        bus = ManualBus()
        relay = relay_of(harness, bus)
        await relay.step()
        await bus.accept()
        await relay.stop()
        await relay.stop()
        assert sorted(subject for subject, sent_at in await harness.outbox("orders") if sent_at) == CREATED
        relay.publish([outbox_message("late")])
        assert len(bus.published) == 2


async def test_stopping_writes_deferred_marks(path: Path, clock: VirtualClock) -> None:
    """Piggy-backed marks wait for another transaction, and after a stop there is none."""
    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted())
        bus = ManualBus()
        relay = relay_of(harness, bus)
        await relay.step()
        await bus.accept()
        await relay.step()
        await relay.stop()
        assert sorted(subject for subject, sent_at in await harness.outbox("orders") if sent_at) == CREATED


async def test_a_row_in_flight_is_not_published_twice(path: Path, clock: VirtualClock) -> None:
    """The relay may scan the table any number of times meanwhile, and the row may also be passed to `publish`."""
    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted())
        bus = ManualBus()
        relay = relay_of(harness, bus)
        due = await harness.database.read(lambda c: harness.stores["orders"].fetch_due(c, clock.now(), 10, timedelta(0)))
        relay.publish(due)
        for _ in range(5):
            await step_after(relay, clock)
        assert len(bus.published) == 2
        assert relay.pending == 2


async def test_a_rejected_row_is_published_again(path: Path, clock: VirtualClock) -> None:
    """Under the same id; it stays pending all the while."""
    async with harness_at(path, clock) as harness:
        await harness.submit("inventory", product())
        await harness.submit("inventory", created(oid(1)))
        bus = ManualBus()
        relay = OutboxRelay(harness.stores["inventory"], bus, harness.dead_letter_store, clock, Metrics())
        await relay.step()
        for error in (PublishRetryable("full"), BusClosed("gone"), RuntimeError("a bug")):
            bus.published[-1][1].set_exception(error)
            await asyncio.sleep(0)
            assert relay.pending == 1
            await step_after(relay, clock)
        assert len({message.id for message, _ in bus.published}) == 1
        assert len(bus.published) == 4


async def test_a_scheduled_row_is_published_when_it_is_due(path: Path, clock: VirtualClock) -> None:
    """A time-out is an outbox row with a later due date."""
    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted())
        bus = ManualBus()
        relay = relay_of(harness, bus)
        await step_after(relay, clock)
        await bus.accept()
        await step_after(relay, clock, 890)
        assert sorted(bus.subjects) == CREATED
        assert relay.pending == 0
        await step_after(relay, clock, 10)
        assert bus.subjects[2:] == ["orders.timed_out.v1"]


async def test_a_cancelled_timer_is_never_published(path: Path, clock: VirtualClock) -> None:
    """A finished order does not time out; another order does."""
    async with harness_at(path, clock) as harness:
        for n in (1, 2):
            await harness.submit("orders", submitted(oid(n)))
        await harness.submit("orders", CancelRequested(order_id=oid(1), why=None))
        bus = ManualBus()
        relay = relay_of(harness, bus)
        await step_after(relay, clock, 1000)
        timed_out = [message.key for message, _ in bus.published if message.subject == "orders.timed_out.v1"]
        assert timed_out == [oid(2)]


async def test_a_timer_cancelled_in_its_own_batch_is_never_published(path: Path, clock: VirtualClock) -> None:
    """The order is placed and cancelled in one batch, so no time-out is left."""
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


async def test_sent_rows_are_purged_after_a_day_and_unsent_rows_stay(path: Path, clock: VirtualClock) -> None:
    """Sent rows are kept for 24 hours, unsent rows until they are published."""
    async with harness_at(path, clock) as harness:
        bus = ManualBus()
        relay = relay_of(harness, bus)
        began = f"{int(clock.now().timestamp() * 1000):012x}"
        ids = [f"{began[:8]}-{began[8:]}-7000-8000-{n:012}" for n in range(2)]
        rows = [outbox_message(id, due_at=clock.now().isoformat(timespec="microseconds")) for id in ids]
        await harness.database.write(lambda c: save(harness, rows, c))
        relay.publish(rows)
        bus.published[0][1].set_result(None)
        await asyncio.sleep(0)
        await step_after(relay, clock)
        await step_after(relay, clock, 23 * 3600)
        assert len(await harness.outbox("orders")) == 2
        await step_after(relay, clock, 3600 + PURGE_SECONDS)
        await step_after(relay, clock, PURGE_SECONDS)
        assert await harness.rows("SELECT id FROM orders_outbox") == [(ids[1],)]


async def test_inbox_rows_are_purged_after_two_days(path: Path, clock: VirtualClock) -> None:
    """An idempotency key holds for at least 24 hours, and not forever."""
    async with harness_at(path, clock) as harness:
        relay = relay_of(harness, ManualBus())
        await harness.submit("orders", submitted(), key="k", fingerprint="f")
        await step_after(relay, clock, 24 * 3600)
        assert await harness.rows("SELECT count(*) FROM orders_inbox") == [(1,)]
        await step_after(relay, clock, 24 * 3600 + PURGE_SECONDS)
        await step_after(relay, clock, PURGE_SECONDS)
        assert await harness.rows("SELECT count(*) FROM orders_inbox") == [(0,)]


@pytest.mark.parametrize("has_timer", [True, False])
async def test_nothing_is_purged_after_a_jump_of_the_clock(path: Path, clock: VirtualClock, has_timer: bool) -> None:
    """An idempotency key that only looks old is kept, whether or not an order was open; only a moved timer is reported."""
    async with harness_at(path, clock) as harness:
        metrics, store = Metrics(), harness.stores["orders"]
        await harness.database.write(lambda c: store.heartbeat.resume(c, clock.now(), timedelta(minutes=10)))
        await harness.submit("orders", submitted(), key="k", fingerprint="f")
        await harness.submit("orders", submitted(oid(2)))
        store.history.kept = timedelta(days=1)
        if not has_timer:
            await harness.database.write(lambda c: c.exec_driver_sql("DELETE FROM orders_outbox"))
        await clock.advance(3 * 24 * 3600)
        relay = relay_of(harness, ManualBus())
        watch = build_clock_watch({"orders": store}, clock, metrics, 600)
        await watch.start()
        for each in (relay, relay_of(harness, ManualBus())):  # the second one is another process, or the next
            for _ in range(3):
                await step_after(each, clock, PURGE_SECONDS)
            assert await harness.rows("SELECT count(*) FROM orders_inbox") == [(1,)]
            assert (await harness.rows("SELECT count(*) FROM orders_history"))[0][0] >= 2
        assert bool(watch.problem) == has_timer
        assert metrics.clock_jump_seconds.value == (3 * 24 * 3600 if has_timer else 0)
        await step_after(relay, clock, INBOX_RETENTION.total_seconds())
        await step_after(relay, clock, PURGE_SECONDS)
        assert await harness.rows("SELECT count(*) FROM orders_inbox") == [(0,)]


async def test_a_program_that_is_stopped_every_night_purges(path: Path, clock: VirtualClock) -> None:
    """A stop looks like a jump of the clock. It delays the purge by its length, and is forgotten after two days."""
    async with harness_at(path, clock) as harness:
        heartbeat, limit = harness.stores["orders"].heartbeat, timedelta(minutes=10)
        await harness.database.write(lambda c: heartbeat.resume(c, clock.now(), limit))
        await harness.submit("orders", submitted(), key="k", fingerprint="f")
        placed_at, relay = clock.now(), relay_of(harness, ManualBus())
        while await harness.rows("SELECT count(*) FROM orders_inbox") == [(1,)]:
            await step_after(relay, clock, 16 * 3600)
            await harness.database.write(lambda c: heartbeat.beat(c, clock.now()))
            await clock.advance(8 * 3600)
            assert (await harness.database.write(lambda c: heartbeat.resume(c, clock.now(), limit)))[0] == timedelta(hours=8)
            assert await harness.database.write(lambda c: heartbeat.skipped(c, clock.now())) <= timedelta(hours=24)
            assert clock.now() - placed_at < timedelta(days=6)
        assert clock.now() - placed_at > timedelta(days=3)
        assert (await harness.rows("SELECT count(*) FROM orders_heartbeat"))[0][0] <= 7


async def test_the_express_lane_has_room_when_bulk_rows_fill_the_limit(path: Path, clock: VirtualClock) -> None:
    """Beyond the limit bulk rows wait in the table while express rows are published; pending counts both."""
    async with harness_at(path, clock) as harness:
        bus = ManualBus()
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


async def test_a_long_outbox_is_published_to_its_end(path: Path, clock: VirtualClock) -> None:
    """Rows beyond one scan are found by the next ones, each event once, and the pending count is right all along."""
    async with harness_at(path, clock) as harness:
        early = (clock.now() - timedelta(seconds=1)).isoformat(timespec="microseconds")
        rows = [outbox_message(f"p-{n:05}", due_at=early) for n in range(3000)]
        await harness.database.write(lambda c: save(harness, rows, c))
        bus = ManualBus()
        relay = relay_of(harness, bus)
        for _ in range(10):
            await relay.step()
            assert relay.pending == 3000
            await clock.advance(0.05)
        assert len(bus.published) == len({message.id for message, _ in bus.published}) == 3000
        await bus.accept()
        await step_after(relay, clock)
        await step_after(relay, clock)
        assert relay.pending == 0
        assert await harness.rows("SELECT count(*) FROM orders_outbox WHERE sent_at IS NULL") == [(0,)]


@pytest.mark.parametrize("count", [3000, IN_FLIGHT_MAX + 3000])
async def test_rows_in_flight_are_not_read_again(
    path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A scan skips them in the select, so a long queue in flight costs no repeated reads."""
    async with harness_at(path, clock) as harness:
        early = (clock.now() - timedelta(seconds=1)).isoformat(timespec="microseconds")
        await harness.database.write(lambda c: save(harness, [outbox_message(f"p-{n:05}", due_at=early) for n in range(count)], c))
        bus = ManualBus()
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
        await bus.accept()


def outbox_message(id: str, subject: str = "orders.created.v1", due_at: str = "2026-01-01T12:00:00.000000+00:00") -> OutboxMessage:
    return OutboxMessage(id, id, subject, oid(1), b"{}", None, CONTEXT.correlation_id, id, CONTEXT.traceparent, due_at, due_at)


def save(harness: Harness, rows: list[OutboxMessage], connection: Connection) -> None:
    harness.stores["orders"].save(connection, states={}, inbox_entries=(), cancelled_timers=(), outgoing=rows)


async def test_nothing_is_published_while_the_bus_is_disconnected(path: Path, clock: VirtualClock) -> None:
    """New rows count as pending for the backlog cap; after the reconnect each is published once."""
    async with harness_at(path, clock) as harness:
        bus = ManualBus()
        bus.is_connected = False
        relay = relay_of(harness, bus)
        for number in range(3):
            await harness.submit("orders", submitted(oid(number)))
        await step_after(relay, clock)
        await step_after(relay, clock)
        assert (bus.published, relay.pending) == ([], 6)
        bus.is_connected = True
        await step_after(relay, clock)
        assert sorted(bus.subjects) == sorted(CREATED * 3)
        await bus.accept()
        await step_after(relay, clock)
        assert relay.pending == 0
