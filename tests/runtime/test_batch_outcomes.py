"""Where each item of a batch ends, whatever the database does, and what it has come with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import product as combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.runtime.engine import ModuleResult
from app.runtime.work import ItemResult, WorkItem
from app.storage.errors import StorageRefused, StorageUnavailable
from modules.orders.state import Order
from modules.routes import Response
from tests.runtime.harness import (
    CONTEXT,
    NO_CONTENT,
    Harness,
    HurriedClock,
    bus_message,
    harness_at,
    oid,
    product,
    submitted,
    until,
)
from tests.runtime.test_runner import created

OK, FAILS, REFUSED, GONE = "ok", "fails", "refused", "gone"


def write_that(script: Iterator[str], attempts: list[str]) -> Any:
    """Return what takes the place of `Database.write`: each attempt ends with the next outcome of *script*, and adds it to *attempts*."""

    async def write(work: Any, order_key: str = "") -> Any:
        name, items, _ = work.args
        assert order_key == name, "all processes lock the rows of the modules in one order"
        attempts.append(outcome := next(script))
        if outcome == OK:
            return {name: ModuleResult([*items], [ItemResult() for _ in items])}
        raise {FAILS: ValueError("a row"), REFUSED: StorageRefused("no table"), GONE: StorageUnavailable("gone")}[outcome]

    return write


@pytest.mark.parametrize("refused_max", [1, 8])
@pytest.mark.parametrize("is_local", [False, True])
async def test_each_item_of_a_batch_is_reported_or_waits_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_local: bool, refused_max: int
) -> None:
    """For every combination of outcomes: what waits keeps its order, and what the database is to blame for is reported by nothing."""
    monkeypatch.setattr("app.runtime.runner.REFUSED_MAX", refused_max)
    async with harness_at(path, delivers_locally=is_local) as harness:
        runner = harness.runners["orders"]
        for count in 1, 3:
            items = [WorkItem(None, str(n), CONTEXT, False, str(n)) for n in range(count)]
            for script in combinations((OK, FAILS, REFUSED, GONE), repeat=is_local + 1 + (count if count > 1 else 0)):
                attempts: list[str] = []
                monkeypatch.setattr(harness.database, "write", write_that(iter(script), attempts))
                commits, waiting, outage = await runner._commit(items)
                results = [(item.id, each) for commit in commits for part in commit.values() for item, each in zip(part.items, part.results, strict=True)]
                reported, waits = [id for id, _ in results], [item.id for item in waiting]
                assert sorted(reported + waits) == [item.id for item in items], (script, reported, waits)
                assert waits == sorted(waits)
                assert (outage is None) == (not waiting)
                assert not any(isinstance(each.error, StorageUnavailable) for _, each in results)
                assert GONE not in attempts[:-1], "no item is attempted while the database is out of reach"
                assert attempts.count(REFUSED) <= is_local + 1 + refused_max


async def test_a_client_that_has_gone_costs_the_others_nothing(harness: Harness) -> None:
    """Its connection was closed while its request waited; what it has requested is done nevertheless."""
    runner = harness.runners["orders"]
    gone, other = (
        asyncio.create_task(runner.submit(submitted(oid(n)), id=oid(n), trace=CONTEXT, respond=NO_CONTENT)) for n in (1, 2)
    )
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    await runner.step()
    assert not (await other).is_replay
    assert isinstance(await runner.get(Order, oid(1)), Order)


async def test_a_repeated_request_without_a_stored_response_is_answered_with_200(path: Path) -> None:
    """The inbox knows the request, and there was no response to store."""
    async with harness_at(path, HurriedClock()) as harness:
        first, second = [
            await harness.submit("orders", submitted(oid(1)), id="placed", fingerprint="same", respond=None, is_new=False) for _ in range(2)
        ]
    assert not first.is_replay
    assert (second.is_replay, second.response) == (True, Response(200, None))


class StoppedClock(HurriedClock):
    """A clock whose time a test sets."""

    seconds = 1_000.0

    def monotonic(self) -> float:
        return self.seconds


async def test_work_waits_until_a_batch_is_finished(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness shows for how long, through an outage too; finished work does not count, however long ago it was."""
    clock = StoppedClock()
    async with harness_at(path, clock) as harness:
        runner, check = harness.runners["inventory"], harness.database.check
        await harness.submit("inventory", product())
        clock.seconds += 50
        assert runner.waiting_seconds() == 0
        is_gone = True

        async def checked() -> None:
            if is_gone:
                raise StorageUnavailable("gone")
            await check()

        script = iter([GONE])
        with monkeypatch.context() as away:
            away.setattr(harness.database, "write", write_that(script, []))
            away.setattr(harness.database, "check", checked)
            message = bus_message(harness, created(oid(1)), key=oid(1))
            harness.run(runner.consume(await harness.bus.subscribe("inventory", [message.subject])))
            published = harness.bus.publish(message)
            await until(lambda: len(runner._queue) == 1)
            step = asyncio.create_task(runner.step())
            await until(lambda: runner._outage.is_active)
            clock.seconds += 70
            assert runner.waiting_seconds() == 70
            refused = asyncio.create_task(runner.submit(product(), id="p", trace=CONTEXT, respond=NO_CONTENT))
            await asyncio.sleep(0)
            assert isinstance(refused.exception(), StorageUnavailable)
            is_gone = False
        await step
        clock.seconds += 5
        assert runner.waiting_seconds() == 75
        await runner.step()
        assert runner.waiting_seconds() == 0
        await asyncio.wait_for(published, 30)


class Lane:
    """A subscription that notes how each fetch asks, and has *messages* for the first ones."""

    def __init__(self, *messages: list[Any]) -> None:
        self.asked: list[tuple[int, bool]] = []
        self._messages = list(messages)

    async def fetch(self, limit: int, wait_seconds: float, is_standby: bool = False) -> list[Any]:
        self.asked.append((limit, is_standby))
        await asyncio.sleep(0)
        return self._messages.pop(0) if self._messages else []


async def test_a_lane_fetches_no_more_than_it_has_room_for(path: Path) -> None:
    """The leader takes what arrives; a process on standby leaves it to the leader."""
    async with harness_at(path, HurriedClock(), batch_max=4) as harness:
        runner = harness.runners["inventory"]
        deliveries = [SimpleNamespace(message=bus_message(harness, created(oid(n)), key=oid(n)), tries=1) for n in range(3)]
        lane: Any = Lane(deliveries[:1], deliveries[1:])
        harness.run(runner.consume(lane))
        await until(lambda: len(lane.asked) > 4)
        assert lane.asked[:4] == [(4, True), (3, True), (1, True), (1, True)]
        await harness.relays["inventory"].step()
        asked = len(lane.asked)
        await until(lambda: len(lane.asked) > asked + 1)
        assert lane.asked[-1] == (1, False)


async def test_an_unforeseen_error_concerns_one_message_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is delivered again after a delay, and the consumer goes on with the others."""
    async with harness_at(path, HurriedClock()) as harness:
        runner = harness.runners["inventory"]
        await harness.submit("inventory", product())
        receive, failures = runner._receiver.receive, [RuntimeError("a bug")]

        async def failing(delivery: Any) -> Any:
            if failures and delivery.message.key == oid(1):
                raise failures.pop()
            return await receive(delivery)

        monkeypatch.setattr(runner._receiver, "receive", failing)
        await harness.consume("inventory")
        published = [harness.bus.publish(bus_message(harness, created(oid(n)), key=oid(n))) for n in (1, 2)]
        await asyncio.wait_for(asyncio.gather(*published), 30)
        assert await harness.rows("SELECT count(*) FROM inventory_reservation") == [(2,)]
        assert await harness.dead_letter_store.list(None, None, None, 10) == []
