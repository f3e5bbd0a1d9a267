"""
The contract suite of searches: what every database promises for a list with filters.

A test file provides a fixture ``site`` (see `tests.storage.site.Site`) and a class that inherits `SearchContract`.
"""

from __future__ import annotations

__all__ = ["SearchContract", "found_since"]

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from app.storage.search import changes, list_query
from app.storage.search.changes import VISIBILITY_DELAY_MAX, ChangeMark, ChangeSearch
from app.storage.sql.database import Database
from app.storage.state_rows import StateMapper, to_db_timestamp
from bus.ids import id_lower_bound
from modules.filters import Condition, Filter, Match
from modules.inventory.routes import routes as inventory_routes
from modules.inventory.state import Product, product_table
from modules.orders.routes import filters
from modules.orders.state import Order, Status, order_table
from modules.payments.routes import routes as payment_routes
from modules.payments.state import Payment, PaymentStatus, payment_table
from modules.routes import ListRoute
from modules.values import Line
from tests.examples import examples
from tests.storage.site import Site

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
BY_NAME = {filter.name: filter for filter in filters}
CUSTOMERS = ["c-1", "c-2", "C-1", "c%", "c_", "ca", "\U0010ffff", "\ud7ff", 'c"}', "cé"]
PRODUCTS = ["A", "a", "A1", '"A"', "é", 'A","quantity":1,"product_id":"B', "\\"]


def number_to_order(n: int) -> Order:
    """Return one of 120 different orders; its id contains the time at which it was placed."""
    at = BEGIN + timedelta(seconds=n, microseconds=n)
    status = list(Status)[n % 4]
    return Order(
        order_id=f"{id_lower_bound(at - timedelta(milliseconds=n % 3))}-7000-8000-{n:012}",
        customer_id=CUSTOMERS[n % 7 * n % len(CUSTOMERS)],
        status=status,
        reason=["requested", "timed_out", "payment_declined"][n % 3] if status is Status.CANCELLED else None,
        items=tuple(Line(product, 1 + n) for product in {PRODUCTS[n % 5], PRODUCTS[n % len(PRODUCTS)]}),
        total_amount=None if status is Status.PROCESSING else n * 7 % 100,
        currency=None if status is Status.PROCESSING else "EUR",
        is_express=False,
        correlation_id=None if n % 11 == 0 else f"{'web' if n % 2 else 'c-1'}:{n // 3}",
        waiting_for="payment" if n % 9 == 2 else None,
        created_at=at,
        updated_at=at,
        timeline=(),
    )


ORDERS = [number_to_order(n) for n in range(120)]

PAYMENT_FILTERS = {filter.name: filter for route in payment_routes if isinstance(route, ListRoute) for filter in route.filters}


def number_to_payment(n: int) -> Payment:
    """Return one of many payments: two in a hundred wait for a person, ten are declined, ten pending, the others captured."""
    status = {0: PaymentStatus.UNKNOWN, 1: PaymentStatus.DECLINED, 2: PaymentStatus.PENDING}.get(n % 10, PaymentStatus.CAPTURED)
    if status is PaymentStatus.UNKNOWN and n % 50:
        status = PaymentStatus.CAPTURED
    at = BEGIN + timedelta(seconds=n)
    reasons = {PaymentStatus.UNKNOWN: "wrong_amount", PaymentStatus.DECLINED: "lost_card"}
    return Payment(
        order_id=f"{id_lower_bound(at)}-7000-8000-{n:012}", status=status, amount=100, currency="EUR", attempts=1,
        reference="pi_1" if status is PaymentStatus.CAPTURED else None, reason=reasons.get(status), updated_at=at,
    )  # fmt: skip


moments = st.integers(-1, 121).map(lambda n: BEGIN + timedelta(seconds=n, microseconds=n))
values: dict[str, st.SearchStrategy[Any]] = {
    "correlation_id": st.sampled_from(sorted({o.correlation_id or "none" for o in ORDERS})),
    "customer_id": st.sampled_from(CUSTOMERS),
    "waiting_for": st.just("payment"),
    "reason": st.sampled_from(["requested", "timed_out", "unknown_product"]),
    "status": st.sampled_from([status.value for status in Status]),
    "product_id": st.sampled_from([*PRODUCTS, "B", "quantity"]),
    "created_after": moments,
    "created_before": moments,
    "min_total": st.integers(0, 110),
    "max_total": st.integers(0, 110),
    "q": st.sampled_from([*CUSTOMERS, "c", "c-", "web", "web:1", "0", *(o.order_id[:n] for o in ORDERS[:2] for n in (13, 36))]),
}
searches = st.lists(st.sampled_from(list(BY_NAME)), max_size=4, unique=True).flatmap(
    lambda names: st.tuples(*[
        st.lists(values[name], min_size=1, max_size=3 if BY_NAME[name].takes_list else 1).map(
            lambda found, name=name: Condition(BY_NAME[name], tuple(found))  # type: ignore[misc]
        )
        for name in sorted(names, key=list(BY_NAME).index)
    ])
)


def meets(order: Order, condition: Condition) -> bool:
    """Return whether *order* meets *condition*, as the filters are documented."""
    return any(_meets(order, condition.filter, condition.columns, value) for value in condition.values)


def _meets(order: Order, filter: Filter, columns: Iterable[str], value: Any) -> bool:
    found = [each for column in columns if (each := getattr(order, column)) is not None]
    match filter.match:
        case Match.EQUALS:
            return value in found
        case Match.AT_LEAST:
            return any(each >= value for each in found)
        case Match.AT_MOST:
            return any(each <= value for each in found)
        case Match.BELOW:
            return any(each < value for each in found)
        case Match.BEGINS_WITH:
            return any(each.startswith(value) for each in found)
        case Match.HAS_MEMBER:
            return any(getattr(line, filter.member) == value for lines in found for line in lines)
    raise AssertionError(filter.match)


def pages(
    mapper: StateMapper, connection: Connection, conditions: Sequence[Condition], limit: int, newest_first: bool
) -> Iterator[tuple[list[Any], bool]]:
    """Yield each page, as the API reads them, and whether it stopped before its end."""
    after = None
    while True:
        found, stopped_at = mapper.search(connection, conditions, after, limit + 1, newest_first)
        yield found[:limit], stopped_at is not None
        after = found[limit - 1].order_id if len(found) > limit else stopped_at
        if after is None:
            return


class SearchContract:
    """The suite; inherit it and provide a fixture ``site``."""

    @pytest.fixture
    def connection(self, site: Site) -> Iterator[Connection]:
        """A connection to a database with all of `ORDERS`."""
        database = Database(site.url)
        mapper = StateMapper(Order, order_table, database.dialect)
        with database.engine.begin() as connection:
            mapper.save(connection, ORDERS, {order.order_id for order in ORDERS})
        with database.engine.connect() as connection:
            yield connection
        database.engine.dispose()

    @pytest.fixture
    def mapper(self, site: Site) -> StateMapper:
        return StateMapper(Order, order_table, Database(site.url).dialect)

    @pytest.mark.parametrize(("examined_max", "candidates_max"), [(10, 3), (10, 2_000), (10_000, 3)])
    def test_the_pages_of_a_search_are_the_orders_that_meet_every_condition(
        self,
        examined_max: int,
        candidates_max: int,
        connection: Connection,
        mapper: StateMapper,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Each once and in order, whatever the filters and the limits are, and whichever index serves the search."""
        monkeypatch.setattr(list_query, "EXAMINED_MAX", examined_max)
        monkeypatch.setattr(list_query, "CANDIDATES_MAX", candidates_max)

        @settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.differing_executors])
        @given(searches, st.sampled_from([5, 50]), st.booleans())
        def search(conditions: Sequence[Condition], limit: int, newest_first: bool) -> None:
            expected = [order for order in ORDERS if all(meets(order, condition) for condition in conditions)]
            found = list(itertools.chain.from_iterable(p for p, _ in pages(mapper, connection, conditions, limit, newest_first)))
            assert found == (expected[::-1] if newest_first else expected)
            assert [order for order in ORDERS if all(condition.holds(order) for condition in conditions)] == expected

        search()

    def test_a_search_examines_a_limited_number_of_rows(
        self, connection: Connection, mapper: StateMapper, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A filter that no order meets ends a page after `EXAMINED_MAX` rows, and the next page continues there."""
        monkeypatch.setattr(list_query, "EXAMINED_MAX", 40)
        never = Condition(BY_NAME["min_total"], (1000,))
        assert list(pages(mapper, connection, [never], 50, True)) == [([], True)] * 3 + [([], False)]
        cancelled = Condition(BY_NAME["status"], ("cancelled",))
        assert list(pages(mapper, connection, [cancelled, never], 50, True)) == [([], False)]

    @pytest.mark.parametrize(
        ("name", "index"),
        [
            ("correlation_id", "orders_order_by_correlation"),
            ("customer_id", "orders_order_by_customer"),
            ("waiting_for", "orders_order_by_waiting"),
            ("reason", "orders_order_by_reason"),
            ("status", "orders_order_by_status"),
        ],
    )
    def test_an_indexed_filter_is_served_by_its_index(
        self, name: str, index: str, connection: Connection, mapper: StateMapper
    ) -> None:
        """Also in the company of another one that has an index, and without a sort."""
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")  # a small table is read whole otherwise
            connection.exec_driver_sql("SET enable_bitmapscan = off")
            connection.exec_driver_sql("SET enable_sort = off")
        conditions = [Condition(BY_NAME[name], ("requested",))]
        if name != "status":
            conditions.append(Condition(BY_NAME["status"], ("cancelled",)))
        plan = explained(connection, mapper, conditions)
        assert index in plan
        assert all(other not in plan for other in ("orders_order_by_status", "TEMP B-TREE") if other != index)

    def test_the_cases_for_a_person_are_served_by_an_index_that_costs_an_ordinary_payment_nothing(self, site: Site) -> None:
        """Only payments with a reason are in it; on PostgreSQL a capture is still an update that touches no index."""
        database = Database(site.url)
        mapper = StateMapper(Payment, payment_table, database.dialect)
        payments = [number_to_payment(n) for n in range(400)]
        conditions = [Condition(PAYMENT_FILTERS["needs_settling"], ("true",)), Condition(PAYMENT_FILTERS["status"], ("captured", "unknown"))]
        with database.engine.begin() as connection:
            mapper.save(connection, payments, {payment.order_id for payment in payments})
        with database.engine.begin() as connection:
            is_postgres = connection.dialect.name == "postgresql"
            if is_postgres:
                connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # a small table is read whole otherwise
                connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
                connection.exec_driver_sql("ANALYZE payments_payment")
            found, stopped_at = mapper.search(connection, conditions, None, 51, True)
            assert stopped_at is None
            assert found == [each for each in payments[::-1] if each.status is PaymentStatus.UNKNOWN]
            assert all(PAYMENT_FILTERS["needs_settling"].keeps(each) for each in found)  # type: ignore[misc]
            plan = explained(connection, mapper, conditions)
            assert "payments_payment_with_reason" in plan
            assert "TEMP B-TREE" not in plan
            pending = number_to_payment(402)
            mapper.save(connection, [pending], {pending.order_id})
            mapper.save(connection, [attrs.evolve(pending, status=PaymentStatus.CAPTURED, reference="pi_1")], set())
            if is_postgres:
                counted = "SELECT pg_stat_get_xact_tuples_hot_updated('payments_payment'::regclass)"
                assert connection.exec_driver_sql(counted).scalar_one() == 1
        database.engine.dispose()

    def test_products_are_found_by_the_beginning_of_their_id_and_by_what_is_available(self, site: Site) -> None:
        """Reserved pieces are not available; the database and the condition itself decide alike."""
        database = Database(site.url)
        mapper = StateMapper(Product, product_table, database.dialect)
        products = [
            Product(product_id=id, name=None, on_hand=on_hand, reserved=reserved, unit_price_amount=1, currency="EUR")
            for id, on_hand, reserved in [("A-1", 5, 5), ("A-2", 9, 1), ("B-1", 0, 0), ("B-2", 50, 0), ("a-1", 7, 6)]
        ]
        filters = {each.name: each for route in inventory_routes if isinstance(route, ListRoute) for each in route.filters}
        with database.engine.begin() as connection:
            mapper.save(connection, products, {product.product_id for product in products})
        with database.engine.begin() as connection:
            for wanted, ids in (
                ({"max_available": 1}, ["A-1", "B-1", "a-1"]),
                ({"max_available": 8, "q": "A-"}, ["A-1", "A-2"]),
                ({"q": "B-2"}, ["B-2"]),
                ({"q": "C"}, []),
            ):
                conditions = [Condition(filters[name], (value,)) for name, value in wanted.items()]
                found, stopped_at = mapper.search(connection, conditions, None, 51, False)
                assert stopped_at is None
                assert [each.product_id for each in found] == ids
                assert [each.product_id for each in products if all(condition.holds(each) for condition in conditions)] == ids
        database.engine.dispose()

    def test_what_has_changed_since_a_mark_is_found(
        self, connection: Connection, mapper: StateMapper, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Page by page, in the order of the keys; a change that became visible a little later than its time, too."""
        monkeypatch.setattr(changes, "EXAMINED_MAX", 7)
        monkeypatch.setattr(changes, "PAGE", 5)
        search = ChangeSearch(order_table, mapper._dialect)
        at = BEGIN + timedelta(days=1)
        changed = [attrs.evolve(order, updated_at=at + timedelta(seconds=n)) for n, order in enumerate(ORDERS[::9])]
        mapper.save(connection, changed)
        for mark, expected in (
            (ChangeMark(at), changed),
            (ChangeMark(at + VISIBILITY_DELAY_MAX), changed),
            (ChangeMark(at + VISIBILITY_DELAY_MAX + timedelta(seconds=4)), changed[4:]),
            (ChangeMark(at - timedelta(days=2)), sorted([*changed, *(o for o in ORDERS if o not in ORDERS[::9])], key=by_key)),
        ):
            found = found_since(search, connection, mark)
            assert [key for key, _ in found] == [order.order_id for order in expected]
            assert {version for _, version in found} == {to_db_timestamp(order.updated_at) for order in expected}


def by_key(order: Order) -> str:
    return order.order_id


def found_since(search: ChangeSearch, connection: Connection, mark: ChangeMark) -> list[tuple[str, str]]:
    """Return what has changed since *mark*, from as many pages as that takes."""
    found, after = search.find(connection, mark, None)
    while after is not None:
        page, after = search.find(connection, mark, after)
        found += page
    return found


def explained(connection: Connection, mapper: StateMapper, conditions: Sequence[Condition]) -> str:
    """Return how the database would execute the search, as it describes that itself."""
    statements: list[tuple[str, Any]] = []

    class Recorder:
        @staticmethod
        def exec_driver_sql(sql: str, values: Any) -> Any:
            statements.append((sql, values))
            return connection.exec_driver_sql(sql, values)

    mapper.search(Recorder, conditions, None, 51, True)  # type: ignore[arg-type]
    verb = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    rows = [row for sql, values in statements for row in connection.exec_driver_sql(f"{verb} {sql}", values)]
    return json.dumps([[str(value) for value in row] for row in rows])
