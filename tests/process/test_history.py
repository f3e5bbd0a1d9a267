"""The history of a running server: over HTTP and with `history export`, through a kill."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from tests.process.client import Client
from tests.process.conftest import Serve
from tests.process.server import SEPARATE_DATABASES, Server, run

pytestmark = pytest.mark.slow

STANDARD = {
    "orders.created.v2", "inventory.reserved.v1", "payments.charge_requested.v1", "payments.captured.v1", "orders.confirmed.v1"
}  # fmt: skip


async def pages(client: Client, query: str = "", limit: int = 7, start: int = 0) -> list[Any]:
    """Return the items of all pages."""
    items: list[Any] = []
    after = start
    while True:
        page = await client.get(f"/v1/history?limit={limit}&after={after}{query}")
        items += page["items"]
        if page["next_after"] is None:
            return items
        after = page["next_after"]


def exported(server: Server, *arguments: str, code: int = 0) -> tuple[list[Any], str]:
    """Return the lines that `history export` prints, and what it prints on stderr."""
    settings = {name: value for name, value in server.settings.items() if name.endswith("DATABASE_URL")}
    done = run(server.folder, "history", "export", *arguments, **settings)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


async def test_every_order_is_in_the_history_of_a_server_that_is_killed(
    serve: Serve, connect: Callable[[Server], Client]
) -> None:
    """API and command show the same events; an export continues where it ended, while the server runs."""
    server = await asyncio.to_thread(serve)
    client = connect(server)
    await client.stock("A", 100)
    ids = await asyncio.gather(*(client.place({"A": 1}) for _ in range(20)))
    await asyncio.to_thread(server.kill)
    first, _ = await asyncio.to_thread(exported, server)
    await asyncio.to_thread(server.start)
    more = await asyncio.gather(*(client.place({"A": 1}) for _ in range(5)))
    for id in (*ids, *more):
        await client.wait_until_final(id)
    shown = await pages(client)
    assert [item["seq"] for item in shown] == sorted({item["seq"] for item in shown})
    assert set(shown[0]) == {"seq", "event_id", "cause_id", "correlation_id", "subject", "at", "data"}
    counted = Counter((item["data"]["order_id"], item["subject"]) for item in shown)
    assert counted == dict.fromkeys([(id, subject) for id in (*ids, *more) for subject in STANDARD], 1)
    rest, _ = await asyncio.to_thread(exported, server, "--after", str(first[-1]["seq"]))
    keys = [line.pop("key") for line in (*first, *rest)]
    assert [*first, *rest] == shown
    assert keys == [item["data"]["order_id"] for item in shown]
    chosen, _ = await asyncio.to_thread(exported, server, "--module", "inventory", "--subject", "inventory.reserved.v1")
    assert len(chosen) == 25
    beyond = str(shown[-1]["seq"] + 10**9)
    none, error = await asyncio.to_thread(exported, server, "--after", beyond, code=2)
    assert none == []
    assert f"--after: {beyond} is beyond the last event of this database" in error
    with closing(sqlite3.connect(server.database_of("orders"))) as connection, connection:
        connection.execute("DELETE FROM orders_history WHERE number = (SELECT min(number) FROM orders_history)")
    problem = await client.get("/v1/history", 409)
    assert problem["code"] == "history_incomplete"
    after = problem["detail"].rpartition(" ")[2].rstrip(".")
    assert await pages(client, start=int(after)) == [item for item in shown if item["seq"] > int(after)]
    _, error = await asyncio.to_thread(exported, server, code=1)
    assert error.endswith(f"after {after}\n")
    with closing(sqlite3.connect(server.database_of("orders"))) as connection, connection:
        connection.execute("UPDATE orders_history SET content = x'09'")
    _, error = await asyncio.to_thread(exported, server, "--after", after, code=1)
    assert re.search(r"row \d+ of orders_history cannot be read: .* format 09, .* after \d+\n$", error)
    problem = await client.get(f"/v1/history?after={after}", 409)
    assert problem["code"] == "history_damaged"
    assert re.search(r"Row \d+ of orders_history cannot be read", problem["detail"])


@pytest.mark.night
async def test_modules_with_a_database_each_have_a_history_each(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """Without a module there is no order among them: 400, and what to do; a bad value is named."""
    server = await asyncio.to_thread(serve, **SEPARATE_DATABASES)
    client = connect(server)
    await client.stock("A", 100)
    id = await client.place({"A": 1}, priority="express")
    await client.wait_until_final(id)
    refused = await client.get("/v1/history", 400)
    assert (refused["code"], "name one module" in refused["detail"]) == ("module_needed", True)
    subjects = []
    for module in ("orders", "inventory", "payments"):
        subjects += [item["subject"] for item in await pages(client, f"&module={module}", limit=1)]
    assert {*subjects} == {f"{subject}.express" for subject in STANDARD}
    assert len(await pages(client, "&module=orders&subject=orders.created.v2")) == 1
    assert await pages(client, "&module=orders&subject=orders.timed_out.v1.express") == []
    problem = await client.get("/v1/history?module=orders&subject=orders.nothing.v2", 400)
    ((pointer, detail),) = [(each["pointer"], each["detail"]) for each in problem["errors"]]
    assert (problem["code"], pointer, "orders.confirmed.v1" in detail) == ("invalid_query", "/subject", True)
    _, error = await asyncio.to_thread(exported, server, "--module", "orders", "--subject", "orders.nothing.v2", code=2)
    assert error.startswith("fulfilment: --subject: must be one of inventory.")
    for query in ("after=-1", "after=1.5", "limit=0", "limit=201", "module=shipping", "cursor=x"):
        name = query.partition("=")[0]
        problem = await client.get(f"/v1/history?{query}", 400)
        assert [each["pointer"] for each in problem["errors"]] == [f"/{name}"], query
    _, error = await asyncio.to_thread(exported, server, code=2)
    assert error.startswith("fulfilment: --module: the modules have several databases")
    lines, _ = await asyncio.to_thread(partial(exported, server, "--module", "payments"))
    assert [line["subject"] for line in lines] == ["payments.charge_requested.v1.express", "payments.captured.v1.express"]
