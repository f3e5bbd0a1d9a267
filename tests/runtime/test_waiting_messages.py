"""What waits in the queue is settled with the batch, and an outage spends none of its tries."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve

from app.messaging.cloudevents import to_message
from app.runtime.outage import StorageOutage
from app.runtime.work import WorkItem
from app.runtime.work_queue import WorkQueue
from app.storage.errors import StorageUnavailable
from bus.port import Message
from tests.runtime.harness import CONTEXT, HurriedClock, harness_at, oid, product, submitted, until


class Waiting:
    """A delivery that counts how often its deadline is extended."""

    extended = 0

    async def in_progress(self) -> None:
        self.extended += 1


async def test_an_outage_extends_the_deadlines_of_all_that_waits() -> None:
    """Of the batch that failed, of what is queued, and of older versions that wait for their newest: none is delivered again."""
    one, other, older = Waiting(), Waiting(), Waiting()
    deliveries: list[Any] = [one, other, older]

    async def check() -> None:
        if not all(each.extended >= 2 for each in deliveries):
            raise StorageUnavailable("gone")

    queue: WorkQueue[WorkItem] = WorkQueue(8)
    database: Any = SimpleNamespace(check=check)
    outage = StorageOutage("inventory", queue, database, HurriedClock(), random.Random(1))
    failed, queued = (WorkItem(None, id, CONTEXT, False, id, delivery=each) for id, each in (("a", deliveries[0]), ("b", deliveries[1])))
    queued.older_deliveries = (deliveries[2],)
    queue.put(queued)
    await asyncio.wait_for(outage.wait_out([failed], StorageUnavailable("gone")), 30)
    assert not outage.is_active
    assert list(queue) == [failed, queued]


async def test_an_older_version_is_settled_with_the_newest(path: Path) -> None:
    """It arrives while the newest waits in the queue: it is attached to that, and acknowledged after the commit."""
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
        await runner.step()
        await asyncio.wait_for(asyncio.gather(*published), 30)


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
