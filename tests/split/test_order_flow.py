"""The flow of orders through three processes, observed at the processes and on the broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import nats
import pytest

from tests.nats import NatsServer
from tests.process.client import Client, Reply, eventually
from tests.process.invariants import rows
from tests.split.invariants import check_system, consumers_of
from tests.split.system import MODULES, System

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "X-Correlation-ID": "my-order"}
DAYS_2_LESS_1_HOUR = 47 * 3600 * 10**9


async def messages_of(broker: NatsServer, stream: str) -> list[Any]:
    """Return all messages of *stream*, oldest first."""
    client = await nats.connect(broker.url)
    try:
        js = client.jetstream()
        state = (await js.stream_info(stream)).state
        return [await js.get_msg(stream, seq) for seq in range(state.first_seq, state.last_seq + 1)]
    finally:
        await client.close()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One NATS server for all tests of this file."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(scope="module")
def system(broker: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Three running processes with debug logs, for all tests of this file."""
    system = System(tmp_path_factory.mktemp("system"), broker.urls, LOG_LEVEL="DEBUG", SIMULATED_DECLINE_OVER="100000")
    try:
        yield system.start()
    finally:
        system.end()


async def test_orders_of_every_kind_reach_their_final_state(
    system: System, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Confirmed, out of stock, declined, cancelled and refunded: three processes give the same results as one."""
    client = connect(system)
    await client.stock("SKU-1", 10)
    await client.stock("SKU-EXPENSIVE", 10, 100_001)
    orders = {}
    for name, items, priority in (
        ("confirmed", {"SKU-1": 2}, "normal"),
        ("express", {"SKU-1": 3}, "express"),
        ("too many", {"SKU-1": 99}, "normal"),
        ("too expensive", {"SKU-EXPENSIVE": 1}, "express"),
        ("cancelled later", {"SKU-1": 1}, "normal"),
    ):
        orders[name] = await client.wait_until_final(await client.place(items, priority=priority))
    cancelled = orders["cancelled later"]["order_id"]
    assert (await client.cancel(cancelled, "no"))["status"] == "cancelled"
    payment = await client.wait_for_payment(cancelled, "refunded")
    assert payment["amount"] == {"amount": 100, "currency": "EUR"}

    assert {name: (order["status"], order["reason"]) for name, order in orders.items()} == {
        "confirmed": ("confirmed", None),
        "express": ("confirmed", None),
        "too many": ("cancelled", "insufficient_stock"),
        "too expensive": ("cancelled", "payment_declined"),
        "cancelled later": ("confirmed", None),
    }
    accepted = [order["order_id"] for order in orders.values()]
    await check_system(client, system, broker, accepted, {"SKU-1": 10, "SKU-EXPENSIVE": 10})
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 5
    assert system.stderr == ""


async def test_each_process_serves_only_the_paths_of_its_module(
    system: System, connect: Callable[[System], Client]
) -> None:
    """The paths of other modules are 404 like unknown paths; every process serves probes and dead letters."""
    client = connect(system)
    paths = {
        "orders": ("/v1/orders", "/v1/orders/none"),
        "inventory": ("/v1/inventory", "/v1/inventory/none"),
        "payments": ("/v1/payments/none",),
    }

    unknown = (await client.request_url(f"{system.servers['orders'][0].url}/v1/unknown")).body

    def is_served(reply: Reply) -> bool:
        return reply.status == 200 or reply.body["detail"] != unknown["detail"]

    for module in MODULES:
        url = system.servers[module][0].url
        for path in ("/livez", "/readyz", "/health", "/metrics", "/v1/dead-letters", "/openapi.json"):
            assert (await client.request_url(url + path)).status == 200, (module, path)
        paths_of_api = (await client.request_url(f"{url}/openapi.json")).body["paths"]
        for other in MODULES:
            assert any(path.startswith(f"/v1/{other}") for path in paths_of_api) == (other == module)
            for path in paths[other]:
                assert is_served(await client.request_url(url + path)) == (other == module), (module, path)
        checks = (await client.request_url(f"{url}/readyz")).body["checks"]
        assert checks == {"bus": "ok", f"database:{module}": "ok"}


async def test_the_trace_of_a_request_is_in_every_log_and_message(
    system: System, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Its correlation id and trace id are in the log of every process and in the headers of every message it caused."""
    client = connect(system)
    await client.stock("SKU-1", 10)
    body = {"customer_id": "c-1", "items": [{"product_id": "SKU-1", "quantity": 1}]}
    order_id = (await client.request("POST", "/v1/orders", body, HEADERS)).body["order_id"]
    await client.wait_until_final(order_id)

    messages = [message for name in ("ORDERS", "INVENTORY", "PAYMENTS") for message in await messages_of(broker, name)]
    related = [message for message in messages if order_id in message.data.decode()]
    by_subject = {message.subject: message for message in related}
    assert {
        "orders.created.v1",
        "inventory.reserved.v1",
        "payments.captured.v1",
        "orders.confirmed.v1",
    } <= by_subject.keys()
    for message in related:
        headers = message.headers
        assert headers["ce-specversion"] == "1.0"
        assert headers["ce-type"] == message.subject
        assert headers["ce-source"] == f"/fulfilment/{message.subject.partition('.')[0]}"
        assert headers["ce-correlationid"] == "my-order"
        assert headers["traceparent"].split("-")[1] == TRACE
        if message.subject.endswith(".v1"):  # a newer version of the same event has another id
            assert headers["Nats-Msg-Id"] == headers["ce-id"]
        assert headers["ce-time"].endswith(("Z", "+00:00"))
    created, reserved = by_subject["orders.created.v1"], by_subject["inventory.reserved.v1"]
    assert json.loads(created.data)["version"] == "v1"
    assert reserved.headers["ce-causationid"] == created.headers["ce-id"]
    assert len({message.headers["Nats-Msg-Id"] for message in related}) == len(related)

    for module in MODULES:
        line = await asyncio.to_thread(
            system.servers[module][0].wait_for_line, lambda line: '"my-order"' in line and TRACE in line
        )
        assert json.loads(line)["correlation_id"] == "my-order"


async def test_a_charge_request_does_not_leave_the_process_that_charges(
    system: System, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Payments hands it to its own worker after the commit; its outbox row counts as sent."""
    client = connect(system)
    await client.stock("SKU-1", 10)
    order = await client.wait_until_final(await client.place({"SKU-1": 1}))
    assert order["status"] == "confirmed"
    subjects = {message.subject for message in await messages_of(broker, "PAYMENTS")}
    assert "payments.captured.v1" in subjects
    assert not [subject for subject in subjects if "requested" in subject]
    sql = "SELECT count(*) FROM payments_outbox WHERE subject LIKE 'payments.%requested%' AND sent_at IS {} NULL"
    database = system.database_of("payments")

    async def unsent() -> Any:
        return rows(database, sql.format(""))

    await eventually(unsent, lambda found: found == [(0,)])
    assert rows(database, sql.format("NOT"))[0][0] >= 1


async def test_streams_and_durables_match_the_contract(system: System, broker: NatsServer) -> None:
    """Their names and settings are public: other programs rely on them."""
    (account,) = broker.ask("/jsz?streams=true&config=true")["account_details"]
    streams = {stream["name"]: stream["config"] for stream in account["stream_detail"]}
    assert streams.keys() >= {"ORDERS", "INVENTORY", "PAYMENTS"}
    for name in ("ORDERS", "INVENTORY", "PAYMENTS"):
        config = streams[name]
        assert config["subjects"] == [f"{name.lower()}.>"]
        assert (config["retention"], config["discard"], config["storage"]) == ("limits", "new", "file")
        assert config["max_age"] == DAYS_2_LESS_1_HOUR
        assert config["num_replicas"] == 1
        assert config["duplicate_window"] == 120 * 10**9

    streams_by_consumer = {
        "orders": ("INVENTORY", "PAYMENTS"),
        "inventory": ("ORDERS",),
        "payments": ("INVENTORY", "ORDERS"),
        "payments-gateway": ("PAYMENTS",),
    }
    names = {
        f"{stream}/{name}{lane}"
        for name, streams_of_it in streams_by_consumer.items()
        for stream in streams_of_it
        for lane in ("", "-express")
    }

    async def durables() -> dict[str, Any]:
        return consumers_of(broker)

    consumers = await eventually(durables, lambda found: found.keys() >= names)
    for key, each in consumers.items():
        stream, _, name = key.partition("/")
        if stream not in ("ORDERS", "INVENTORY", "PAYMENTS"):
            continue
        config = each["config"]
        assert config["durable_name"] == name
        assert "deliver_subject" not in config, "a pull consumer has no deliver_subject"
        assert (config["ack_policy"], config["deliver_policy"]) == ("explicit", "all")
        assert (config["ack_wait"], config["max_deliver"]) == (30 * 10**9, 5), key
        express = name.endswith("-express")
        subjects = config.get("filter_subjects") or [config["filter_subject"]]
        assert all(subject.endswith(".express") == express and "*" not in subject for subject in subjects)
