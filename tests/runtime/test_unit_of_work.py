"""What a unit of work knows of the states that it has loaded."""

from __future__ import annotations

import pytest

from app.runtime.work import UnitOfWork
from modules.inventory.state import Product, Reservation, ReservationStatus

RECENT = ("r", "s")
"""Keys that begin with r are recent."""


def reservation(key: str) -> Reservation:
    return Reservation(order_id=key, status=ReservationStatus.HELD)


def test_a_state_without_a_row_is_new_wherever_it_comes_from() -> None:
    """
    Generated, missing or archived: the tables have no row under its key.

    On a shared database another process may insert one meanwhile, and only an insert notices that.
    """
    unit = UnitOfWork(frozenset({"generated"}))
    keys = [(Reservation, key) for key in ("a-row", "archived", "gone", "r-missing", "generated")]
    assert unit.missing_keys([keys[:2], keys[2:]]) == {Reservation: {"a-row", "archived", "gone", "r-missing"}}
    old = unit.load({Reservation: {"a-row", "archived", "gone", "r-missing"}}, {Reservation: {"a-row": reservation("a-row")}}, RECENT)
    assert {cls: sorted(found) for cls, found in old.items()} == {Reservation: ["archived", "gone"]}
    unit.restore({Reservation: {"archived": reservation("archived")}})
    assert unit.identity_map[Reservation] == {
        "a-row": reservation("a-row"), "archived": reservation("archived"), "gone": None, "r-missing": None, "generated": None,
    }  # fmt: skip
    assert unit.new_keys[Reservation] == {"archived", "gone", "r-missing", "generated"}


@pytest.mark.parametrize(("key", "is_recent"), [("q9", False), ("r", True), ("r9", True), ("s", False), ("z", False)])
def test_only_what_is_recent_is_not_looked_up_in_the_archive(key: str, is_recent: bool) -> None:
    """From the first bound to below the second; a key that does not begin with a time may be smaller or greater."""
    unit = UnitOfWork()
    assert unit.load({Reservation: {key}}, {Reservation: {}}, RECENT) == ({} if is_recent else {Reservation: [key]})


def test_what_is_loaded_is_not_loaded_again() -> None:
    """The decisions of a later round see what those of an earlier one have left."""
    unit = UnitOfWork()
    unit.load({Reservation: {"a", "b"}, Product: {"p"}}, {Reservation: {"a": reservation("a")}, Product: {}}, RECENT)
    assert unit.missing_keys([[(Reservation, "a"), (Reservation, "b"), (Product, "p"), (Product, "q")]]) == {Product: {"q"}}
