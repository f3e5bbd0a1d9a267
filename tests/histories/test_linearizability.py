"""The checker accepts and refuses histories that are written by hand: one that cannot refuse finds nothing."""

from __future__ import annotations

import pytest

from tests.histories import linearizability
from tests.histories.linearizability import NEVER, Operation, SearchTooLarge, Step, is_linearizable
from tests.histories.models import ABSENT, counter_step, key_step, order_step, stock_errors


def op(start: float, end: float, name: str, value: object = None, reply: object = None) -> Operation:
    return Operation(name=name, value=value, reply=reply, start=start, end=end)


def post(start: float, end: float, body: str, *reply: object) -> Operation:
    return op(start, end, "post", body, reply or None)


def read(start: float, end: float, status: str, reason: str | None = None) -> Operation:
    return op(start, end, "read", None, (status, reason))


def cancel(start: float, end: float, *reply: str) -> Operation:
    return op(start, end, "cancel", None, reply or None)


NEW = ("processing", None)
ACCEPTED = [
    ("nothing happens", counter_step, 5, []),
    ("a read after a restock", counter_step, 5, [op(0, 1, "restock", 2, 7), op(2, 3, "read", None, 7)]),
    ("a read beside a restock", counter_step, 5, [op(0, 9, "restock", 2, 7), op(2, 3, "read", None, 5)]),
    ("restocks in another order", counter_step, 0, [op(0, 9, "restock", 2, 3), op(1, 8, "restock", 1, 1)]),
    ("an unknown restock, late", counter_step, 5, [op(0, NEVER, "restock", 2), op(2, 3, "read", None, 5), op(4, 5, "read", None, 7)]),
    ("an unknown restock, never", counter_step, 5, [op(0, NEVER, "restock", 2), op(2, 3, "read", None, 5)]),
    ("a key is repeated", key_step, ABSENT, [post(0, 1, "a", "accepted", 1, False), post(2, 3, "a", "accepted", 1, True)]),
    ("a lost answer comes again", key_step, ABSENT, [post(0, NEVER, "a"), post(2, 3, "a", "accepted", 1, True)]),
    ("another body", key_step, ABSENT, [post(0, 1, "a", "accepted", 1, False), post(2, 3, "b", "reused")]),
    ("two bodies at once", key_step, ABSENT, [post(0, 9, "a", "reused"), post(1, 8, "b", "accepted", 1, False)]),
    ("an order is confirmed", order_step, NEW, [read(0, 1, "processing"), read(2, 3, "confirmed")]),
    ("reads that overlap", order_step, NEW, [read(0, 9, "processing"), read(1, 2, "confirmed")]),
    ("cancelled after it was confirmed", order_step, NEW, [read(0, 1, "confirmed"), cancel(2, 3, "cancelled", "requested")]),
    ("an unknown cancel", order_step, NEW, [cancel(0, NEVER), read(1, 2, "confirmed"), read(3, 4, "cancelled", "requested")]),
    ("cancel of a cancelled order", order_step, NEW, [cancel(2, 3, "cancelled", "timed_out"), read(4, 5, "cancelled", "timed_out")]),
]
REFUSED = [
    ("a stale read", counter_step, 5, [op(0, 1, "restock", 2, 7), op(2, 3, "read", None, 5)]),
    ("a lost restock", counter_step, 0, [op(0, 9, "restock", 2, 2), op(1, 8, "restock", 1, 1), op(10, 11, "read", None, 2)]),
    ("a restock twice", counter_step, 5, [op(0, 1, "restock", 2, 7), op(2, 3, "read", None, 9)]),
    ("an unknown restock, undone", counter_step, 5, [op(0, NEVER, "restock", 2), op(2, 3, "read", None, 7), op(4, 5, "read", None, 5)]),
    ("two orders for a key", key_step, ABSENT, [post(0, 1, "a", "accepted", 1, False), post(2, 3, "a", "accepted", 2, False)]),
    ("two orders at once", key_step, ABSENT, [post(0, 9, "a", "accepted", 1, False), post(1, 8, "a", "accepted", 2, False)]),
    ("another order comes again", key_step, ABSENT, [post(0, 1, "a", "accepted", 1, False), post(2, 3, "a", "accepted", 2, True)]),
    ("another body is accepted", key_step, ABSENT, [post(0, 1, "a", "accepted", 1, False), post(2, 3, "b", "accepted", 1, True)]),
    ("a new key is reused", key_step, ABSENT, [post(0, 1, "a", "reused")]),
    ("a lost answer, then a new order", key_step, ABSENT, [post(0, 1, "a", "accepted", 1, True)]),
    ("an order goes back", order_step, NEW, [read(0, 1, "confirmed"), read(2, 3, "reserved")]),
    ("a final state changes", order_step, NEW, [read(0, 1, "cancelled", "timed_out"), read(2, 3, "confirmed")]),
    ("a reason changes", order_step, NEW, [read(0, 1, "cancelled", "timed_out"), read(2, 3, "cancelled", "requested")]),
    ("nothing requested it", order_step, NEW, [read(0, 1, "cancelled", "requested")]),
    ("a confirmed order is cancelled", order_step, NEW, [read(0, 1, "confirmed"), read(2, 3, "cancelled", "payment_declined")]),
    ("a cancel is forgotten", order_step, NEW, [cancel(0, 1, "cancelled", "requested"), read(2, 3, "reserved")]),
    ("a cancel is ignored", order_step, NEW, [op(0, 1, "cancel", None, ("confirmed", None))]),
]


@pytest.mark.parametrize(("step", "initial", "history"), [row[1:] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_a_history_that_can_be_explained_is_accepted(step: Step, initial: object, history: list[Operation]) -> None:
    assert is_linearizable(step, initial, history)


@pytest.mark.parametrize(("step", "initial", "history"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_history_that_cannot_be_explained_is_refused(step: Step, initial: object, history: list[Operation]) -> None:
    assert not is_linearizable(step, initial, history)


def test_a_search_without_an_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that counts as accepted would hide what it did not search."""
    monkeypatch.setattr(linearizability, "CONFIGURATIONS_MAX", 100)
    history = [op(0, 100, "restock", 2**number, -1) for number in range(3)]
    history += [op(0, NEVER, "restock", 2**number) for number in range(3, 20)]
    with pytest.raises(SearchTooLarge):
        is_linearizable(counter_step, 0, history)


def stock(start: float, *reply: int) -> Operation:
    return op(start, start + 1, "read", None, reply)


SALE = op(10, 11, "post", 2, "order")
RESTOCK = op(5, 6, "restock", 3, 8)


@pytest.mark.parametrize("reads", [[stock(0, 5, 0, 5)], [stock(12, 8, 2, 6)], [stock(12, 6, 0, 6)]])
def test_stock_within_its_bounds_is_accepted(reads: list[Operation]) -> None:
    assert stock_errors(5, [RESTOCK, *reads], [SALE]) == []


@pytest.mark.parametrize(
    "reading",
    [stock(0, 8, 0, 8), stock(7, 5, 0, 5), stock(12, 5, 0, 5), stock(0, 5, 1, 4), stock(12, 8, 2, 7), stock(12, 8, 9, -1)],
    ids=["before the restock", "after it", "sold twice", "nothing was ordered", "a wrong difference", "too much reserved"],
)
def test_stock_outside_its_bounds_is_refused(reading: Operation) -> None:
    assert stock_errors(5, [RESTOCK, reading], [SALE])
