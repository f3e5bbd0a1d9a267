"""One order's way through three processes, and what an onlooker sees of it at each of them and on the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import nats
import pytest

from tests.nats import NatsServer
from tests.process.client import Client, Reply, eventually
from tests.split.system import MODULES, System
from tests.split.world import consumers_of, look_at_the_whole

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "X-Correlation-ID": "my-order"}
DAYS_2_LESS_1_HOUR = 47 * 3600 * 10**9


async def messages_of(broker: NatsServer, stream: str) -> list[Any]:
    """Return all messages that *stream* holds, oldest first."""
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
    """Three parts that run, talkative ones, for all tests of this file."""
    system = System(
        tmp_path_factory.mktemp("house"), broker.urls, LOG_LEVEL="DEBUG", SIMULATED_DECLINE_OVER="100000"
    )
    try:
        yield system.start()
    finally:
        system.end()


async def test_orders_of_every_kind_come_to_their_end(
    system: System, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Confirmed, out of stock, declined, cancelled and refunded: three processes say what one says."""
    client = connect(system)
    await client.stock("SKU-1", 10)
    await client.stock("SKU-DEAR", 10, 100_001)
    ends = {}
    for name, items, priority in (
        ("confirmed", {"SKU-1": 2}, "normal"),
        ("express", {"SKU-1": 3}, "express"),
        ("too many", {"SKU-1": 99}, "normal"),
        ("too dear", {"SKU-DEAR": 1}, "express"),
        ("regretted", {"SKU-1": 1}, "normal"),
    ):
        ends[name] = await client.followed(await client.place(items, priority=priority))
    regretted = ends["regretted"]["order_id"]
    assert (await client.cancel(regretted, "no"))["status"] == "cancelled"
    payment = await client.payment_once(regretted, "refunded")
    assert payment["amount"] == {"amount": 100, "currency": "EUR"}

    assert {name: (order["status"], order["reason"]) for name, order in ends.items()} == {
        "confirmed": ("confirmed", None),
        "express": ("confirmed", None),
        "too many": ("cancelled", "insufficient_stock"),
        "too dear": ("cancelled", "payment_declined"),
        "regretted": ("confirmed", None),
    }
    accepted = [order["order_id"] for order in ends.values()]
    await look_at_the_whole(client, system, broker, accepted, {"SKU-1": 10, "SKU-DEAR": 10})
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 5
    assert system.stderr == ""


async def test_each_part_answers_for_its_module_alone(system: System, connect: Callable[[System], Client]) -> None:
    """What another process answers for is 404 here, as if it were nothing; probes and dead letters are everybody's."""
    client = connect(system)
    paths = {
        "orders": ("/v1/orders", "/v1/orders/none"),
        "inventory": ("/v1/inventory", "/v1/inventory/none"),
        "payments": ("/v1/payments/none",),
    }

    nowhere = (await client.call(f"{system.parts['orders'][0].url}/v1/nowhere")).body

    def is_known(reply: Reply) -> bool:
        return reply.status == 200 or reply.body["detail"] != nowhere["detail"]

    for module in MODULES:
        url = system.parts[module][0].url
        for path in ("/livez", "/readyz", "/health", "/metrics", "/v1/dead-letters", "/openapi.json"):
            assert (await client.call(url + path)).status == 200, (module, path)
        described = (await client.call(f"{url}/openapi.json")).body["paths"]
        for other in MODULES:
            assert any(path.startswith(f"/v1/{other}") for path in described) == (other == module)
            for path in paths[other]:
                assert is_known(await client.call(url + path)) == (other == module), (module, path)
        checks = (await client.call(f"{url}/readyz")).body["checks"]
        assert checks == {"bus": "ok", f"database:{module}": "ok"}


async def test_one_trace_runs_through_all_three_and_over_the_wire(
    system: System, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Correlation and trace of the request are in the log of every part and on every message that it caused."""
    client = connect(system)
    await client.stock("SKU-1", 10)
    body = {"customer_id": "c-1", "items": [{"product_id": "SKU-1", "quantity": 1}]}
    order_id = (await client.ask("POST", "/v1/orders", body, HEADERS)).body["order_id"]
    await client.followed(order_id)

    streams = [message for name in ("ORDERS", "INVENTORY", "PAYMENTS") for message in await messages_of(broker, name)]
    about = [message for message in streams if order_id in message.data.decode()]
    by_subject = {message.subject: message for message in about}
    assert {"orders.created.v1", "inventory.reserved.v1", "payments.captured.v1", "orders.confirmed.v1"} <= by_subject.keys()
    for message in about:
        headers = message.headers
        assert headers["ce-specversion"] == "1.0"
        assert headers["ce-type"] == message.subject
        assert headers["ce-source"] == f"/fulfilment/{message.subject.partition('.')[0]}"
        assert headers["ce-correlationid"] == "my-order"
        assert headers["traceparent"].split("-")[1] == TRACE
        if message.subject.endswith(".v1"):  # a newer version of the same event is another message
            assert headers["Nats-Msg-Id"] == headers["ce-id"]
        assert headers["ce-time"].endswith(("Z", "+00:00"))
    created, reserved = by_subject["orders.created.v1"], by_subject["inventory.reserved.v1"]
    assert json.loads(created.data)["version"] == "v1"
    assert reserved.headers["ce-causationid"] == created.headers["ce-id"]
    assert len({message.headers["Nats-Msg-Id"] for message in about}) == len(about)

    for module in MODULES:
        line = await asyncio.to_thread(
            system.parts[module][0].wait_for_line, lambda line: '"my-order"' in line and TRACE in line
        )
        assert json.loads(line)["correlation_id"] == "my-order"


async def test_the_broker_holds_what_the_contract_says(system: System, broker: NatsServer) -> None:
    """Streams and durables have the names and the settings that others rely on."""
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

    streams_heard = {
        "orders": ("INVENTORY", "PAYMENTS"),
        "inventory": ("ORDERS",),
        "payments": ("INVENTORY", "ORDERS"),
        "payments-gateway": ("PAYMENTS",),
    }
    names = {f"{stream}/{name}{lane}" for name, heard in streams_heard.items() for stream in heard for lane in ("", "-express")}

    async def founded() -> dict[str, Any]:
        return consumers_of(broker)

    consumers = await eventually(founded, lambda found: found.keys() >= names)
    for key, each in consumers.items():
        stream, _, name = key.partition("/")
        if stream not in ("ORDERS", "INVENTORY", "PAYMENTS"):
            continue
        config = each["config"]
        assert config["durable_name"] == name
        assert "deliver_subject" not in config, "a pull consumer has none"
        assert (config["ack_policy"], config["deliver_policy"]) == ("explicit", "all")
        assert (config["ack_wait"], config["max_deliver"]) == (30 * 10**9, 5), key
        express = name.endswith("-express")
        subjects = config.get("filter_subjects") or [config["filter_subject"]]
        assert all(subject.endswith(".express") == express and "*" not in subject for subject in subjects)
