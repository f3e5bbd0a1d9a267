"""What waits in the queue is settled with the batch, and an outage spends none of its tries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve

from app.messaging.cloudevents import to_message
from app.runtime.outage import EXTEND_SECONDS, SECONDS_MAX, SECONDS_MIN, StorageOutage
from app.runtime.receiving import DEFER_MAX, Received, extend_ack_deadlines
from app.runtime.work import WorkItem
from app.runtime.work_queue import WorkQueue
from app.storage.errors import CommitOutcomeUnknown, StorageRefused, StorageUnavailable
from bus.port import Clock, Message
from modules.module import Decision
from tests.runtime.harness import CONTEXT, HurriedClock, harness_at, oid, product, submitted, until


class Waiting:
    """A delivery that counts how often its deadline is extended."""

    extended = 0

    async def in_progress(self) -> None:
        self.extended += 1


class SleepLog(HurriedClock):
    """A clock that hurries, keeps how long each sleep was to be, and has the time that a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []
        self.seconds = 1_000.0

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        if seconds != EXTEND_SECONDS:
            self.slept.append(seconds)
        await super().sleep(seconds)


def outage_at(queue: WorkQueue[WorkItem], check: Any, clock: Clock | None = None) -> StorageOutage:
    """Return an outage of a database that *check* looks at."""
    database: Any = SimpleNamespace(check=check)
    return StorageOutage("inventory", queue, database, clock or HurriedClock(), random.Random(1))


async def test_an_outage_extends_the_deadlines_of_all_that_waits() -> None:
    """
    Of the batch that failed, of what is queued, and of older versions that wait for their newest: none is delivered again.

    What was in the batch keeps its lane. After the outage nothing is extended any more.
    """
    one, other, older = Waiting(), Waiting(), Waiting()
    deliveries: list[Any] = [one, other, older]

    async def check() -> None:
        if not all(each.extended >= 2 for each in deliveries):
            raise StorageUnavailable("gone")

    queue: WorkQueue[WorkItem] = WorkQueue(8)
    outage = outage_at(queue, check)
    failed, queued = (WorkItem(None, id, CONTEXT, False, id, delivery=each) for id, each in (("a", deliveries[0]), ("b", deliveries[1])))
    express = WorkItem(None, "c", CONTEXT, True, "c", delivery=deliveries[0])
    queued.older_deliveries = (deliveries[2],)
    queue.put(queued)
    await asyncio.wait_for(outage.wait_out([failed, express], StorageUnavailable("gone")), 30)
    assert not outage.is_active
    assert list(queue) == [express, failed, queued]
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_deadline_that_cannot_be_extended_keeps_no_other_from_it() -> None:
    """The bus has lost one message, or its connection for a moment; the log names the consumer that may get one again."""

    class Lost(Waiting):
        async def in_progress(self) -> None:
            await super().in_progress()
            raise ConnectionError("gone")

    deliveries = [Waiting(), Lost(), Waiting()]
    await extend_ack_deadlines(deliveries, "inventory")  # type: ignore[arg-type]
    assert [each.extended for each in deliveries] == [1, 1, 1]


async def test_an_outage_answers_each_request_that_waits() -> None:
    """Those of the batch and those that were queued, each with an error of its own, before the database is back."""
    queue: WorkQueue[WorkItem] = WorkQueue(8, lambda item: item.delivery is not None)
    batch, queued = (WorkItem(None, id, CONTEXT, False, None, future=asyncio.get_running_loop().create_future()) for id in "ab")
    waiting = WorkItem(None, "c", CONTEXT, False, "c", delivery=Waiting())  # type: ignore[arg-type]
    queue.put(queued)
    queue.put(waiting)

    async def check() -> None:
        assert outage.is_active
        if queued.future is not None and not queued.future.done():
            raise StorageUnavailable("gone", 7)

    outage = outage_at(queue, check)
    await asyncio.wait_for(outage.wait_out([batch], CommitOutcomeUnknown("cut in mid-commit")), 30)
    errors = [each.future.exception() for each in (batch, queued) if each.future is not None]
    assert [type(error) for error in errors] == [CommitOutcomeUnknown, StorageUnavailable]
    assert isinstance(errors[1], StorageUnavailable)
    assert errors[1].retry_after_seconds == 7
    assert list(queue) == [waiting]


async def test_a_database_is_looked_at_at_growing_intervals() -> None:
    """The interval doubles with each look, to a limit, and begins anew with the next outage."""
    looks = 0

    async def check() -> None:
        nonlocal looks
        looks += 1
        if looks % 8:
            raise StorageUnavailable("gone")

    clock = SleepLog()
    outage = outage_at(WorkQueue(8), check, clock)
    for _ in range(2):
        await asyncio.wait_for(outage.wait_out([], StorageUnavailable("gone")), 30)
    assert_doubled(clock.slept[:8])
    assert_doubled(clock.slept[8:])


async def test_refused_work_is_tried_at_growing_intervals() -> None:
    """Each attempt finds a database that answers, so the interval grows from one to the next; after a quiet time it begins anew."""

    async def check() -> None:
        pass

    clock = SleepLog()
    outage = outage_at(WorkQueue(8), check, clock)
    for _ in range(2):
        for _ in range(8):
            await asyncio.wait_for(outage.wait_out([], StorageRefused("no such table")), 30)
            clock.seconds += SECONDS_MAX
        clock.seconds += 2 * SECONDS_MAX
    assert_doubled(clock.slept[:8])
    assert_doubled(clock.slept[8:])


def assert_doubled(slept: list[float]) -> None:
    """Ensure that *slept* are eight intervals that double, within their jitter, up to the limit."""
    assert len(slept) == 8
    for n, seconds in enumerate(slept):
        usual = min(SECONDS_MAX, SECONDS_MIN * 2**n)
        assert usual / 2 <= seconds <= usual


@pytest.mark.parametrize("is_older", [False, True])
def test_an_older_version_waits_a_limited_number_of_times(is_older: bool) -> None:
    """Then it is processed itself: the newer one may never come."""

    def received(tries: int) -> Received:
        delivery: Any = SimpleNamespace(tries=tries)
        return Received(delivery, None, "e", CONTEXT, "orders.created.v1", None, "v1,v2", is_older)

    assert [tries for tries in range(1, 9) if received(tries).may_be_deferred] == (list(range(1, DEFER_MAX + 1)) if is_older else [])


def fails(states: Sequence[Any], what: Any, now: datetime) -> Decision:
    """Decide nothing."""
    raise ValueError("a bug")


async def test_an_older_version_is_settled_with_the_newest(path: Path) -> None:
    """
    It arrives while the newest waits in the queue: it is attached to that, and acknowledged after the commit.

    If the newest fails, neither is acknowledged. Once the newest is settled, one that arrives later waits for nothing.
    """
    async with harness_at(path, HurriedClock()) as harness:
        await harness.submit("inventory", product(10))
        await harness.submit("orders", submitted(oid(1)))
        store = harness.stores["orders"]
        due = partial(store.fetch_due, now=harness.clock.now() + timedelta(seconds=1), limit=10, handover_delay=timedelta(0))
        rows = [row for row in await harness.database.write(due) if row.subject.startswith("orders.created.")]
        older, newest = sorted(map(to_message, rows), key=lambda message: message.subject)
        older, newest = evolve(older, id="older"), evolve(newest, id="newest")  # the bus has had them already, under their own ids
        assert (older.subject, newest.subject) == ("orders.created.v1", "orders.created.v2")
        runner = harness.runners["inventory"]
        harness.run(runner.consume(await harness.bus.subscribe("inventory", [older.subject, newest.subject])))
        published = [harness.bus.publish(newest)]
        await until(lambda: len(runner._queue) == 1)
        published.append(harness.bus.publish(older))
        [item] = runner._queue
        await until(lambda: len(item.older_deliveries) == 1)
        assert len(runner._queue) == 1
        processor = harness.processor("inventory")
        decide = processor._module.decide
        processor._module = evolve(processor._module, decide=fails)
        await runner.step()
        assert not any(each.done() for each in published)
        processor._module = evolve(processor._module, decide=decide)
        harness.run(runner.run())
        await asyncio.wait_for(asyncio.gather(*published), 30)
        published.append(harness.bus.publish(evolve(older, id="late")))
        await asyncio.wait_for(published[-1], 30)


@pytest.mark.parametrize("body", [b"{not json", b"{}"])
async def test_an_event_that_is_unreadable_in_each_of_its_versions_becomes_one_dead_letter(path: Path, body: bytes) -> None:
    """Neither version is let go because the other one is known, too: both would be gone without a trace."""
    async with harness_at(path, HurriedClock()) as harness:
        await harness.consume("inventory")
        headers = {"ce-id": "event-1", "ce-versions": "v1,v2"}
        for version in "v1", "v2":
            await harness.bus.publish(Message(f"orders.created.{version}", f"m-{version}", body, "k", headers))
        kept = await harness.dead_letter_store.list(None, None, None, 10)
        assert [each.dead_letter.consumer for each in kept] == ["inventory"]
