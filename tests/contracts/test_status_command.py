"""``contracts status`` behind one address for several processes: it asks each process and combines the results."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result

from app.cli.main import main
from modules.registry import MODULES

V1 = "orders.created.v1"


def usage(subject: str, **more: Any) -> dict[str, Any]:
    """Return what a process reports about a version that may be dropped."""
    event, _, version = subject.rpartition(".v")
    return {
        "subject": subject,
        "event": event,
        "version": int(version),
        "said_by": subject.partition(".")[0],
        "is_newest": False,
        "is_said": True,
        "since": "0.2.0",
        "listeners": [{"consumer": "inventory", "pending": 0}],
        "published": 0,
        "handled": {},
        "safe_to_drop": True,
        "reasons": [],
    } | more


def views() -> dict[str, list[dict[str, Any]]]:
    """Return the reports of three processes: each lists the events of its module and its own numbers."""
    charge_requested = usage("payments.charge_requested.v1", is_newest=True, safe_to_drop=False, reasons=["it is the newest version"])
    return {
        "orders": [usage(V1, published=52)],
        "inventory": [usage(V1, handled={"inventory": {"superseded": 50, "handled": 2}})],
        "payments": [charge_requested],
    }


class FakeProxy:
    """A reverse proxy for several processes; a request must name the module, as in the example deployment."""

    def __init__(self) -> None:
        self.url = ""
        self.views = views()
        self.unavailable: set[str] = set()
        self.keys: list[str | None] = []

    async def respond(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("Authorization"))
        module = request.query.get("module")
        if module is None:
            return web.json_response({"status": 400, "code": "module_needed"}, status=400)
        if module in self.unavailable:
            return web.json_response({"status": 503, "code": "module_unavailable"}, status=503)
        return web.json_response({"items": self.views.get(module, [])})

    async def run(self, *arguments: str) -> Result:
        command = ["contracts", "status", *arguments, "--url", self.url]
        return await asyncio.to_thread(CliRunner().invoke, main, command)


@pytest.fixture
async def proxy() -> AsyncIterator[FakeProxy]:
    proxy = FakeProxy()
    application = web.Application()
    application.router.add_get("/v1/contracts", proxy.respond)
    async with TestServer(application) as server:
        proxy.url = str(server.make_url("")).rstrip("/")
        yield proxy


async def test_the_numbers_of_all_processes_are_added_up(proxy: FakeProxy) -> None:
    """Producers, consumers, and what only one process knows; each request has the API key."""
    result = await proxy.run("--json")
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)
    assert (first["subject"], second["subject"]) == (V1, "payments.charge_requested.v1")
    assert (first["published"], first["handled"]) == (52, {"inventory": {"superseded": 50, "handled": 2}})
    assert first["listeners"] == [{"consumer": "inventory", "pending": 0}]
    assert len(proxy.keys) == 1 + len(MODULES)


async def test_a_version_that_one_process_needs_may_not_be_dropped(proxy: FakeProxy) -> None:
    """The reason is printed once; without it, the version may be dropped."""
    assert (await proxy.run(V1)).exit_code == 0
    reason = "the bus does not respond, so its consumers are unknown"
    for module in "orders", "inventory":
        proxy.views[module] = [usage(V1, safe_to_drop=False, reasons=[reason], listeners=[])]
        result = await proxy.run(V1)
        assert (result.exit_code, result.stderr) == (1, f"fulfilment: {V1} may not be dropped: {reason}\n")


@pytest.mark.parametrize(("is_said", "text"), [(True, "retired, but still published beside the newest since 0.2.0"), (False, "retired, no longer published")])
async def test_the_producer_knows_what_it_publishes(proxy: FakeProxy, is_said: bool, text: str) -> None:
    """Whichever process answers first: another one knows neither its setting nor whether a consumer keeps the version."""
    subject = "inventory.reserved.v1"
    proxy.views["orders"] = [usage(subject, is_said=not is_said)]
    proxy.views["inventory"] = [usage(subject, is_said=is_said, retired=True, published=7)]
    assert (await proxy.run(subject)).stdout == f"{subject}: {text}; safe to drop\n    consumed by inventory, 0 pending\n    since start: published 7\n"


async def test_the_command_fails_while_one_process_is_unavailable(proxy: FakeProxy) -> None:
    """Exit code 3, and no partial result that looks complete."""
    proxy.unavailable = {"payments"}
    result = await proxy.run(V1)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.endswith("/v1/contracts?module=payments was answered with 503\n")
