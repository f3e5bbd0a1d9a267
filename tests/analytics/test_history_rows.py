"""Deriving events from rows by column gives what decoding the rows gives; whatever that would refuse or explain is left to it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from backports.zstd import compress

from app.analytics.events import SCHEMA, arrow_table
from app.analytics.sources.rows import RowEvents
from app.storage.archive.history_content import (
    COMPRESSED,
    PLAIN,
    Entry,
    HistoryIncomplete,
    Row,
    TransactionHistory,
    decoded,
    seq_of,
)

AT = "2026-03-01T12:00:00.000001+00:00"
MODULES = ("inventory", "orders", "payments")

StoredRow = tuple[str, int, str, bytes]

ORDER = {"order_id": "01a1f658-c4c6-734c-aac2-a4ee9478308f", "note": 'Zoë "\u2028" \\', "total": {"amount": 10**15, "rate": 0.1}}
ENTRIES: dict[str, Sequence[Entry]] = {
    "orders": [
        ["t", 7, "orders.timed_out.v1", "fired", "its cause", "corr-t", "k", {"order_id": "k"}],
        ["s", "Place", "01a1f658-c4c6-734c-aac2-a4ee9478308e", "corr", False, ORDER, False, 0, [
            [0, 0, "orders.created.v2", ORDER], [None, 1, "orders.timed_out.v1", {"order_id": "x"}, AT],
            [6, 2, "orders.moved.v1", {"order_id": "y"}]]],
        ["s", "Place", "no uuid", None, True, ORDER, True, "key", [[1, 0, "orders.created.v2", {}], [2, 1, "orders.moved.v1", [1]]]],
        ["s", "Place", "refused", "corr", False, ORDER, 0],
        ["b", "payments.captured.v1", "delivered", "corr", False, {}],
        ["b", "payments.captured.v1", "delivered", "corr", False, {}, False, 0, [[None, 0, "orders.due.v1", {"order_id": "x"}, AT]]],
        ["l", 4, "payments.captured.v1.express", True, "", [[5, "a", "orders.confirmed.v1", {"order_id": "x"}]]],
    ],
    "payments": [["l", 3, "inventory.reserved.v1", True, 0, [[4, 0, "payments.captured.v1", {"order_id": 17}]]]],
    "inventory": [["l", 1, "orders.created.v2.express"], ["l", 1, "orders.created.v2", False, "k", [[3, 0, "inventory.reserved.v1", ORDER]]]],
}  # fmt: skip
"""Each kind of entry, with and without events; effects are in other modules than causes, and before them in the order of the rows."""


def rows(entries: dict[str, Any], number: int = 3) -> list[StoredRow]:
    """Return the rows of a transaction."""
    return [(module, number, AT, PLAIN + orjson.dumps(found)) for module, found in entries.items()]


def test_the_columns_have_what_decoding_gives() -> None:
    """Every kind of entry, in every form of storage; from any event on, and without the events of other modules."""
    stored = rows(ENTRIES)
    stored += [(module, 4, AT, COMPRESSED + compress(content[1:])) for module, _, _, content in stored]
    stored += [(module, 5, AT, b"\x02" + zlib.compress(content[1:])) for module, _, _, content in rows(ENTRIES)]
    decided = [[Row(module, number, at, decoded(content)) for module, number, at, content in stored if number == n] for n in (3, 4, 5)]
    expected = arrow_table([event for found in decided for event in TransactionHistory(found).events()]).to_pylist()
    assert len(expected) == 24
    for modules in (MODULES, ("orders",), ("payments", "customers")):
        reader = RowEvents(modules)
        for after in (0, seq_of(3, 1), seq_of(4, 7)):
            found = reader.events(stored, after)
            assert found is not None
            assert found.schema == SCHEMA
            chosen = [row for row in expected if row["seq"] > after and row["module"] in modules]
            assert [{**row, "data": orjson.loads(row["data"])} for row in found.to_pylist()] == [
                {**row, "data": orjson.loads(row["data"])} for row in chosen
            ]
    assert RowEvents(MODULES).events([], 0) == SCHEMA.empty_table()


def _damaged(entries: Any) -> str:
    with pytest.raises((LookupError, TypeError, ValueError, AttributeError)) as error:
        TransactionHistory([Row("orders", 3, AT, entries)]).events()
    return str(error.value)


SUBMITTED = ["s", "Place", "id", "corr", False, {}]


@pytest.mark.parametrize(
    "entries",
    [
        [["x", 1]],
        [[]],
        17,
        [17],
        [["t", 7, "orders.timed_out.v1", "fired"]],
        [[*SUBMITTED, False, 0, 17]],
        [[*SUBMITTED, False, 0, [17]]],
        [[*SUBMITTED, False, 0, [[1, 0, "orders.created.v2"]]]],
        [[*SUBMITTED, False, 0, [[1, 0, "orders.created.v2", {"customer_id": "c"}]]]],
        [[*SUBMITTED, False, "k", [["one", 0, "orders.created.v2", {}]]]],
        [["s", "Place", None, "corr", False, {}, False, "k", [[1, 0, "orders.created.v2", {}]]]],
        [["l", 9, "payments.captured.v1", False, "k", [[1, 0, "orders.confirmed.v1", {}]]]],
    ],
    ids=str,
)
def test_what_decoding_refuses_is_left_to_it(entries: Any) -> None:
    """It explains what is wrong, and where to go on."""
    assert _damaged(entries)
    assert RowEvents(MODULES).events(rows({"orders": entries}), 0) is None


@pytest.mark.parametrize(
    "content", [b"", b"\x07[]", PLAIN + b"[", PLAIN + b'["', PLAIN + b"\xff", COMPRESSED + b"[]"], ids=["empty", "newer", "torn", "text", "utf-8", "zstd"]
)
def test_a_damaged_row_is_left_to_decoding(content: bytes) -> None:
    """The rows beside it are, too."""
    with pytest.raises(ValueError, match="row of the history"):
        decoded(content)
    assert RowEvents(MODULES).events([("inventory", 3, AT, content), *rows(ENTRIES, 2)], 0) is None


def test_two_transactions_with_one_number_are_left_to_decoding() -> None:
    """A module was moved here, and brought its numbers: the positions of both are the same."""
    other = [(module, number, AT.replace("2026", "2025"), content) for module, number, _, content in rows(ENTRIES)]
    assert RowEvents(MODULES).events([*rows(ENTRIES), *other], 0) is None


def test_a_producer_that_is_gone_is_left_to_decoding() -> None:
    """Its ids cannot be derived."""
    rest = {module: entries for module, entries in ENTRIES.items() if module != "inventory"}
    with pytest.raises(HistoryIncomplete):
        TransactionHistory([Row(*row[:3], decoded(row[3])) for row in rows(rest)]).events()
    assert RowEvents(MODULES).events(rows(rest), 0) is None
