"""What a process shows about its own set-up."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from tests.process.client import Client, eventually
from tests.process.conftest import Serve
from tests.process.server import SEPARATE_DATABASES, Server

pytestmark = pytest.mark.slow


async def test_consumers_timers_and_configuration_are_those_of_the_process(
    serve: Serve, connect: Callable[[Server], Client]
) -> None:
    """The timer is the time-out of the order that waits for its payment; the message that carries it is in progress."""
    settings = {"ORDER_TIMEOUT_S": "5000", "BATCH_MAX": "7", "SIMULATED_LATENCY_MS": "3600000"}
    client = connect(serve(**settings, **SEPARATE_DATABASES))
    await client.stock("SKU-1", 5)
    order_id = await client.place({"SKU-1": 1})
    order = await eventually(lambda: client.get(f"/v1/orders/{order_id}"), lambda found: bool(found["status"] == "reserved"))

    found = await eventually(
        lambda: client.get("/v1/system"),
        lambda found: any(each["pending"] for each in found["bus"]["consumers"]) and any(each["count"] for each in found["timers"]),
    )
    assert found["modules"] == ["orders", "inventory", "payments"]
    bus = found["bus"]
    assert (bus["kind"], bus["connected"], bus["problems"], bus["streams"]) == ("memory", True, [], [])
    assert {"orders", "inventory", "payments"} <= {each["consumer"] for each in bus["consumers"]}
    timers = {each["module"]: each for each in found["timers"]}
    (timer,) = [each for each in timers["orders"]["first"] if each["key"] == order_id]
    left = datetime.fromisoformat(timer["due_at"]) - datetime.fromisoformat(order["created_at"])
    assert (timer["subject"], left) == ("orders.timed_out.v1", timedelta(seconds=5000))
    values = {each["name"]: (each["value"], each["is_set"]) for each in found["configuration"]}
    assert (values["BATCH_MAX"], values["BUS"]) == (("7", True), ("memory", False))


async def test_another_process_answers_for_another_module(shared_client: Client) -> None:
    """As for the audit; a name that is no module is refused."""
    assert (await shared_client.request("GET", "/v1/system?module=payments")).status == 200
    assert (await shared_client.request("GET", "/v1/system?module=none")).status == 400
