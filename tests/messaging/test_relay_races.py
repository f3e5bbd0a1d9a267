"""What happens to rows of the outbox while the relay is in the middle of something else, and while something is out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from app.messaging.outbox_relay import MARK_SECONDS, PURGE_SECONDS, SCAN_SECONDS, OutboxRelay
from app.storage.errors import StorageUnavailable
from app.telemetry.metrics import Metrics
from bus.errors import PublishRefused
from bus.port import DeadLetter
from tests.clock import VirtualClock
from tests.messaging.test_outbox_relay import (
    CREATED,
    ManualBus,
    committed_rows,
    outbox_message,
    relay_of,
    save,
    step_after,
)
from tests.runtime.harness import Harness, harness_at, oid, submitted


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def let_happen(harness: Harness, monkeypatch: pytest.MonkeyPatch, before: Callable[[], Any], after: Callable[[], Any]) -> None:
    """Let the next transaction begin after *before* has run, and its result arrive after *after*."""
    write = harness.database.write

    async def wrapped(*work: Any) -> Any:
        monkeypatch.setattr(harness.database, "write", write)
        before()
        found = await write(*work)
        await after()
        return found

    monkeypatch.setattr(harness.database, "write", wrapped)


async def nothing() -> None:
    """Do nothing."""


async def test_rows_that_are_published_while_a_scan_runs_are_published_once(
    path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scan finds them unsent, for they were not in flight as it began; in flight or accepted meanwhile, they count once."""
    for is_accepted in False, True:
        async with harness_at(path, clock) as harness:
            await harness.submit("orders", submitted())
            relay = relay_of(harness, bus := ManualBus())
            rows = await committed_rows(harness)
            let_happen(harness, monkeypatch, lambda relay=relay, rows=rows: relay.publish(rows), bus.accept if is_accepted else nothing)  # type: ignore[misc]
            await relay.step()
            assert sorted(bus.subjects) == CREATED
            assert relay.pending == (0 if is_accepted else 2)
            await bus.accept()
            await step_after(relay, clock)
            assert (len(bus.published), relay.pending) == (2, 0)
            await relay.stop()


async def test_a_row_that_was_committed_a_moment_ago_is_left_to_the_process_that_committed_it(path: Path, clock: VirtualClock) -> None:
    """It publishes the row by itself; a second later a scan takes it for one that was left behind."""
    async with harness_at(path, clock) as harness:
        relay = relay_of(harness, bus := ManualBus())
        await relay.step()
        await clock.advance(SCAN_SECONDS - 0.2)
        await harness.submit("orders", submitted())
        await step_after(relay, clock, 0.3)
        assert bus.subjects == []
        await step_after(relay, clock)
        assert sorted(bus.subjects) == CREATED


async def test_a_publish_that_is_cancelled_is_pending(path: Path, clock: VirtualClock) -> None:
    """It counts at once, and a later scan publishes the row again."""
    async with harness_at(path, clock) as harness:
        await harness.submit("orders", submitted())
        relay = relay_of(harness, bus := ManualBus())
        await relay.step()
        for _, future in bus.published:
            future.cancel()
        await asyncio.sleep(0)
        assert relay.pending == 2
        await step_after(relay, clock)
        assert sorted(bus.subjects) == sorted(CREATED * 2)


async def test_a_bus_that_accepts_nothing_shows_while_the_database_is_out_of_reach(
    path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No scan finds out how old the rows are then; what is accepted is progress."""

    async def fails(*_: Any) -> Any:
        raise StorageUnavailable("gone")

    async with harness_at(path, clock) as harness:
        relay = relay_of(harness, bus := ManualBus())
        await relay.step()
        monkeypatch.setattr(harness.database, "write", fails)
        relay.publish([outbox_message("m-1")])
        for _ in range(10):
            await step_after(relay, clock, 10)
        assert relay.waiting_seconds() == 100
        relay.publish([outbox_message("m-2")])
        bus.published[0][1].set_result(None)
        await asyncio.sleep(0)
        await relay.step()
        assert relay.waiting_seconds() == 0


async def test_the_oldest_row_shows_although_others_are_accepted(path: Path, clock: VirtualClock) -> None:
    """A row that the bus never answers about waits, however many others go through."""
    async with harness_at(path, clock) as harness:
        relay, started_at = relay_of(harness, bus := ManualBus()), clock.now().isoformat(timespec="microseconds")
        await harness.database.write(lambda c: save(harness, [outbox_message("stuck", due_at=started_at)], c))
        await relay.step()
        for n in range(10):
            relay.publish([outbox_message(f"m-{n}")])
            bus.published[-1][1].set_result(None)
            await asyncio.sleep(0)
            await step_after(relay, clock, 10)
        assert relay.waiting_seconds() == 100


async def test_old_rows_are_deleted_part_by_part_without_a_pause(path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One part at each step for as long as there are old rows: more rows come in than one part every ten seconds. An outage is waited out."""
    async with harness_at(path, clock) as harness:
        relay, purged = relay_of(harness, ManualBus()), list[float]()
        outcomes: list[Any] = [500, 500, StorageUnavailable("gone"), 500, 0, 0]

        def purge(*_: Any) -> int:
            purged.append(clock.monotonic())
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return int(outcome)

        monkeypatch.setattr(harness.stores["orders"], "purge", purge)
        while outcomes:
            await step_after(relay, clock, MARK_SECONDS)
        pauses = [later - sooner for sooner, later in zip([0.0, *purged], purged, strict=False)]
        near = [MARK_SECONDS, MARK_SECONDS, PURGE_SECONDS, MARK_SECONDS, PURGE_SECONDS]
        assert pauses == [pytest.approx(each, abs=MARK_SECONDS * 1.01) for each in (PURGE_SECONDS, *near)]


async def test_a_refused_row_that_cannot_be_removed_is_not_published_again(
    path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dead letter is stored, and stored once more with the next attempt to remove it, which changes nothing."""

    class Stored:
        letters: tuple[str, ...] = ()

        async def add(self, dead_letter: DeadLetter) -> None:
            self.letters += (dead_letter.message.id,)

    async def fails(*_: Any) -> Any:
        raise StorageUnavailable("gone")

    async with harness_at(path, clock) as harness:
        await harness.database.write(lambda c: save(harness, [outbox_message("large")], c))
        bus, stored = ManualBus(), Stored()
        relay = OutboxRelay(harness.stores["orders"], bus, stored, clock, Metrics())
        await relay.step()
        bus.published[0][1].set_exception(PublishRefused("too large"))
        await asyncio.sleep(0)
        with monkeypatch.context() as away:
            away.setattr(harness.database, "write", fails)
            await step_after(relay, clock, MARK_SECONDS)
        for _ in range(3):
            await step_after(relay, clock)
        assert (len(bus.published), set(stored.letters), relay.pending) == (1, {"large"}, 0)
        assert await harness.rows("SELECT id FROM orders_outbox") == []


async def test_a_timer_that_is_due_soon_is_not_left_to_another_process(path: Path, clock: VirtualClock) -> None:
    """It was committed a moment ago, and no process has it in memory: it is published when it is due."""
    async with harness_at(path, clock) as harness:
        relay = relay_of(harness, bus := ManualBus())
        await relay.step()
        await clock.advance(SCAN_SECONDS - 0.2)
        due_at = (clock.now() + timedelta(seconds=0.1)).isoformat(timespec="microseconds")
        timer = outbox_message("t-1")._replace(timer=oid(1), due_at=due_at, occurred_at=clock.now().isoformat(timespec="microseconds"))
        await harness.database.write(lambda c: save(harness, [timer], c))
        await step_after(relay, clock, 0.3)
        assert [message.id for message, _ in bus.published] == ["t-1"]


async def test_an_error_is_logged_once_until_a_row_is_accepted(path: Path, clock: VirtualClock) -> None:
    """The next time that it occurs is another fault."""
    async with harness_at(path, clock) as harness:
        relay = relay_of(harness, bus := ManualBus())
        lines: list[str] = []
        sink = logger.add(lambda line: lines.append(line.record["message"]), level="ERROR", filter="app.messaging.outbox_relay")
        for n, (error, count) in enumerate([("a bug", 1), ("a bug", 1), ("another", 2), (None, 2), ("a bug", 3)]):
            relay.publish([outbox_message(f"m-{n}")])
            future = bus.published[-1][1]
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(RuntimeError(error))
            await asyncio.sleep(0)
            assert len(lines) == count
        logger.remove(sink)


async def test_a_worker_takes_nothing_after_the_stop(path: Path, clock: VirtualClock) -> None:
    """The row stays in the table, for the next start."""
    async with harness_at(path, clock) as harness:
        relay = relay_of(harness, bus := ManualBus())
        await relay.stop()
        taken: list[str] = []
        relay.hand_over(outbox_message("m-1"), lambda: taken.append("m-1"))
        assert (taken, bus.published, relay.pending) == ([], [], 1)


async def test_rows_count_as_events_at_once_while_the_bus_is_away(path: Path, clock: VirtualClock) -> None:
    """Between two steps of the relay many orders are placed, and the cap counts what they have to publish."""
    async with harness_at(path, clock) as harness:
        relay = relay_of(harness, bus := ManualBus())
        bus.is_connected = False
        for n in range(1, 6):
            newest, older = outbox_message(f"m-{n}-v2"), outbox_message(f"m-{n}")
            relay.publish([newest._replace(event_id=older.event_id), older])
            assert (relay.pending, relay.pending_events) == (2 * n, n)
