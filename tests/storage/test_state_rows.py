"""What is compared and prepared when the program starts."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from sqlalchemy import Column, Index, MetaData, String, Table, UniqueConstraint, create_engine

from app.storage.sql.sqlite import SIZES, SizedStatement, Sqlite
from app.storage.state_rows import StateMapper
from modules.inventory.state import Product
from modules.module import evolve


def test_a_statement_asked_for_nothing_does_nothing() -> None:
    """No rows, no statement."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        assert SizedStatement(lambda size: "not SQL at all").run(connection, []) == []
    engine.dispose()


def test_a_table_that_is_not_its_class_is_refused() -> None:
    """The two are compared when the program starts, not when a row is lost."""
    with pytest.raises(TypeError, match="same columns"):
        StateMapper(Product, Table("other", MetaData(), Column("product_id", String, primary_key=True)), Sqlite())


@pytest.mark.parametrize("more", [Index("by_name", "name", unique=True), UniqueConstraint("name")], ids=["index", "constraint"])
def test_a_table_where_more_than_the_key_is_unique_is_refused(more: Any) -> None:
    """On SQLite a whole row is replaced, and whatever is in its way goes."""
    table = Table("product", MetaData(), *(Column(field.name, String) for field in attrs.fields(Product)), more)
    with pytest.raises(TypeError, match="more than one unique key"):
        StateMapper(Product, table, Sqlite())


def test_rows_are_cut_into_parts_that_have_a_statement() -> None:
    """Every row once, in its order, whatever their number, and what stands before them with each part."""
    engine = create_engine("sqlite://")
    statement = SizedStatement(lambda size: f"SELECT ?, column1 FROM (VALUES {', '.join(['(?)'] * size)})")
    with engine.connect() as connection:
        for count in range(3 * SIZES[-1]):
            found = statement.run(connection, [(n,) for n in range(count)], ("before",))
            assert found == [("before", n) for n in range(count)]
    engine.dispose()


def test_a_state_with_slots_is_refused_when_the_house_is_built() -> None:
    """It could not be copied member by member; the message says what to write."""
    slotted = attrs.make_class("Slotted", ["id"], frozen=True, slots=True)
    with pytest.raises(TypeError, match="slots=False"):
        StateMapper(slotted, Table("slotted", MetaData(), Column("id", String(36), primary_key=True)), Sqlite())


def test_a_state_is_changed_in_members_that_it_has() -> None:
    """The others stay as they are, and so does the state it came from."""
    before = Product(product_id="A", name=None, on_hand=5, reserved=0, unit_price_amount=100, currency="EUR")
    assert evolve(before, reserved=2) == attrs.evolve(before, reserved=2)
    assert before.reserved == 0
    with pytest.raises(TypeError, match="Product has no onhand"):
        evolve(before, onhand=1)
