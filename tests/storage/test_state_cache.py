"""The state cache equals the database, after rollbacks and after writes by other processes, too."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from app.storage.module_store import ModuleStore
from app.storage.sql.database import Database
from app.storage.state_rows import StateMapper
from modules import inventory
from modules.inventory.state import Product, Reservation, ReservationStatus
from tests.databases import migrated_file
from tests.runtime.harness import oid

KEYS = {Product: {"A", "B"}}


@pytest.fixture
async def store(path: Path) -> AsyncIterator[ModuleStore]:
    """A store that has read from its database, as it does before every write."""
    database = Database(migrated_file(path))
    store = ModuleStore(inventory.module(), database)
    await load_stock(store)
    yield store
    await database.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of all states that were read from the database, in order."""
    read: list[str] = []
    load = StateMapper.load

    def recording_load(self: StateMapper, connection: Connection, keys: Sequence[str]) -> dict[str, Any]:
        found = load(self, connection, keys)
        read.extend(found)
        return found

    monkeypatch.setattr(StateMapper, "load", recording_load)
    return read


def stock(product_id: str, on_hand: int) -> Product:
    return Product(
        product_id=product_id, name=None, on_hand=on_hand, reserved=0, unit_price_amount=100, currency="EUR"
    )


def save(store: ModuleStore, *products: Product) -> Any:
    """Return work that writes *products*."""

    def work(connection: Connection) -> None:
        store.save(
            connection, states={Product: {product.product_id: product for product in products}}, inbox_entries=(), cancelled_timers=(), outgoing=()
        )

    return work


async def load_stock(store: ModuleStore, keys: Any = KEYS) -> dict[str, int]:
    """Return the stock on hand by product, loaded as a batch loads it."""
    _, states = await store.database.write(lambda connection: store.load_with_inbox(connection, [], keys))
    return {key: state.on_hand for key, state in states[Product].items()}


async def test_a_state_that_this_process_wrote_is_not_read_again(store: ModuleStore, read: list[str]) -> None:
    """Other states are read; a key without a state is looked up each time."""
    await store.database.write(save(store, stock("A", 1)))
    assert await load_stock(store) == {"A": 1}
    assert read == []
    await store.database.write(save(store, stock("B", 2)))
    await store.database.write(save(store, stock("A", 3)))
    assert await load_stock(store) == {"A": 3, "B": 2}
    assert read == []


async def test_a_new_process_reads_what_the_last_one_wrote(store: ModuleStore, path: Path) -> None:
    """A state that is not in the cache is not taken for missing."""
    await store.database.write(save(store, stock("A", 1), stock("B", 2)))
    database = Database(f"sqlite:///{path}")
    assert await load_stock(ModuleStore(inventory.module(), database)) == {"A": 1, "B": 2}
    await database.close()


async def test_a_rollback_clears_the_cache(store: ModuleStore) -> None:
    """Also of the states of other work in the same transaction."""

    def fails(connection: Connection) -> None:
        save(store, stock("A", 99), stock("B", 99))(connection)
        raise ValueError("after it was written")

    await store.database.write(save(store, stock("A", 1)))
    with pytest.raises(ValueError, match="after it was written"):
        await store.database.write(fails)
    assert await load_stock(store) == {"A": 1}


async def test_a_write_by_another_process_is_seen(store: ModuleStore, path: Path) -> None:
    """An operator changes the database with a shell while the application runs."""
    await store.database.write(save(store, stock("A", 1), stock("B", 2)))
    assert await load_stock(store) == {"A": 1, "B": 2}
    other = sqlite3.connect(path)
    with other:
        other.execute("UPDATE inventory_product SET on_hand = 7 WHERE product_id = 'A'")
        other.execute("DELETE FROM inventory_product WHERE product_id = 'B'")
    other.close()
    assert await load_stock(store) == {"A": 7}
    assert await load_stock(store) == {"A": 7}


async def test_states_beyond_the_limit_are_read_again(store: ModuleStore, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those written last stay: the two of the current half, which is not full, and the four of the previous one."""
    monkeypatch.setattr("app.storage.state_rows.STATES_MAX", 3)
    names = [f"P{n}" for n in range(10)]
    for n, name in enumerate(names):
        await store.database.write(save(store, stock(name, n)))
    assert await load_stock(store, {Product: set(names)}) == {name: n for n, name in enumerate(names)}
    assert sorted(read) == names[:-6]


async def test_a_state_that_is_archived_is_no_longer_in_the_cache(store: ModuleStore) -> None:
    """It would be taken for one that is still in its table."""
    done = Reservation(order_id=oid(1), status=ReservationStatus.SHIPPED)
    states: Mapping[type, Mapping[str, Any]] = {Reservation: {done.order_id: done}}
    await store.database.write(
        lambda c: store.save(c, states=states, inbox_entries=(), cancelled_timers=(), outgoing=())
    )
    swept = await store.database.write(lambda c: store.archive_some(Reservation, c, "", datetime.max.replace(tzinfo=UTC)))
    assert list(swept.keys) == [done.order_id]
    _, found = await store.database.write(lambda c: store.load_with_inbox(c, [], {Reservation: {done.order_id}}))
    assert found == {Reservation: {}}


async def test_only_the_requested_states_are_returned(store: ModuleStore) -> None:
    """Also with classes that were not requested, and with no request at all."""
    await store.database.write(save(store, stock("A", 1), stock("B", 2)))
    processed, states = await store.database.write(lambda c: store.load_with_inbox(c, ["unknown"], {Product: {"B"}}))
    assert (processed, states) == ({}, {Product: {"B": stock("B", 2)}})
    assert await store.database.write(lambda c: store.load_with_inbox(c, [], {})) == ({}, {})


class Stop(Exception):
    """Raised by a transaction that is to be rolled back."""


@pytest.mark.parametrize("seed", range(4))
async def test_the_cache_equals_the_database_whatever_happens(
    store: ModuleStore, path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Writes, reads within the transaction and after it, deletions, rollbacks and writes of another process, with a cache of two states."""
    monkeypatch.setattr("app.storage.state_rows.STATES_MAX", 2)
    rng, kept, keys = random.Random(seed), dict[str, int](), "ABCDEFG"
    mapper, cache = store.mappers[Product], store._cache
    assert cache is not None
    other = sqlite3.connect(path, isolation_level=None)
    for number in range(120):
        chosen = rng.sample(keys, rng.randint(1, 3))
        kind = rng.choice(["write", "write", "write", "delete", "roll back", "elsewhere"])

        def work(connection: Connection, kind: str = kind, chosen: Sequence[str] = chosen, number: int = number) -> None:
            if kind == "delete":
                mapper.delete(connection, chosen)
                cache.drop(Product, chosen)
            else:
                save(store, *(stock(key, number) for key in chosen))(connection)
                _, found = store.load_with_inbox(connection, [], {Product: chosen})
                assert {key: state.on_hand for key, state in found[Product].items()} == dict.fromkeys(chosen, number)
            if kind == "roll back":
                raise Stop

        if kind == "elsewhere":
            other.execute("UPDATE inventory_product SET on_hand = ?", (number,))
            kept = dict.fromkeys(kept, number)
        elif kind == "roll back":
            with pytest.raises(Stop):
                await store.database.write(work)
        else:
            await store.database.write(work)
            kept = {key: at for key, at in kept.items() if key not in chosen} if kind == "delete" else kept | dict.fromkeys(chosen, number)
        wanted = rng.sample(keys, rng.randint(0, 7))
        assert await load_stock(store, {Product: wanted}) == {key: kept[key] for key in wanted if key in kept}
    other.close()
