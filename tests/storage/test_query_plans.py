"""No statement of the running program visits a whole table that grows, on either database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import psycopg
import pytest

from app.application import Application
from app.storage.search import list_query
from app.web.requests.ndjson import NDJSON
from config.environment import load
from modules.registry import MODULES
from tests.postgres import PostgresServer
from tests.runtime.harness import oid
from tests.storage.query_plans import PlannedScan, StatementLog

ORDERS, DECLINED = 6, 10
"""Orders that are confirmed, and as many that are declined: they have so many pieces."""

PRICE = 100

VALUES: Mapping[str, str] = {
    "action": "inventory.adjust",
    "actor": "anonymous",
    "after": "2026-01-01T00:00:00Z",
    "before": "2099-01-01T00:00:00Z",
    "consumer": "inventory",
    "correlation_id": "c-1",
    "created_after": "2026-01-01T00:00:00Z",
    "created_before": "2099-01-01T00:00:00Z",
    "customer_id": "c-1",
    "error": "failed",
    "max_available": "5",
    "max_total": "100000",
    "min_total": "1",
    "module": "orders",
    "needs_settling": "true",
    "product_id": "SKU-1",
    "q": "c",
    "reason": "requested",
    "status": "confirmed",
    "subject": "orders.created.v2",
    "target": "SKU-1",
    "waiting_for": "payment",
}
"""A value of each filter of a list; a new filter needs one here."""

NO_LISTS = ("/v1/contracts",)


def list_requests(document: Any) -> Iterator[str]:
    """Yield a request for each filter of each list in an OpenAPI *document*, for each two of them, and without any."""
    for path, methods in document["paths"].items():
        if "get" not in methods or "{" in path or path.endswith("/stream") or path in NO_LISTS or not path.startswith("/v1/"):
            continue
        parameters = methods["get"].get("parameters", ())
        filters = [each for each in parameters if each.get("in") == "query" and each["name"] != "limit"]
        values = {each["name"]: value_of(each) for each in filters}
        has_limit = any("limit" in (each.get("name"), each.get("$ref", "").rpartition("/")[2].lower()) for each in parameters)
        limit = ["limit=2"] if has_limit else []
        for count in (0, 1, 2):
            for chosen in combinations(values, count):
                query = "&".join([*limit, *(f"{name}={quote(values[name])}" for name in chosen)])
                yield f"{path}?{query}"


def value_of(parameter: Any) -> str:
    """Return a value of the filter that *parameter* describes: one of those that it lists, or that in `VALUES`."""
    schema = parameter["schema"]
    if schema["type"] == "integer" and parameter["name"] == "after":  # a position, and no time
        return "1"
    allowed = schema.get("items", schema).get("enum")
    return str(allowed[0]) if allowed else VALUES[parameter["name"]]


async def use(application: Application, url: str) -> None:
    """Place orders, some of them declined, cancel one, change stock, read every list with every filter, purge and archive."""
    async with aiohttp.ClientSession(url) as client:

        async def call(method: str, path: str, body: Any = None) -> Any:
            async with client.request(method, path, json=body, headers={"X-Correlation-ID": "c-1"}) as answer:
                found = await (answer.text() if answer.content_type == NDJSON else answer.json())
                assert answer.status < 300, (path, found)
                return found

        price = {"amount": PRICE, "currency": "EUR"}
        await call("PUT", "/v1/inventory/SKU-1", {"on_hand": 1000, "unit_price": price})
        for number in range(2, 6):  # more than a list examines at once
            await call("PUT", f"/v1/inventory/SKU-{number}", {"on_hand": 1, "unit_price": price})
        await call("POST", "/v1/inventory/SKU-1/adjust", {"quantity": -1, "reason": "damaged"})
        ids = []
        for quantity in (1, DECLINED) * ORDERS:
            body = {"customer_id": "c-1", "items": [{"product_id": "SKU-1", "quantity": quantity}]}
            ids.append((await call("POST", "/v1/orders", body))["order_id"])
        await call("POST", f"/v1/orders/{ids[0]}/cancel", {})
        for path in list_requests(await call("GET", "/openapi.json")):
            page = await call("GET", path)
            cursor = page.get("next_cursor") if isinstance(page, dict) else None  # an export is text
            if cursor is not None:
                await call("GET", f"{path}&cursor={quote(cursor)}")
        for id in ids:
            await call("GET", f"/v1/orders/{id}/explain")
        async with client.get(f"/v1/orders/{oid(1)}") as answer:  # an old order, which the archive might have
            assert answer.status == 404
    parts = application.parts
    for name, store in parts.storage.stores.items():
        await store.database.write(partial(store.purge, now=parts.clock.now()))
        await parts.archivers[name].step()
        await parts.runtime.relays[name].step()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> StatementLog:
    """A log of the statements; a list examines few rows at once, so that it ends its search with few orders."""
    monkeypatch.setattr(list_query, "EXAMINED_MAX", 3)
    monkeypatch.setattr(list_query, "CANDIDATES_MAX", 2)
    return StatementLog()


async def run(log: StatementLog, url: str) -> None:
    """Record what an application on the database at *url* executes."""
    settings = {"DATABASE_URL": url, "HTTP_PORT": "0", "ORDERS_KEPT": "2d", "HISTORY_KEPT": "2d", "SIMULATED_DECLINE_OVER": str(DECLINED * PRICE - 1)}
    migrated = Application(load(settings, MODULES)).parts.storage
    migrated.migrate()
    await migrated.close()
    with log.recording():
        application = Application(load(settings, MODULES))
        try:
            await use(application, await application.start())
        finally:
            await application.stop()


def shown(scans: list[PlannedScan]) -> str:
    """Return *scans* as text."""
    return "\n".join(sorted({f"{scan.plan}: {scan.statement}" for scan in scans}))


async def test_no_statement_scans_a_growing_table_on_sqlite(path: Path, log: StatementLog) -> None:
    """The time of every request, purge, timer and look into the outbox stays the same with a million orders."""
    await run(log, f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        assert not shown(log.scans_on_sqlite(connection))
        assert_complete(log)


@pytest.mark.slow
async def test_no_statement_scans_a_growing_table_on_postgresql(postgres: PostgresServer, log: StatementLog) -> None:
    """The same where the server chooses the plans."""
    url = postgres.create_database()
    await run(log, url)
    with psycopg.connect(url) as connection:
        connection.execute("SET enable_seqscan = off")
        assert not shown(log.scans_on_postgres(connection))
        assert_complete(log)


def assert_complete(log: StatementLog) -> None:
    """Ensure that the run has used the tables of every module."""
    kinds = {table.partition("_")[2] for table in log.tables()}
    assert kinds == {"archive", "history", "inbox", "order", "outbox", "payment", "product", "reservation"}
