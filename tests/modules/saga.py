"""A simulation of the three modules without a runtime: a set of messages in flight, and a fake payment gateway."""

from __future__ import annotations

__all__ = ["NOW", "CallOutcome", "FakeGateway", "Saga", "check_shown", "submitted"]

from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from attrs import define, field, frozen

from bus.contracts.schemas import explain, validator
from bus.ids import derived_id
from modules import inventory, orders, payments
from modules.inventory.routes import show as show_product
from modules.inventory.state import Product, Reservation, ReservationStatus
from modules.module import CancelTimer, Module, Scheduled
from modules.orders.events import OrderSubmitted
from modules.orders.routes import show as show_order
from modules.orders.state import Order, Status
from modules.payments.events import (
    ChargeDeclined,
    ChargeFailed,
    ChargeMismatch,
    ChargeNotified,
    ChargeRequested,
    ChargeSucceeded,
    NoticeRejected,
    RefundFailed,
    RefundNotified,
    RefundRequested,
    RefundSucceeded,
)
from modules.payments.routes import show as show_payment
from modules.payments.state import Payment, PaymentStatus
from modules.values import Line

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GATEWAY = "gateway"

LEGAL = {
    (None, Status.PROCESSING),
    (Status.PROCESSING, Status.RESERVED),
    (Status.PROCESSING, Status.CONFIRMED),  # the payment arrived before the reservation
    (Status.RESERVED, Status.CONFIRMED),
    (Status.PROCESSING, Status.CANCELLED),
    (Status.RESERVED, Status.CANCELLED),
    (Status.CONFIRMED, Status.CANCELLED),
}


class CallOutcome(Enum):
    """What happens to a call to the gateway."""

    OK = "it succeeds"
    NOT_REACHED = "it does not reach the gateway"
    NO_RESPONSE = "it reaches the gateway, but the response is lost"
    CONTRADICTORY = "it reaches the gateway, but the response contradicts the request"


@define
class FakeGateway:
    """A payment gateway that makes one charge and one refund per order, and records the amounts."""

    declined: frozenset[str] = frozenset()
    charged: dict[str, int] = field(factory=dict)
    refunded: dict[str, int] = field(factory=dict)

    def handle(self, request: ChargeRequested | RefundRequested, draw: Callable[[], CallOutcome]) -> Any:
        """Handle *request* as the payment worker does, and return the result that it would submit."""
        order_id = request.order_id
        if isinstance(request, RefundRequested):
            outcome = draw()
            if outcome is CallOutcome.NOT_REACHED:
                return RefundFailed(order_id=order_id, retry_seconds=1)
            self.refunded.setdefault(order_id, request.amount.amount)
            if outcome is not CallOutcome.OK:
                return RefundFailed(order_id=order_id, retry_seconds=1)
            return RefundSucceeded(order_id=order_id, reference="refund")
        if request.attempt > 1 or not request.is_wanted:
            if draw() is not CallOutcome.OK:
                return ChargeFailed(order_id=order_id, is_unknown=False, retry_seconds=1, calls=0)
            if order_id in self.charged:
                return ChargeSucceeded(order_id=order_id, reference="charge", calls=0)
            if not request.is_wanted:
                return ChargeDeclined(order_id=order_id, reason="order_cancelled", calls=0)
        outcome = draw()
        if outcome is CallOutcome.NOT_REACHED:
            return ChargeFailed(order_id=order_id, is_unknown=False, retry_seconds=1, calls=1)
        if order_id not in self.declined:
            self.charged.setdefault(order_id, request.amount.amount)
        if outcome is CallOutcome.NO_RESPONSE:
            return ChargeFailed(order_id=order_id, is_unknown=True, retry_seconds=1, calls=1)
        if outcome is CallOutcome.CONTRADICTORY:
            return ChargeMismatch(order_id=order_id, reason="wrong_amount", reference="charge", calls=1)
        if order_id in self.declined:
            return ChargeDeclined(order_id=order_id, reason="no_funds", calls=1)
        return ChargeSucceeded(order_id=order_id, reference="charge", calls=1)


@frozen
class InFlight:
    """A message in flight to one consumer. One that is not due yet waits in the outbox and can be cancelled."""

    consumer: str
    id: str
    event: Any
    is_due: bool = True
    timer: str = ""
    producer: str = ""


@define
class Saga:
    """All messages in flight and all states of the modules; the caller chooses which message is delivered next."""

    gateway: FakeGateway
    stock: dict[str, Product]
    in_flight: list[InFlight] = field(factory=list)
    states: dict[tuple[type, str], Any] = field(factory=dict)
    history: list[str] = field(factory=list)
    _processed: set[tuple[str, str]] = field(factory=set, init=False)
    _modules: dict[str, Module] = field(init=False)

    def __attrs_post_init__(self) -> None:
        descriptors = (orders.module(), inventory.module(), payments.module())
        self._modules = {descriptor.name: descriptor for descriptor in descriptors}
        self.states |= {(Product, key): product for key, product in self.stock.items()}

    def send(self, consumer: str, id: str, event: Any) -> None:
        """Send *event* to *consumer*."""
        self.in_flight.append(InFlight(consumer, id, event))

    def deliver(self, index: int, draw: Callable[[], CallOutcome], *, is_kept: bool = False) -> None:
        """Deliver the message at *index*; with *is_kept* it stays in flight, and so is delivered again later."""
        message = self.in_flight[index]
        if not (is_kept and message.is_due):
            self.in_flight.pop(index)
        self.history.append(f"{message.consumer or message.producer}: {message.event} ({message.id[-8:]})")
        if not message.is_due:
            self._publish(message.producer, message.id, message.event)
        elif message.consumer == GATEWAY:
            result = self.gateway.handle(message.event, draw)
            # A repeated request may have another result, which then has an id of its own.
            kind = f"{type(result).__name__}.{getattr(result, 'is_unknown', False)}"
            self.send("payments", derived_id(message.id, kind), result)
            self._send_notice(message.event)
        else:
            self._decide(self._modules[message.consumer], message)

    def _send_notice(self, request: ChargeRequested | RefundRequested) -> None:
        """Send the gateway's webhook about the charge or the refund, if it was made; it may arrive at any time."""
        order_id, amount = request.order_id, request.amount
        is_refund = isinstance(request, RefundRequested)
        if order_id not in (self.gateway.refunded if is_refund else self.gateway.charged):
            return
        notice = (
            RefundNotified(order_id=order_id, reference="charge", amount=amount, refunded_amount=amount.amount)
            if is_refund
            else ChargeNotified(order_id=order_id, reference="charge", amount=amount)
        )
        self.send("payments", f"webhook-{type(notice).__name__}-{order_id}", notice)

    def _decide(self, module: Module, message: InFlight) -> None:
        if (module.name, message.id) in self._processed:
            return
        keys = module.keys(message.event)
        decision = module.decide([self.states.get(key) for key in keys], message.event, NOW)
        self._processed.add((module.name, message.id))
        for state in decision.states:
            self._save(state)
            if isinstance(state, Order) and decision.events:
                assert decision.express is state.is_express, f"{message.event} takes the order out of its lane"
        for ordinal, event in enumerate(decision.events):
            assert not isinstance(event, NoticeRejected), f"the gateway's notice is true: {event}"
            id = derived_id(message.id, f"{module.name}.{ordinal}")
            if isinstance(event, CancelTimer):
                self._cancel(module.name, event.timer)
            elif isinstance(event, Scheduled):
                self.in_flight.append(InFlight("", id, event.event, is_due=False, timer=event.timer, producer=module.name))
            elif hasattr(event, "__subject__"):
                self._publish(module.name, id, event)

    def _cancel(self, producer: str, timer: str) -> None:
        self.in_flight = [m for m in self.in_flight if m.is_due or m.producer != producer or m.timer != timer]

    def _publish(self, producer: str, id: str, event: Any) -> None:
        consumers = [module.name for module in self._modules.values() if type(event) in module.consumes]
        if isinstance(event, (ChargeRequested, RefundRequested)):
            consumers.append(GATEWAY)
        for consumer in consumers:
            self.send(consumer, id, event)

    def _save(self, state: Any) -> None:
        key = (type(state), state.product_id if isinstance(state, Product) else state.order_id)
        before = self.states.get(key)
        if isinstance(state, Order):
            was = before.status if before is not None else None
            assert was is state.status or (was, state.status) in LEGAL, f"{was} became {state.status}"
            assert (state.status is Status.CANCELLED) == (state.reason is not None)
        check_shown(state)
        if isinstance(state, Product):
            assert 0 <= state.reserved <= state.on_hand, state
        self.states[key] = state

    def check_final_state(self) -> None:
        """Assert what must hold once no message is in flight."""
        every = {cls: [s for (c, _), s in self.states.items() if c is cls] for cls in (Order, Product, Reservation)}
        shipped: dict[str, int] = {}
        for order in every[Order]:
            reservation: Reservation | None = self.states.get((Reservation, order.order_id))
            payment: Payment | None = self.states.get((Payment, order.order_id))
            charged = self.gateway.charged.get(order.order_id, 0)
            refunded = self.gateway.refunded.get(order.order_id, 0)
            assert reservation is not None
            if order.status is Status.CONFIRMED:
                assert payment is not None
                assert payment.status is PaymentStatus.CAPTURED
                assert reservation.status is ReservationStatus.SHIPPED
                assert (charged, refunded) == (order.total_amount, 0)
                for line in reservation.lines:
                    shipped[line.product_id] = shipped.get(line.product_id, 0) + line.quantity
            else:
                assert order.status is Status.CANCELLED, order
                assert order.waiting_for is None
                assert reservation.status in (ReservationStatus.RELEASED, ReservationStatus.REJECTED)
                assert charged == refunded, "a charge of a cancelled order was not refunded"
                if charged:
                    assert payment is not None
                    assert payment.status is PaymentStatus.REFUNDED
                else:
                    assert payment is None or payment.status is PaymentStatus.DECLINED
            check_timeline(order)
        for product in every[Product]:
            assert product.reserved == 0, product
            before = self.stock[product.product_id].on_hand
            assert before == product.on_hand + shipped.get(product.product_id, 0), product


_SHOWN: dict[type, tuple[Callable[[Any], Any], Any]] = {
    Order: (show_order, orders.module().http_schemas["Order"]),
    Payment: (show_payment, payments.module().http_schemas["Payment"]),
    Product: (show_product, inventory.module().http_schemas["Product"]),
}
_IS_VALID = {cls: validator(schema) for cls, (_, schema) in _SHOWN.items()}


def check_shown(state: Any) -> None:
    """Assert that the API shows *state* as the schema of its route describes it."""
    show, schema = _SHOWN.get(type(state), (lambda state: None, {}))
    shown = show(state)
    assert shown is None or _IS_VALID[type(state)](shown), explain(schema, shown)


def check_timeline(order: Order) -> None:
    """Assert that the timeline of *order* is one that can happen."""
    events = [entry["event"] for entry in order.timeline]
    assert events[0] == "orders.created", events
    assert len(set(events)) == len(events), f"recorded twice: {events}"
    if "orders.confirmed" in events:
        assert "inventory.reserved" in events[: events.index("orders.confirmed")], events
    if "orders.cancelled" in events:
        after = events[events.index("orders.cancelled") + 1 :]
        assert set(after) <= {"inventory.released", "payments.refunded"}, events
    else:
        assert not {"inventory.released", "payments.refunded"} & set(events), events


def submitted(order_id: str, *lines: tuple[str, int]) -> OrderSubmitted:
    """Return an order for *lines*."""
    items = tuple(Line(product_id, quantity) for product_id, quantity in lines)
    return OrderSubmitted(order_id=order_id, customer_id="c-1", items=items, is_express=False, payment_method=None)
