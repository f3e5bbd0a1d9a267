"""A database that answers and refuses: no try is spent, nothing becomes a dead letter, and the work goes on once it is corrected."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

from app.storage.errors import StorageRefused, StorageUnavailable
from modules.inventory.state import Product
from tests.databases import migrated_url
from tests.postgres import PostgresServer
from tests.runtime.harness import (
    CONTEXT,
    NO_CONTENT,
    Harness,
    HurriedClock,
    bus_message,
    harness_at,
    oid,
    product,
    submitted,
    until,
)
from tests.runtime.test_runner import created

pytestmark = pytest.mark.slow

USER = "restricted"


@pytest.fixture
async def restricted(postgres: PostgresServer) -> AsyncIterator[tuple[Harness, Callable[[str], object]]]:
    """A system that works as a user without rights of its own, and what executes SQL as the owner of the tables."""
    url = migrated_url(postgres)
    name = url.partition("?")[0].rpartition("/")[2]

    def execute(sql: str) -> object:
        return postgres.query(sql, name)

    if not postgres.query(f"SELECT 1 FROM pg_roles WHERE rolname = '{USER}'"):
        execute(f"CREATE ROLE {USER} LOGIN SUPERUSER")
    execute(f"ALTER ROLE {USER} SUPERUSER")
    async with harness_at(url.replace("postgres@", f"{USER}@"), HurriedClock(), delivers_locally=False) as harness:
        execute(f"REASSIGN OWNED BY {USER} TO postgres")
        execute(f"ALTER ROLE {USER} NOSUPERUSER")
        execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {USER}")
        execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {USER}")
        yield harness, execute
        execute(f"DROP OWNED BY {USER}")


@pytest.mark.parametrize(
    ("break_it", "correct_it"),
    [
        ("REVOKE INSERT ON inventory_reservation FROM restricted", "GRANT INSERT ON inventory_reservation TO restricted"),
        ("REVOKE UPDATE ON inventory_product FROM restricted", "GRANT UPDATE ON inventory_product TO restricted"),
        ("REVOKE SELECT ON inventory_inbox FROM restricted", "GRANT SELECT ON inventory_inbox TO restricted"),
        ("REVOKE INSERT ON inventory_outbox FROM restricted", "GRANT INSERT ON inventory_outbox TO restricted"),
        ("ALTER TABLE inventory_outbox RENAME TO away", "ALTER TABLE away RENAME TO inventory_outbox"),
        ("ALTER TABLE inventory_product RENAME COLUMN name TO away", "ALTER TABLE inventory_product RENAME COLUMN away TO name"),
    ],
)
async def test_messages_wait_until_an_operator_has_corrected_postgresql(
    restricted: tuple[Harness, Callable[[str], object]], break_it: str, correct_it: str
) -> None:
    """The kind of the case: no permission, no table, no column. Sixty messages, no dead letter, every one handled afterwards."""
    harness, execute = restricted
    await harness.submit("inventory", product(100))
    execute(break_it)
    await harness.consume("inventory")
    published = [harness.bus.publish(bus_message(harness, created(oid(n)), key=oid(n))) for n in range(60)]
    await until(lambda: harness.database.is_refused)
    with pytest.raises(StorageUnavailable):
        await harness.runners["inventory"].submit(product(100), id="s-1", trace=CONTEXT, respond=NO_CONTENT)
    for _ in range(5):
        await asyncio.sleep(0.05)
        assert not any(each.done() for each in published)
    execute(correct_it)
    await asyncio.wait_for(asyncio.gather(*published), 30)
    stock = await harness.runners["inventory"].get(Product, "A")
    assert isinstance(stock, Product)
    assert stock.reserved == 60
    assert await harness.dead_letter_store.list(None, None, None, 10) == []


async def test_the_modules_beside_it_go_on(restricted: tuple[Harness, Callable[[str], object]]) -> None:
    """Only the module whose tables are refused waits, though all share transactions."""
    harness, execute = restricted
    await harness.submit("inventory", product(100))
    execute("REVOKE INSERT ON payments_payment FROM restricted")
    await harness.submit("orders", submitted(oid(1)))
    assert await harness.rows("SELECT status FROM orders_order") == [("processing",)]


def damage(path: Path, table: str) -> Callable[[], None]:
    """Overwrite the first page of *table* in the SQLite file at *path*; return what repairs it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [(page,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,))
        [(size,)] = connection.execute("PRAGMA page_size")
    begin, end = (page - 1) * size, page * size
    whole = path.read_bytes()
    path.write_bytes(whole[:begin] + b"\xff" * size + whole[end:])

    def repair() -> None:
        with path.open("r+b") as file:
            file.seek(begin)
            file.write(whole[begin:end])

    return repair


async def test_messages_wait_while_pages_of_a_sqlite_file_are_damaged(path: Path) -> None:
    """The pages of one table are overwritten; after the repair from a copy every message is handled."""
    async with harness_at(path, HurriedClock(), delivers_locally=False) as harness:
        await harness.submit("inventory", product(1_000))
    repair = damage(path, "inventory_reservation")
    async with harness_at(path, HurriedClock(), delivers_locally=False) as harness:
        await harness.consume("inventory")
        published = [harness.bus.publish(bus_message(harness, created(oid(n)), key=oid(n))) for n in range(60)]
        await until(lambda: harness.database.is_refused)
        with pytest.raises(StorageRefused):
            await harness.database.write(lambda c: c.exec_driver_sql("SELECT * FROM inventory_reservation").all())
        await asyncio.sleep(0.2)
        assert not any(each.done() for each in published)
        assert await harness.dead_letter_store.list(None, None, None, 10) == []
        repair()
        await asyncio.wait_for(asyncio.gather(*published), 30)
        stock = await harness.runners["inventory"].get(Product, "A")
        assert isinstance(stock, Product)
        assert stock.reserved == 60
