"""One order explained by one process."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from app.gateways.payment_worker import CONSUMER
from bus.ids import derived_id
from tests.process.client import Client, eventually
from tests.process.conftest import Serve
from tests.process.server import SEPARATE_DATABASES, Server

pytestmark = pytest.mark.slow

ONE_DATABASE: dict[str, str] = {}


def tree(explained: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Return the events, each with the subject of the event above it."""
    subjects = {event["event_id"]: event["subject"] for event in explained["events"]}
    return [(event["subject"], subjects.get(event["parent_id"])) for event in explained["events"]]


@pytest.mark.parametrize(
    ("settings", "delivery"), [(ONE_DATABASE, "local"), (SEPARATE_DATABASES, "published"), ({"HTTP_WORKERS": "1"}, "local")],
    ids=["one database", "three databases", "a worker"],
)  # fmt: skip
async def test_the_whole_tree_of_an_order(serve: Serve, connect: Callable[[Server], Client], settings: dict[str, str], delivery: str) -> None:
    """From the acceptance to the refund, with what caused what, through the payment worker and over several databases."""
    client = connect(serve(**settings))
    await client.stock("SKU-1", 10, 1250)
    other = await client.place({"SKU-1": 1})
    order_id = await client.place({"SKU-1": 2})
    for each in other, order_id:
        await client.wait_until_final(each)
    await client.cancel(order_id, "no")
    await client.wait_for_payment(order_id, "refunded")

    async def explain() -> dict[str, Any]:
        found: dict[str, Any] = await client.get(f"/v1/orders/{order_id}/explain")
        return found

    explained = await eventually(explain, lambda it: "was refunded" in it["summary"] and not any(e["delivery"] == "pending" for e in it["events"]))
    assert explained["summary"].startswith("Cancelled at ")
    assert explained["summary"].endswith("because a client requested it (requested); its stock is released; 25.00 EUR was refunded.")
    assert sorted(tree(explained), key=str) == sorted(
        [
            ("orders.created.v2", None),
            ("inventory.reserved.v1", "orders.created.v2"),
            ("payments.charge_requested.v1", "inventory.reserved.v1"),
            ("payments.captured.v1", "payments.charge_requested.v1"),
            ("orders.confirmed.v1", "payments.captured.v1"),
            ("orders.cancelled.v1", None),
            ("inventory.released.v1", "orders.cancelled.v1"),
            ("payments.refund_requested.v1", "orders.cancelled.v1"),
            ("payments.refunded.v1", "payments.refund_requested.v1"),
        ],
        key=str,
    )
    places = {event["event_id"]: place for place, event in enumerate(explained["events"])}
    assert all(places[event["event_id"]] > places.get(event["parent_id"], -1) for event in explained["events"])
    assert {event["delivery"] for event in explained["events"] if event["subject"].startswith("orders.")} == {delivery}
    assert all(event["data"]["order_id"] == order_id for event in explained["events"])
    assert [(each["outcome"], each["detail"].get("calls")) for each in explained["payment"]["attempts"]] == [
        ("charge_succeeded", 1), ("refund_succeeded", None),
    ]  # fmt: skip
    assert explained["reservation"] == {"status": "released", "lines": [{"product_id": "SKU-1", "quantity": 2}]}
    assert [each["action"] for each in explained["audit"]] == ["cancelOrder"]
    assert (explained["timers"], explained["dead_letters"], explained["unreachable"]) == ([], [], [])
    assert (explained["waiting_for"], explained["is_complete"]) == (None, True)


async def test_an_order_that_waits_for_the_provider(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """Its attempts, the next one, and when it is cancelled; later the breaker."""
    client = connect(serve(SIMULATED_FAILURE_RATE="1", LOG_LEVEL="CRITICAL"))
    await client.stock("SKU-1", 100)
    order_id = await client.place({"SKU-1": 1})

    async def explain() -> dict[str, Any]:
        found: dict[str, Any] = await client.get(f"/v1/orders/{order_id}/explain")
        return found

    explained = await eventually(explain, lambda it: len(it["payment"]["attempts"]) > 1 and len(it["timers"]) == 2)
    assert explained["status"] == "reserved"
    assert explained["waiting_for"]["what"] == "payment"
    assert {timer["name"].partition(":")[0] for timer in explained["timers"]} == {"timeout", "charge"}
    assert explained["waiting_for"]["until"] == next(each["due_at"] for each in explained["timers"] if each["module"] == "orders")
    assert explained["summary"].endswith(" if nothing comes.")
    assert tree(explained).count(("payments.charge_requested.v1", "payments.charge_requested.v1")) >= 1
    for _ in range(20):
        await client.place({"SKU-1": 1})
    await eventually(explain, lambda it: "waits for the payment provider, whose breaker for " in it["summary"])


async def test_an_event_that_a_consumer_could_not_process(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """It is dead, after so many attempts, and its dead letter is shown."""
    server = serve()
    client = connect(server)
    await client.stock("SKU-1", 10)
    order_id = await client.place({"SKU-1": 1})
    await client.wait_until_final(order_id)
    explained = await client.get(f"/v1/orders/{order_id}/explain")
    request = next(event for event in explained["events"] if event["subject"] == "payments.charge_requested.v1")
    at, id, headers = request["at"], request["event_id"], json.dumps({"ce-id": request["event_id"]})
    row = (derived_id(id, CONSUMER), CONSUMER, request["subject"], "failed", "it raised", 5, at, at, 0, id, order_id, headers, b"{}", None, None)
    with closing(sqlite3.connect(server.database)) as connection, connection:
        connection.execute(f"INSERT INTO payments_dead_letter VALUES ({', '.join('?' * len(row))})", row)
    explained = await client.get(f"/v1/orders/{order_id}/explain")
    (dead,) = [event for event in explained["events"] if event["delivery"] == "dead"]
    assert (dead["event_id"], dead["attempts"]) == (id, 5)
    assert [(letter["consumer"], letter["error"]) for letter in explained["dead_letters"]] == [(CONSUMER, "failed")]
    with closing(sqlite3.connect(server.database)) as connection, connection:
        connection.execute("UPDATE payments_dead_letter SET error = 'waits', attempts = 0")
    explained = await client.get(f"/v1/orders/{order_id}/explain")
    assert [(each["event_id"], each["attempts"]) for each in explained["events"] if each["delivery"] == "pending"] == [(id, 0)]


async def test_what_is_not_there(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """An unknown order is 404; one from before the history has its states, and is not complete."""
    server = serve()
    client = connect(server)
    for path in "/v1/orders/none/explain", "/v1/orders/0192f0c1-2b3c-7d4e-8f50-617283940a1b/explain":
        assert (await client.get(path, status=404))["code"] == "not_found"
    await client.stock("SKU-1", 10)
    order_id = await client.place({"SKU-1": 1})
    await client.wait_until_final(order_id)
    with closing(sqlite3.connect(server.database)) as connection, connection:
        for module in "orders", "inventory", "payments":
            connection.execute(f"DELETE FROM {module}_history")
    explained = await client.get(f"/v1/orders/{order_id}/explain")
    assert (explained["status"], explained["events"], explained["is_complete"]) == ("confirmed", [], False)
    assert explained["payment"]["status"] == "captured"
    assert explained["summary"].startswith("Confirmed at ")
