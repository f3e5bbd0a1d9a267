"""The changes of states on PostgreSQL, where other processes write and transactions become visible out of order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from attrs import evolve, frozen
from sqlalchemy import Connection, Engine

from app.storage.search.changes import ChangeMark, ChangeSearch
from app.storage.sql.database import Database
from app.storage.state_rows import StateMapper
from modules.orders.state import Order, order_table
from tests.databases import migrated_url
from tests.postgres import PostgresServer
from tests.storage.search_contract import BEGIN, ORDERS, found_since

NOW = BEGIN + timedelta(days=1)


@frozen
class Table:
    """The table of orders, with a search for its changes."""

    engine: Engine
    mapper: StateMapper
    search: ChangeSearch

    def mark(self) -> ChangeMark:
        with self.engine.connect() as connection:
            return self.search.mark(connection, NOW)

    def save(self, connection: Connection, order: Order) -> None:
        self.mapper.save(connection, [evolve(order, updated_at=NOW - timedelta(seconds=30))])

    def since(self, mark: ChangeMark) -> set[str]:
        with self.engine.connect() as connection:
            return {key for key, _ in found_since(self.search, connection, mark)}


@pytest.fixture
def table(postgres: PostgresServer) -> Iterator[Table]:
    database = Database(migrated_url(postgres))
    mapper = StateMapper(Order, order_table, database.dialect)
    with database.engine.begin() as connection:
        mapper.save(connection, ORDERS, {order.order_id for order in ORDERS})
    yield Table(database.engine, mapper, ChangeSearch(order_table, database.dialect))
    database.engine.dispose()


def test_a_transaction_that_becomes_visible_late_is_found(table: Table) -> None:
    """Also behind others that have committed before it, although its time is that of its beginning."""
    late, early = ORDERS[3], ORDERS[50]
    with table.engine.connect() as slow:
        slow.exec_driver_sql("BEGIN")
        table.save(slow, late)
        before = table.mark()
        with table.engine.begin() as quick:
            table.save(quick, early)
        assert table.since(before) == {early.order_id}
        between = table.mark()
        assert table.since(between) == {early.order_id}  # again, as long as an older transaction is not finished
        slow.exec_driver_sql("COMMIT")
    assert table.since(between) == {late.order_id, early.order_id}
    after = table.mark()
    assert table.since(after) == set()
    assert table.since(ChangeMark(after.at)) == {late.order_id, early.order_id}  # a mark of another process


def test_what_was_rolled_back_or_only_locked_has_not_changed(table: Table) -> None:
    """A lock changes no row, and a row that was rolled back is never visible."""
    before = table.mark()
    with table.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        table.save(connection, ORDERS[1])
        connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("BEGIN")
        table.mapper.lock(connection, [ORDERS[2].order_id])
        connection.exec_driver_sql("COMMIT")
    assert table.since(before) == set()


def test_the_search_reads_a_part_of_the_table_only(table: Table) -> None:
    """The index has two values for a range of pages."""
    statements: list[tuple[str, tuple[str, ...]]] = []
    with table.engine.connect() as connection:
        connection.exec_driver_sql("SET enable_seqscan = off")  # a small table is read whole otherwise

        class Recorder:
            @staticmethod
            def exec_driver_sql(sql: str, values: tuple[str, ...]) -> object:
                statements.append((sql, values))
                return connection.exec_driver_sql(sql, values)

        for mark in ChangeMark(NOW), table.search.mark(connection, NOW):
            table.search.find(Recorder, mark, None)  # type: ignore[arg-type]
        for sql, values in statements:
            plan = json.dumps([row[0] for row in connection.exec_driver_sql(f"EXPLAIN {sql}", values)])
            assert "orders_order_by_change" in plan
