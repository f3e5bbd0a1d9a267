"""The DuckDB file: typed tables from the schemas, each event once, and what cannot be read kept apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from app.analytics.analytics_file import AnalyticsFile, Position
from app.analytics.event_tables import HEAD, event_tables, insert_sql
from app.analytics.events import SCHEMA, Incoming, arrow_table
from bus.contracts.contract import Contract
from bus.contracts.versions import version_of
from tests.analytics.events import CONTRACTS, event, example, incoming, order_events


@pytest.fixture
def file() -> Iterator[AnalyticsFile]:
    opened = AnalyticsFile(None, CONTRACTS)
    yield opened
    opened.close()


def test_every_event_has_a_table_in_its_newest_version() -> None:
    """A module that is added needs no code in the analytics."""
    tables = {table.name: table for table in event_tables(CONTRACTS)}
    events = {version_of(contract.subject)[0] for contract in CONTRACTS}
    assert set(tables) == {name.replace(".", "_") for name in events}
    assert tables["orders_created"].subject == "orders.created.v2"
    assert list(tables["orders_created"].types())[: len(HEAD)] == list(HEAD)


@pytest.mark.parametrize("contract", list(CONTRACTS), ids=lambda contract: contract.subject)
def test_the_example_of_each_version_is_stored_without_a_loss(file: AnalyticsFile, contract: Contract) -> None:
    """Every value of the newest version is in a column, and reading the columns gives it back."""
    subject = contract.subject
    for number, data in enumerate(CONTRACTS[subject].schema["examples"]):
        taken = file.take(incoming([event(subject, f"{subject}-{number}", data=data)]))
        assert (taken.count, taken.unreadable) == (1, [])
    (table,) = [each for each in file.tables if subject.startswith(each.subject.rpartition(".v")[0] + ".v")]
    if table.subject != subject:
        return
    for number, data in enumerate(CONTRACTS[subject].schema["examples"]):
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        row = file.connection.execute(f"SELECT {names} FROM {table.name} WHERE event_id = ?", [f"{subject}-{number}"]).fetchall()[0]
        for column, value in zip(table.columns, row, strict=True):
            expected = data
            for name in column.path:
                expected = expected.get(name) if expected is not None else None
            assert value == expected, column.name


def test_money_is_flattened_and_lines_are_a_list(file: AnalyticsFile) -> None:
    """The columns have the names and types that the projections rely on."""
    file.take(incoming(order_events(1, lane=".express")))
    row = file.connection.execute(
        "SELECT total_amount, total_currency, lines[1].unit_price.amount, is_express, module, occurred_at FROM inventory_reserved"
    ).fetchall()[0]
    total = example("inventory.reserved.v1")["total"]
    assert row[:2] == (total["amount"], total["currency"])
    assert row[2:5] == (example("inventory.reserved.v1")["lines"][0]["unit_price"]["amount"], True, "inventory")
    assert row[5] == datetime(2026, 3, 1, 12, 0, 2, tzinfo=UTC)


def test_an_older_version_is_converted_to_the_newest(file: AnalyticsFile) -> None:
    """An upcast of the registry makes the row; the lane stays."""
    file.take(incoming([event("orders.created.v1.express", "old")]))
    assert file.connection.execute("SELECT version, is_express FROM orders_created").fetchall() == [("v2", True)]


def test_an_event_that_comes_again_is_stored_once(file: AnalyticsFile) -> None:
    """Within a batch, in a later batch, and in another version of the same event: one row, in the newest version of the batch."""
    new, old = event("orders.created.v2", "e1"), event("orders.created.v1", "e1")
    assert file.take(incoming([old, new, new])).count == 1
    assert file.take(incoming([old])).count == 0
    assert file.take(incoming([new, event("orders.created.v2", "e2")])).count == 1
    assert file.connection.execute("SELECT shipping_address_city FROM orders_created WHERE event_id = 'e1'").fetchall() == [("London",)]
    orders = [each for number in range(300) for each in order_events(number)]
    assert file.take(incoming(orders)).count == 1_500
    assert file.take(incoming(orders[700:] + order_events(300))).count == 5


def test_an_event_that_no_version_reads_is_kept_apart(file: AnalyticsFile) -> None:
    """It costs neither itself nor its neighbours; its reason is with it, and it is kept once."""
    events = [
        event("orders.created.v9", "unknown"),
        event("orders.created.v2", "damaged", data={"customer_id": None}),
        event("orders.created.v1", "old and damaged", data={"items": "none"}),
        *order_events(1),
    ]
    for expected in (5, 0):
        taken = file.take(incoming(events))
        assert taken.count == expected
    rows = file.connection.execute("SELECT event_id, reason FROM unreadable_events ORDER BY event_id").fetchall()
    assert [row[0] for row in rows] == ["damaged", "old and damaged", "unknown"]
    assert "/customer_id" in rows[0][1]
    assert "/items" in rows[1][1]
    assert "no version of this release reads orders.created.v9" in rows[2][1]


def test_rows_and_position_are_stored_together(file: AnalyticsFile) -> None:
    """A batch that fails leaves neither."""
    file.take(incoming(order_events(1)), Position("history", 14, "e"))
    assert file.positions() == {"history": Position("history", 14, "e")}
    file.connection.execute("DROP TABLE payments_captured")
    with pytest.raises(Exception, match="payments_captured"):
        file.take(incoming(order_events(2)), Position("history", 24, "f"))
    assert file.positions()["history"].position == 14
    assert file.connection.execute("SELECT count(*) FROM orders_created").fetchall() == [(1,)]


def test_batches_that_follow_each_other_share_a_transaction(file: AnalyticsFile) -> None:
    """A reader sees none of them before the last; if one fails, none is stored; each event is stored once nevertheless."""
    reader = file.connection.cursor()

    def stored() -> list[tuple[int, int | None]]:
        return reader.execute("SELECT count(*), (SELECT max(position) FROM analytics_sources) FROM orders_created").fetchall()

    for number in range(3):
        file.take(incoming(order_events(number)), Position("history", number), is_followed=True)
        assert stored() == [(0, None)]
    assert file.take(incoming(order_events(2)), Position("history", 3)).count == 0
    assert stored() == [(3, 3)]
    file.take(incoming(order_events(4)), Position("history", 4), is_followed=True)
    wrong = {**arrow_table([event("orders.created.v9", "e")]).to_pylist()[0], "reason": 1}
    with pytest.raises(pa.ArrowException):
        file.take(incoming(order_events(5)), Position("history", 5), unreadable=[wrong])
    file.commit()
    assert stored() == [(3, 3)]
    file.take(incoming(order_events(4)), Position("history", 4), is_followed=True)
    file.commit()
    assert stored() == [(4, 4)]


def test_an_event_that_its_columns_do_not_take_stays_apart(tmp_path: Path) -> None:
    """The schema permits it, and the column does not: however often the file is opened, it is not lost."""
    path = tmp_path / "analytics.duckdb"
    late = event("orders.created.v2", "late")
    table = arrow_table([late, late]).set_column(7, "occurred_at", [["20260301T120000Z"] * 2])
    with closing(AnalyticsFile(path, CONTRACTS)) as file:
        assert len(file.take(Incoming.of(table)).unreadable) == 1
    for _ in range(2):
        with closing(AnalyticsFile(path, CONTRACTS)) as file:
            found = file.connection.execute("SELECT event_id FROM unreadable_events").fetchall()
        assert found == [("late",)]


def test_what_cannot_be_read_is_kept_once(file: AnalyticsFile) -> None:
    """Also if a batch has it twice."""
    row = {**arrow_table([event("orders.created.v9", "broken")]).to_pylist()[0], "reason": "no JSON"}
    file.take(incoming([]), unreadable=[row, row])
    assert file.connection.execute("SELECT event_id, reason FROM unreadable_events").fetchall() == [("broken", "no JSON")]


def test_ids_are_compressed_without_a_search_for_repetitions(tmp_path: Path) -> None:
    """Those of the data, too: a schema names them."""
    with closing(AnalyticsFile(tmp_path / "analytics.duckdb", CONTRACTS)) as file:
        file.take(incoming([each for number in range(100) for each in order_events(number)]))
        file.connection.execute("CHECKPOINT")
        found = file.connection.execute(
            "SELECT DISTINCT column_name FROM pragma_storage_info('orders_created') WHERE compression = 'ZSTD'"
        ).fetchall()
    assert {name for (name,) in found} == {"event_id", "cause_id", "correlation_id", "entity_key", "order_id"}


def test_no_condition_takes_the_text_of_an_event_apart_again(file: AnalyticsFile) -> None:
    """DuckDB would do it for each column that must have a value, which takes three times as long."""
    file.connection.register("incoming", SCHEMA.empty_table())
    for table in file.tables:
        plan = file.connection.execute(f"EXPLAIN (FORMAT json) {insert_sql(table)}", ["", ""]).fetchall()[0][1]
        assert "from_json" not in plan
