"""The `orders` commands: what they ask a server, what they print of its answers, and what an import stores."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.cli.main import main
from app.cli.orders.tree import lines_of
from tests.cli.site import Site, serving
from tests.parts import in_parts


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path / "site.db") as site:
        await site.client.stock("SKU-1", 10, 1250)
        yield site


async def test_a_list_has_as_many_orders_as_are_wanted_from_as_many_pages_as_it_takes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest first; a page has at most as many as the API gives at once."""
    monkeypatch.setattr("app.cli.orders.requests.PAGE", 2)
    placed = [await site.client.place({"SKU-1": 1}) for _ in range(5)][::-1]
    for limit in 1, 2, 3, 4, 5, 9:
        listed = json.loads((await site.run("orders", "list", "--limit", str(limit), "--json")).output)
        assert [each["order_id"] for each in listed] == placed[:limit]
    table = (await site.run("orders", "list", "--limit", "3")).output.splitlines()
    assert [line.split()[0] for line in table] == ["ORDER_ID", *placed[:3]]


async def test_a_list_selects_by_the_filters_of_the_api(site: Site) -> None:
    """No order is no error; a value that does not exist is one."""
    sold, refused = await site.client.place({"SKU-1": 1}), await site.client.place({"SKU-1": 99})
    for each in sold, refused:
        await site.client.wait_until_final(each)
    for arguments, expected in {
        ("--status", "confirmed"): [sold],
        ("--status", "confirmed,cancelled"): [refused, sold],
        ("--reason", "insufficient_stock"): [refused],
        ("--max-total", "1250"): [sold],
        ("--created-before", "1d"): [],
        ("--created-after", "1d"): [refused, sold],
    }.items():
        result = await site.run("orders", "list", *arguments, "--json")
        assert [each["order_id"] for each in json.loads(result.output)] == expected, arguments
    assert (await site.run("orders", "list", "--customer-id", "none")).output == "no orders\n"
    assert (await site.run("orders", "list", "--status", "lost")).exit_code == 1


async def test_an_order_is_shown_and_explained(site: Site) -> None:
    """As JSON in the format of the API, or drawn as a tree."""
    order = await site.client.place({"SKU-1": 2})
    await site.client.wait_until_final(order)
    assert json.loads((await site.run("orders", "show", order)).output)["status"] == "confirmed"
    explained = await site.run("orders", "explain", order)
    lines = explained.output.splitlines()
    assert lines[0] == f"{order}  confirmed"
    assert [re.sub(r"[0-9:.]{12}  ", "", line).partition(" (")[0].partition("  [")[0] for line in lines[3:8]] == [
        "orders.created.v2", "└─ inventory.reserved.v1", "   └─ payments.charge_requested.v1", "      └─ payments.captured.v1",
        "         └─ orders.confirmed.v1",
    ]  # fmt: skip
    assert "payment: captured, 25.00 EUR" in lines
    assert json.loads((await site.run("orders", "explain", order, "--json")).output)["order_id"] == order


@pytest.mark.parametrize("order", in_parts(["{}/explain", "nope", "{}?x=1", "a b"]))
async def test_an_order_that_does_not_exist_is_an_error(site: Site, order: str) -> None:
    """Whatever an id consists of, it is one part of the path."""
    placed = await site.client.place({"SKU-1": 1})
    result = await site.run("orders", "show", order.format(placed))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "404 (not_found)" in result.stderr


async def test_a_server_out_of_reach_is_another_error(site: Site) -> None:
    """The exit code 3 is for a server that does not answer."""
    result = await asyncio.to_thread(CliRunner().invoke, main, ["orders", "list", "--url", "http://127.0.0.1:1"])
    assert result.exit_code == 3


async def test_an_export_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    """The file has what has arrived, and the exit code shows that this is not all."""

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        chunk = b'{"order_id": "1"}\n'
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(chunk), chunk))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(break_off, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        command = ["orders", "export", "--output", str(tmp_path / "orders.ndjson"), "--url", url]
        result = await asyncio.to_thread(CliRunner().invoke, main, command)
    assert (result.exit_code, "not complete" in result.stderr) == (1, True)


# Imports


async def exported(site: Site, order: str) -> Path:
    target = site.path.with_name("order.json")
    result = await site.run("orders", "export", order, "--output", str(target))
    assert result.exit_code == 0, result.output
    return target


async def imported(file: Path, path: Path) -> Result:
    """Import *file* into the database at *path*, where no server runs."""
    runner = CliRunner(env={"DATABASE_URL": f"sqlite:///{path}"})
    return await asyncio.to_thread(runner.invoke, main, ["orders", "import", str(file)])


def history(path: Path) -> list[set[str]]:
    """Return the modules that have decided in each transaction, in the order of the history."""
    with closing(sqlite3.connect(path)) as connection:
        rows = [
            (number, module)
            for module in ("orders", "inventory", "payments")
            for (number,) in connection.execute(f"SELECT number FROM {module}_history")
        ]
    return [{module for at, module in rows if at == number} for number in sorted({number for number, _ in rows})]


async def test_an_imported_order_is_what_it_was(site: Site, tmp_path: Path) -> None:
    """Its states and the transactions of its history; imported again, it is the same, and what differs is refused."""
    order = await site.client.place({"SKU-1": 2})
    await site.client.wait_until_final(order)
    explained = await site.client.get(f"/v1/orders/{order}/explain")
    file, elsewhere = await exported(site, order), tmp_path / "elsewhere.db"
    first = await imported(file, elsewhere)
    assert first.output.startswith(f"{order}: imported, with "), first.output
    assert (await imported(file, elsewhere)).output == f"{order}: is here, and is the same\n"
    changed = json.loads(file.read_text())
    changed["states"]["orders"]["Order"]["customer_id"] = "another"
    file.write_text(json.dumps(changed))
    assert (await imported(file, elsewhere)).exit_code == 1
    own = history(site.path)
    assert history(elsewhere) == [each for each in own if each != {"inventory"}]
    async with serving(elsewhere) as there:
        found = await there.client.get(f"/v1/orders/{order}/explain")
        # Read by another process while the file is served: the claim of the import was given up.
        for name in "summary", "status", "payment", "reservation":
            assert found[name] == explained[name], name
        assert (await there.client.get("/v1/inventory/SKU-1", 404))["code"] == "not_found"


async def test_an_imported_reservation_holds_its_pieces(tmp_path: Path) -> None:
    """One that was released or shipped holds none."""
    async with serving(tmp_path / "site.db", simulated_failure_rate=1.0, log_level="CRITICAL") as site:
        await site.client.stock("SKU-1", 10, 1250)
        order = await site.client.place({"SKU-1": 2})
        while (await site.client.get(f"/v1/orders/{order}"))["status"] != "reserved":  # noqa: ASYNC110 - of the server
            await asyncio.sleep(0.01)
        file, elsewhere = await exported(site, order), tmp_path / "elsewhere.db"
    assert (await imported(file, elsewhere)).exit_code == 0
    async with serving(elsewhere) as there:
        stock = await there.client.get("/v1/inventory/SKU-1")
        assert (stock["on_hand"], stock["reserved"], stock["available"]) == (2, 2, 0)


def _with_states_of_another(document: dict[str, Any]) -> None:
    document["order_id"] = "01a2018a-da02-76bb-9d9e-97adb4a4466b"


def _with_an_unknown_kind(document: dict[str, Any]) -> None:
    document["states"]["orders"]["Basket"] = {}


def _of_another_format(document: dict[str, Any]) -> None:
    document["format"] = "something else"


@pytest.mark.parametrize("harm", in_parts([_with_states_of_another, _with_an_unknown_kind, _of_another_format]))
async def test_a_file_that_is_no_whole_export_is_refused(site: Site, tmp_path: Path, harm: Any) -> None:
    """Nothing of it is stored."""
    order = await site.client.place({"SKU-1": 2})
    await site.client.wait_until_final(order)
    file, elsewhere = await exported(site, order), tmp_path / "elsewhere.db"
    document = json.loads(file.read_text())
    harm(document)
    file.write_text(json.dumps(document))
    assert (await imported(file, elsewhere)).exit_code == 1
    assert history(elsewhere) == []


# The tree


def event(id: str, cause: str | None, **more: Any) -> dict[str, Any]:
    at = "2026-01-01T12:00:00.123456Z"
    given: dict[str, Any] = {"event_id": id, "cause_id": cause, "at": at, "subject": f"event.{id}", "data": {}, "delivery": "published", "attempts": 1}
    return given | more


def test_the_tree_has_every_event_below_its_cause() -> None:
    """An event whose cause is not known begins a tree; the last branch is drawn as one, and attempts after the first are shown."""
    explained = {
        "order_id": "o", "status": "confirmed", "summary": "It is.", "timers": [], "payment": None, "reservation": None,
        "dead_letters": [], "audit": [], "unreachable": [],
        "events": [
            event("a", "request"), event("b", "a", data={"reason": "short"}), event("c", "b"), event("d", "a", attempts=2),
            event("e", "elsewhere", parent_id="d"),
        ],
    }  # fmt: skip
    assert list(lines_of(explained, False))[3:] == [
        "12:00:00.123  event.a  [published]",
        "├─ 12:00:00.123  event.b (reason=short)  [published]",
        "│  └─ 12:00:00.123  event.c  [published]",
        "└─ 12:00:00.123  event.d  [published, 2 attempts]",
        "   └─ 12:00:00.123  event.e  [published]",
    ]
