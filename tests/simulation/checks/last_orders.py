"""
What a shop does once everything works again: orders of each kind, each with the outcome that it must have, in seconds.

Faults hide what is wrong with a rule: an order may always have ended in another way. Here only one end is right.
"""

from __future__ import annotations

__all__ = ["place_last_orders"]

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import orjson
from attrs import evolve, frozen

from tests.simulation.world.customers import persistent
from tests.simulation.world.world import World

ORDER_SECONDS_MAX = 5.0
"""How long an order takes that is placed when everything works."""

JETSTREAM_ORDER_SECONDS_MAX = 45.0
"""
The same on JetStream: each consumer on its way may have lost its request, which it repeats after five seconds, and one message that was
on its way over a connection that ends comes again after ``ack_wait``, 30 seconds.
"""

LIMIT = 5_000
"""The provider declines what costs more."""

_PRODUCTS = {
    "many": (20, 100, "EUR"),
    "few": (1, 250, "EUR"),
    "foreign": (10, 90, "USD"),
    "dear": (5, LIMIT + 1, "EUR"),
}
"""Stock, price and currency of each product that only these orders have."""

Idle = Callable[[], Coroutine[Any, Any, None]]


@frozen
class Expected:
    """An order, and how it must end: *reason* is None if it is confirmed."""

    name: str
    lines: tuple[tuple[str, int], ...]
    reason: str | None = None
    total: int | None = None
    is_express: bool = False


_FIRST = (
    Expected("plain", (("many", 2),), total=200),
    Expected("express", (("many", 1),), total=100, is_express=True),
    Expected("one product in two lines", (("many", 1), ("many", 2)), total=300),
    Expected("the last piece", (("few", 1),), total=250),
    Expected("dollars", (("foreign", 2),), total=180),
    Expected("two currencies", (("many", 1), ("foreign", 1)), "mixed_currency"),
    Expected("an unknown product", (("many", 1), ("unheard of", 1)), "unknown_product"),
    Expected("more than there is", (("many", 21),), "insufficient_stock"),
    Expected("more than there is in two lines", (("many", 11), ("many", 10)), "insufficient_stock"),
    Expected("too dear", (("dear", 1),), "payment_declined", LIMIT + 1),
)
"""These are placed at once, so that they share transactions."""

_SECOND = (Expected("sold out", (("few", 1),), "insufficient_stock"),)

_LEFT = {"many": 14, "few": 0, "foreign": 8, "dear": 5}
"""The stock after all of these orders."""


async def place_last_orders(world: World, until_idle: Idle) -> None:
    """Place them, and note in *world* what is not as expected; *until_idle* waits until nothing is left to do."""
    visit = _Visit(world, until_idle)
    provider = world.bank.provider
    provider.traits = evolve(
        provider.traits, limit=LIMIT, soft_declines=0.0, pending_charges=0.0, pending_refunds=0.0, failing_refunds=0.0
    )
    for steps in (visit.orders, visit.refunds, visit.cancellations, visit.held_stock):
        if not world.failures:
            await steps()


class _Visit:
    def __init__(self, world: World, until_idle: Idle) -> None:
        self._world = world
        self._until_idle = until_idle
        self._ids: dict[str, str] = {}

    async def orders(self) -> None:
        """Orders of each kind."""
        for product_id, (on_hand, price, currency) in _PRODUCTS.items():
            await self._set_stock(product_id, on_hand, price, currency)
        for orders in (_FIRST, _SECOND):
            await asyncio.gather(*map(self._place, orders))
            for order in orders:
                await self._wait_until_final(order.name)
                self._check_end(order)
        await self._until_idle()
        self._check_stock(_LEFT)

    async def refunds(self) -> None:
        """Parts of a payment, all that is left, and what is refused; a key stands for one body, and only if it was accepted."""
        refund = self._refund
        await refund("plain", "first", 30, 202)
        await refund("plain", "first", 30, 202)
        await refund("plain", "first", 31, 422)
        await refund("plain", "second", 171, 409)
        await refund("plain", "second", 20, 202)
        await self._until_idle()
        self._check_refunds("plain", [30, 20], 150)
        await refund("plain", "third", None, 202)
        await refund("plain", "fourth", 1, 409)
        await self._until_idle()
        self._check_refunds("plain", [30, 20, 150], 0)
        await refund("too dear", "fifth", None, 409)
        self._check_stock(_LEFT)

    async def cancellations(self) -> None:
        """Of a confirmed order, twice; of one that was refunded in part; and of one that is being placed."""
        await self._refund("one product in two lines", "sixth", 100, 202)
        await self._place(Expected("cancelled at once", (("many", 2),)))
        for name in ("express", "express", "one product in two lines", "cancelled at once"):
            status, answer = await self._send("cancelOrder", name, {"order_id": self._ids[name]}, {"reason": "no longer wanted"})
            self._expect(f"the cancellation of {name}", (status, answer["status"], answer["reason"]), (202, "cancelled", "requested"))
        await self._until_idle()
        self._check_refunds("express", [100], 0)
        self._check_refunds("one product in two lines", [100, 200], 0)
        self._expect("what is kept of the cancelled order", self._kept("cancelled at once"), 0)
        self._check_stock(_LEFT | {"many": 18})

    async def held_stock(self) -> None:
        """While an order holds stock, there cannot be less of it on hand; once it has ended, there can."""
        provider = self._world.bank.provider
        provider.traits = evolve(provider.traits, pending_charges=1.0)
        await self._place(Expected("held", (("foreign", 5),)))
        await self._wait(lambda: self._stock("foreign") == (8, 5), "the reservation of an order")
        await self._set_stock("foreign", 4, 90, "USD", (409, "below_reserved"))
        taken = await self._send("adjustProduct", "foreign", {"product_id": "foreign"}, {"quantity": -4, "reason": "lost"}, "seventh")
        self._expect("taking away what is reserved", taken, (409, "below_reserved"))
        await self._set_stock("foreign", 5, 90, "USD")
        await self._place(Expected("nothing left", (("foreign", 1),), "insufficient_stock"))
        await self._wait_until_final("nothing left")
        self._check_end(Expected("nothing left", (), "insufficient_stock"))
        await self._until_idle()
        is_confirmed = self._order("held")["status"] == "confirmed"  # the provider may decline it in the end
        self._check_stock({"foreign": 0 if is_confirmed else 5})

    # Requests

    async def _send(self, route: str, name: str, path: Mapping[str, str], body: Any, key: str | None = None) -> tuple[int, Any]:
        answer: tuple[int, Any] = await persistent(self._world, f"{name} at the end", route, path, body, key and f"last {key}")
        return answer

    async def _set_stock(
        self, product_id: str, on_hand: int, price: int, currency: str, rejected: tuple[int, str] | None = None
    ) -> None:
        body = {"on_hand": on_hand, "unit_price": {"amount": price, "currency": currency}}
        before = self._stock(product_id)[0]
        status, answer = await self._send("setProduct", product_id, {"product_id": product_id}, body)
        self._expect(f"setting {product_id} to {on_hand}", (status, answer) if rejected else status, rejected or 200)
        if status == 200:
            self._world.restocked(product_id, on_hand - before)

    async def _place(self, order: Expected) -> None:
        items = [{"product_id": product_id, "quantity": quantity} for product_id, quantity in order.lines]
        body = {"customer_id": "last", "items": items, "priority": "express" if order.is_express else "normal"}
        status, answer = await self._send("placeOrder", order.name, {}, body, order.name)
        if status == 202:
            self._ids[order.name] = answer["order_id"]
            self._world.accepted(f"{order.name} at the end", answer["order_id"])
        self._expect(f"the order {order.name}", status, 202)

    async def _refund(self, name: str, key: str, amount: int | None, expected: int) -> None:
        money = {} if amount is None else {"amount": {"amount": amount, "currency": "EUR"}}
        path = {"order_id": self._ids[name]}
        status, _ = await self._send("refundOrder", name, path, {"reason": "damaged", **money}, f"refund {key}")
        self._expect(f"the {key} refund, {amount} of {name},", status, expected)

    # Checks

    def _expect(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            self._world.fail(f"everything works, and {what} is {found}, not {expected}")

    def _check_end(self, expected: Expected) -> None:
        order = self._order(expected.name)
        events = [entry["event"] for entry in orjson.loads(order["timeline"])]
        is_late = expected.reason == "payment_declined" and "inventory.reserved" not in events  # it may come after the payment's event
        found = (order["status"], order["reason"], order["total_amount"], bool(order["is_express"]))
        status, total = "cancelled" if expected.reason else "confirmed", None if is_late else expected.total
        self._expect(f"the order {expected.name}", found, (status, expected.reason, total, expected.is_express))
        steps = [each for each in events if each not in ("inventory.released", "payments.delayed")]
        reserved = ["inventory.reserved"] if total is not None else []
        self._expect(f"the timeline of the order {expected.name}", steps, ["orders.created", *reserved, f"orders.{status}"])

    def _check_refunds(self, name: str, amounts: list[int], kept: int) -> None:
        refunds = orjson.loads(self._order(name)["refunds"])
        self._expect(f"what is refunded of {name}", [(each["amount"], each["status"]) for each in refunds], [(each, "succeeded") for each in amounts])
        self._expect(f"what is kept of {name}", self._kept(name), kept)
        (status,) = self._world.read("payments", f"SELECT status FROM payments_payment WHERE order_id = '{self._ids[name]}'")[0]
        self._expect(f"the payment of {name}", status, "captured" if kept else "refunded")

    def _check_stock(self, left: Mapping[str, int]) -> None:
        for product_id, on_hand in left.items():
            self._expect(f"the stock of {product_id}, on hand and reserved,", self._stock(product_id), (on_hand, 0))

    async def _wait_until_final(self, name: str) -> None:
        await self._wait(lambda: self._order(name)["status"] in ("confirmed", "cancelled"), f"the end of the order {name}")

    async def _wait(self, is_met: Callable[[], bool], what: str) -> None:
        until = self._world.now + (ORDER_SECONDS_MAX if self._world.cluster is None else JETSTREAM_ORDER_SECONDS_MAX)
        while not is_met():
            if self._world.now > until:
                self._world.fail(f"liveness: everything works, and {what} is not there in time")
                return
            await asyncio.sleep(0.05)

    # What is stored

    def _order(self, name: str) -> dict[str, Any]:
        columns = ("status", "reason", "total_amount", "is_express", "refunds", "timeline")
        rows = self._world.read("orders", f"SELECT {', '.join(columns)} FROM orders_order WHERE order_id = '{self._ids[name]}'")
        return dict(zip(columns, rows[0], strict=True))

    def _stock(self, product_id: str) -> tuple[int, int]:
        rows = self._world.read("inventory", f"SELECT on_hand, reserved FROM inventory_product WHERE product_id = '{product_id}'")
        return rows[0] if rows else (0, 0)

    def _kept(self, name: str) -> int:
        return self._world.bank.provider.kept(self._ids[name])
