"""
What a shop does once everything works again: orders of each kind, each with the outcome that it must have, in seconds.

Faults hide what is wrong with a rule: an order may always have ended in another way. Here only one end is right.
"""

from __future__ import annotations

__all__ = ["LIMIT", "place_last_orders"]

import asyncio

import orjson
from attrs import evolve

from tests.simulation.checks.shop import Expected, Shop

LIMIT = 5_000
"""The provider declines what costs more."""

IDLE_SECONDS_MAX = 15.0
"""How long it takes until nothing is left to do of an order that has ended, not even a timer; longer on JetStream."""

_PRODUCTS = {"many": (20, 100, "EUR"), "few": (1, 250, "EUR"), "foreign": (10, 90, "USD"), "dear": (5, LIMIT + 1, "EUR")}
"""Stock, price and currency of each product that only these orders have."""

_FIRST = (
    Expected("plain", (("many", 2),), total=200, posts=3),
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


async def place_last_orders(shop: Shop) -> None:
    """Place them, and note what is not as expected."""
    for steps in (_place, _refund, _cancel, _hold):
        if not shop.world.failures:
            await steps(shop)


async def _place(shop: Shop) -> None:
    """Place orders of each kind."""
    for product_id, (on_hand, price, currency) in _PRODUCTS.items():
        await shop.set_stock(product_id, on_hand, price, currency)
    for orders in (_FIRST, _SECOND):
        await asyncio.gather(*map(shop.place, orders))
        for order in orders:
            await shop.wait_until_final(order.name)
            shop.check_end(order)
    ended_at = shop.world.now
    await shop.until_idle()
    seconds = shop.world.now - ended_at
    if seconds > IDLE_SECONDS_MAX + (60.0 if shop.world.cluster is not None else 0.0):
        shop.world.fail(f"liveness: everything works, and {seconds:.0f} s after the last order something is left to do")
    events = [entry["event"] for entry in orjson.loads(shop.order("too dear")["timeline"])]
    shop.expect("the release of what the declined order held", events.count("inventory.released"), 1)
    shop.check_stock(_LEFT)


async def _refund(shop: Shop) -> None:
    """Refund parts of a payment and all that is left; a key stands for one body, and only if the request was accepted."""
    await shop.refund("plain", "first", 30, 202)
    await shop.refund("plain", "first", 30, 202)
    await shop.refund("plain", "first", 31, 422)
    await shop.refund("plain", "second", 171, 409)
    await shop.refund("plain", "second", 20, 202)
    await shop.until_idle()
    shop.check_refunds("plain", [30, 20], 150)
    await shop.refund("plain", "third", None, 202)
    await shop.refund("plain", "fourth", 1, 409)
    await shop.until_idle()
    shop.check_refunds("plain", [30, 20, 150], 0)
    await shop.refund("too dear", "fifth", None, 409)
    shop.check_stock(_LEFT)


async def _cancel(shop: Shop) -> None:
    """Cancel a confirmed order, twice; one that was refunded in part; and one that is being placed."""
    await shop.refund("one product in two lines", "sixth", 100, 202)
    await shop.until_idle()  # the cancellation may overtake a request for a refund
    await shop.place(Expected("cancelled at once", (("many", 2),)))
    for name in ("express", "express", "one product in two lines", "cancelled at once"):
        await shop.cancel(name)
    await shop.until_idle()
    shop.check_refunds("express", [100], 0)
    shop.check_refunds("one product in two lines", [100, 200], 0)
    shop.expect("what is kept of the cancelled order", shop.world.bank.provider.kept(shop.ids["cancelled at once"]), 0)
    shop.check_stock(_LEFT | {"many": 18})


async def _hold(shop: Shop) -> None:
    """While an order holds stock, there cannot be less of it on hand; once it has ended, there can."""
    provider = shop.world.bank.provider
    provider.traits = evolve(provider.traits, pending_charges=1.0)
    await shop.place(Expected("held", (("foreign", 5),)))
    await shop.wait(lambda: shop.stock("foreign") == (8, 5), "the reservation of an order")
    await shop.set_stock("foreign", 4, 90, "USD", (409, "below_reserved"))
    taken = await shop.send("adjustProduct", "foreign", {"product_id": "foreign"}, {"quantity": -4, "reason": "lost"}, "seventh")
    shop.expect("taking away what is reserved", taken, (409, "below_reserved"))
    await shop.set_stock("foreign", 5, 90, "USD")
    nothing_left = Expected("nothing left", (("foreign", 1),), "insufficient_stock")
    await shop.place(nothing_left)
    await shop.wait_until_final("nothing left")
    shop.check_end(nothing_left)
    provider.traits = evolve(provider.traits, pending_charges=0.0)
    await shop.until_idle()
    is_confirmed = shop.order("held")["status"] == "confirmed"  # the provider may decline it in the end
    shop.check_stock({"foreign": 0 if is_confirmed else 5})
