"""Failures of the database and of the payment provider: the server reports them, waits, and recovers without a restart."""

from __future__ import annotations

import asyncio
import json
import resource
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.process.client import Client, Reply, eventually
from tests.process.conftest import Serve
from tests.process.invariants import check_invariants, rows
from tests.process.server import SEPARATE_DATABASES, Server

ORDER = {"customer_id": "c-1", "items": [{"product_id": "SKU-1", "quantity": 1}]}


def assert_unavailable(reply: Reply) -> None:
    """Check that *reply* is the 503 of the contract and reveals no internals."""
    assert reply.status == 503, reply.text
    assert int(reply.headers["Retry-After"]) >= 1
    assert reply.headers["Content-Type"].startswith("application/problem+json")
    assert reply.body["code"] == "database_unavailable"
    assert reply.body["correlation_id"] == reply.headers["X-Correlation-ID"]
    for word in ("sqlite", "locked", "BEGIN", "Traceback", "fulfilment.db"):
        assert word not in reply.text


@pytest.mark.slow
async def test_a_locked_database_is_answered_with_503_until_it_is_free(server: Server, client: Client) -> None:
    """While another connection locks the database, POST is answered with 503; afterwards everything continues."""
    await client.stock("SKU-1", 1_000)
    accepted = [await client.place({"SKU-1": 1}) for _ in range(20)]
    with closing(sqlite3.connect(server.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        # The first request waits for the lock in vain; the others are answered at once.
        first = await client.post({"SKU-1": 1}, "key-0")
        *responses, livez, order, readyz, cancel = await asyncio.gather(
            *(client.post({"SKU-1": 1}, f"key-{n}") for n in range(1, 10)),
            client.request("GET", "/livez"),
            client.request("GET", f"/v1/orders/{accepted[0]}"),
            client.request("GET", "/readyz"),
            client.request("POST", f"/v1/orders/{accepted[1]}/cancel"),
        )
        for response in (first, *responses):
            assert_unavailable(response)
        assert_unavailable(cancel)
        assert livez.status == 200
        assert order.status in (200, 503)
        assert readyz.status in (200, 503)
        other.execute("ROLLBACK")

    async def repeat() -> Reply:
        return await client.post({"SKU-1": 1}, "key-0")

    accepted_again = await eventually(repeat, lambda reply: reply.status == 202)
    accepted.append(accepted_again.body["order_id"])
    accepted += [await client.place({"SKU-1": 1}, f"key-{n}") for n in range(1, 10)]
    assert len(set(accepted)) == 30
    await check_invariants(client, accepted, {"SKU-1": 1_000})
    assert (await client.get("/readyz"))["status"] == "ready"


@pytest.mark.slow
async def test_a_full_disk_is_answered_with_503_until_there_is_space(server: Server, client: Client) -> None:
    """While the file cannot grow, POST is answered with 503 and nothing is partly written; then everything continues."""
    assert isinstance(server.database, Path)
    await client.stock("SKU-1", 100_000)
    accepted = [await client.place({"SKU-1": 1}) for _ in range(5)]
    for order_id in accepted:
        await client.wait_until_final(order_id)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    wal = server.database.with_name(server.database.name + "-wal")
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (wal.stat().st_size + 65_536, hard_limit))
    rejected = 0
    for _ in range(200):
        reply = await client.post({"SKU-1": 1})
        if reply.status == 202:
            accepted.append(reply.body["order_id"])
            continue
        assert_unavailable(reply)
        rejected += 1
        if rejected == 3:
            break
    assert rejected == 3
    # A page or two may still be free. While nothing at all can be written, readyz reports it.
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (1, hard_limit))
    assert_unavailable(await client.post({"SKU-1": 1}))
    await eventually(lambda: client.request("GET", "/readyz"), lambda reply: reply.status == 503)
    for _ in range(20):
        readyz = await client.request("GET", "/readyz")
        assert (readyz.status, readyz.body["checks"]["database:orders"]) == (503, "unavailable")
    assert (await client.request("GET", f"/v1/orders/{accepted[0]}")).status in (200, 503)
    assert (await client.request("GET", "/livez")).status == 200
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before)

    accepted_again = await eventually(lambda: client.post({"SKU-1": 1}), lambda reply: reply.status == 202)
    accepted.append(accepted_again.body["order_id"])
    orders = await check_invariants(client, accepted, {"SKU-1": 100_000})
    assert {order["status"] for order in orders} == {"confirmed"}
    assert (await client.get("/readyz"))["status"] == "ready"


async def call_outcomes(client: Client) -> dict[str, float]:
    """Return the number of provider calls by outcome, from the metrics, without the outcomes that did not occur."""
    text = (await client.request("GET", "/metrics")).text
    return {
        sample.labels["outcome"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "payment_attempts_total" and sample.value
    }


# Each kind of failure comes first for every seventh order: once in six million runs one kind does not occur.
@pytest.mark.slow
async def test_a_failing_provider_charges_each_order_once(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """A call fails before or after the charge; every order is still confirmed and charged once."""
    client = connect(serve(SIMULATED_FAILURE_RATE="0.3"))
    await client.stock("SKU-1", 1_000)
    accepted = await asyncio.gather(*(client.place({"SKU-1": 1}) for _ in range(400)))
    orders = await check_invariants(client, accepted, {"SKU-1": 1_000}, seconds=120.0)
    assert {order["status"] for order in orders} == {"confirmed"}
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 600
    payments = [await client.get(f"/v1/payments/{order_id}") for order_id in accepted]
    assert {payment["status"] for payment in payments} == {"captured"}
    assert len({payment["reference"] for payment in payments}) == 400
    outcomes = await call_outcomes(client)
    assert outcomes.keys() == {"captured", "unknown", "unavailable"}, "both kinds of failure must occur"


@pytest.mark.slow
async def test_a_charge_after_the_timeout_is_refunded(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """An order that times out during the charge is cancelled, its stock released, its late charge refunded."""
    server = serve(ORDER_TIMEOUT_S="0.5", SIMULATED_LATENCY_MS="2000", **SEPARATE_DATABASES)
    client = connect(server)
    await client.stock("SKU-1", 10)
    order_id = await client.place({"SKU-1": 3})
    order = await client.wait_until_final(order_id)
    assert (order["status"], order["reason"]) == ("cancelled", "timed_out")

    async def product() -> object:
        return (await client.get("/v1/inventory/SKU-1"))["available"]

    await eventually(product, lambda available: available == 10)
    assert (await client.get(f"/v1/payments/{order_id}"))["status"] in ("pending", "unknown")
    payment = await client.wait_for_payment(order_id, "refunded")
    assert payment["amount"] == {"amount": 300, "currency": "EUR"}
    await check_invariants(client, [order_id], {"SKU-1": 10})
    published = rows(server.database_of("payments"), "SELECT subject, body FROM payments_outbox")
    refunds = [json.loads(body) for subject, body in published if subject == "payments.refunded.v1"]
    assert [refund["amount"] for refund in refunds] == [payment["amount"]]
    assert "payments.captured.v1" not in Counter(subject for subject, _ in published)


@pytest.mark.slow
async def test_an_order_shows_that_it_waits_for_the_payment(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """While the provider is out of reach an order stays reserved; after a cancellation its stock is released."""
    client = connect(serve(SIMULATED_FAILURE_RATE="1"))
    await client.stock("SKU-1", 10)
    order_id = await client.place({"SKU-1": 1})

    async def fetch() -> dict[str, str]:
        order: dict[str, str] = await client.get(f"/v1/orders/{order_id}")
        return order

    waiting = await eventually(fetch, lambda order: "waiting_for" in order)
    assert (waiting["status"], waiting["waiting_for"]) == ("reserved", "payment")
    assert (await client.get("/v1/inventory/SKU-1"))["reserved"] == 1
    assert (await client.cancel(order_id))["status"] == "cancelled"

    async def product() -> object:
        return (await client.get("/v1/inventory/SKU-1"))["reserved"]

    await eventually(product, lambda reserved: reserved == 0)
    assert await client.list_all("/v1/dead-letters") == []


@pytest.mark.slow
async def test_orders_wait_while_a_table_of_one_module_is_refused(server: Server, client: Client) -> None:
    """They are accepted and reserved; readiness has ``refused``, the log the reason, once; they end once it is corrected."""
    await client.stock("SKU-1", 1_000)
    with closing(sqlite3.connect(server.database, isolation_level=None)) as other:
        other.execute("ALTER TABLE payments_payment RENAME TO away")
        orders = [await client.place({"SKU-1": 1}) for _ in range(20)]

        async def readiness() -> Reply:
            return await client.request("GET", "/readyz")

        found = await eventually(readiness, lambda reply: reply.status == 503)
        assert found.body["checks"]["database:payments"] == "refused"
        await asyncio.sleep(1.0)
        assert (await client.get("/v1/dead-letters"))["items"] == []
        other.execute("ALTER TABLE away RENAME TO payments_payment")
    for order in orders:
        assert (await client.wait_until_final(order))["status"] == "confirmed"
    assert len([line for line in server.lines if "no such table: payments_payment" in line and '"ERROR"' in line]) == 1
    await eventually(readiness, lambda reply: reply.status == 200)
