"""A house that is killed again and again, at any point: whatever it has answered with 202 it brings to its end, once."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve
from sqlalchemy import create_engine

from app.storage.errors import TemporarilyUnavailable
from bus.port import Clock
from modules.inventory.events import ProductSet
from modules.module import DecisionOutcome
from modules.orders.events import CancelRequested
from modules.routes import Response
from modules.values import Line, Money
from tests.clock import VirtualClock
from tests.runtime.harness import CONTEXT, NO_CONTENT, Harness, oid, submitted
from tests.simulation.system import Bank, Fuse, life

LIVES_MAX = 6
LIFE_SECONDS = 30.0
SHELF = {"A": 14, "B": 9}
"""Not enough for everybody."""


async def insist(clock: Clock, ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until it is taken."""
    while True:
        try:
            return await ask()
        except TemporarilyUnavailable as shed:
            await clock.sleep(shed.retry_after_seconds)


@define
class Customer:
    """Wants one order under one key, and asks until somebody answers; some think better of it later."""

    key: str
    lines: tuple[Line, ...]
    comes_at: float
    is_express: bool
    cancels_after: float | None
    order_id: str | None = None
    is_done: bool = False

    async def live(self, harness: Harness, rng: random.Random) -> None:
        """Go on where the last life ended."""
        clock, runner = harness.clock, harness.runners["orders"]
        await clock.sleep(max(0.0, self.comes_at - clock.monotonic()))
        if self.order_id is None:
            id = oid(rng.randrange(10**12))
            placed = evolve(submitted(id), items=self.lines, is_express=self.is_express)
            how: dict[str, Any] = {"id": id, "new_key": id, "key": self.key, "fingerprint": "f", "is_express": self.is_express}
            told = await insist(clock, partial(runner.submit, placed, trace=CONTEXT, respond=_placed, **how))
            self.order_id = told.response.body["order_id"]
        if self.cancels_after is not None and not self.is_done:
            await clock.sleep(self.cancels_after)
            event = CancelRequested(order_id=self.order_id, why=None)
            await insist(clock, lambda: runner.submit(event, id=f"cancel-{self.key}", trace=CONTEXT, respond=NO_CONTENT))
        self.is_done = True


def _is_so(rng: random.Random, share: float) -> bool:
    return rng.random() < share


def _placed(outcome: DecisionOutcome) -> Response:
    return Response(202, {"order_id": outcome.states[0].order_id}, {})  # type: ignore[union-attr]


def customers_of(rng: random.Random, count: int) -> list[Customer]:
    """Draw *count* customers who come within some seconds."""
    found = []
    for n in range(count):
        products = rng.sample(sorted(SHELF), rng.randint(1, 2))
        lines = tuple(Line(product_id, rng.randint(1, 2)) for product_id in products)
        cancels_after = rng.choice([None, None, 0.0, 0.05, 5.0])
        found.append(Customer(f"key-{n}", lines, rng.uniform(0, 4), rng.random() < 0.3, cancels_after))
    return found


@pytest.mark.parametrize("way", ["local delivery", "over the bus"])
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 36))])
async def test_killed_at_any_point_it_loses_and_doubles_nothing(tmp_path: Path, seed: int, way: str) -> None:
    """
    Each customer gets one order, however often he had to ask; it ends; its money is taken once or not at all.

    What is sold has left the shelf, and nothing is held; what was cancelled was given back.
    """
    rng, clock = random.Random(seed), VirtualClock()
    bank = Bank(clock, random.Random(seed), trouble=rng.choice([0.0, 0.1, 0.5, 0.9]), limit=300)
    customers = customers_of(rng, 12)
    path, lives = tmp_path / "house.db", rng.randint(1, LIVES_MAX)
    disk_trouble = rng.choice([0.0, 0.0, 0.02, 0.3])
    for number in range(lives + 1):
        bank.fuse = Fuse()
        if number == lives:  # whatever was broken is mended in the end
            bank.trouble, disk_trouble = min(bank.trouble, 0.1), min(disk_trouble, 0.02)
        disk = partial(_is_so, rng, disk_trouble)
        async with life(path, clock, bank, disk, delivers_locally=way == "local delivery") as harness:
            if number == 0:
                await clock.run(_stock(harness))
            if number < lives:
                bank.fuse.left = rng.randrange(120)
            for customer in customers:
                harness.run(customer.live(harness, rng))
            for _ in range(int(LIFE_SECONDS * 10)):
                if bank.fuse.is_burnt:
                    break
                await clock.advance(0.1)
            if number == lives:
                await clock.advance(120)
        await clock.advance(0.5)  # nobody starts within the instant in which another was killed
    check(path, customers, bank)


async def _stock(harness: Harness) -> None:
    for product_id, on_hand in SHELF.items():
        event = ProductSet(product_id=product_id, on_hand=on_hand, unit_price=Money(100, "EUR"), name=None)
        tell = harness.runners["inventory"].submit
        await insist(harness.clock, partial(tell, event, id=f"stock-{product_id}", trace=CONTEXT, respond=NO_CONTENT))


def check(path: Path, customers: Sequence[Customer], bank: Bank) -> None:
    """Look at the file as it was left, and at the provider's books."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:

        def rows(sql: str) -> list[Any]:
            return [tuple(row) for row in connection.exec_driver_sql(sql)]

        orders = dict(rows("SELECT order_id, status FROM orders_order"))
        held = dict(rows("SELECT order_id, status FROM inventory_reservation"))
        payments = dict(rows("SELECT order_id, status FROM payments_payment"))
        shelf = {row[0]: row[1:] for row in rows("SELECT product_id, on_hand, reserved FROM inventory_product")}
        unsent = [row for name in ("orders", "inventory", "payments") for row in rows(f"SELECT subject FROM {name}_outbox WHERE sent_at IS NULL")]
        dead = [row for name in ("orders", "inventory", "payments") for row in rows(f"SELECT error, detail FROM {name}_dead_letter")]
    engine.dispose()
    assert [customer.key for customer in customers if not customer.is_done] == []
    assert sorted(orders) == sorted(str(customer.order_id) for customer in customers), "lost or doubled"
    assert set(orders.values()) <= {"confirmed", "cancelled"}, orders
    assert (unsent, dead) == ([], [])
    shipped = dict.fromkeys(SHELF, 0)
    for customer in customers:
        id = str(customer.order_id)
        taken, returned = bank.taken[id], bank.returned[id]
        if orders[id] == "confirmed":
            assert (taken, returned, payments[id], held[id]) == (1, 0, "captured", "shipped"), id
            for line in customer.lines:
                shipped[line.product_id] += line.quantity
        else:
            assert taken == returned <= 1, f"taken {taken}, given back {returned}: {id}"
            assert held[id] in ("released", "rejected"), id
    assert shelf == {product_id: (count - shipped[product_id], 0) for product_id, count in SHELF.items()}
