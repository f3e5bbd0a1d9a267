"""The check of the invariants can fail: it detects and names each kind of damage."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.process.client import Client
from tests.process.conftest import Serve
from tests.process.invariants import MODULES, check_invariants
from tests.process.server import SEPARATE_DATABASES, Server

DAMAGE = [
    ("UPDATE orders_order SET status = 'reserved' WHERE order_id = '{paid}'", "I1: not in a final state"),
    ("DELETE FROM orders_order WHERE order_id = '{paid}'", "I1: an accepted order is lost"),
    ("UPDATE payments_payment SET amount = 1 WHERE order_id = '{paid}'", "I2: charged 1"),
    ("UPDATE payments_outbox SET subject = 'payments.captured.v1' WHERE subject = 'payments.refunded.v1'", "I2"),
    ("UPDATE inventory_product SET on_hand = on_hand + 1", "I3: 2 shipped of 10"),
    ("UPDATE inventory_product SET reserved = 1", "I4: still reserved"),
    ("UPDATE payments_payment SET status = 'pending' WHERE order_id = '{paid}'", "I4: confirmed and pending"),
    ("UPDATE payments_payment SET status = 'captured' WHERE order_id = '{undone}'", "I4: cancelled and captured"),
    ("UPDATE inventory_reservation SET status = 'held' WHERE order_id = '{undone}'", "I4: held"),
    ("DELETE FROM inventory_reservation WHERE order_id = '{paid}'", "I4: inventory has no reservation"),
    ("UPDATE orders_order SET timeline = json_remove(timeline, '$[1]') WHERE order_id = '{paid}'", "I4: timeline 'cf'"),
    (
        "UPDATE orders_outbox SET subject = 'orders.confirmed.v1', event_id = (SELECT event_id FROM orders_outbox"
        " WHERE key = '{paid}' AND subject = 'orders.confirmed.v1') WHERE key = '{paid}'",
        "I5: orders has published an event twice",
    ),
    ("DELETE FROM payments_inbox WHERE id IN (SELECT event_id FROM orders_outbox)", "1 unconsumed"),
    ("DELETE FROM inventory_inbox", "unconsumed"),
    ("UPDATE orders_outbox SET sent_at = NULL, due_at = '9999-01-01' WHERE key = '{paid}'", "not met after"),
    (
        "INSERT INTO orders_dead_letter VALUES ('01890000-0000-7000-8000-000000000000', 'orders', 's', 'failed', '', 5,"
        " '2020-01-01T00:00:00.000000+00:00', '2020-01-01T00:00:00.000000+00:00', 0, 'm', 'k', '{{}}', X'7B7D', NULL, NULL)",
        "I6: dead letters",
    ),
]


@pytest.mark.slow
async def test_each_kind_of_damage_is_detected(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """The check fails after each damage to the databases, and succeeds after the repair."""
    server = serve(**SEPARATE_DATABASES)
    client = connect(server)
    await client.stock("SKU-1", 10)
    paid, undone = await client.place({"SKU-1": 2}), await client.place({"SKU-1": 3})
    await client.wait_until_final(paid)
    await client.wait_until_final(undone)
    await client.cancel(undone)
    await client.wait_for_payment(undone, "refunded")
    expected = ([paid, undone], {"SKU-1": 10})
    await check_invariants(client, *expected)
    for damage, message in DAMAGE:
        with closing(sqlite3.connect(":memory:", isolation_level=None, timeout=10)) as connection:
            for module in MODULES:
                connection.execute(f"ATTACH ? AS of_{module}", (str(server.database_of(module)),))
            before = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in _tables(connection)}
            connection.execute(damage.format(paid=paid, undone=undone))
            with pytest.raises(AssertionError, match=message):
                await check_invariants(client, *expected, seconds=0.1)
            connection.execute("BEGIN IMMEDIATE")
            for name, saved in before.items():
                connection.execute(f"DELETE FROM {name}")
                if saved:
                    connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(saved[0]))})", saved)
            connection.execute("COMMIT")
    await check_invariants(client, *expected)
    with pytest.raises(AssertionError, match="I1: there are orders that were not placed"):
        await check_invariants(client, [paid], {"SKU-1": 10})


def _tables(connection: sqlite3.Connection) -> list[str]:
    query = "SELECT name FROM of_{}.sqlite_master WHERE type = 'table' AND name NOT LIKE '%version' AND name NOT LIKE 'sqlite%'"
    return [name for module in MODULES for (name,) in connection.execute(query.format(module))]
