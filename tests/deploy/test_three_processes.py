"""Three processes, each with the NATS user of its module, work within its permissions."""

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
    """One process per module with its own NATS user; the provisioner has created streams and durables."""
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
    with urlopen(Request(url, content, {"Content-Type": "application/json"}, method=method), timeout=10) as response:
        return json.load(response)


def wait_for(url: str, member: str, expected: str) -> None:
    """Wait until *member* of the JSON at *url* is *expected*."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (seen := call("GET", url))[member] != expected:
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)


def test_orders_are_processed_within_these_permissions(processes: dict[str, Server], nats: NatsServer) -> None:
    """Confirmed, then cancelled and refunded, on both lanes; the NATS server reports no permission violation."""
    orders, inventory, payments = (processes[module].url for module in ("orders", "inventory", "payments"))
    price = {"amount": 1250, "currency": "EUR"}
    call("PUT", f"{inventory}/v1/inventory/teapot", {"on_hand": 9, "unit_price": price})
    for priority in ("normal", "express"):
        items = [{"product_id": "teapot", "quantity": 2}]
        placed = call("POST", f"{orders}/v1/orders", {"customer_id": "c", "items": items, "priority": priority})
        order = f"{orders}/v1/orders/{placed['order_id']}"
        payment = f"{payments}/v1/payments/{placed['order_id']}"
        wait_for(order, "status", "confirmed")
        wait_for(payment, "status", "captured")
        call("POST", f"{order}/cancel", {})
        wait_for(payment, "status", "refunded")
    for server in processes.values():
        wait_for(f"{server.url}/readyz", "status", "ready")
    violations = [line for line in nats.log().splitlines() if "iolation" in line]
    assert violations == []


def test_a_module_can_republish_its_events(processes: dict[str, Server]) -> None:
    """`republish` works with the permissions of the user of the module."""
    call(
        "POST",
        processes["orders"].url + "/v1/orders",
        {"customer_id": "c", "items": [{"product_id": "P", "quantity": 1}]},
    )
    done = run(processes["orders"].folder, "republish", "--since", "1h", **processes["orders"].settings)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_process_can_list_the_consumers_of_its_events(processes: dict[str, Server], nats: NatsServer) -> None:
    """It needs the list to report whether an old version may be dropped."""
    for module, server in processes.items():
        found = {each["subject"]: each for each in call("GET", f"{server.url}/v1/contracts")["items"]}
        assert {subject.partition(".")[0] for subject in found} >= {module}
        assert [
            each["reasons"] for each in found.values() if any("does not answer" in why for why in each["reasons"])
        ] == []
        if "orders.created.v1" in found:
            assert {each["consumer"] for each in found["orders.created.v1"]["listeners"]} == {
                "inventory",
                "inventory-express",
            }
            assert found["orders.created.v1"]["safe_to_drop"]
    assert [line for line in nats.log().splitlines() if "iolation" in line] == []


def test_a_module_with_a_wrong_password_still_accepts_orders(nats: NatsServer, tmp_path: Path) -> None:
    """It is degraded, and the order is stored."""
    server = Server(
        tmp_path, BUS="nats", NATS_URL=nats.url, MODULES="orders", NATS_USER="orders", NATS_PASSWORD="wrong"
    )
    try:
        server.start()
        placed = call(
            "POST", f"{server.url}/v1/orders", {"customer_id": "c", "items": [{"product_id": "t", "quantity": 1}]}
        )
        assert placed["status"] == "processing"
        assert call("GET", f"{server.url}/readyz")["status"] == "degraded"
    finally:
        server.end()
