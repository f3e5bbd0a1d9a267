"""What is promised, as an operator and a client meet it: at the start, over HTTP, by command."""

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
from tests.process.server import Server, environment_of, run

ADDRESS = {"line1": "12 St James's Square", "city": "London", "postal_code": "SW1Y 4JH", "country": "GB"}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def contradict(system: Path) -> None:
    edit(system / "modules/orders/schemas/orders.cancelled.v1.json", '"customer_id": {', '"customer": {')


def break_the_chain(system: Path) -> None:
    path = system / "modules/orders/__init__.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"dual_publishes=\(\n.*\n +\),\n", "", text), encoding="utf-8")
    assert "since=" not in path.read_text(encoding="utf-8")


def promise_twice(system: Path) -> None:
    schemas = system / "modules"
    text = (schemas / "orders/schemas/orders.created.v1.json").read_text(encoding="utf-8")
    (schemas / "inventory/schemas/orders.created.v1.json").write_text(text, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (contradict, "orders.cancelled.v1: the schema's 'customer' is not in OrderCancelled"),
        (break_the_chain, "orders.created.v1: no upcast leads from it to v2"),
        (promise_twice, "orders.created.v1: there are two schemas"),
    ],
)
def test_promises_that_contradict_each_other_do_not_start(
    tmp_path: Path, damage: Callable[[Path], None], line: str
) -> None:
    """Exit 2 and one line that says which, before anything listens."""
    system = copy_to(tmp_path / "house")
    damage(system)
    done = subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        cwd=system,
        env={**environment_of({"HTTP_PORT": "0"}), "PYTHONPATH": os.fspath(system)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[0].startswith(f"fulfilment: contract: {line}")
    assert len(done.stderr.splitlines()) == 1
    assert "ready at" not in done.stdout


async def test_an_order_may_say_where_it_goes(visitor: Client) -> None:
    """The address is kept and shown as it came; without one there is none."""
    await visitor.stock("teapot", 9)
    address = {**ADDRESS, "line2": "Second floor"}
    order_id = await visitor.place({"teapot": 1}, shipping_address=address)
    assert (await visitor.get(f"/v1/orders/{order_id}"))["shipping_address"] == address
    order_id = await visitor.place({"teapot": 1})
    assert "shipping_address" not in await visitor.get(f"/v1/orders/{order_id}")


@pytest.mark.parametrize(
    ("address", "pointer"),
    [
        ({**ADDRESS, "country": "gb"}, "/shipping_address/country"),
        ({**ADDRESS, "planet": "Earth"}, "/shipping_address"),
        ({name: value for name, value in ADDRESS.items() if name != "city"}, "/shipping_address"),
        (None, "/shipping_address"),
    ],
)
async def test_an_address_that_is_none_is_refused(visitor: Client, address: Any, pointer: str) -> None:
    """400, with the pointer."""
    reply = await visitor.post({"teapot": 1}, shipping_address=address)
    assert reply.status == 400
    assert [error["pointer"] for error in reply.body["errors"]] == [pointer]


async def test_a_server_tells_who_needs_which_version(visitor: Client, system: Server, tmp_path: Path) -> None:
    """Over HTTP and by command: v1 may go, for nobody in this process needs it; v2 may not."""
    found = {each["subject"]: each for each in (await visitor.get("/v1/contracts"))["items"]}
    old, new = found["orders.created.v1"], found["orders.created.v2"]
    assert {each["consumer"] for each in old["listeners"]} == {"inventory", "inventory-express"}
    assert (old["is_said"], old["since"], new["is_newest"]) == (True, "0.2.0", True)
    assert (new["safe_to_drop"], new["reasons"]) == (False, ["it is the newest version"])
    assert set(found["payments.charge_requested.v1"]["handled"]) <= {"payments"}
    for module in "orders", "inventory", "payments":
        named = (await visitor.get(f"/v1/contracts?module={module}"))["items"]
        assert [each["subject"] for each in named] == list(found)
    for query, status in ("module=shipping", 404), ("subject=orders.created.v1", 400):
        assert (await visitor.ask("GET", f"/v1/contracts?{query}")).status == status

    done = run(tmp_path, "contracts", "status", "--url", system.url)
    assert done.returncode == 0, done.stderr
    assert "orders.created.v1: published beside the newest since 0.2.0; " in done.stdout
    assert re.search(r"consumed by inventory-express, \d+ pending", done.stdout)
    done = run(tmp_path, "contracts", "status", "orders.created.v2", "--json", "--url", system.url)
    assert done.returncode == 1
    assert done.stderr == "fulfilment: orders.created.v2 may not be dropped: it is the newest version\n"
    assert [each["subject"] for each in json.loads(done.stdout)] == ["orders.created.v2"]
    done = run(tmp_path, "contracts", "status", "orders.created.v99", "--url", system.url)
    assert (done.returncode, done.stderr) == (2, "fulfilment: orders.created.v99 is unknown to the server; `contracts status` lists the known subjects\n")


def test_nobody_to_ask_is_a_dependency_out_of_reach(tmp_path: Path) -> None:
    """Exit 3, as for every command that needs somebody else."""
    done = run(tmp_path, "contracts", "status", "--url", "http://127.0.0.1:9")
    assert done.returncode == 3
    assert done.stderr.startswith("fulfilment: no server answers at http://127.0.0.1:9 (")
    assert done.stderr.count("\n") == 1


async def test_the_events_are_described_where_the_api_is(visitor: Client) -> None:
    """AsyncAPI beside OpenAPI, from one registry."""
    document = await visitor.get("/asyncapi.json")
    assert document["asyncapi"] == "3.0.0"
    assert "orders.created.v2.express" in document["channels"]
    assert (await visitor.get("/openapi.json"))["paths"]["/asyncapi.json"]


async def test_both_versions_are_counted_as_said(visitor: Client) -> None:
    """By subject, as every message is; the lower one is superseded by the higher."""
    await visitor.stock("cup", 9)
    await visitor.followed(await visitor.place({"cup": 1}))
    page = (await visitor.ask("GET", "/metrics")).text
    for subject in ("orders.created.v1", "orders.created.v2"):
        assert f'messages_published_total{{subject="{subject}"}}' in page
    assert 'messages_handled_total{module="inventory",subject="orders.created.v1",outcome="superseded"}' in page
