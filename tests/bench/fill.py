"""
Fill a SQLite file with confirmed orders, as if they had been placed within the last twelve hours.

``python -m tests.bench.fill FILE --orders 1000000``. One order is really placed; its rows are then written again under
other ids by SQL: a million take half a minute of processor time, and 1.6 GB. With ``--unsent`` the orders wait instead: accepted, with their events
unsent in the outbox, as after a crash or with a bus that was out of reach.
"""

from __future__ import annotations

__all__ = ["fill"]

import argparse
import asyncio
import re
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.bench.serving import load
from tests.process.server import Server
from tests.runtime.harness import harness_at, product, submitted

WITHIN = timedelta(hours=12)
"""The orders are so young that nothing of them is purged."""

CUSTOMERS = 50_000

_TABLE = re.compile(r"(orders|inventory|payments)_(order|reservation|payment|inbox|outbox)\Z")
_IDS = ("id", "event_id", "causation_id")
_ORDER_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\Z")

Value = Any


def fill(path: Path, orders: int, *, is_unsent: bool = False) -> None:
    """Add *orders* to the database at *path*; it is created if there is none."""
    if is_unsent:
        asyncio.run(_place_unsent(path))
    else:
        _place_confirmed(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in ("journal_mode = MEMORY", "synchronous = OFF", "cache_size = -400000"):
            connection.execute(f"PRAGMA {pragma}")
        ((order_id,),) = connection.execute("SELECT order_id FROM orders_order ORDER BY order_id DESC LIMIT 1")
        connection.execute("BEGIN")
        began = datetime.now(UTC) - WITHIN
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if _TABLE.match(table):
                _multiply(connection, table, order_id, orders, began)
        connection.execute("UPDATE inventory_product SET on_hand = 1000000000")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")


def _place_confirmed(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), DATABASE_URL=f"sqlite:///{path}").start()
        try:
            load(server.url, 1)
        finally:
            server.send(signal.SIGTERM)
            server.wait()


async def _place_unsent(path: Path) -> None:
    """Place an order whose events nothing takes."""
    async with harness_at(path) as harness:
        await harness.submit("inventory", product(on_hand=1_000_000_000))
        await harness.submit("orders", submitted())


def _multiply(connection: sqlite3.Connection, table: str, order_id: str, orders: int, began: datetime) -> None:
    """Write the rows of the order *order_id* in *table* again for so many other orders."""
    rows = connection.execute(f"SELECT * FROM {table}")
    names = [column[0] for column in rows.description]
    templates = [row for row in rows if table.endswith("box") or row[0] == order_id]
    for template in templates:
        make = [_maker(name, value, order_id) for name, value in zip(names, template, strict=True)]
        places = ", ".join("?" * len(names))
        connection.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({places})", _rows(make, orders, began))


def _rows(make: Sequence[Callable[[int, str], Value]], orders: int, began: datetime) -> Iterator[list[Value]]:
    first, step = int(began.timestamp() * 1000), WITHIN / timedelta(milliseconds=1) / orders
    for number in range(orders):
        milliseconds = f"{first + int(number * step):012x}"
        order_id = f"{milliseconds[:8]}-{milliseconds[8:]}-7000-8000-{number:012x}"
        yield [each(number, order_id) for each in make]


def _maker(name: str, value: Value, order_id: str) -> Callable[[int, str], Value]:
    """Return what makes a value of column *name* like *value*, from the number of an order and its id."""
    if name == "customer_id":
        return lambda number, _: f"c-{number % CUSTOMERS}"
    if isinstance(value, bytes):
        before, found, behind = value.partition(order_id.encode())
        return (lambda _, id: before + id.encode() + behind) if found else (lambda *_: value)
    if isinstance(value, str) and order_id in value:
        return lambda _, id: value.replace(order_id, id)
    if name in _IDS and isinstance(value, str) and len(value) == 36:
        kind = value[19:23]  # ids derived from one id differ here and behind
        return lambda _, id: f"{id[:19]}{kind}{id[23:]}"
    return lambda *_: value


def main() -> None:
    """Fill a file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fill", description="Fill a SQLite file with orders.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--orders", type=int, default=1_000_000)
    parser.add_argument("--unsent", action="store_true", help="accepted orders whose events are unsent")
    options = parser.parse_args()
    began = time.monotonic()
    fill(options.file.absolute(), options.orders, is_unsent=options.unsent)
    print(f"{options.orders} orders in {time.monotonic() - began:.0f} s, {options.file.stat().st_size >> 20} MiB")


if __name__ == "__main__":
    main()
