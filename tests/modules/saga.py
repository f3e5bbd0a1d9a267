"""The three modules without any house around them: a bag of messages, a gateway that keeps books, and dice."""

from __future__ import annotations

__all__ = ["NOW", "Books", "Saga", "Weather", "submitted"]

from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from attrs import define, field, frozen

from bus.ids import derived_id
from modules import inventory, orders, payments
from modules.inventory.state import Product, Reservation, ReservationStatus
from modules.module import CancelTimer, Module, Scheduled
from modules.orders.events import OrderSubmitted
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
from modules.payments.state import Payment, PaymentStatus
from modules.values import Line

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GATEWAY = "gateway"

LEGAL = {
    (None, Status.PROCESSING),
    (Status.PROCESSING, Status.RESERVED),
    (Status.PROCESSING, Status.CONFIRMED),  # the money was there first
    (Status.RESERVED, Status.CONFIRMED),
    (Status.PROCESSING, Status.CANCELLED),
    (Status.RESERVED, Status.CANCELLED),
    (Status.CONFIRMED, Status.CANCELLED),
}


class Weather(Enum):
    """How a call to the gateway goes."""

    FINE = "fine"
    AWAY = "it does not arrive"
    SILENT = "it arrives, and no answer comes back"
    GARBLED = "it arrives, and the answer contradicts the request"


@define
class Books:
    """A gateway that remembers every key it has seen, and what money has moved."""

    declined: frozenset[str] = frozenset()
    charged: dict[str, int] = field(factory=dict)
    refunded: dict[str, int] = field(factory=dict)

    def answer(self, asked: ChargeRequested | RefundRequested, weather: Callable[[], Weather]) -> Any:
        """Do what *asked* wants, as the worker would, and return what it would tell."""
        order_id = asked.order_id
        if isinstance(asked, RefundRequested):
            weathered = weather()
            if weathered is Weather.AWAY:
                return RefundFailed(order_id=order_id, retry_seconds=1)
            self.refunded.setdefault(order_id, asked.amount.amount)
            if weathered is not Weather.FINE:
                return RefundFailed(order_id=order_id, retry_seconds=1)
            return RefundSucceeded(order_id=order_id, reference="back")
        if asked.attempt > 1 or not asked.is_wanted:
            if weather() is not Weather.FINE:
                return ChargeFailed(order_id=order_id, is_unknown=False, retry_seconds=1, calls=0)
            if order_id in self.charged:
                return ChargeSucceeded(order_id=order_id, reference="taken", calls=0)
            if not asked.is_wanted:
                return ChargeDeclined(order_id=order_id, reason="order_cancelled", calls=0)
        weathered = weather()
        if weathered is Weather.AWAY:
            return ChargeFailed(order_id=order_id, is_unknown=False, retry_seconds=1, calls=1)
        if order_id not in self.declined:
            self.charged.setdefault(order_id, asked.amount.amount)
        if weathered is Weather.SILENT:
            return ChargeFailed(order_id=order_id, is_unknown=True, retry_seconds=1, calls=1)
        if weathered is Weather.GARBLED:
            return ChargeMismatch(order_id=order_id, reason="wrong_amount", reference="taken", calls=1)
        if order_id in self.declined:
            return ChargeDeclined(order_id=order_id, reason="no_funds", calls=1)
        return ChargeSucceeded(order_id=order_id, reference="taken", calls=1)


@frozen
class Flying:
    """A message on its way to one hearer. Not due yet, it stands in the outbox and may be withdrawn."""

    to: str
    id: str
    event: Any
    is_due: bool = True
    name: str = ""
    producer: str = ""


@define
class Saga:
    """Everything that is in flight and everything that is remembered; who delivers decides in which order."""

    books: Books
    stock: dict[str, Product]
    bag: list[Flying] = field(factory=list)
    world: dict[tuple[type, str], Any] = field(factory=dict)
    history: list[str] = field(factory=list)
    _heard: set[tuple[str, str]] = field(factory=set, init=False)
    _modules: dict[str, Module] = field(init=False)

    def __attrs_post_init__(self) -> None:
        descriptors = (orders.module(), inventory.module(), payments.module())
        self._modules = {descriptor.name: descriptor for descriptor in descriptors}
        self.world |= {(Product, key): product for key, product in self.stock.items()}

    def tell(self, to: str, id: str, event: Any) -> None:
        """Put *event* into the bag."""
        self.bag.append(Flying(to, id, event))

    def deliver(self, index: int, weather: Callable[[], Weather], *, stays: bool = False) -> None:
        """Take one message out of the bag and see it through; with *stays* a copy of it is left in."""
        flying = self.bag[index]
        if not (stays and flying.is_due):
            self.bag.pop(index)
        self.history.append(f"{flying.to or flying.producer}: {flying.event} ({flying.id[-8:]})")
        if not flying.is_due:
            self._publish(flying.producer, flying.id, flying.event)
        elif flying.to == GATEWAY:
            answer = self.books.answer(flying.event, weather)
            # Asked twice, the gateway may answer in two ways, and both are news.
            kind = f"{type(answer).__name__}.{getattr(answer, 'is_unknown', False)}"
            self.tell("payments", derived_id(flying.id, kind), answer)
            self._say_by_itself(flying.event)
        else:
            self._decide(self._modules[flying.to], flying)

    def _say_by_itself(self, asked: ChargeRequested | RefundRequested) -> None:
        """Let the gateway's webhook come as well, once for what has happened there: it comes whenever it comes."""
        order_id, amount = asked.order_id, asked.amount
        is_refund = isinstance(asked, RefundRequested)
        if order_id not in (self.books.refunded if is_refund else self.books.charged):
            return
        seen = (
            RefundNotified(order_id=order_id, reference="taken", amount=amount, refunded_amount=amount.amount)
            if is_refund
            else ChargeNotified(order_id=order_id, reference="taken", amount=amount)
        )
        self.tell("payments", f"webhook-{type(seen).__name__}-{order_id}", seen)

    def _decide(self, module: Module, flying: Flying) -> None:
        if (module.name, flying.id) in self._heard:
            return
        keys = module.keys(flying.event)
        decision = module.decide([self.world.get(key) for key in keys], flying.event, NOW)
        self._heard.add((module.name, flying.id))
        for state in decision.states:
            self._remember(state)
        for ordinal, said in enumerate(decision.events):
            assert not isinstance(said, NoticeRejected), f"the gateway tells the truth: {said}"
            id = derived_id(flying.id, f"{module.name}.{ordinal}")
            if isinstance(said, CancelTimer):
                self.bag = [f for f in self.bag if f.is_due or f.producer != module.name or f.name != said.timer]
            elif isinstance(said, Scheduled):
                self.bag.append(Flying("", id, said.event, is_due=False, name=said.timer, producer=module.name))
            elif hasattr(said, "__subject__"):
                self._publish(module.name, id, said)

    def _publish(self, producer: str, id: str, event: Any) -> None:
        hearers = [module.name for module in self._modules.values() if type(event) in module.consumes]
        if isinstance(event, (ChargeRequested, RefundRequested)):
            hearers.append(GATEWAY)
        for hearer in hearers:
            self.tell(hearer, id, event)

    def _remember(self, state: Any) -> None:
        key = (type(state), state.product_id if isinstance(state, Product) else state.order_id)
        before = self.world.get(key)
        if isinstance(state, Order):
            was = before.status if before is not None else None
            assert was is state.status or (was, state.status) in LEGAL, f"{was} became {state.status}"
            assert (state.status is Status.CANCELLED) == (state.reason is not None)
        if isinstance(state, Product):
            assert 0 <= state.reserved <= state.on_hand, state
        self.world[key] = state

    def check_the_end(self) -> None:
        """Assert what must hold once nothing is in flight any more."""
        every = {cls: [s for (c, _), s in self.world.items() if c is cls] for cls in (Order, Product, Reservation)}
        shipped: dict[str, int] = {}
        for order in every[Order]:
            reservation: Reservation | None = self.world.get((Reservation, order.order_id))
            payment: Payment | None = self.world.get((Payment, order.order_id))
            charged = self.books.charged.get(order.order_id, 0)
            refunded = self.books.refunded.get(order.order_id, 0)
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
                assert charged == refunded, "money stayed where it does not belong"
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


def check_timeline(order: Order) -> None:
    """Assert that the story of *order*, as its customer reads it, is one that can happen."""
    story = [entry["event"] for entry in order.timeline]
    assert story[0] == "orders.created", story
    assert len(set(story)) == len(story), f"told twice: {story}"
    if "orders.confirmed" in story:
        assert "inventory.reserved" in story[: story.index("orders.confirmed")], story
    if "orders.cancelled" in story:
        after = story[story.index("orders.cancelled") + 1 :]
        assert set(after) <= {"inventory.released", "payments.refunded"}, story
    else:
        assert not {"inventory.released", "payments.refunded"} & set(story), story


def submitted(order_id: str, *lines: tuple[str, int]) -> OrderSubmitted:
    """Return an order for *lines*."""
    items = tuple(Line(product_id, quantity) for product_id, quantity in lines)
    return OrderSubmitted(order_id=order_id, customer_id="c-1", items=items, is_express=False, payment_method=None)
