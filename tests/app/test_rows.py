"""What is compared and prepared when the program starts."""

from __future__ import annotations

import pytest
from sqlalchemy import Column, MetaData, String, Table, create_engine

from app.rows import Rows
from app.sqlite import Padded, Sqlite
from modules.inventory.state import Product


def test_a_statement_asked_for_nothing_does_nothing() -> None:
    """No rows, no statement."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        assert Padded(lambda size: "not SQL at all").run(connection, []) == []
    engine.dispose()


def test_a_table_that_is_not_its_class_is_refused() -> None:
    """The two are compared when the program starts, not when a row is lost."""
    with pytest.raises(TypeError, match="same columns"):
        Rows(Product, Table("other", MetaData(), Column("product_id", String, primary_key=True)), Sqlite())
