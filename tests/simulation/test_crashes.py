"""A process that is killed repeatedly at any point brings every accepted order to its final state, once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from attrs import define, evolve
from sqlalchemy import Connection, create_engine

from app.messaging.event_registry import all_modules
from app.storage.archive.history_reader import HistoryReader
from app.storage.errors import TemporarilyUnavailable
from app.storage.module_store import ModuleStore
from app.storage.sql.database import Database
from bus.port import Clock
from bus.subjects import original_subject, without_lane
from modules.inventory.events import ProductSet
from modules.module import DecisionOutcome
from modules.orders.events import CancelRequested
from modules.routes import Response
from modules.values import Line, Money
from tests.clock import VirtualClock
from tests.parts import in_parts
from tests.runtime.harness import CONTEXT, NO_CONTENT, Harness, oid, submitted
from tests.simulation.system import CrashPoints, FakeProvider, run_process

KILLS_MAX = 6
PROCESS_SECONDS = 30.0
STOCK = {"A": 14, "B": 9}
"""Less than the customers order."""


async def retry(clock: Clock, send: Callable[[], Awaitable[Any]]) -> Any:
    """Call *send* until it is accepted."""
    while True:
        try:
            return await send()
        except TemporarilyUnavailable as error:
            await clock.sleep(error.retry_after_seconds)


@define
class Customer:
    """Places one order with one idempotency key, retries until it is answered, and may cancel it later."""

    key: str
    lines: tuple[Line, ...]
    starts_at: float
    is_express: bool
    cancels_after: float | None
    order_id: str | None = None
    is_done: bool = False

    async def run(self, harness: Harness, rng: random.Random) -> None:
        """Continue where the previous process was killed."""
        clock, runner = harness.clock, harness.runners["orders"]
        await clock.sleep(max(0.0, self.starts_at - clock.monotonic()))
        if self.order_id is None:
            id = oid(rng.randrange(10**12))
            placed = evolve(submitted(id), items=self.lines, is_express=self.is_express)
            options: dict[str, Any] = {
                "id": id,
                "new_key": id,
                "key": self.key,
                "fingerprint": "f",
                "is_express": self.is_express,
            }
            reply = await retry(clock, partial(runner.submit, placed, trace=CONTEXT, respond=_placed, **options))
            self.order_id = reply.response.body["order_id"]
        if self.cancels_after is not None and not self.is_done:
            await clock.sleep(self.cancels_after)
            event = CancelRequested(order_id=self.order_id, why=None)
            await retry(clock, lambda: runner.submit(event, id=f"cancel-{self.key}", trace=CONTEXT, respond=NO_CONTENT))
        self.is_done = True


def _happens(rng: random.Random, share: float) -> bool:
    return rng.random() < share


def _placed(outcome: DecisionOutcome) -> Response:
    return Response(202, {"order_id": outcome.states[0].order_id}, {})  # type: ignore[union-attr]


def customers_of(rng: random.Random, count: int) -> list[Customer]:
    """Draw *count* customers that place their orders within four seconds."""
    customers = []
    for n in range(count):
        products = rng.sample(sorted(STOCK), rng.randint(1, 2))
        lines = tuple(Line(product_id, rng.randint(1, 2)) for product_id in products)
        cancels_after = rng.choice([None, None, 0.0, 0.05, 5.0])
        customers.append(Customer(f"key-{n}", lines, rng.uniform(0, 4), rng.random() < 0.3, cancels_after))
    return customers


@pytest.mark.parametrize("delivery", ["local delivery", "over the bus"])
@pytest.mark.parametrize("seed", in_parts(range(36), everyday=2, by_day=9))
async def test_a_process_killed_at_any_point_loses_and_duplicates_nothing(
    tmp_path: Path, seed: int, delivery: str
) -> None:
    """
    Each customer has one order, however often the request was repeated. It has a final state and is charged at most once.

    Confirmed orders are taken from the stock, nothing stays reserved, cancelled orders are released and refunded.
    """
    rng, clock = random.Random(seed), VirtualClock()
    provider = FakeProvider(clock, random.Random(seed), failure_rate=rng.choice([0.0, 0.1, 0.5, 0.9]), limit=300)
    customers = customers_of(rng, 12)
    path, kills = tmp_path / "system.db", rng.randint(1, KILLS_MAX)
    disk_full_rate = rng.choice([0.0, 0.0, 0.02, 0.3])
    for number in range(kills + 1):
        provider.crash_points = CrashPoints()
        if number == kills:  # the last process may finish its work
            provider.failure_rate, disk_full_rate = min(provider.failure_rate, 0.1), min(disk_full_rate, 0.02)
        is_disk_full = partial(_happens, rng, disk_full_rate)
        async with run_process(
            path, clock, provider, is_disk_full, delivers_locally=delivery == "local delivery"
        ) as harness:
            if number == 0:
                await clock.run(_stock(harness))
            if number < kills:
                provider.crash_points.left = rng.randrange(120)
            for customer in customers:
                harness.run(customer.run(harness, rng))
            for _ in range(int(PROCESS_SECONDS * 10)):
                if provider.crash_points.is_killed:
                    break
                await clock.advance(0.1)
            if number == kills:
                await clock.advance(120)
        await clock.advance(0.5)  # a new process never starts at the moment of the kill
    check_invariants(path, customers, provider)
    await check_history(path, is_local=delivery == "local delivery")


async def _stock(harness: Harness) -> None:
    for product_id, on_hand in STOCK.items():
        event = ProductSet(product_id=product_id, on_hand=on_hand, unit_price=Money(100, "EUR"), name=None)
        submit = harness.runners["inventory"].submit
        await retry(harness.clock, partial(submit, event, id=f"stock-{product_id}", trace=CONTEXT, respond=NO_CONTENT))


async def check_history(path: Path, *, is_local: bool) -> None:
    """
    Check that the history is exactly what was published, each event once and after its cause.

    What the bus has carried is in the outboxes; only a timer that was cancelled while it was published has left them. What
    was delivered locally is not; the timelines show it.
    """
    database = Database(f"sqlite:///{path}")
    stores = {module.name: ModuleStore(module, database) for module in all_modules()}
    reader = HistoryReader({name: (database, store.history) for name, store in stores.items()})
    page = await reader.page(limit=100_000)
    events = page.events
    assert page.next_after is None

    def stored(connection: Connection) -> tuple[dict[str, str], Counter[tuple[str, str]]]:
        sent: dict[str, str] = {}
        for name in stores:
            rows = connection.exec_driver_sql(f"SELECT event_id, subject FROM {name}_outbox WHERE id = event_id OR versions IS NULL")
            sent |= {event_id: original_subject(subject) for event_id, subject in rows}
        shown: Counter[tuple[str, str]] = Counter()
        for id, timeline in connection.exec_driver_sql("SELECT order_id, timeline FROM orders_order"):
            shown += Counter((id, entry["event"]) for entry in orjson.loads(timeline))
        return sent, shown

    sent, shown = await database.read(stored)
    await database.close()
    published = {event.event_id: event for event in events}
    assert len(published) == len(events), "an event is in the history twice"
    for id, subject in sent.items():
        assert id in published, f"{subject} was sent and is not in the history"
        assert published[id].subject.rsplit(".v", 1)[0] == subject.rsplit(".v", 1)[0]
    timers = ("orders.timed_out.v1", "payments.charge_requested.v1", "payments.refund_requested.v1")
    if not is_local:
        assert [e for e in events if e.event_id not in sent and without_lane(e.subject) not in timers] == []
    seen: set[str] = set()
    for event in events:
        assert event.cause_id in seen or event.cause_id not in published, f"{event.subject} comes before its cause"
        seen.add(event.event_id)
    found = Counter((event.key, event.subject.rsplit(".v", 1)[0]) for event in events)
    for change in ("orders.created", "orders.confirmed", "orders.cancelled"):
        assert {id: n for (id, name), n in found.items() if name == change} == {id: n for (id, name), n in shown.items() if name == change}


def check_invariants(path: Path, customers: Sequence[Customer], provider: FakeProvider) -> None:
    """Check the final database against the orders of the customers and the records of the provider."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:

        def rows(sql: str) -> list[Any]:
            return [tuple(row) for row in connection.exec_driver_sql(sql)]

        orders = dict(rows("SELECT order_id, status FROM orders_order"))
        reservations = dict(rows("SELECT order_id, status FROM inventory_reservation"))
        payments = dict(rows("SELECT order_id, status FROM payments_payment"))
        products = {row[0]: row[1:] for row in rows("SELECT product_id, on_hand, reserved FROM inventory_product")}
        unsent = [
            row
            for name in ("orders", "inventory", "payments")
            for row in rows(f"SELECT subject FROM {name}_outbox WHERE sent_at IS NULL")
        ]
        dead = [
            row
            for name in ("orders", "inventory", "payments")
            for row in rows(f"SELECT error, detail FROM {name}_dead_letter")
        ]
    engine.dispose()
    assert [customer.key for customer in customers if not customer.is_done] == []
    assert sorted(orders) == sorted(str(customer.order_id) for customer in customers), "lost or duplicated"
    assert set(orders.values()) <= {"confirmed", "cancelled"}, orders
    assert (unsent, dead) == ([], [])
    shipped = dict.fromkeys(STOCK, 0)
    for customer in customers:
        id = str(customer.order_id)
        taken, returned = provider.taken[id], provider.returned[id]
        if orders[id] == "confirmed":
            assert (taken, returned, payments[id], reservations[id]) == (1, 0, "captured", "shipped"), id
            for line in customer.lines:
                shipped[line.product_id] += line.quantity
        else:
            assert taken == returned <= 1, f"taken {taken}, returned {returned}: {id}"
            assert reservations[id] in ("released", "rejected"), id
    assert products == {product_id: (count - shipped[product_id], 0) for product_id, count in STOCK.items()}
