"""Any process shows the whole system, and names what it cannot reach."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.process.client import Client, eventually
from tests.split.conftest import Build
from tests.split.peers import know_each_other
from tests.split.system import MODULES, System

pytestmark = pytest.mark.slow

KEYS = ("ops:operator:0123456789abcdef", "looker:viewer:fedcba9876543210")
OPERATOR = {"Authorization": "Bearer 0123456789abcdef"}
VIEWER = {"Authorization": "Bearer fedcba9876543210"}


async def test_every_process_shows_all_and_names_the_one_that_is_down(
    build: Build, connect: Callable[[System], Client]
) -> None:
    """With a viewer's key; what is down is named within 2.5 s, and the others are shown as before."""
    system = build()
    know_each_other(system, *KEYS)
    client = connect(system.start())

    async def overview(module: str) -> dict[str, Any]:
        reply = await client.request_url(f"{system.servers[module][0].url}/v1/overview", headers=VIEWER)
        assert reply.status == 200, reply.text
        found: dict[str, Any] = reply.body
        return found

    price = {"on_hand": 10, "unit_price": {"amount": 100, "currency": "EUR"}}
    assert (await client.request("PUT", "/v1/inventory/SKU-1", price, OPERATOR)).status == 200
    body = {"customer_id": "c-1", "items": [{"product_id": "SKU-1", "quantity": 1}]}
    for _ in range(3):
        assert (await client.request("POST", "/v1/orders", body, OPERATOR)).status == 202
    for module in MODULES:
        found = await eventually(lambda module=module: overview(module), lambda it: it["orders"]["by_status"]["confirmed"] == 3)  # type: ignore[misc]
        assert {name: each["reachable"] for name, each in found["modules"].items()} == dict.fromkeys(MODULES, True)
        assert found["databases"] == dict.fromkeys(MODULES, "ok")
        assert found["gateway"]["breakers"] == {"charge": "closed", "refund": "closed", "look_up": "closed"}
        assert (found["bus"]["name"], found["bus"]["status"], found["dead_letters"]) == ("nats", "ok", [])
        assert "ModuleUnreachable" not in {each["name"] for each in found["attention"]}

    system.kill(system.servers["payments"][0])
    started = time.monotonic()
    found = await eventually(lambda: overview("inventory"), lambda it: not it["modules"]["payments"]["reachable"])
    assert time.monotonic() - started < 2.5
    assert found["modules"]["payments"]["reason"].startswith("no connection")
    assert found["orders"]["by_status"]["confirmed"] == 3
    assert (found["gateway"]["name"], found["gateway"]["breakers"]) == (None, {})
    (attention,) = [each for each in found["attention"] if each["name"] == "ModuleUnreachable"]
    assert attention["what"].startswith("The process of payments gives no answer")


async def test_a_wrong_key_of_the_processes_has_its_own_reason(build: Build, connect: Callable[[System], Client]) -> None:
    """An operator who has mixed up two files reads which one to look at."""
    system = build()
    know_each_other(system, *KEYS)
    (system.servers["orders"][0].folder / "module_key").write_text("not-the-key-of-the-processes")
    client = connect(system.start())
    found = (await client.request_url(f"{system.servers['orders'][0].url}/v1/overview", headers=OPERATOR)).body
    assert found["modules"]["payments"]["reason"] == "it refuses the key of MODULE_KEY_FILE"
