"""Hypothesis strategies for every state class of every module, for tests that store states and load them again."""

from __future__ import annotations

__all__ = ["MODULES", "STATES", "TABLES"]

from datetime import UTC, datetime

from hypothesis import strategies as st

from modules import inventory, orders, payments
from modules.inventory.state import Product, Reservation, ReservationStatus
from modules.module import Module
from modules.orders.state import Order, Status
from modules.payments.ledger import Dispute, DisputeStatus, Ledger, Refund, RefundStatus, Settlement
from modules.payments.state import Payment, PaymentStatus
from modules.values import Address, Line

MODULES: tuple[Module, ...] = (orders.module(), inventory.module(), payments.module())
TABLES = {cls: table for descriptor in MODULES for cls, table in descriptor.tables.items()}

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=64)
ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=36)
numbers = st.integers(0, 2**62)
timestamps = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
lines = st.lists(st.builds(Line, names, st.integers(1, 10_000)), max_size=5).map(tuple)
entries = st.fixed_dictionaries({"event": names, "at": names}, optional={"detail": st.dictionaries(names, numbers | names)})
addresses = st.builds(Address, names, names, names, st.just("GB"), st.none() | names)
asked = st.fixed_dictionaries({"amount": numbers, "status": names, "at": names}, optional={"refund_id": names})
refunds = st.builds(
    Refund,
    amount=numbers,
    status=st.sampled_from(RefundStatus),
    at=names,
    id=st.none() | names,
    key_number=st.none() | st.integers(1, 99),
    reference=st.none() | names,
)
disputes = st.builds(Dispute, reference=names, amount=numbers, status=st.sampled_from(DisputeStatus), at=names)
ledgers = st.builds(
    Ledger,
    refunds=st.lists(refunds, max_size=3).map(tuple),
    disputes=st.lists(disputes, max_size=2).map(tuple),
    refunded_total=numbers,
    settled=st.none() | st.builds(Settlement, outcome=names, reason=names, at=names),
)
orders_ = st.builds(
    Order,
    order_id=ids,
    customer_id=names,
    status=st.sampled_from([s for s in Status if s is not Status.CANCELLED]),
    reason=st.none(),
    items=lines,
    total_amount=st.none() | numbers,
    currency=st.none() | st.just("EUR"),
    is_express=st.booleans(),
    payment_method=st.none() | names,
    payment_customer=st.none() | names,
    shipping_address=st.none() | addresses,
    unit_prices=st.none() | st.lists(numbers, max_size=3).map(tuple),
    refunds=st.none() | st.lists(asked, max_size=3).map(tuple),
    is_paid=st.booleans(),
    correlation_id=st.none() | names,
    waiting_for=st.none() | st.just("payment"),
    created_at=timestamps,
    updated_at=timestamps,
    timeline=st.lists(entries, max_size=4).map(tuple),
)
products = st.builds(
    lambda counts, **rest: Product(on_hand=max(counts), reserved=min(counts), **rest),
    st.tuples(numbers, numbers),
    product_id=names,
    name=st.none() | names,
    unit_price_amount=numbers,
    currency=st.just("EUR"),
)
reservations = st.builds(Reservation, order_id=ids, status=st.sampled_from(ReservationStatus), lines=lines)
payments_ = st.builds(
    Payment,
    order_id=ids,
    status=st.sampled_from(PaymentStatus),
    amount=numbers,
    currency=st.just("EUR"),
    payment_method=st.none() | names,
    payment_customer=st.none() | names,
    shipping_address=st.none() | addresses,
    ledger=st.none() | ledgers,
    attempts=st.integers(0, 99),
    calls=st.integers(0, 99),
    reference=names,
    reason=st.none() | names,
    is_cancelled=st.booleans(),
    is_waiting=st.booleans(),
    updated_at=timestamps,
)
STATES = {Order: orders_, Product: products, Reservation: reservations, Payment: payments_}
