"""A shop that works: its requests, and what must come of them. It places orders in a world in which everything has healed."""

from __future__ import annotations

__all__ = ["Expected", "Shop"]

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import orjson
from attrs import frozen

from tests.simulation.world.customers import persistent
from tests.simulation.world.world import World

ORDER_SECONDS_MAX = 5.0
"""How long an order takes that is placed when everything works."""

JETSTREAM_SECONDS_MAX = 45.0
"""
What JetStream may add to it: each consumer on its way may have lost its request, which it repeats after five seconds, and one message that
was on its way over a connection that ends comes again after ``ack_wait``, 30 seconds.
"""

Idle = Callable[[], Coroutine[Any, Any, None]]
"""Waits until nothing is left to do."""

Lines = tuple[tuple[str, int], ...]


@frozen
class Expected:
    """An order, and how it must end: *reason* is None if it is confirmed. *posts* equal requests are sent at once."""

    name: str
    lines: Lines
    reason: str | None = None
    total: int | None = None
    is_express: bool = False
    posts: int = 1


class Shop:
    """Makes requests in *world*, and notes in it what is not as expected."""

    def __init__(self, world: World, until_idle: Idle) -> None:
        self.world = world
        self.until_idle = until_idle
        self.ids: dict[str, str] = {}
        """The id of each order by its name."""

    # Requests

    async def send(self, route: str, name: str, path: Mapping[str, str], body: Any, key: str | None = None) -> tuple[int, Any]:
        """Send a request about the order or product *name* until it is answered; return the status, and the body or the error's code."""
        answer: tuple[int, Any] = await persistent(self.world, f"{name} at the end", route, path, body, key and f"last {key}")
        return answer

    async def set_stock(
        self, product_id: str, on_hand: int, price: int, currency: str, rejected: tuple[int, str] | None = None
    ) -> None:
        """Set a product; *rejected* is the answer if it must be refused."""
        body = {"on_hand": on_hand, "unit_price": {"amount": price, "currency": currency}}
        before = self.stock(product_id)[0]
        status, answer = await self.send("setProduct", product_id, {"product_id": product_id}, body)
        self.expect(f"setting {product_id} to {on_hand}", (status, answer) if rejected else status, rejected or 200)
        if status == 200:
            self.world.restocked(product_id, on_hand - before)

    async def place(self, order: Expected) -> None:
        """Place *order*; all of its requests get the same answer."""
        items = [{"product_id": product_id, "quantity": quantity} for product_id, quantity in order.lines]
        body = {"customer_id": "last", "items": items, "priority": "express" if order.is_express else "normal"}
        answers = await asyncio.gather(*(self.send("placeOrder", order.name, {}, body, order.name) for _ in range(order.posts)))
        for status, answer in answers:
            self.expect(f"the order {order.name}", status, 202)
            id = answer["order_id"]
            self.expect(f"the id of the order {order.name}", self.ids.setdefault(order.name, id), id)
            self.world.accepted(f"{order.name} at the end", id)

    async def cancel(self, name: str) -> None:
        """Cancel the order *name*."""
        status, answer = await self.send("cancelOrder", name, {"order_id": self.ids[name]}, {"reason": "no longer wanted"})
        self.expect(f"the cancellation of {name}", (status, answer["status"], answer["reason"]), (202, "cancelled", "requested"))

    async def refund(self, name: str, key: str, amount: int | None, expected: int) -> None:
        """Ask for *amount* of an order back, or for all that is left; *expected* is the status of the answer."""
        money = {} if amount is None else {"amount": {"amount": amount, "currency": "EUR"}}
        path = {"order_id": self.ids[name]}
        status, _ = await self.send("refundOrder", name, path, {"reason": "damaged", **money}, f"refund {key}")
        self.expect(f"the {key} refund, {amount} of {name},", status, expected)

    # Checks

    def expect(self, what: str, found: object, expected: object) -> None:
        """Note that *found* is not *expected*."""
        if found != expected:
            self.world.fail(f"everything works, and {what} is {found}, not {expected}")

    def check_end(self, expected: Expected) -> None:
        """Check how an order has ended, and that nothing else has happened to it."""
        order = self.order(expected.name)
        events = [entry["event"] for entry in orjson.loads(order["timeline"])]
        is_late = expected.reason == "payment_declined" and "inventory.reserved" not in events  # it may come after the payment's event
        found = (order["status"], order["reason"], order["total_amount"], bool(order["is_express"]))
        status, total = "cancelled" if expected.reason else "confirmed", None if is_late else expected.total
        self.expect(f"the order {expected.name}", found, (status, expected.reason, total, expected.is_express))
        reserved = ["inventory.reserved"] if total is not None else []
        steps = [each for each in events if each not in ("inventory.released", "payments.delayed")]
        self.expect(f"the timeline of the order {expected.name}", steps, ["orders.created", *reserved, f"orders.{status}"])

    def check_refunds(self, name: str, amounts: list[int], kept: int) -> None:
        """Check the refunds of an order, all of which have succeeded, and what is kept of its payment."""
        refunds = [(each["amount"], each["status"]) for each in orjson.loads(self.order(name)["refunds"] or b"[]")]
        self.expect(f"what is refunded of {name}", refunds, [(each, "succeeded") for each in amounts])
        self.check_payment(name, "captured" if kept else "refunded", kept)

    def check_payment(self, name: str, status: str, kept: int) -> None:
        """Check the status of a payment, and what the provider keeps of it."""
        self.expect(f"the payment of {name}", self.payment(name)["status"], status)
        self.expect(f"what is kept of {name}", self.world.bank.provider.kept(self.ids[name]), kept)

    def check_stock(self, left: Mapping[str, int]) -> None:
        """Check what is on hand of each product; nothing is reserved."""
        for product_id, on_hand in left.items():
            self.expect(f"the stock of {product_id}, on hand and reserved,", self.stock(product_id), (on_hand, 0))

    async def wait_until_final(self, name: str, seconds: float = ORDER_SECONDS_MAX) -> None:
        """Wait until an order has ended; that takes so many *seconds* at most, longer on JetStream."""
        await self.wait(lambda: self.order(name)["status"] in ("confirmed", "cancelled"), f"the end of the order {name}", seconds)

    async def wait(self, is_met: Callable[[], bool], what: str, seconds: float = ORDER_SECONDS_MAX) -> None:
        """Wait until *is_met*, so many *seconds* at most, longer on JetStream."""
        until = self.world.now + seconds + (JETSTREAM_SECONDS_MAX if self.world.cluster is not None else 0.0)
        while not is_met() and not self.world.failures:
            if self.world.now > until:
                self.world.fail(f"liveness: everything works, and {what} is not there in time")
            await asyncio.sleep(0.05)

    async def wait_for_payment(self, name: str, column: str, value: object, seconds: float = ORDER_SECONDS_MAX) -> None:
        """Wait until a column of the payment of an order has this *value*; so many *seconds* at most, longer on JetStream."""
        await self.wait(lambda: bool(self.payment(name)[column] == value), f"the {column} {value} of the payment of {name}", seconds)

    # What is stored

    def order(self, name: str) -> dict[str, Any]:
        """Return an order by its columns."""
        return self._row("orders", "orders_order", name, ("status", "reason", "total_amount", "is_express", "refunds", "timeline"))

    def payment(self, name: str) -> dict[str, Any]:
        """Return the payment of an order by its columns; its status is None while there is none."""
        return self._row("payments", "payments_payment", name, ("status", "reason", "attempts", "is_cancelled", "ledger"))

    def stock(self, product_id: str) -> tuple[int, int]:
        """Return how many pieces of a product are on hand, and how many of them are reserved."""
        rows = self.world.read("inventory", f"SELECT on_hand, reserved FROM inventory_product WHERE product_id = '{product_id}'")
        return rows[0] if rows else (0, 0)

    def _row(self, module: str, table: str, name: str, columns: tuple[str, ...]) -> dict[str, Any]:
        rows = self.world.read(module, f"SELECT {', '.join(columns)} FROM {table} WHERE order_id = '{self.ids[name]}'")
        return dict(zip(columns, rows[0] if rows else [None] * len(columns), strict=True))
