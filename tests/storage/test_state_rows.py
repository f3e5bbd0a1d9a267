"""A state mapper checks its class and table at start; a sized statement executes any number of rows."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from sqlalchemy import Column, Index, MetaData, String, Table, UniqueConstraint, create_engine

from app.storage.sql.sqlite import SIZES, SizedStatement, Sqlite
from app.storage.state_rows import StateMapper
from modules.inventory.state import Product
from modules.module import evolve


def test_a_statement_without_rows_executes_nothing() -> None:
    """No rows, no SQL."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        assert SizedStatement(lambda size: "not SQL at all").fetch(connection, [])() == []
    engine.dispose()


def test_a_table_whose_columns_differ_from_the_fields_is_refused() -> None:
    """The mapper compares them at start, before a row can be lost."""
    with pytest.raises(TypeError, match="same columns"):
        StateMapper(Product, Table("other", MetaData(), Column("product_id", String, primary_key=True)), Sqlite())


@pytest.mark.parametrize("more", [Index("by_name", "name", unique=True), UniqueConstraint("name")], ids=["index", "constraint"])
def test_a_table_with_a_second_unique_key_is_refused(more: Any) -> None:
    """On SQLite a row is written with REPLACE, which deletes every row that conflicts."""
    table = Table("product", MetaData(), *(Column(field.name, String) for field in attrs.fields(Product)), more)
    with pytest.raises(TypeError, match="more than one unique key"):
        StateMapper(Product, table, Sqlite())


def test_rows_are_split_into_the_sizes_that_have_a_statement() -> None:
    """Each row is executed once and in order, whatever their number, and the prefix comes with each part."""
    engine = create_engine("sqlite://")
    statement = SizedStatement(lambda size: f"SELECT ?, column1 FROM (VALUES {', '.join(['(?)'] * size)})")
    with engine.connect() as connection:
        for count in range(3 * SIZES[-1]):
            found = statement.fetch(connection, [(n,) for n in range(count)], ("before",))()
            assert found == [("before", n) for n in range(count)]
    engine.dispose()


def test_a_state_class_with_slots_is_refused() -> None:
    """Its members could not be set through ``__dict__``; the message explains how to declare the class."""
    slotted = attrs.make_class("Slotted", ["id"], frozen=True, slots=True)
    with pytest.raises(TypeError, match="slots=False"):
        StateMapper(slotted, Table("slotted", MetaData(), Column("id", String(36), primary_key=True)), Sqlite())


def test_evolve_changes_only_members_that_exist() -> None:
    """The other members stay as they are, and so does the original state."""
    before = Product(product_id="A", name=None, on_hand=5, reserved=0, unit_price_amount=100, currency="EUR")
    assert evolve(before, reserved=2) == attrs.evolve(before, reserved=2)
    assert before.reserved == 0
    with pytest.raises(TypeError, match="Product has no onhand"):
        evolve(before, onhand=1)
