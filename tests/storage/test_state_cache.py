"""What stays in memory is what the database holds: whatever was undone, and whoever else has written."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from app.storage.migrations import migrate
from app.storage.module_store import ModuleStore
from app.storage.sql.database import Database
from app.storage.state_rows import StateMapper
from modules import inventory
from modules.inventory.state import Product

KEYS = {Product: {"A", "B"}}


@pytest.fixture
async def store(path: Path) -> AsyncIterator[ModuleStore]:
    """One that has looked into its database before, as it does ahead of everything that it writes."""
    database = Database(f"sqlite:///{path}")
    migrate(database.engine, "inventory")
    store = ModuleStore(inventory.module(), database)
    await recalled(store)
    yield store
    await database.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all states that were read from the database since."""
    read: list[str] = []
    load = StateMapper.load

    def noted(self: StateMapper, connection: Connection, keys: Sequence[str]) -> dict[str, Any]:
        found = load(self, connection, keys)
        read.extend(found)
        return found

    monkeypatch.setattr(StateMapper, "load", noted)
    return read


def stock(product_id: str, on_hand: int) -> Product:
    return Product(
        product_id=product_id, name=None, on_hand=on_hand, reserved=0, unit_price_amount=100, currency="EUR"
    )


def save(store: ModuleStore, *products: Product) -> Any:
    """Return work that writes *products*."""

    def work(connection: Connection) -> None:
        store.save(
            connection, states={Product: {each.product_id: each for each in products}}, inbox_entries=(), cancelled_timers=(), outgoing=()
        )

    return work


async def recalled(store: ModuleStore, keys: Any = KEYS) -> dict[str, int]:
    """Return what is on hand, as a batch would find it."""
    _, world = await store.database.write(lambda connection: store.load_with_inbox(connection, [], keys))
    return {key: state.on_hand for key, state in world[Product].items()}


async def test_what_was_written_is_not_read_again(store: ModuleStore, read: list[str]) -> None:
    """What was not written by us is; and what is not there is looked for each time."""
    await store.database.write(save(store, stock("A", 1)))
    assert await recalled(store) == {"A": 1}
    assert read == []
    await store.database.write(save(store, stock("B", 2)))
    await store.database.write(save(store, stock("A", 3)))
    assert await recalled(store) == {"A": 3, "B": 2}
    assert read == []


async def test_a_new_process_reads_what_the_last_one_wrote(store: ModuleStore, path: Path) -> None:
    """Nothing is taken for missing because it is not in memory."""
    await store.database.write(save(store, stock("A", 1), stock("B", 2)))
    database = Database(f"sqlite:///{path}")
    assert await recalled(ModuleStore(inventory.module(), database)) == {"A": 1, "B": 2}
    await database.close()


async def test_what_was_undone_is_forgotten(store: ModuleStore) -> None:
    """Together with whatever shared its transaction."""

    def fails(connection: Connection) -> None:
        save(store, stock("A", 99), stock("B", 99))(connection)
        raise ValueError("after it was written")

    await store.database.write(save(store, stock("A", 1)))
    with pytest.raises(ValueError, match="after it was written"):
        await store.database.write(fails)
    assert await recalled(store) == {"A": 1}


async def test_what_somebody_else_has_written_is_seen(store: ModuleStore, path: Path) -> None:
    """An operator with a shell of his own, while we run."""
    await store.database.write(save(store, stock("A", 1), stock("B", 2)))
    assert await recalled(store) == {"A": 1, "B": 2}
    other = sqlite3.connect(path)
    with other:
        other.execute("UPDATE inventory_product SET on_hand = 7 WHERE product_id = 'A'")
        other.execute("DELETE FROM inventory_product WHERE product_id = 'B'")
    other.close()
    assert await recalled(store) == {"A": 7}
    assert await recalled(store) == {"A": 7}


async def test_what_is_too_much_to_keep_is_read(store: ModuleStore, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were written last stay: the last two of a half that is not full, and the four before them."""
    monkeypatch.setattr("app.storage.state_cache.STATES_MAX", 3)
    names = [f"P{n}" for n in range(10)]
    for n, name in enumerate(names):
        await store.database.write(save(store, stock(name, n)))
    assert await recalled(store, {Product: set(names)}) == {name: n for n, name in enumerate(names)}
    assert sorted(read) == names[:-6]


async def test_only_what_is_asked_for_is_told(store: ModuleStore) -> None:
    """Also of classes that nobody asks for, and when nothing is asked for at all."""
    await store.database.write(save(store, stock("A", 1), stock("B", 2)))
    known, world = await store.database.write(lambda c: store.load_with_inbox(c, ["nobody"], {Product: {"B"}}))
    assert (known, world) == ({}, {Product: {"B": stock("B", 2)}})
    assert await store.database.write(lambda c: store.load_with_inbox(c, [], {})) == ({}, {})
