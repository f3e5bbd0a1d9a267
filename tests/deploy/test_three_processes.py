"""Three processes, each with its own user at NATS, and nothing that it may not do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from modules import registry
from tests.architecture.tree import ROOT
from tests.deploy.deployed import MODULES
from tests.nats import NatsServer
from tests.process.server import Server, run

pytestmark = [pytest.mark.slow, pytest.mark.process]

WAIT_SECONDS = 30.0


@pytest.fixture
def nats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NatsServer]:
    for user in (*registry.MODULES, "provisioner"):
        monkeypatch.setenv(f"{user.upper()}_PASSWORD", f"p-{user}")
    folder = tmp_path / "nats"
    folder.mkdir()
    (folder / "accounts.conf").write_bytes((ROOT / "deploy/nats/accounts.conf").read_bytes())
    with NatsServer(folder, config='include "accounts.conf"') as server:
        yield server


@pytest.fixture
def processes(nats: NatsServer, tmp_path: Path) -> Iterator[dict[str, Server]]:
    """One process for each module, as its own user; streams and durables were made by the provisioner."""
    common = {"BUS": "nats", "NATS_URL": nats.url}
    done = run(tmp_path, "topology", "--apply", NATS_USER="provisioner", NATS_PASSWORD="p-provisioner", **common)
    assert done.returncode == 0, done.stderr
    found = {}
    for module in MODULES:
        folder = tmp_path / module
        folder.mkdir()
        found[module] = Server(folder, MODULES=module, NATS_USER=module, NATS_PASSWORD=f"p-{module}", **common)
    try:
        for server in found.values():
            server.start()
        yield found
    finally:
        for server in found.values():
            server.end()


def call(method: str, url: str, body: Any = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, content, {"Content-Type": "application/json"}, method=method), timeout=10) as answer:
        return json.load(answer)


def until(url: str, name: str, wanted: str) -> None:
    """Wait until what is at *url* has *wanted* as its *name*."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (seen := call("GET", url))[name] != wanted:
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)


def test_orders_go_all_the_way_within_these_rights(processes: dict[str, Server], nats: NatsServer) -> None:
    """Placed, reserved, charged, confirmed; cancelled and refunded; on both lanes; and the server has refused nobody."""
    orders, inventory, payments = (processes[module].url for module in ("orders", "inventory", "payments"))
    price = {"amount": 1250, "currency": "EUR"}
    call("PUT", f"{inventory}/v1/inventory/teapot", {"on_hand": 9, "unit_price": price})
    for priority in ("normal", "express"):
        items = [{"product_id": "teapot", "quantity": 2}]
        placed = call("POST", f"{orders}/v1/orders", {"customer_id": "c", "items": items, "priority": priority})
        order = f"{orders}/v1/orders/{placed['order_id']}"
        payment = f"{payments}/v1/payments/{placed['order_id']}"
        until(order, "status", "confirmed")
        until(payment, "status", "captured")
        call("POST", f"{order}/cancel", {})
        until(payment, "status", "refunded")
    for server in processes.values():
        until(f"{server.url}/readyz", "status", "ready")
    refused = [line for line in nats.log().splitlines() if "iolation" in line]
    assert refused == []


def test_a_module_may_say_again_what_it_has_said(processes: dict[str, Server]) -> None:
    """`republish` gets its answers within the rights of the module's own user."""
    call("POST", processes["orders"].url + "/v1/orders", {"customer_id": "c", "items": [{"product_id": "P", "quantity": 1}]})
    done = run(processes["orders"].folder, "republish", "--since", "1h", **processes["orders"].settings)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_process_knows_who_listens_within_these_rights(processes: dict[str, Server], nats: NatsServer) -> None:
    """Otherwise nobody could ever say that an old version may go."""
    for module, server in processes.items():
        found = {each["subject"]: each for each in call("GET", f"{server.url}/v1/contracts")["items"]}
        assert {subject.partition(".")[0] for subject in found} >= {module}
        assert [each["reasons"] for each in found.values() if any("does not answer" in why for why in each["reasons"])] == []
        if "orders.created.v1" in found:
            assert {each["consumer"] for each in found["orders.created.v1"]["listeners"]} == {"inventory", "inventory-express"}
            assert found["orders.created.v1"]["safe_to_drop"]
    assert [line for line in nats.log().splitlines() if "iolation" in line] == []


def test_a_wrong_password_keeps_a_module_from_the_bus_and_not_from_taking_orders(
    nats: NatsServer, tmp_path: Path
) -> None:
    """It says so: degraded, and nothing is lost."""
    server = Server(tmp_path, BUS="nats", NATS_URL=nats.url, MODULES="orders", NATS_USER="orders", NATS_PASSWORD="wrong")
    try:
        server.start()
        placed = call("POST", f"{server.url}/v1/orders", {"customer_id": "c", "items": [{"product_id": "t", "quantity": 1}]})
        assert placed["status"] == "processing"
        assert call("GET", f"{server.url}/readyz")["status"] == "degraded"
    finally:
        server.end()
