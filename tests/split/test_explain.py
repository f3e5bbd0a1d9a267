"""One order explained by any of three processes, also while one of them is down."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from tests.process.client import Client, eventually
from tests.split.conftest import Build
from tests.split.peers import know_each_other
from tests.split.system import MODULES, System
from tests.split.test_overview import KEYS, OPERATOR, VIEWER

pytestmark = pytest.mark.slow

SHOP = {"Authorization": "Bearer key-of-the-customer-1"}
OTHER = {"Authorization": "Bearer key-of-the-customer-2"}
CUSTOMERS = ("web-1:shop:key-of-the-customer-1:c-1", "web-2:shop:key-of-the-customer-2:c-2")

WHOLE = {
    ("orders.created.v2", None),
    ("inventory.reserved.v1", "orders.created.v2"),
    ("payments.charge_requested.v1", "inventory.reserved.v1"),
    ("payments.captured.v1", "payments.charge_requested.v1"),
    ("orders.confirmed.v1", "payments.captured.v1"),
}


async def test_an_order_is_explained_by_any_process(build: Build, connect: Callable[[System], Client]) -> None:
    """The same tree from each; with one process down it is named within 2.5 s, and the events that others heard stay."""
    system = build()
    know_each_other(system, *KEYS, *CUSTOMERS)
    client = connect(system.start())
    price = {"on_hand": 10, "unit_price": {"amount": 100, "currency": "EUR"}}
    assert (await client.request("PUT", "/v1/inventory/SKU-1", price, OPERATOR)).status == 200
    body = {"customer_id": "c-1", "items": [{"product_id": "SKU-1", "quantity": 1}]}
    order_id = (await client.request("POST", "/v1/orders", body, OPERATOR)).body["order_id"]

    async def explain(module: str, key: dict[str, str] = VIEWER, status: int = 200) -> dict[str, Any]:
        reply = await client.request_url(f"{system.servers[module][0].url}/v1/orders/{order_id}/explain", headers=key)
        assert reply.status == status, reply.text
        found: dict[str, Any] = reply.body
        return found

    for module in MODULES:
        found = await eventually(lambda module=module: explain(module), lambda it: it["status"] == "confirmed" and len(it["events"]) == 5)  # type: ignore[misc]
        subjects = {event["event_id"]: event["subject"] for event in found["events"]}
        assert {(event["subject"], subjects.get(event["parent_id"])) for event in found["events"]} == WHOLE
        assert (found["unreachable"], found["is_complete"]) == ([], True)
        assert found["payment"]["status"] == "captured"
        assert found["reservation"]["lines"] == [{"product_id": "SKU-1", "quantity": 1}]
        assert (await explain(module, SHOP))["order_id"] == order_id
        assert (await explain(module, OTHER, status=404))["code"] == "not_found"

    for module in "inventory", "payments":  # as two days later
        with closing(sqlite3.connect(system.database_of(module))) as connection, connection:
            connection.execute(f"DELETE FROM {module}_inbox")
    found = await explain("orders")
    subjects = {event["event_id"]: event["subject"] for event in found["events"]}
    assert {(event["subject"], subjects.get(event["parent_id"])) for event in found["events"]} == WHOLE

    system.kill(system.servers["payments"][0])
    started = time.monotonic()
    found = await eventually(lambda: explain("orders"), lambda it: it["unreachable"] == ["payments"])
    assert time.monotonic() - started < 2.5
    assert found["reasons"]["payments"].startswith("no connection")
    assert (found["payment"], found["is_complete"]) == (None, False)
    assert "what payments would add is not known" in found["summary"]
    captured = next(event for event in found["events"] if event["subject"] == "payments.captured.v1")
    assert (captured["cause_id"], captured["module"]) == (None, "payments")  # orders has heard it
    system.kill(system.servers["orders"][0])
    away = await explain("inventory", status=503)
    assert (away["code"], away["unreachable"]) == ("module_unreachable", ["orders"])
