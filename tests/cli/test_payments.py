"""The `payments` commands: what they ask a server or the provider, and what they print of the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result

from app.cli.main import main
from app.cli.payments.reconcile import CHARGE_DELAY_MAX, CLOCK_SKEW_MAX
from app.gateways.port import ChargeRecord
from modules.payments.state import Payment, PaymentStatus
from modules.values import Money
from tests.runtime.harness import harness_at


class FakeServer:
    """Answers lists of payments page by page, and records what it is asked."""

    def __init__(self) -> None:
        self.url = ""
        self.queries: list[dict[str, str]] = []
        self.payments = [payment(f"o-{number}") for number in range(450)]

    async def list(self, request: web.Request) -> web.Response:
        self.queries.append(dict(request.query))
        start, limit = int(request.query.get("cursor", "0")), int(request.query["limit"])
        end = start + limit
        cursor = str(end) if end < len(self.payments) else None
        return web.json_response({"items": self.payments[start:end], "next_cursor": cursor})

    async def settle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.queries.append({"order_id": request.match_info["order_id"], **body})
        if body["outcome"] == "declined":
            return web.json_response({"status": 409, "code": "not_settleable", "detail": "it waits for no person"}, status=409)
        return web.json_response({"order_id": request.match_info["order_id"], "status": body["outcome"]})

    async def run(self, *arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, main, ["payments", *arguments, "--url", self.url])


def payment(order_id: str) -> dict[str, Any]:
    amount = {"amount": 1250, "currency": "EUR"}
    return {"order_id": order_id, "status": "captured", "amount": amount, "refunded": None, "updated_at": "2026-01-01T12:00:00Z"}


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    fake = FakeServer()
    application = web.Application()
    application.router.add_get("/v1/payments", fake.list)
    application.router.add_post("/v1/payments/{order_id}/settle", fake.settle)
    async with TestServer(application) as served:
        fake.url = str(served.make_url("")).rstrip("/")
        yield fake


@pytest.mark.parametrize("limit", [1, 200, 201, 449, 450, 500])
async def test_a_list_has_as_many_payments_as_are_wanted(server: FakeServer, limit: int) -> None:
    """From as many pages as that takes, each payment once."""
    listed = json.loads((await server.run("list", "--limit", str(limit), "--json")).output)
    assert [each["order_id"] for each in listed] == [f"o-{number}" for number in range(min(limit, 450))]


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        ("", {}),
        ("--status unknown --status pending --status unknown", {"status": "unknown,pending"}),
        ("--needs-settling", {"needs_settling": "true", "status": "captured,unknown"}),
        ("--needs-settling --status unknown", {"needs_settling": "true", "status": "unknown"}),
        ("--since 2026-01-31", {"created_after": "2026-01-31T00:00:00+00:00"}),
        ("--until 2026-02-01T01:00:00+01:00", {"created_before": "2026-02-01T00:00:00+00:00"}),
    ],
)
async def test_the_options_are_the_filters_of_the_api(server: FakeServer, arguments: str, query: dict[str, str]) -> None:
    assert (await server.run("list", "--limit", "1", *arguments.split())).exit_code == 0
    [asked] = server.queries
    assert {name: value for name, value in asked.items() if name != "limit"} == query


async def test_a_payment_is_settled_with_an_outcome_and_a_reason(server: FakeServer) -> None:
    """A refusal is exit code 1 with its reason, no answer is 3."""
    settled = await server.run("settle", "o/1", "--outcome", "refunded", "--reason", "in the dashboard")
    assert settled.output == "o/1 is refunded\n"
    assert server.queries == [{"order_id": "o/1", "outcome": "refunded", "reason": "in the dashboard"}]
    refused = await server.run("settle", "o-1", "--outcome", "declined", "--reason", "x")
    assert (refused.exit_code, refused.stderr.partition("answered with ")[2]) == (1, "409 (not_settleable): it waits for no person\n")
    server.url = "http://127.0.0.1:1"
    assert (await server.run("list")).exit_code == 3


# reconcile

SINCE, UNTIL = datetime(2026, 1, 31, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)


def placed(at: datetime, number: int = 0) -> str:
    """Return the id of an order that was placed *at* this time."""
    digits = f"{int(at.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-{number:012x}"


class FakeLedger:
    """A provider with a list of charges."""

    name = "fake"
    installation = None

    def __init__(self) -> None:
        self.charges: list[ChargeRecord] = []
        self.asked: list[tuple[datetime, datetime]] = []
        self.is_closed = False

    async def records(self, since: datetime, until: datetime) -> AsyncIterator[ChargeRecord]:
        self.asked.append((since, until))
        for charge in self.charges:
            yield charge

    async def owner_of(self, id: str) -> None:
        return None

    async def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def ledger(path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLedger:
    """A provider with charges of 250 orders within a day, and the payments of those, and of the first orders before and after."""
    ledger = FakeLedger()
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")
    monkeypatch.setenv("PAYMENT_GATEWAY", "stripe")
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_0123456789abcdef")
    monkeypatch.setattr("app.bootstrap._payment_provider", lambda settings, clock: ledger)
    within = [placed(SINCE + timedelta(minutes=5 * number), number) for number in range(250)]
    beyond = [placed(SINCE - timedelta(milliseconds=1)), placed(UNTIL)]
    ledger.charges = [ChargeRecord(f"ch-{id}", id, Money(100, "EUR"), True, 0, SINCE) for id in within]
    payments = [
        Payment(
            order_id=id, status=PaymentStatus.CAPTURED, amount=100, currency="EUR", reference=f"ch-{id}", updated_at=SINCE
        )
        for id in (*within, *beyond)
    ]

    async def store() -> None:
        async with harness_at(path) as harness:
            mapper = harness.stores["payments"].mappers[Payment]
            keys = [each.order_id for each in payments]
            await harness.database.write(lambda connection: mapper.save(connection, payments, keys))

    asyncio.run(store())
    return ledger


def reconcile(*arguments: str) -> tuple[int, dict[str, Any]]:
    period = ["--since", SINCE.isoformat(), "--until", UNTIL.isoformat()]
    result = CliRunner().invoke(main, ["payments", "reconcile", *period, "--json", *arguments])
    return result.exit_code, json.loads(result.stdout)


def test_the_payments_of_a_period_are_compared_with_its_charges(ledger: FakeLedger) -> None:
    """Of exactly the orders placed in it; a charge may come with a clock that is behind, or after the time-out of its order."""
    code, report = reconcile()
    assert (code, report["payments"], report["charges"], report["differences"]) == (0, 250, 250, [])
    [(since, until)] = ledger.asked
    assert since == SINCE - CLOCK_SKEW_MAX
    assert until == UNTIL + timedelta(seconds=900) + CHARGE_DELAY_MAX
    assert ledger.is_closed


def test_a_difference_ends_with_1(ledger: FakeLedger) -> None:
    ledger.charges = ledger.charges[1:]
    code, report = reconcile()
    assert (code, [each["kind"] for each in report["differences"]]) == (1, ["missing"])
