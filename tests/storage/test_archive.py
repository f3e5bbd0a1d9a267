"""What is archived today can be read by every later release."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from app.storage.archive.content import DICTIONARIES, compressed, decompressed
from app.storage.archive.state_archive import ArchiveTable
from modules.orders.state import Order
from tests.storage.archive_contract import KEPT, PAY, archive_all, happen, place, shop

values = st.none() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_categories=["Cs"]))
CONTENT = "0178bb1a1f5e21aba6304d61492f46a6a0f44246a81a039d6889e944006a263324"


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values | st.lists(values)))
def test_a_document_is_read_as_it_was_written(document: dict[str, object]) -> None:
    """Any JSON object."""
    assert decompressed(compressed(document)) == document


def test_a_dictionary_never_changes() -> None:
    """What was written with it could not be read any more; a new one gets the next number."""
    assert {number: zlib.crc32(text) for number, text in DICTIONARIES.items()} == {1: 1887532}
    assert decompressed(bytes.fromhex(CONTENT)) == {
        "status": "confirmed",
        "items": [{"product_id": "SKU-1", "quantity": 2}],
        "total_amount": 2500,
        "timeline": [{"event": "orders.created", "at": "2026-01-31T09:00:00.000000Z"}],
    }


@pytest.mark.parametrize("damaged", [b"", b"\x02" + bytes.fromhex(CONTENT)[1:], b"\x01", bytes.fromhex(CONTENT)[:-4] + b"\0" * 4, bytes.fromhex(CONTENT)[:-1]])
def test_a_damaged_content_is_an_error(damaged: bytes) -> None:
    """It is never read as something else."""
    with pytest.raises(ValueError, match="cannot be read"):
        decompressed(damaged)


async def test_a_field_that_a_later_release_adds_has_its_default(tmp_path: Path) -> None:
    """And one that it has dropped is ignored: the document is kept as it was."""
    async with shop(tmp_path / "test.db") as (harness, clock):
        id = await place(harness)
        await happen(harness, id, (PAY,))
        order = await harness.runners["orders"].get(Order, id)
        assert order is not None
        await clock.advance(2 * KEPT.total_seconds())
        await archive_all(harness)
        table: ArchiveTable = harness.stores["orders"].archive.table
        document = (await harness.database.read(lambda c: table.find(c, "order", [id])))[id]
        assert document.pop("is_paid")
        document["dropped"] = 1
        await harness.database.write(lambda c: table.put(c, "order", {id: document}))
        assert await harness.runners["orders"].get(Order, id) == evolve(order, is_paid=False)
