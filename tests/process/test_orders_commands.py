"""``orders``: lists, explanations and exports of a running server, and imports into another database."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.cli.main import main
from tests.process.client import Client, eventually
from tests.process.conftest import Serve
from tests.process.server import Server, environment_of, run

pytestmark = pytest.mark.slow


@pytest.mark.slow
async def test_orders_are_listed_shown_and_explained(serve: Serve, connect: Callable[[Server], Client], tmp_path: Path) -> None:
    """What an operator types at night, and what a script reads."""
    server = serve()
    client = connect(server)
    await client.stock("SKU-1", 5)
    confirmed, cancelled = await client.place({"SKU-1": 1}), await client.place({"SKU-1": 9})
    for each in confirmed, cancelled:
        await client.wait_until_final(each)

    def orders(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(tmp_path, "orders", *arguments, "--url", server.url)

    listed = orders("list", "--status", "confirmed,cancelled")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["ORDER_ID", cancelled, confirmed]
    assert [each["order_id"] for each in json.loads(orders("list", "--reason", "insufficient_stock", "--json").stdout)] == [cancelled]
    assert orders("list", "--customer-id", "none").stdout == "no orders\n"
    assert orders("list", "--status", "lost").returncode == 1
    assert json.loads(orders("show", confirmed).stdout)["status"] == "confirmed"

    explained = orders("explain", confirmed)
    lines = explained.stdout.splitlines()
    assert lines[0] == f"{confirmed}  confirmed"
    assert lines[1].startswith("Confirmed at ")
    drawn = [re.sub(r"[0-9:.]{12}  ", "", line) for line in lines[3:8]]
    assert [line.partition(" (")[0].partition("  [")[0] for line in drawn] == [
        "orders.created.v2", "└─ inventory.reserved.v1", "   └─ payments.charge_requested.v1", "      └─ payments.captured.v1",
        "         └─ orders.confirmed.v1",
    ]  # fmt: skip
    assert "\x1b[" not in explained.stdout
    assert json.loads(orders("explain", confirmed, "--json").stdout)["order_id"] == confirmed
    unknown = orders("explain", "nope")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "404 (not_found)" in unknown.stderr
    assert on_a_terminal(tmp_path, server, confirmed).count("\x1b[") > 0
    assert "\x1b[" not in on_a_terminal(tmp_path, server, confirmed, NO_COLOR="1")
    server.end()
    assert orders("list").returncode == 3


def on_a_terminal(folder: Path, server: Server, order: str, **settings: str) -> str:
    """Return what ``orders explain`` writes to a terminal."""
    own, other = pty.openpty()
    command = [sys.executable, "-m", "app", "orders", "explain", order, "--url", server.url]
    with subprocess.Popen(command, cwd=folder, env=environment_of(settings), stdout=other, stdin=subprocess.DEVNULL) as process:
        os.close(other)
        written = b""
        while True:
            try:
                part = os.read(own, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            written += part
        assert process.wait() == 0
    os.close(own)
    return written.decode()


@pytest.mark.parametrize("workers", ["0", "1"])
async def test_a_list_is_exported_line_by_line(serve: Serve, connect: Callable[[Server], Client], workers: str, tmp_path: Path) -> None:
    """All orders that the filters select, beyond the limit of a page, also through a worker."""
    server = serve(HTTP_WORKERS=workers)
    client = connect(server)
    await client.stock("SKU-1", 1000)
    placed = [await client.place({"SKU-1": 1}, customer_id=f"c-{number % 2}") for number in range(420)]
    reply = await client.request("GET", "/v1/orders/export")
    assert reply.headers["Content-Type"] == "application/x-ndjson"
    assert [json.loads(line)["order_id"] for line in reply.text.splitlines()] == placed[::-1]
    exported = run(tmp_path, "orders", "export", "--customer-id", "c-1", "--url", server.url)
    assert exported.returncode == 0, exported.stderr
    assert [json.loads(line)["order_id"] for line in exported.stdout.splitlines()] == placed[1::2][::-1]
    assert (await client.request("GET", "/v1/orders/export?status=lost")).status == 400
    assert (await client.request("GET", "/v1/orders/export?limit=1")).status == 400
    assert (await client.request("GET", "/v1/orders/export?status=processing&customer_id=none")).text == ""


@pytest.mark.slow
async def test_an_exported_order_is_explained_on_another_machine(serve: Serve, connect: Callable[[Server], Client], tmp_path: Path) -> None:
    """The same explanation there, nothing happens to it, and what is there already is not changed."""
    server = serve()
    client = connect(server)
    await client.stock("SKU-1", 10, 1250)
    order_id = await client.place({"SKU-1": 2})
    await client.wait_until_final(order_id)
    await client.cancel(order_id, "no")

    async def explain() -> dict[str, Any]:
        found: dict[str, Any] = await client.get(f"/v1/orders/{order_id}/explain")
        return found

    explained = await eventually(explain, lambda it: "was refunded" in it["summary"] and not any(e["delivery"] == "pending" for e in it["events"]))
    exported = run(tmp_path, "orders", "export", order_id, "--output", "order.json", "--url", server.url)
    assert exported.returncode == 0, exported.stderr
    assert run(tmp_path, "orders", "import", "order.json").returncode == 3  # the server runs on that database
    server.end()

    elsewhere = {"DATABASE_URL": f"sqlite:///{tmp_path}/elsewhere.db"}
    first = run(tmp_path, "orders", "import", "order.json", **elsewhere)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith(f"{order_id}: imported")
    assert run(tmp_path, "orders", "import", "order.json", **elsewhere).stdout == f"{order_id}: is here, and is the same\n"
    changed = json.loads((tmp_path / "order.json").read_text())
    changed["states"]["orders"]["Order"]["customer_id"] = "another"
    for content, why in {
        json.dumps(changed): "is here, and differs",
        "{}": "is no export of an order in the format",
        "[]": "is no export of an order",
        "nonsense": "is not JSON",
    }.items():
        (tmp_path / "refused.json").write_text(content)
        refused = await asyncio.to_thread(CliRunner().invoke, main, ["orders", "import", f"{tmp_path}/refused.json"], env=elsewhere)
        assert (refused.exit_code, why in refused.stderr) == (1, True), refused.stderr

    there = await connect(serve(**elsewhere)).get(f"/v1/orders/{order_id}/explain")
    own = {"at", "delivery", "attempts"}

    def comparable(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: value for name, value in event.items() if name not in own} for event in events]

    assert comparable(there["events"]) == comparable(explained["events"])
    for name in "summary", "status", "payment", "reservation", "waiting_for", "order":
        assert there[name] == explained[name], name


@pytest.mark.slow
async def test_an_imported_order_that_holds_stock_holds_it_there(serve: Serve, connect: Callable[[Server], Client], tmp_path: Path) -> None:
    """The order can be cancelled there without a negative stock, and without anything of its own happening before."""
    server = serve(SIMULATED_FAILURE_RATE="1", LOG_LEVEL="CRITICAL")
    client = connect(server)
    await client.stock("SKU-1", 10, 1250)
    order_id = await client.place({"SKU-1": 2})
    await eventually(lambda: client.get(f"/v1/orders/{order_id}"), lambda order: bool(order["status"] == "reserved"))
    assert run(tmp_path, "orders", "export", order_id, "--output", "order.json", "--url", server.url).returncode == 0
    server.end()
    elsewhere = {"DATABASE_URL": f"sqlite:///{tmp_path}/elsewhere.db"}
    assert run(tmp_path, "orders", "import", "order.json", **elsewhere).returncode == 0
    there = connect(serve(**elsewhere))
    stock = await there.get("/v1/inventory/SKU-1")
    assert (stock["on_hand"], stock["reserved"], stock["available"]) == (2, 2, 0)
    assert (await there.get(f"/v1/orders/{order_id}/explain"))["timers"] == []
    await there.cancel(order_id)
    stock = await eventually(lambda: there.get("/v1/inventory/SKU-1"), lambda it: bool(it["reserved"] == 0))
    assert stock["on_hand"] == 2
