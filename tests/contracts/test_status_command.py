"""``contracts status`` where one address stands for several processes: each is asked, and what they say is put together."""

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
from config.settings import MODULES

V1 = "orders.created.v1"


def usage(subject: str, **more: Any) -> dict[str, Any]:
    """Return what a process shows of a version that may go."""
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
    """Return what three processes show: each what its module says or hears, and its own numbers."""
    asked = usage("payments.charge_requested.v1", is_newest=True, safe_to_drop=False, reasons=["it is the newest version"])
    return {
        "orders": [usage(V1, published=52)],
        "inventory": [usage(V1, handled={"inventory": {"superseded": 50, "handled": 2}})],
        "payments": [asked],
    }


class Proxy:
    """One address before processes; wants to be told whose is meant, as ours does."""

    def __init__(self) -> None:
        self.url = ""
        self.views = views()
        self.away: set[str] = set()
        self.keys: list[str | None] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("Authorization"))
        module = request.query.get("module")
        if module is None:
            return web.json_response({"status": 400, "code": "module_needed"}, status=400)
        if module in self.away:
            return web.json_response({"status": 503, "code": "module_unavailable"}, status=503)
        return web.json_response({"items": self.views[module]})

    async def ask(self, *arguments: str) -> Result:
        command = ["contracts", "status", *arguments, "--url", self.url]
        return await asyncio.to_thread(CliRunner().invoke, main, command)


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    proxy = Proxy()
    application = web.Application()
    application.router.add_get("/v1/contracts", proxy.answer)
    async with TestServer(application) as server:
        proxy.url = str(server.make_url("")).rstrip("/")
        yield proxy


async def test_every_process_is_asked_and_its_numbers_are_added_up(proxy: Proxy) -> None:
    """Who says, who hears, and what only one of them knows; every question brings the key."""
    result = await proxy.ask("--json")
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)
    assert (first["subject"], second["subject"]) == (V1, "payments.charge_requested.v1")
    assert (first["published"], first["handled"]) == (52, {"inventory": {"superseded": 50, "handled": 2}})
    assert first["listeners"] == [{"consumer": "inventory", "pending": 0}]
    assert len(proxy.keys) == 1 + len(MODULES)


async def test_what_one_of_them_objects_to_may_not_be_dropped(proxy: Proxy) -> None:
    """With its reason, once; and without it, it may."""
    assert (await proxy.ask(V1)).exit_code == 0
    why = "the bus does not answer, so its consumers are unknown"
    for module in "orders", "inventory":
        proxy.views[module] = [usage(V1, safe_to_drop=False, reasons=[why], listeners=[])]
        result = await proxy.ask(V1)
        assert (result.exit_code, result.stderr) == (1, f"fulfilment: {V1} may not be dropped: {why}\n")


async def test_while_one_of_them_is_away_nobody_knows(proxy: Proxy) -> None:
    """3, and not a part of the answer that seems to be all of it."""
    proxy.away = {"payments"}
    result = await proxy.ask(V1)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.endswith("/v1/contracts?module=payments was answered with 503\n")
