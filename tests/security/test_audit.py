"""Every change that a person or a key asks for is one record, written with the change itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from attrs import evolve

from app.storage.audit import AuditTrail
from app.storage.module_store import ModuleStore
from app.web.endpoints import audit as audit_endpoints
from app.web.handler import RequestContext
from app.web.responses.problems import ProblemError
from modules.registry import MODULES, load_module
from modules.routes import CommandRoute, ImportRoute
from tests.process.server import run
from tests.security.conftest import Program

PRICE = {"amount": 100, "currency": "EUR"}


async def audit(program: Program, query: str = "") -> list[dict[str, Any]]:
    reply = await program.send("viewer", "GET", f"/v1/audit{query}")
    assert reply.status == 200, reply.text
    found: list[dict[str, Any]] = json.loads(reply.text)["items"]
    return found


async def stock(program: Program, on_hand: int, caller: str = "stock") -> None:
    body = {"on_hand": on_hand, "unit_price": PRICE}
    assert (await program.send(caller, "PUT", "/v1/inventory/SKU-1", body, **{"X-Correlation-ID": "c-1"})).status == 200


async def test_a_change_is_a_record_of_who_changed_what_from_which_value_to_which(program: Program) -> None:
    """The first record has nothing before; the second only what differs."""
    await stock(program, 10)
    await stock(program, 7, "operator")
    second, first = await audit(program, "?target=SKU-1")
    assert (first["actor"], first["action"], first["module"], first["correlation_id"]) == (
        *("stock", "setProduct"),
        *("inventory", "c-1"),
    )
    assert (first["from"], first["to"]["on_hand"]) == (None, 10)
    assert (second["actor"], second["from"]["on_hand"], second["to"]["on_hand"]) == ("operator", 10, 7)
    assert "name" not in second["to"]


async def test_what_changes_nothing_is_no_record(program: Program) -> None:
    """A refusal of any kind, a replay of an idempotency key, and reading."""
    await stock(program, 10)
    before = await audit(program)
    assert (await program.send("viewer", "PUT", "/v1/inventory/SKU-1", {"on_hand": 1, "unit_price": PRICE})).status == 403
    assert (await program.send("stock", "PUT", "/v1/inventory/SKU-1", {"on_hand": -1})).status == 400
    assert (await program.send("operator", "POST", "/v1/orders/unknown/cancel")).status == 404
    assert (await program.send("stock", "GET", "/v1/inventory/SKU-1")).status == 200
    assert await audit(program) == before
    for _ in range(2):
        reply = await program.send("stock", "POST", "/v1/inventory/SKU-1/restock", {"quantity": 1}, **{"Idempotency-Key": "k"})
        assert reply.status == 200
    assert len(await audit(program)) == len(before) + 1


async def test_an_order_is_its_own_record_and_its_cancellation_is_one(program: Program) -> None:
    """Placing costs nothing more; a cancellation is recorded with its actor."""
    await stock(program, 10)
    body = {"customer_id": "c-1", "items": [{"product_id": "SKU-1", "quantity": 1}]}
    order_id = (await program.send("web-1", "POST", "/v1/orders", body)).body["order_id"]
    assert await audit(program, f"?target={order_id}") == []
    assert (await program.send("web-1", "POST", f"/v1/orders/{order_id}/cancel")).status == 202
    (record,) = await audit(program, f"?target={order_id}")
    assert (record["actor"], record["action"], record["to"]["status"]) == ("web-1", "cancelOrder", "cancelled")


async def test_the_list_has_filters_and_pages(program: Program) -> None:
    """Newest first; ``after`` is inclusive and ``before`` exclusive."""
    for on_hand in range(5):
        await stock(program, on_hand)
    records = await audit(program)
    assert [record["to"]["on_hand"] for record in records] == [4, 3, 2, 1, 0]
    first = (await program.send("operator", "GET", "/v1/audit?limit=2")).body
    second = (await program.send("operator", "GET", f"/v1/audit?limit=2&cursor={first['next_cursor']}")).body
    assert first["items"] + second["items"] == records[:4]
    at = records[2]["at"]
    assert await audit(program, f"?after={at}") == records[:3]
    assert await audit(program, f"?before={at}") == records[3:]
    assert await audit(program, "?actor=operator") == await audit(program, "?action=cancelOrder") == []
    assert await audit(program, "?module=inventory") == records
    assert await audit(program, "?module=orders") == []
    assert (await program.send("viewer", "GET", "/v1/audit?after=yesterday")).status == 400


async def test_a_process_lists_the_audit_of_the_modules_that_it_runs_only() -> None:
    """404 for another module: an empty list would say that nothing has changed there."""
    endpoint = audit_endpoints.route_group(AuditTrail({})).endpoints[0]
    with pytest.raises(ProblemError) as caught:
        await endpoint.handle(make_mocked_request("GET", "/v1/audit?module=orders"), RequestContext("c", "viewer", print))
    assert caught.value.status == 404


async def test_a_change_that_is_rolled_back_leaves_no_record(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are one transaction: neither exists without the other."""
    real = ModuleStore.save

    def save_and_fail(self: ModuleStore, *arguments: Any, audit: Any = (), **more: Any) -> None:
        real(self, *arguments, audit=audit, **more)
        if audit:
            raise ValueError("after the row was written")

    monkeypatch.setattr(ModuleStore, "save", save_and_fail)
    body = {"on_hand": 1, "unit_price": PRICE}
    assert (await program.send("stock", "PUT", "/v1/inventory/SKU-2", body)).status >= 500
    monkeypatch.undo()
    assert (await program.send("stock", "GET", "/v1/inventory/SKU-2")).status == 404
    assert await audit(program, "?target=SKU-2") == []


def test_every_command_of_a_module_is_audited_but_placing_an_order() -> None:
    """A new command is, unless its route says otherwise and why."""
    exempt = {
        route.name
        for name in MODULES
        for route in load_module(name).routes
        if isinstance(route, CommandRoute | ImportRoute) and not getattr(route, "is_audited", True)
    }
    assert exempt == {"placeOrder"}


async def test_dead_letters_that_are_discarded_are_in_the_audit(program: Program) -> None:
    """What was discarded is recorded without the message, which holds customers' data."""
    from datetime import UTC, datetime

    from bus.port import DeadLetter, Message

    now = datetime.now(UTC)
    message = Message("orders.created.v1", "m-1", b"{}", "k", {})
    letters = program.application.parts.dead_letters
    await letters.add(DeadLetter("", "inventory", message, "failed", "why", 1, now, now))
    (stored,) = await letters.list(None, None, None, 10)
    id = stored.dead_letter.id
    assert (await program.send("operator", "POST", f"/v1/dead-letters/{id}/replay")).status == 202
    assert (await program.send("operator", "DELETE", f"/v1/dead-letters/{id}")).status == 204
    discarded, replayed = await audit(program, f"?target={id}")
    assert (discarded["action"], discarded["from"]["consumer"], discarded["to"]) == ("discardDeadLetter", "inventory", None)
    assert (replayed["action"], replayed["actor"]) == ("replayDeadLetter", "operator")


@pytest.mark.slow
async def test_the_command_lists_what_the_api_lists(program: Program) -> None:
    """``audit list`` reads the database itself."""
    await stock(program, 10)
    url = str(program.application.settings.database_url("inventory"))
    trail = AuditTrail(program.application.parts.storage.stores)
    (record,) = await trail.list()
    assert evolve(record, after=None).before is None
    import asyncio
    from pathlib import Path

    folder = Path(url.removeprefix("sqlite:///")).parent
    done = await asyncio.to_thread(run, folder, "audit", "list", "--target", "SKU-1", "--json", DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == await audit(program)
    table = await asyncio.to_thread(run, folder, "audit", "list", "--after", "1h", DATABASE_URL=url)
    assert table.stdout.startswith("AT ")
    assert "setProduct" in table.stdout
