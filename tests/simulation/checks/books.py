"""What must be true once the system is idle: the books of the provider and the files of the modules agree (I1 to I6)."""

from __future__ import annotations

__all__ = ["final_failures", "unfinished"]

from collections import Counter
from typing import Any

import orjson

from tests.process.invariants import CONSUMES
from tests.simulation.checks.deadlines import OPEN_ORDERS
from tests.simulation.world.plan import MODULES
from tests.simulation.world.world import World


def unfinished(world: World) -> list[str]:
    """Return what is not done yet, one line each; nothing if the system is idle."""
    found = [f"order of {world.label(id)} is {status}" for id, status in world.read("orders", OPEN_ORDERS)]
    for module in MODULES:
        found += [f"unsent: {subject} of {world.label(key)}" for subject, key in world.read(module, _UNSENT.format(module))]
        found += [f"dead letter: {each}" for each in world.read(module, _DEAD.format(module))]
    found += [f"payment of {world.label(id)} is {status}" for id, status in world.read("payments", _OPEN_PAYMENTS)]
    if world.cluster is not None:
        found += world.cluster.unfinished()
    if not world.bank.is_idle:
        found.append("the provider has something to do")
    return found


_OPEN_PAYMENTS = "SELECT order_id, status FROM payments_payment WHERE status IN ('pending', 'unknown')"
_UNSENT = "SELECT subject, key FROM {}_outbox WHERE sent_at IS NULL"
_DEAD = "SELECT consumer, subject, error, detail FROM {}_dead_letter"


def final_failures(world: World) -> None:
    """Check the files and the books, and note each failure in *world*."""
    orders = {row[0]: row[1:] for row in world.read("orders", "SELECT order_id, status, items, total_amount, refunds FROM orders_order")}
    _check_accepted(world, orders)
    _check_money(world, orders)
    _check_stock(world, orders)
    _check_messages(world)
    for error in world.bank.provider.errors:
        world.fail(f"at the provider: {error}")


def _check_accepted(world: World, orders: dict[str, Any]) -> None:
    for order_id, customer in world.orders.items():
        if order_id not in orders:
            world.fail(f"I1: the order of {customer} is lost")
    for order_id in orders:
        if order_id not in world.names:
            world.fail(f"I1: nothing has placed {order_id}")
    for name in sorted(world.refusals & {world.label(order_id) for order_id in orders}):
        world.fail(f"I1: {name} got the answer that nothing is stored, and has an order")
    owners = Counter(world.label(order_id) for order_id in orders)
    for owner, count in owners.items():
        if count > 1:
            world.fail(f"I1: {owner} has {count} orders")


def _check_money(world: World, orders: dict[str, Any]) -> None:
    payments = {
        row[0]: row[1:]
        for row in world.read("payments", "SELECT order_id, status, amount, currency, ledger FROM payments_payment")
    }
    provider = world.bank.provider
    for order_id in provider.charges.keys() - orders.keys():
        world.fail(f"I2: a charge for {order_id}, which does not exist")
    for order_id, (status, _, total, refunds) in orders.items():
        name, captured, kept = world.label(order_id), provider.captured(order_id), provider.kept(order_id)
        payment, amount, *_ = payments.get(order_id, ("none", None))
        if len(captured) > 1:
            world.fail(f"I2: {name} is charged {len(captured)} times")
        if status == "confirmed":
            back = sum(each["amount"] for each in orjson.loads(refunds or b"[]") if each["status"] == "succeeded")
            if not captured or captured[0].money.amount != total or kept != total - back:
                world.fail(f"I4: {name} is confirmed for {total}, {back} of it refunded; the provider keeps {kept} of {captured}")
            if payment not in ("captured", "refunded") or amount != total:
                world.fail(f"I4: {name} is confirmed for {total}, and its payment is {payment} {amount}")
        else:
            if kept:
                world.fail(f"I4: {name} is cancelled, and the provider keeps {kept}")
            expected = ("refunded",) if captured else ("none", "declined")
            if payment not in expected:
                world.fail(f"I4: {name} is cancelled, and its payment is {payment}, not {expected[0]}")
    if lost := list(map(world.label, payments.keys() - orders.keys())):
        world.fail(f"I4: payments without an order: {sorted(lost)}")


def _check_stock(world: World, orders: dict[str, Any]) -> None:
    shipped = Counter[str]()
    for status, items, *_ in orders.values():
        if status == "confirmed":
            for line in orjson.loads(items):
                shipped[line["product_id"]] += line["quantity"]
    for product_id, on_hand, reserved in world.read("inventory", "SELECT product_id, on_hand, reserved FROM inventory_product"):
        if reserved or on_hand + shipped[product_id] != world.stock[product_id]:
            world.fail(
                f"I3: of {world.stock[product_id]} pieces of {product_id}, {shipped[product_id]} were shipped, {on_hand} are on hand,"
                f" {reserved} are reserved"
            )
    reservations = dict(world.read("inventory", "SELECT order_id, status FROM inventory_reservation"))
    for order_id, (status, *_) in orders.items():
        found = reservations.pop(order_id, "none")
        if found not in (("shipped",) if status == "confirmed" else ("released", "rejected")):
            world.fail(f"I4: {world.label(order_id)} is {status}, and its reservation is {found}")
    if reservations:
        world.fail(f"I4: reservations without an order: {sorted(map(world.label, reservations))}")


def _check_messages(world: World) -> None:
    """I5 and I6: what the bus has carried was processed once by each of its consumers."""
    inboxes = {module: [id for (id,) in world.read(module, f"SELECT id FROM {module}_inbox")] for module in MODULES}
    for module, ids in inboxes.items():
        if len(ids) != len(set(ids)):
            world.fail(f"I5: {module} has processed an event twice")
    for producer in MODULES:
        for subject, event_id in world.read(producer, f"SELECT subject, event_id FROM {producer}_outbox"):
            for module in MODULES:
                if subject in CONSUMES[module] and event_id not in inboxes[module]:
                    world.fail(f"I6: {module} has not processed {subject} of {producer}")
