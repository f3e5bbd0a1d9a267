"""What each command promises about its requests, which filters select which states, and how states are shown."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from bus.ids import id_lower_bound
from modules.filters import Condition, Filter
from modules.inventory.state import ON_HAND_MAX, Product
from modules.orders.routes import show as show_order
from modules.orders.state import Order, Status
from modules.payments.routes import show, show_in_list
from modules.payments.state import Payment, PaymentStatus
from modules.registry import MODULES, load_module
from modules.routes import CommandRoute, ExportRoute, ListRoute, ListStreamRoute, StreamRoute
from modules.values import Line
from tests.modules.saga import NOW, check_shown

ROUTES = {route.name: route for name in MODULES for route in load_module(name).routes}

BODY, KEY, AUDIT, SHED, MATCH, OWN = "body", "Idempotency-Key", "audit", "load shedding", "precondition", "customer"
PROMISES = {
    "placeOrder": {BODY, KEY, SHED, OWN},
    "cancelOrder": {AUDIT, OWN},
    "refundOrder": {BODY, KEY, AUDIT},
    "settlePayment": {BODY, AUDIT},
    "setProduct": {BODY, AUDIT, MATCH},
    "changeProduct": {BODY, AUDIT, MATCH},
    "restockProduct": {BODY, KEY, AUDIT, MATCH},
    "adjustProduct": {BODY, KEY, AUDIT, MATCH},
}
"""
Which commands need a body, take a key, are audited, are refused first under overload, honour preconditions, and belong to a customer.

Whatever changes stock or money at once takes a key, and only orders, which are their own record, are not audited.
"""


def test_each_command_keeps_its_promises() -> None:
    """docs/reference and the OpenAPI document describe the same promises."""
    found = {
        route.name: {
            promise
            for promise, holds in {
                BODY: route.needs_body,
                KEY: route.idempotent,
                AUDIT: route.is_audited,
                SHED: route.sheds_load,
                MATCH: route.takes_precondition,
                OWN: route.customer is not None or route.owned is not None,
            }.items()
            if holds
        }
        for route in ROUTES.values()
        if isinstance(route, CommandRoute)
    }
    assert found == PROMISES


ORDER_ID = "0199fe00-0000-7000-8000-000000000001"
ORDER = Order(
    order_id=ORDER_ID, customer_id="ada", status=Status.RESERVED, items=(Line("A", 2), Line("B", 1)), total_amount=250, currency="EUR",
    is_express=False, correlation_id="req-7", created_at=NOW, updated_at=NOW + timedelta(days=1), timeline=(),
)  # fmt: skip
PAYMENT = Payment(
    order_id=ORDER_ID, status=PaymentStatus.UNKNOWN, amount=250, currency="EUR", reason="wrong_amount", updated_at=NOW + timedelta(days=1)
)
PRODUCT = Product(product_id="SKU-1", name=None, on_hand=10, reserved=4, unit_price_amount=1, currency="EUR")
PLACED_AT = NOW.fromtimestamp(0x0199FE000000 / 1000, NOW.tzinfo)
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("route", "name", "state", "selecting", "others"),
    [
        ("listOrders", "min_total", ORDER, [0, 249, 250], [251]),
        ("listOrders", "max_total", ORDER, [250, 251], [0, 249]),
        ("listOrders", "min_total", evolve(ORDER, total_amount=None), [], [0]),
        ("listOrders", "q", ORDER, ["0199fe00", ORDER_ID, "a", "ada", "req-"], ["199", "Ada", "adam", "eq-7"]),
        ("listOrders", "product_id", ORDER, ["A", "B"], ["C", "a"]),
        ("listOrders", "customer_id", ORDER, ["ada"], ["ad", "Ada"]),
        ("listOrders", "correlation_id", ORDER, ["req-7"], ["req"]),
        ("listOrders", "status", ORDER, ["reserved"], ["processing", "confirmed"]),
        ("listOrders", "reason", evolve(ORDER, reason="timed_out"), ["timed_out"], ["requested"]),
        ("listOrders", "waiting_for", evolve(ORDER, waiting_for="payment"), ["payment"], []),
        ("listOrders", "waiting_for", ORDER, [], ["payment"]),
        ("listOrders", "created_after", ORDER, [NOW - TICK, NOW], [NOW + TICK]),
        ("listOrders", "created_before", ORDER, [NOW + TICK], [NOW, NOW - TICK]),
        ("listPayments", "status", PAYMENT, ["unknown"], ["pending"]),
        ("listPayments", "needs_settling", PAYMENT, ["true"], []),
        ("listPayments", "needs_settling", evolve(PAYMENT, is_waiting=True), [], ["true"]),
        ("listPayments", "needs_settling", evolve(PAYMENT, status=PaymentStatus.DECLINED), [], ["true"]),
        ("listPayments", "created_after", PAYMENT, [PLACED_AT - TICK, PLACED_AT], [PLACED_AT + TICK]),
        ("listPayments", "created_before", PAYMENT, [PLACED_AT + TICK], [PLACED_AT, PLACED_AT - TICK]),
        ("listProducts", "q", PRODUCT, ["S", "SKU-1"], ["KU", "SKU-10"]),
        ("listProducts", "max_available", PRODUCT, [6, ON_HAND_MAX], [0, 5]),
    ],
)
def test_a_filter_selects_the_states_that_it_describes(
    route: str, name: str, state: Any, selecting: list[Any], others: list[Any]
) -> None:
    """After a time and from a total on includes both; before a time does not."""
    found = ROUTES[route]
    assert isinstance(found, ListRoute)
    [selected] = [each for each in found.filters if each.name == name]
    assert [value for value in (*selecting, *others) if Condition(selected, (value,)).holds(state)] == selecting


def test_a_list_an_export_and_a_stream_of_orders_take_the_same_filters() -> None:
    """What one finds, the others find."""
    routes = [route for route in ROUTES.values() if isinstance(route, ListRoute | ExportRoute | ListStreamRoute) and route.state is Order]
    filters: list[tuple[Filter, ...]] = [route.filters for route in routes]
    assert len(filters) == 3
    assert filters[0] == filters[1] == filters[2] != ()


@pytest.mark.parametrize(("status", "is_finished"), [(status, status in (Status.CONFIRMED, Status.CANCELLED)) for status in Status])
def test_the_stream_of_an_order_ends_once_the_order_is_final(status: Status, is_finished: bool) -> None:
    """Confirmed or cancelled."""
    route = ROUTES["streamOrder"]
    assert isinstance(route, StreamRoute)
    assert route.is_finished(evolve(ORDER, status=status)) is is_finished


def test_an_order_that_is_free_of_charge_has_a_total() -> None:
    """It is 0; null means that it is not known yet."""
    free = evolve(ORDER, total_amount=0)
    check_shown(free)
    assert show_order(free)["total"] == {"amount": 0, "currency": "EUR"}
    assert show_order(evolve(ORDER, total_amount=None))["total"] is None


def test_a_payment_that_was_never_requested_is_not_shown() -> None:
    """Its order was cancelled before its stock was reserved."""
    ended = Payment(order_id=ORDER_ID, status=PaymentStatus.DECLINED, reason="order_cancelled", is_cancelled=True, updated_at=NOW)
    assert (show(ended), show_in_list(ended)) == (None, None)
    assert id_lower_bound(PLACED_AT) == ORDER_ID[:13]
