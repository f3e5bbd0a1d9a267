"""Each order is what its customer has asked for, and has ended for a reason that is true."""

from __future__ import annotations

__all__ = ["check_outcomes"]

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta

import orjson
from attrs import fields, frozen

from tests.simulation.provider.weather import Answer
from tests.simulation.world.plan import Customer, Plan
from tests.simulation.world.world import World

_WORKING_SECONDS_MAX = {"timed_out": 30.0, "payment_unavailable": 60.0}
"""
How long everything may work before an order ends by its time-out, by its reason: what was held up by faults is done first. A provider may
take half a minute to decide on a charge.
"""


@frozen
class Stored:
    """An order as it is stored; each field is a column."""

    order_id: str
    status: str
    reason: str | None
    customer_id: str
    items: str
    total_amount: int | None
    currency: str | None
    unit_prices: str | None
    is_express: int
    timeline: str

    @property
    def quantities(self) -> Counter[str]:
        """How many pieces of each product it has."""
        return Counter({line["product_id"]: line["quantity"] for line in orjson.loads(self.items)})

    @property
    def entries(self) -> list[tuple[str, datetime]]:
        """The events of its timeline with their times."""
        return [(each["event"], datetime.fromisoformat(each["at"])) for each in orjson.loads(self.timeline)]


def check_outcomes(world: World) -> None:
    """Check the stored orders of all customers of the plan, and note each failure in *world*."""
    customers = world.plan.customers
    by_name = {customer.name: customer for customer in customers}
    demand = Counter[str]()
    for customer in customers:
        demand.update(_quantities(customer))
    for row in world.read("orders", f"SELECT {', '.join(column.name for column in fields(Stored))} FROM orders_order"):
        order = Stored(*row)
        if (placed_by := by_name.get(world.label(order.order_id))) is not None:
            for fault in _faults(order, placed_by, world, demand):
                world.fail(f"I4: the order of {placed_by.name} is {order.status} {order.reason or ''}: {fault}")
    for module in ("orders", "inventory"):  # a webhook does not tell the lane of its order
        for subject, key in world.read(module, f"SELECT subject, key FROM {module}_outbox"):
            placed_by = by_name.get(world.label(key))
            if placed_by is not None and subject.endswith(".express") != placed_by.is_express and ".replay." not in subject:
                world.fail(f"{subject} of {placed_by.name} is in the wrong lane")


def _quantities(customer: Customer) -> Counter[str]:
    found = Counter[str]()
    for product_id, quantity in customer.lines:
        found[product_id] += quantity
    return found


def _faults(order: Stored, customer: Customer, world: World, demand: Mapping[str, int]) -> list[str]:
    """Return what is wrong about *order*, one sentence each."""
    found = []
    if (order.customer_id, order.quantities, bool(order.is_express)) != (customer.name, _quantities(customer), customer.is_express):
        found.append(f"it has {order.customer_id} {order.items} {order.is_express}, and not what was asked for")
    prices = {stock.product_id: (stock.price, stock.currency) for stock in world.plan.stock}
    found += _price_faults(order, prices)
    times = [at for _, at in order.entries]
    if times != sorted(times):
        found.append(f"its timeline goes back: {times}")
    if order.status == "cancelled":
        found += _reason_faults(order, customer, world, prices, demand)
    return found


def _price_faults(order: Stored, prices: Mapping[str, tuple[int, str]]) -> list[str]:
    if order.total_amount is None:
        return ["it is confirmed without a total"] if order.status == "confirmed" else []
    total = sum(prices[product][0] * quantity for product, quantity in order.quantities.items())
    found = [] if total == order.total_amount else [f"its total is {order.total_amount}, and not {total}"]
    if {order.currency} != {prices[product][1] for product in order.quantities}:
        found.append(f"its currency is {order.currency}")
    if orjson.loads(order.unit_prices or b"[]") != [prices[line["product_id"]][0] for line in orjson.loads(order.items)]:
        found.append(f"its prices are {order.unit_prices}")
    return found


def _reason_faults(
    order: Stored, customer: Customer, world: World, prices: Mapping[str, tuple[int, str]], demand: Mapping[str, int]
) -> list[str]:
    """Return why the reason of the cancelled *order* cannot be true."""
    products = order.quantities
    stock = {each.product_id: each.on_hand for each in world.plan.stock}
    charges = [each.status for each in world.bank.provider.charges[order.order_id]]
    is_true = {
        "requested": customer.cancels_after is not None,
        "unknown_product": not products.keys() <= prices.keys(),
        "mixed_currency": products.keys() <= prices.keys() and len({prices[product][1] for product in products}) > 1,
        "insufficient_stock": any(demand[product] > stock.get(product, 0) for product in products),
        "payment_declined": "captured" not in charges and len(charges) > 0,
        # Orders knows of the reservation by its event, or by that about the payment, which may come first.
        "payment_unavailable": order.total_amount is not None or any(event == "payments.delayed" for event, _ in order.entries),
        "timed_out": _seconds_until_cancelled(order) >= world.plan.timeout_seconds - _early_seconds(world.plan),
    }
    late = _has_been_late(order, world)
    if late:
        return [late]
    return [] if is_true[str(order.reason)] else [f"that is not true ({order.items}, charges: {charges}, {order.timeline})"]


def _has_been_late(order: Stored, world: World) -> str:
    """Return what is wrong about an order that has ended by its time-out although everything worked long enough before it."""
    placed_at, working_seconds_max = world.placed_at.get(order.order_id), _WORKING_SECONDS_MAX.get(order.reason or "")
    if placed_at is None or working_seconds_max is None:
        return ""
    is_garbled = any(fault.spell is not None and fault.spell.answer is Answer.GARBLED for fault in world.plan.faults)
    if order.reason == "payment_unavailable" and (world.plan.traits.soft_declines or is_garbled):
        return ""  # the next attempt may come minutes later, or a person has to look at the payment
    working_seconds = placed_at + world.plan.timeout_seconds - world.healed_at - _early_seconds(world.plan)
    return f"everything had worked for {working_seconds:.0f} s" if working_seconds > working_seconds_max else ""


def _seconds_until_cancelled(order: Stored) -> float:
    at = dict(reversed(order.entries))
    return (at["orders.cancelled"] - at["orders.created"]) / timedelta(seconds=1)


def _early_seconds(plan: Plan) -> float:
    """Return how much earlier than its time-out an order may end: a clock was set meanwhile, and the times are those of clocks."""
    return sum(abs(fault.jump_seconds) for fault in plan.faults)
