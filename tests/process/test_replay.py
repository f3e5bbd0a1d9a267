"""`history verify` and `history rebuild` beside a running server, with the real program."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from tests.process.client import Client
from tests.process.conftest import Serve
from tests.process.server import SEPARATE_DATABASES, Server, run

pytestmark = pytest.mark.slow


async def history(server: Server, *arguments: str, code: int = 0, **settings: str) -> tuple[str, str]:
    """Return what the command prints on stdout and on stderr."""
    urls = {name: value for name, value in server.settings.items() if name.endswith("DATABASE_URL")}
    done = await asyncio.to_thread(run, server.folder, "history", *arguments, **{**urls, **settings})
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, pytest.param(SEPARATE_DATABASES, marks=pytest.mark.night)], ids=["one database", "a database each"])
async def test_a_history_is_verified_and_rebuilt_while_orders_are_placed(
    serve: Serve, connect: Callable[[Server], Client], settings: dict[str, str]
) -> None:
    """Equal at each moment, also after a kill; what was cancelled, declined and refunded included."""
    server = await asyncio.to_thread(serve, SIMULATED_DECLINE_OVER="5000", **settings)
    client = connect(server)
    await client.stock("A", 1_000)
    ids = [await client.place({"A": 1 + n % 60}, priority="express" if n % 2 else "normal") for n in range(12)]
    for id in ids:
        await client.wait_until_final(id)
    await client.cancel(ids[0])
    is_done = asyncio.Event()

    async def buy() -> None:
        while not is_done.is_set():
            ids.append(await client.place({"A": 1}))
            await client.wait_until_final(ids[-1])

    buying = asyncio.create_task(buy())
    try:
        found = json.loads((await history(server, "verify", "--json"))[0])
    finally:
        is_done.set()
        await buying
    assert (found["is_equal"], found["difference_count"], found["differences"], found["stopped"]) == (True, 0, [], {})
    assert found["transactions"] > 12
    await asyncio.to_thread(server.kill)
    shown, _ = await history(server, "rebuild", "--into", "sqlite:///rebuilt.db")
    assert shown.splitlines()[-1] == "Equal: every event and every state is what it was."

    def rows(path: Any, module: str, table: str) -> list[Any]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(f"SELECT * FROM {module}_{table} ORDER BY 1").fetchall()

    for module, table in (("orders", "order"), ("inventory", "product"), ("inventory", "reservation"), ("payments", "payment")):
        assert rows(server.folder / "rebuilt.db", module, table) == rows(server.database_of(module), module, table)
    _, error = await history(server, "rebuild", "--into", "sqlite:///rebuilt.db", code=2)
    assert error == "fulfilment: --into: the table orders_order has rows: name an empty database\n"


@pytest.mark.slow
async def test_what_differs_ends_with_1_and_is_named(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """A setting that has changed, a state that was edited, a row that is damaged, and a baseline that does not fit."""
    server = await asyncio.to_thread(serve)
    client = connect(server)
    await client.stock("A", 100)
    ids = [await client.place({"A": 1}) for _ in range(3)]
    for id in ids:
        await client.wait_until_final(id)
    shown, _ = await history(server, "verify", ORDER_TIMEOUT_S="600", code=1)
    assert "3 timers orders.timed_out.v1 are due 300 s earlier. A setting has changed since, perhaps ORDER_TIMEOUT_S=600" in shown
    _, error = await history(server, "verify", "--baseline", "sqlite:///nowhere.db", code=3)
    assert error == "fulfilment: --baseline: there is no database at nowhere.db\n"
    await asyncio.to_thread(server.kill)
    with closing(sqlite3.connect(server.database_of("orders"))) as connection, connection:
        connection.execute("UPDATE orders_order SET status = 'cancelled', reason = 'requested' WHERE order_id = ?", (ids[1],))
    shown, _ = await history(server, "verify", "--module", "orders", code=1)
    assert f'order {ids[1]}: status "cancelled" -> "confirmed", reason "requested" -> null' in shown
    with closing(sqlite3.connect(server.database_of("payments"))) as connection, connection:
        (number,) = connection.execute("SELECT max(number) FROM payments_history").fetchone()
        connection.execute("UPDATE payments_history SET content = x'09' WHERE number = ?", (number,))
    found = json.loads((await history(server, "rebuild", "--into", "sqlite:///rebuilt.db", "--json", code=1))[0])
    assert found["stopped"]["payments"].startswith(f"transaction {number}: a row of the history has the format 09")
    assert found["is_equal"] is False
