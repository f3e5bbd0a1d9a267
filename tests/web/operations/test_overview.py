"""The overview of one process: put together from parts, computed once for all, and sent as it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from attrs import evolve

from app.storage.databases import build_storage
from app.storage.search import status_counts
from app.storage.search.status_counts import StatusCounts
from app.web.operations.module_api import ApiAnswer, ModuleUnreachable, ProcessAnswer
from app.web.operations.overview import overview as overview_module
from app.web.operations.overview.overview import Overview
from app.web.operations.overview.rates import Rates
from config.settings import Settings
from modules.orders.state import Order, Status
from modules.registry import MODULES, load_module
from tests.clock import VirtualClock

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def part(**members: Any) -> dict[str, Any]:
    """Return the part of a process that runs the module ``orders``."""
    orders = {"by_status": {"confirmed": 1}, "accepted_per_s": 0, "completed_per_s": 0, "oldest_waiting": None, "waiting_for_payment": 3}
    whole = {
        "modules": {"orders": {"reachable": True}}, "orders": orders, "bus": {"name": "nats", "status": "ok"},
        "databases": {"orders": "ok"}, "dead_letters": [], "attention": [],
    }  # fmt: skip
    return whole | members


class FakeApi:
    """Answers with *answers*; counts how often it was asked."""

    modules = ("orders", "inventory", "payments")

    def __init__(self, answers: list[ProcessAnswer]) -> None:
        self.answers = answers
        self.asked = 0
        self.was_asked = asyncio.Event()

    async def ask_all(self, *args: Any, **kwargs: Any) -> list[ProcessAnswer]:
        self.asked += 1
        self.was_asked.set()
        await asyncio.sleep(0)
        return self.answers


def overview_of(*answers: ProcessAnswer) -> tuple[Overview, FakeApi]:
    api: Any = FakeApi(list(answers))
    status: Any = None
    return Overview(status, api, VirtualClock(NOW)), api


def answered(name: str, body: dict[str, Any]) -> ProcessAnswer:
    return ProcessAnswer((name,), ApiAnswer(200, {}, body))


async def test_the_parts_of_all_processes_become_one_and_what_is_away_is_named() -> None:
    """What only a process out of reach knows is null, never guessed, and its absence needs attention."""
    breakers = {"name": "stripe", "breakers": {"charge": "open"}, "since": {"charge": "2026-01-01T00:00:00.000000Z"}}
    payments = part(modules={"payments": {"reachable": True}}, gateway=breakers, databases={"payments": "unavailable"})
    del payments["orders"]
    overview, _ = overview_of(
        answered("orders", part()),
        ProcessAnswer(("inventory",), None, ModuleUnreachable("inventory", "no answer within 2 s")),
        answered("payments", payments),
    )
    found = await overview.read()
    assert found["orders"]["by_status"] == {"confirmed": 1}
    assert found["gateway"] == {**breakers, "waiting": 3}
    assert found["databases"] == {"orders": "ok", "payments": "unavailable"}
    assert list(found["modules"]) == ["orders", "inventory", "payments"]
    assert found["modules"]["inventory"] == {
        "reachable": False, "outbox_pending": None, "outbox_oldest_seconds": None, "lag_seconds": None, "replicas": None,
        "reason": "no answer within 2 s",
    }  # fmt: skip
    (attention,) = found["attention"]
    assert attention["what"] == "The process of inventory gives no answer: no answer within 2 s."
    assert attention["since"] == "2026-01-01T00:00:00.000000Z"


async def test_without_orders_their_members_are_null() -> None:
    """An overview never counts orders that it cannot see."""
    overview, _ = overview_of(ProcessAnswer(("orders",), None, ModuleUnreachable("orders", "no connection")))
    found = await overview.read()
    assert found["orders"] == dict.fromkeys(("by_status", "accepted_per_s", "completed_per_s", "oldest_waiting"))
    assert (found["gateway"]["waiting"], found["bus"]) == (None, None)


async def test_one_computation_serves_all_who_ask_at_once() -> None:
    """Fifty requests at the same moment cost as much as one."""
    overview, api = overview_of(answered("orders", part()))
    await asyncio.gather(*(overview.read() for _ in range(50)))
    assert api.asked == 1


async def test_those_who_watch_get_changes_only_and_nothing_is_computed_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten watchers share each computation; after the last one has gone nothing is computed any more."""
    monkeypatch.setattr(overview_module, "INTERVAL_SECONDS", 0.001)
    monkeypatch.setattr(overview_module, "SHARED_SECONDS", 0.0)
    overview, api = overview_of(answered("orders", part()))
    closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    is_open = True
    streams = [overview.watch(closed, lambda: is_open) for _ in range(10)]
    assert [await anext(stream) for stream in streams] == [overview._latest[1]] * 10
    following = [asyncio.ensure_future(_next(stream)) for stream in streams]
    for _ in range(5):  # computed again and again, and nothing has changed
        api.was_asked.clear()
        await api.was_asked.wait()
    assert not any(each.done() for each in following)
    api.answers = [answered("orders", part(databases={"orders": "unavailable"}))]
    assert [found["databases"] for found in await asyncio.gather(*following)] == [{"orders": "unavailable"}] * 10
    is_open = False  # the clients have gone
    for stream in streams:
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert overview._ticking is not None
    await overview._ticking
    asked = api.asked
    await asyncio.sleep(0.01)
    assert api.asked == asked


async def _next(stream: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    return await anext(stream)


async def test_many_orders_are_counted_before_the_first_request() -> None:
    """A process counts once as it starts; the first who asks does not wait for it."""
    prepared = asyncio.Event()

    class Status:
        async def prepare(self) -> None:
            prepared.set()

    overview, _ = overview_of(answered("orders", part()))
    status: Any = Status()
    overview.status = status
    app = web.Application()
    overview.attach(app)
    runner = web.AppRunner(app)
    await runner.setup()
    async with asyncio.timeout(30):
        await prepared.wait()
    await runner.cleanup()


def test_a_rate_is_that_of_the_last_ten_seconds() -> None:
    """What was counted before does not matter, and a process that has just started has no huge rate."""
    now, count = 0.0, 1000.0
    rates = Rates(lambda: {"n": count}, lambda: now)
    count += 5
    assert rates.growth() == ({"n": 5}, 1.0)
    for now in range(1, 31):  # noqa: B007 # the clock of the rates
        count += 2
        rates.step()
    growth, seconds = rates.growth()
    assert growth["n"] / seconds == 2
    assert seconds == 10


async def test_many_orders_are_counted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few are counted at each call; of many the last complete count is the base, and this process adds what it has counted."""
    monkeypatch.setattr(status_counts, "COUNTED_MAX", 10)
    settings = Settings(known_modules=MODULES, database_url=f"sqlite:///{tmp_path}/test.db")
    storage = build_storage(settings, [load_module("orders")])
    storage.require_tables()
    store = storage.stores["orders"]
    now, counted = 0.0, 0.0
    counts = StatusCounts(
        store.database, "orders_order", "order_id", [each.value for each in Status], lambda status: counted, lambda: now
    )

    async def put(status: Status, numbers: range) -> None:
        def order(number: int) -> Order:
            at, id = NOW + timedelta(seconds=number), f"0194-{number:031d}"
            return Order(
                order_id=id, customer_id="c", status=status, items=(), is_express=False, created_at=at, updated_at=at, timeline=(),
                reason="requested" if status is Status.CANCELLED else None,
            )  # fmt: skip

        await store.database.write(lambda connection: store.mappers[Order].save(connection, [order(each) for each in numbers]))

    await put(Status.CONFIRMED, range(10))
    await put(Status.CANCELLED, range(100, 135))
    assert await counts.read() == {"processing": 0, "reserved": 0, "confirmed": 10, "cancelled": 35}
    await put(Status.CANCELLED, range(200, 203))
    counted = 2.0
    assert (await counts.read())["cancelled"] == 37
    now = 60.0
    await counts.recount()
    assert (await counts.read())["cancelled"] == 38
    # A count that took a second is made again after as long as its share of the time requires, and after some seconds at least.
    await put(Status.CANCELLED, range(300, 304))
    for seconds, pause in ((1.0, 1.0 / status_counts.SHARE_MAX), (0.001, status_counts.RECOUNT_SECONDS_MIN)):
        counts._complete["cancelled"] = evolve(counts._complete["cancelled"], count=7, made_at=now, seconds=seconds, counted=counted)
        now += pause - 0.5
        await counts.recount()
        assert counts._complete["cancelled"].count == 7
        now += 1.0
        await counts.recount()
        assert counts._complete["cancelled"].count == 42
    await storage.close()
