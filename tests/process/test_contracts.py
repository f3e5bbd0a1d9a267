"""Event contracts of the running program: at the start, over HTTP and with commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.architecture.tree import copy_to
from tests.process.client import Client
from tests.process.server import READY_SECONDS, Server, environment_of, run

pytestmark = pytest.mark.slow

ADDRESS = {"line1": "12 St James's Square", "city": "London", "postal_code": "SW1Y 4JH", "country": "GB"}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def rename_a_member(project: Path) -> None:
    edit(project / "modules/orders/schemas/orders.cancelled.v1.json", '"customer_id": {', '"customer": {')


def remove_the_upcast(project: Path) -> None:
    path = project / "modules/orders/__init__.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"dual_publishes=\(\n.*\n +\),\n", "", text), encoding="utf-8")
    assert "since=" not in path.read_text(encoding="utf-8")


def duplicate_a_schema(project: Path) -> None:
    schemas = project / "modules"
    text = (schemas / "orders/schemas/orders.created.v1.json").read_text(encoding="utf-8")
    (schemas / "inventory/schemas/orders.created.v1.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename_a_member, "orders.cancelled.v1: the schema's 'customer' is not in OrderCancelled"),
        (remove_the_upcast, "orders.created.v1: no upcast leads from it to v2"),
        (duplicate_a_schema, "orders.created.v1: there are two schemas"),
    ],
)
def test_the_server_does_not_start_with_contradictory_contracts(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    """It exits with 2 and one line that names the subject, before it listens."""
    project = copy_to(tmp_path / "project")
    damage(project)
    done = subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        cwd=project,
        env={**environment_of({"HTTP_PORT": "0"}), "PYTHONPATH": os.fspath(project)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[0].startswith(f"fulfilment: contract: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert "ready at" not in done.stdout


async def test_an_order_may_have_a_shipping_address(shared_client: Client) -> None:
    """The address is stored and returned unchanged; without one the order has no such member."""
    await shared_client.stock("teapot", 9)
    address = {**ADDRESS, "line2": "Second floor"}
    order_id = await shared_client.place({"teapot": 1}, shipping_address=address)
    assert (await shared_client.get(f"/v1/orders/{order_id}"))["shipping_address"] == address
    order_id = await shared_client.place({"teapot": 1})
    assert "shipping_address" not in await shared_client.get(f"/v1/orders/{order_id}")


@pytest.mark.parametrize(
    ("address", "pointer"),
    [
        ({**ADDRESS, "country": "gb"}, "/shipping_address/country"),
        ({**ADDRESS, "planet": "Earth"}, "/shipping_address"),
        ({name: value for name, value in ADDRESS.items() if name != "city"}, "/shipping_address"),
        (None, "/shipping_address"),
    ],
)
async def test_an_invalid_shipping_address_is_rejected(shared_client: Client, address: Any, pointer: str) -> None:
    """With 400 and the pointer to the error."""
    reply = await shared_client.post({"teapot": 1}, shipping_address=address)
    assert reply.status == 400
    assert [error["pointer"] for error in reply.body["errors"]] == [pointer]


async def test_the_usage_of_every_event_version_is_reported(
    shared_client: Client, shared_server: Server, tmp_path: Path
) -> None:
    """Over HTTP and by command: v1 may be dropped, because every consumer here reads v2; v2 may not."""
    found = {each["subject"]: each for each in (await shared_client.get("/v1/contracts"))["items"]}
    old, new = found["orders.created.v1"], found["orders.created.v2"]
    assert {each["consumer"] for each in old["listeners"]} == {"inventory", "inventory-express"}
    assert (old["is_said"], old["since"], new["is_newest"]) == (True, "0.2.0", True)
    assert (new["safe_to_drop"], new["reasons"]) == (False, ["it is the newest version"])
    assert set(found["payments.charge_requested.v1"]["handled"]) <= {"payments"}
    for module in "orders", "inventory", "payments":
        listed = (await shared_client.get(f"/v1/contracts?module={module}"))["items"]
        assert [each["subject"] for each in listed] == list(found)
    for query, status in ("module=shipping", 400), ("subject=orders.created.v1", 400):
        assert (await shared_client.request("GET", f"/v1/contracts?{query}")).status == status

    done = run(tmp_path, "contracts", "status", "--url", shared_server.url)
    assert done.returncode == 0, done.stderr
    assert "orders.created.v1: published beside the newest since 0.2.0; " in done.stdout
    assert re.search(r"consumed by inventory-express, \d+ pending", done.stdout)
    done = run(tmp_path, "contracts", "status", "orders.created.v2", "--json", "--url", shared_server.url)
    assert done.returncode == 1
    assert done.stderr == "fulfilment: orders.created.v2 may not be dropped: it is the newest version\n"
    assert [each["subject"] for each in json.loads(done.stdout)] == ["orders.created.v2"]
    done = run(tmp_path, "contracts", "status", "orders.created.v99", "--url", shared_server.url)
    assert done.returncode == 2
    assert done.stderr.startswith("fulfilment: orders.created.v99 is unknown to the server; ")
    assert done.stderr.count("\n") == 1


def test_a_server_out_of_reach_is_reported_with_exit_code_3(tmp_path: Path) -> None:
    """As for every command that needs another server: one line on stderr."""
    done = run(tmp_path, "contracts", "status", "--url", "http://127.0.0.1:9")
    assert done.returncode == 3
    assert done.stderr.startswith("fulfilment: no server answers at http://127.0.0.1:9 (")
    assert done.stderr.count("\n") == 1


async def test_the_server_describes_its_events(shared_client: Client) -> None:
    """/asyncapi.json is served beside /openapi.json."""
    document = await shared_client.get("/asyncapi.json")
    assert document["asyncapi"] == "3.0.0"
    assert "orders.created.v2.express" in document["channels"]
    assert (await shared_client.get("/openapi.json"))["paths"]["/asyncapi.json"]


async def test_both_versions_of_an_event_are_counted_as_published(shared_client: Client) -> None:
    """By subject; the consumer counts the lower version as superseded."""
    await shared_client.stock("cup", 9)
    await shared_client.wait_until_final(await shared_client.place({"cup": 1}))
    page = (await shared_client.request("GET", "/metrics")).text
    for subject in ("orders.created.v1", "orders.created.v2"):
        assert f'messages_published_total{{subject="{subject}"}}' in page
    assert 'messages_handled_total{module="inventory",subject="orders.created.v1",outcome="superseded"}' in page
