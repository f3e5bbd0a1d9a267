"""What one order costs is counted, and does not grow unnoticed; see CONTRIBUTING.rst."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.budget import budget
from tests.budget.scale_tables import PAGE, page_with_tables
from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.process.client import connecting
from tests.split.system import System

ON_SQLITE = ("one-process-sqlite", "three-modules-sqlite", "three-modules-retired")
WITH_CALLS = sys.version_info[:2] == budget.CALLS_PYTHON


@pytest.fixture(scope="module")
def found() -> budget.Budget:
    """What was counted on SQLite, once for this file."""
    return budget.counted(ON_SQLITE)


def differences(found: budget.Budget) -> list[str]:
    """Return what is not as the budget has it, one line each."""
    wanted = budget.read()
    return [
        line
        for name, batches in found.items()
        for batch, counts in batches.items()
        for line in budget.compare(name, batch, counts, wanted[name][batch], with_calls=WITH_CALLS)
    ]


def test_an_order_on_sqlite_costs_what_the_budget_has(found: budget.Budget) -> None:
    """Statements, rows, transactions, fsyncs, messages, bytes, log lines and calls, one by one and in batches."""
    assert not differences(found), "after an intended change: python -m tests.budget --write"


@pytest.mark.slow
def test_an_order_on_postgresql_costs_what_the_budget_has(postgres: PostgresServer) -> None:
    """The same for one process on PostgreSQL, and round trips to the server."""
    found = budget.counted(["one-process-postgres"], postgres.create_database())
    assert not differences(found), "after an intended change: python -m tests.budget --write"


@pytest.mark.slow
async def test_an_order_is_as_many_messages_and_bytes_on_nats_as_the_budget_has(tmp_path: Path) -> None:
    """The budget counts on the bus in memory. On NATS three processes store the same messages with the same bytes."""
    orders = 40
    with NatsServer(tmp_path / "nats") as nats:
        system = System(tmp_path, nats.urls).start()
        try:
            async with connecting() as connect:
                client = connect(system)
                await client.stock("SKU-1", 100_000, 1250)
                ids = [await client.place({"SKU-1": 2}, customer_id="c-1") for _ in range(orders)]
                for id in ids:
                    assert (await client.wait_until_final(id))["status"] == "confirmed"
                found = stored(nats)
        finally:
            system.end()
    wanted = budget.read()["three-modules-sqlite"][1]
    assert found == (wanted["messages"] * orders, wanted["message_bytes"] * orders)


def stored(nats: NatsServer) -> tuple[int, int]:
    """Return how many messages the streams of *nats* hold, and the bytes of their subjects, headers and bodies."""
    record = 22 + 4 + 8  # a record's head, the length of its headers, and its checksum: server/filestore.go
    (account,) = nats.ask("/jsz?streams=true")["account_details"]
    states = [stream["state"] for stream in account["stream_detail"]]
    count = sum(state["messages"] for state in states)
    return count, sum(state["bytes"] for state in states) - count * record


COUNTS = {"statements": 2.0, "calls": 700.0, "library_calls": 150.0}


@pytest.mark.parametrize(
    ("what", "count", "line"),
    [
        ("statements", 2.5, "one, batches of 32: statements of an order: 2 -> 2.5, +0.5 more than the budget"),
        ("calls", 701.0, "one, batches of 32: calls of an order: 700 -> 701, +1 more than the budget"),
        ("statements", 1.0, "one, batches of 32: statements of an order: 2 -> 1, -1: lower the budget"),
        ("messages", 1.0, "one, batches of 32: messages of an order: 0 -> 1, +1 more than the budget"),
    ],
)
def test_a_count_that_differs_is_named_with_both_numbers(what: str, count: float, line: str) -> None:
    """More than the budget is an error, also where it has no such count; much less is one, too, so that the gain stays."""
    assert budget.compare("one", 32, COUNTS | {what: count}, COUNTS, with_calls=True) == [line]


def test_a_small_gain_and_the_calls_of_another_python_are_no_difference() -> None:
    """Nothing is to be done about either."""
    assert budget.compare("one", 1, COUNTS | {"statements": 1.9}, COUNTS, with_calls=True) == []
    assert budget.compare("one", 1, COUNTS | {"calls": 900.0}, COUNTS, with_calls=False) == []


def test_the_written_budget_is_read_again() -> None:
    """``--write`` and the tests mean the same file."""
    assert budget.text_of(budget.read()) == budget.FILE.read_text(encoding="utf-8")


def test_the_page_about_scale_has_the_counts_of_the_budget() -> None:
    """Its tables are written with the budget."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with_tables(page, budget.read())
    assert page.count(".. csv-table::") == 2
