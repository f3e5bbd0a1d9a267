"""One trace for each order across three processes and NATS, as a collector receives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nats
import pytest

from tests.nats import NatsServer
from tests.process.client import Client
from tests.process.collector import OVER_BUS, Collector, tree
from tests.split.system import System

pytestmark = pytest.mark.slow

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


async def headers_of(broker: NatsServer, *streams: str) -> dict[str, str]:
    """Return the ``traceparent`` of every stored message by its subject."""
    client = await nats.connect(broker.url)
    try:
        js, found = client.jetstream(), {}
        for stream in streams:
            state = (await js.stream_info(stream)).state
            for sequence in range(state.first_seq, state.last_seq + 1):
                message: Any = await js.get_msg(stream, sequence)
                found[message.subject] = message.headers["traceparent"]
        return found
    finally:
        await client.close()


async def test_three_processes_make_one_trace(
    build: Callable[..., System], broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Each process sends its own part; the header of a message on NATS names the span that published it."""
    with Collector() as collector:
        client = connect(build(**collector.settings).start())
        await client.stock("SKU-1", 10)
        headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
        order = {"customer_id": "ada", "items": [{"product_id": "SKU-1", "quantity": 1}]}
        order_id = (await client.request("POST", "/v1/orders", order, headers=headers)).body["order_id"]
        await client.wait_until_final(order_id)
        spans = collector.trace(TRACE, len(OVER_BUS.splitlines()))
    assert tree(spans) == OVER_BUS
    assert {(span.service, span.attributes.get("messaging.consumer.group.name")) for span in spans} == {
        ("fulfilment-orders", None),
        ("fulfilment-orders", "orders"),
        ("fulfilment-inventory", None),
        ("fulfilment-inventory", "inventory"),
        ("fulfilment-payments", None),
        ("fulfilment-payments", "payments"),
        ("fulfilment-payments", "payments-gateway"),
    }
    published = {span.attributes["messaging.destination.name"]: span for span in spans if span.kind == "producer"}
    assert {span.attributes["messaging.system"] for span in published.values()} == {"nats"}
    for subject, header in (await headers_of(broker, "ORDERS", "INVENTORY")).items():
        if header[3:35] == TRACE and subject != "orders.created.v1":
            assert header[36:52] == published[subject].span_id, subject
