"""Thousands of orders with a provider that takes money and does not respond: no order is charged twice."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import attrs
import pytest

from app.clock import SystemClock
from app.gateways.breakers.circuit_breaker import CircuitBreaker
from app.gateways.breakers.operations import Operations
from app.gateways.payment_worker import CONSUMER, PaymentWorker
from app.gateways.stripe.gateway import StripeGateway
from bus.subjects import subject_of
from modules import payments
from modules.values import Money
from tests.gateways.contract import new_order_id
from tests.gateways.fault import Fault, FaultyStripe
from tests.gateways.local import API_KEY
from tests.runtime.harness import CONTEXT, NO_CONTENT, Harness, harness_at, product, submitted

TIMED_OUT = [Fault.CHARGE_HANG, Fault.CHARGE_CUT]
BROKEN = [Fault.CHARGE_500, Fault.ERROR_500]
MALFORMED = [Fault.CHARGE_HTML, Fault.CHARGE_TRUNCATED, Fault.CHARGE_WRONG, Fault.OTHER_CURRENCY, Fault.HTML]


def fault_number(seed: int) -> Fault:
    """Return the fault of call number *seed*: 30 % time out after the charge, 20 % 5xx, 5 % malformed responses."""
    rng = random.Random(seed)
    share = rng.random()
    if share < 0.30:
        return rng.choice(TIMED_OUT)
    if share < 0.50:
        return rng.choice(BROKEN)
    return rng.choice(MALFORMED) if share < 0.55 else Fault.NONE


COUNT = 3_000
"""With so many orders some 2,200 charges get no response, so a fault that loses one in 700 of them shows."""

STUCK_SECONDS = 240.0
"""The last order may meet a dozen faults one after the other; if no order finishes for so long, none ever will."""


async def all_orders_finished(harness: Harness, count: int) -> None:
    """Wait until *count* orders are finished; that may be slow, but it must not stall."""
    sql = "SELECT count(*) FROM orders_order WHERE status IN ('confirmed', 'cancelled')"
    finished, since = -1, time.monotonic()
    while (finished_now := (await harness.rows(sql))[0][0]) < count:
        if finished_now > finished:
            finished, since = finished_now, time.monotonic()
        if time.monotonic() - since > STUCK_SECONDS:
            stuck = await harness.rows("SELECT * FROM payments_payment WHERE status NOT IN ('captured', 'declined')")
            raise AssertionError(f"{count - finished} orders do not finish; payments: {stuck[:10]}")
        await asyncio.sleep(0.1)


@pytest.mark.night
async def test_no_order_is_charged_twice_and_both_ledgers_agree(
    tmp_path: Path, faulty: FaultyStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every order is confirmed, its money is taken once, and both ledgers are equal to the cent."""
    monkeypatch.setattr("app.gateways.stripe.gateway.READ_SECONDS", 1.0)
    # A longer wait before the next attempt would only prolong the test.
    monkeypatch.setattr("app.gateways.gateway_calls.RETRY_SECONDS_MAX", 1.0)
    clock = SystemClock()
    numbers = iter(range(10**9))
    faulty.write_fault = lambda: fault_number(next(numbers))
    prices = {f"P{n}": 100 + 7 * n for n in range(10)}
    async with harness_at(tmp_path / "test.db", clock) as harness:
        for product_id, amount in prices.items():
            await harness.submit("inventory", attrs.evolve(product(10**6, product_id), unit_price=Money(amount, "EUR")))
        gateway = StripeGateway(API_KEY, faulty.url)
        # With so many faults the breaker would open, which would only prolong the test.
        operations = Operations.of("stripe", clock, lambda kind: CircuitBreaker(clock.monotonic, calls_min=10**9))
        worker = PaymentWorker(
            harness.runners["payments"], gateway, operations, harness.contracts, clock, harness.metrics, rng=random.Random(1)
        )
        for name in harness.runners:
            await harness.consume(name)
            harness.run(harness.relays[name].run())
        harness.run(worker.consume(await harness.bus.subscribe(CONSUMER, [subject_of(cls) for cls in payments.module().workers[CONSUMER]])))
        ids = [new_order_id() for _ in range(COUNT)]
        runner = harness.runners["orders"]
        for start in range(0, COUNT, 250):
            await asyncio.gather(
                *(
                    runner.submit(submitted(id, 1, f"P{n % 10}"), id=id, trace=CONTEXT, respond=NO_CONTENT)
                    for n, id in enumerate(ids[start : start + 250])
                )
            )
        await all_orders_finished(harness, COUNT)
        payments_by_order = {row[0]: row[1:] for row in await harness.rows("SELECT order_id, status, amount FROM payments_payment")}
        dead_letters = await harness.rows("SELECT error, detail FROM payments_dead_letter")
        statuses = await harness.rows("SELECT status, count(*) FROM orders_order GROUP BY status")
        await worker.drain(5)
        await worker.close()
    captured = faulty.captured()
    assert [amounts for amounts in captured.values() if len(amounts) != 1] == []
    assert {order_id: ("captured", amounts[0]) for order_id, amounts in captured.items()} == payments_by_order
    assert statuses == [("confirmed", COUNT)]
    assert faulty.refunds == {}
    assert dead_letters == []
    # The faults are the same in each run.
    assert {fault_number(number) for number in range(next(numbers))} == {Fault.NONE, *TIMED_OUT, *BROKEN, *MALFORMED}
