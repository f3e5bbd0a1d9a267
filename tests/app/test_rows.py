"""A state that is written comes back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Engine, MetaData, String, Table, create_engine

from app.rows import Rows
from app.sqlite import Padded, Sqlite
from modules import inventory, orders, payments
from modules.inventory.state import Product, Reservation, ReservationStatus
from modules.module import Module
from modules.orders.state import Order, Status
from modules.payments.state import Payment, PaymentStatus
from modules.values import Line

PLATES: tuple[Module, ...] = (orders.module(), inventory.module(), payments.module())
TABLES = {cls: table for plate in PLATES for cls, table in plate.remembers.items()}

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=64)
numbers = st.integers(0, 2**62)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
lines = st.lists(st.builds(Line, names, st.integers(1, 10_000)), max_size=5).map(tuple)
entries = st.fixed_dictionaries({"event": names, "at": names}, optional={"detail": st.dictionaries(names, numbers | names)})
orders_ = st.builds(
    Order,
    order_id=names,
    customer_id=names,
    status=st.sampled_from([s for s in Status if s is not Status.CANCELLED]),
    reason=st.none(),
    items=lines,
    total_amount=st.none() | numbers,
    currency=st.none() | st.just("EUR"),
    is_express=st.booleans(),
    payment_method=st.none() | names,
    is_paid=st.booleans(),
    waiting_for=st.none() | st.just("payment"),
    created_at=moments,
    updated_at=moments,
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
reservations = st.builds(Reservation, order_id=names, status=st.sampled_from(ReservationStatus), lines=lines)
payments_ = st.builds(
    Payment,
    order_id=names,
    status=st.sampled_from(PaymentStatus),
    amount=numbers,
    currency=st.just("EUR"),
    payment_method=st.none() | names,
    attempts=st.integers(0, 99),
    calls=st.integers(0, 99),
    reference=names,
    reason=st.none() | names,
    is_cancelled=st.booleans(),
    is_waiting=st.booleans(),
    updated_at=moments,
)
STATES = {Order: orders_, Product: products, Reservation: reservations, Payment: payments_}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A database with every table of every module."""
    engine = create_engine("sqlite://")
    for table in TABLES.values():
        table.create(engine)
    yield engine
    engine.dispose()


def test_every_state_is_tried() -> None:
    """A new state class joins the round trip."""
    assert set(STATES) == set(TABLES)


@pytest.mark.parametrize("cls", STATES, ids=lambda cls: cls.__name__)
def test_a_state_comes_back_as_it_was(cls: type, engine: Engine) -> None:
    """Whatever is in its fields: every text, every moment to the microsecond, every count that fits."""
    rows = Rows(cls, TABLES[cls], Sqlite())

    @settings(max_examples=60, deadline=None)
    @given(states=st.lists(STATES[cls], min_size=1, max_size=20, unique_by=rows.key_of))
    def round_trip(states: list[Any]) -> None:
        with engine.connect() as connection:
            rows.save(connection, states)
            rows.save(connection, states)  # written over itself
            keys = [rows.key_of(state) for state in states]
            assert rows.load(connection, keys) == dict(zip(keys, states, strict=True))
            assert rows.browse(connection, {}, None, 1, False) == [min(states, key=lambda s: rows.key_of(s).encode())]
            connection.rollback()

    round_trip()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 127, 128, 129, 300, 1000])
def test_any_number_of_rows_goes(count: int, engine: Engine) -> None:
    """No row is lost or doubled where a statement ends and the next begins."""
    rows = Rows(Reservation, TABLES[Reservation], Sqlite())
    states = [Reservation(order_id=f"o-{n}", status=ReservationStatus.HELD, lines=(Line("A", n + 1),)) for n in range(count)]
    with engine.connect() as connection:
        rows.save(connection, states)
        assert connection.exec_driver_sql("SELECT count(*) FROM inventory_reservation").scalar() == count
        assert list(rows.load(connection, [state.order_id for state in states]).values()).__len__() == count
        assert rows.load(connection, [*(state.order_id for state in states), "nobody"]) == {s.order_id: s for s in states}
        connection.rollback()


def test_a_later_state_replaces_an_earlier_one(engine: Engine) -> None:
    """One key, one row."""
    rows = Rows(Reservation, TABLES[Reservation], Sqlite())
    with engine.connect() as connection:
        for status in ReservationStatus:
            rows.save(connection, [Reservation(order_id="o", status=status)])
        [found] = rows.load(connection, ["o"]).values()
        assert found.status is list(ReservationStatus)[-1]
        connection.rollback()


def test_a_statement_asked_for_nothing_does_nothing(engine: Engine) -> None:
    """No rows, no statement."""
    statement = Padded(lambda size: "not SQL at all")
    with engine.connect() as connection:
        assert statement.run(connection, []) == []


def test_a_table_that_is_not_its_class_is_refused() -> None:
    """The two are compared when the program starts, not when a row is lost."""
    with pytest.raises(TypeError, match="same columns"):
        Rows(Product, Table("other", MetaData(), Column("product_id", String, primary_key=True)), Sqlite())
