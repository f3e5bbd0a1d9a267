"""The operations towards a provider: each has a breaker, a pace and a fault of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from loguru import logger

from app.gateways.breakers.call_pace import RATE_MIN, CallPace
from app.gateways.breakers.circuit_breaker import BreakerOpen, BreakerState, CircuitBreaker
from app.gateways.breakers.operations import REPORT_SECONDS, Operation, OperationKind, Operations
from app.gateways.port import (
    GatewayMisconfigured,
    GatewayNotReached,
    GatewayThrottled,
    GatewayTimeout,
    ResponseMismatch,
)
from app.telemetry.metrics import Metrics
from bus.port import Clock
from tests.clock import VirtualClock

EXPIRED = GatewayMisconfigured("the key has expired", "api_key_expired", None, "req_1")
TOO_SMALL = GatewayMisconfigured("the amount is too small", "amount_too_small", "amount", "req_2")


class SkippingClock(VirtualClock):
    """A clock on which every sleep passes at once."""

    async def sleep(self, seconds: float) -> None:
        self._elapsed_seconds += seconds


@pytest.fixture
def clock() -> Clock:
    return SkippingClock()


@pytest.fixture
def operations(clock: Clock) -> Operations:
    return Operations.of("fake", clock, lambda kind: CircuitBreaker(clock.monotonic))


async def test_a_fault_of_the_configuration_is_a_metric_until_a_call_succeeds(clock: Clock) -> None:
    """One gauge for each operation, from the start on, so that an alert has a series to watch."""
    metrics = Metrics()
    operations = Operations.of("fake", clock, lambda kind: CircuitBreaker(clock.monotonic), metrics.gateway_misconfigured)

    def faulty() -> list[str]:
        lines = metrics.render().decode().splitlines()
        found = [line for line in lines if line.startswith("gateway_misconfigured{")]
        assert len(found) == 3
        return [line for line in found if line.endswith((" 1", " 1.0"))]

    async def refuse() -> None:
        raise EXPIRED

    async def accept() -> None: ...

    assert faulty() == []
    with pytest.raises(GatewayMisconfigured):
        await operations.refund.call(refuse, 1)
    [line] = faulty()
    assert 'operation="refund"' in line
    await operations.refund.call(accept, 1)
    assert faulty() == []


@pytest.fixture
def errors() -> Iterator[list[Any]]:
    """The records at ERROR."""
    found: list[Any] = []
    handler = logger.add(lambda message: found.append(message.record), level="ERROR")
    yield found
    logger.remove(handler)


async def call(operation: Operation, error: Exception | None = None, times: int = 1) -> None:
    """Make calls that raise *error*."""
    for _ in range(times):
        await call_once(operation, error)


async def call_once(operation: Operation, error: Exception | None) -> None:

    async def answer() -> None:
        if error is not None:
            raise error

    if error is None:
        await operation.call(answer, 1.0)
        return
    with pytest.raises(type(error) if operation.breaker.wait_seconds == 0 else BreakerOpen) as caught:
        await operation.call(answer, 1.0)
    if isinstance(caught.value, BreakerOpen):
        raise caught.value


async def test_failing_refunds_stop_no_charge(operations: Operations) -> None:
    """The breaker of refunds opens; charges and look-ups go on."""
    for _ in range(20):
        await call(operations.refund, GatewayNotReached("403"))
    assert operations.refund.breaker.state is BreakerState.OPEN
    with pytest.raises(BreakerOpen):
        await operations.refund.call(_never, 1.0)
    for operation in operations.charge, operations.look_up:
        await call(operation)
        assert operation.breaker.state is BreakerState.CLOSED
    assert operations.checks() == {"gateway:refund": "unavailable"}


async def _never() -> None:
    raise AssertionError("a call was made while the breaker is open")


async def test_a_call_without_a_response_ends_after_its_time(operations: Operations) -> None:
    """Its outcome is unknown, and the breaker counts it as failed."""
    for _ in range(20):
        async with asyncio.timeout(10):
            with pytest.raises((GatewayTimeout, BreakerOpen)):
                await operations.charge.call(asyncio.Event().wait, 0.001)
    assert operations.charge.breaker.state is BreakerState.OPEN


async def test_a_fault_of_the_configuration_is_logged_once_and_shown_until_a_call_succeeds(
    operations: Operations, errors: list[Any], clock: VirtualClock
) -> None:
    """One ERROR with everything that support asks for, however many orders meet it."""
    for _ in range(15):
        await call(operations.charge, EXPIRED)
    [record] = errors
    shown = {name: record["extra"][name] for name in ("operation", "code", "param", "request_id")}
    assert shown == {"operation": "charge", "code": "api_key_expired", "param": None, "request_id": "req_1"}
    assert operations.checks() == {"gateway:charge": "misconfigured: api_key_expired"}
    await call(operations.charge)
    assert operations.checks() == {}
    await call(operations.charge, EXPIRED)
    assert len(errors) == 1
    await clock.sleep(REPORT_SECONDS)
    await call(operations.charge, EXPIRED)
    assert len(errors) == 2


async def test_a_wrong_key_is_logged_once_for_all_operations(operations: Operations, errors: list[Any]) -> None:
    """A missing permission is logged for each operation that lacks it."""
    for operation in operations.charge, operations.look_up:
        await call(operation, EXPIRED)
    assert len(errors) == 1
    for operation in operations.charge, operations.refund:
        await call(operation, GatewayMisconfigured("403", "permission_missing", None, "req_3"))
    assert len(errors) == 3


async def test_a_parameter_of_one_order_opens_no_breaker(operations: Operations, errors: list[Any]) -> None:
    """An order that can never be charged is repeated; its neighbours are charged meanwhile."""
    for _ in range(100):
        await call(operations.charge, TOO_SMALL)
    assert operations.charge.breaker.state is BreakerState.CLOSED
    assert operations.checks() == {"gateway:charge": "misconfigured: amount_too_small (amount)"}
    assert len(errors) == 1


async def test_one_429_slows_the_calls_down_and_opens_nothing(operations: Operations, clock: Clock) -> None:
    """Also with a Retry-After. A provider that refuses nearly every call is left alone, as in any outage."""
    charge = operations.charge
    for _ in range(100):
        await call(charge)
        await clock.sleep(0.01)
    await call(charge, GatewayThrottled("429", 30.0))
    assert charge.breaker.state is BreakerState.CLOSED
    began = clock.monotonic()
    for _ in range(50):
        await call(charge)
    assert 0.5 < clock.monotonic() - began < 2.0
    with pytest.raises(BreakerOpen):
        await call(charge, GatewayThrottled("429", 30.0), times=200)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, BreakerState.CLOSED),
        (ResponseMismatch("wrong_amount", "twice as much"), BreakerState.CLOSED),
        (TOO_SMALL, BreakerState.CLOSED),
        (EXPIRED, BreakerState.OPEN),
        (GatewayNotReached("refused"), BreakerState.OPEN),
        (GatewayThrottled("429"), BreakerState.OPEN),
        (GatewayTimeout("no response"), BreakerState.OPEN),
        (asyncio.CancelledError(), BreakerState.HALF_OPEN),
        (ZeroDivisionError(), BreakerState.HALF_OPEN),
    ],
    ids=repr,
)
async def test_each_outcome_of_a_probe_is_reported(
    operations: Operations, clock: Clock, error: BaseException | None, state: BreakerState
) -> None:
    """Whatever is a response shows that the provider works; a probe that was cancelled, or failed here, is made again."""
    operation = operations.charge
    operation.breaker.failed(operation.breaker.acquire(), 5.0)
    await clock.sleep(5.0)

    async def probe() -> None:
        if error is not None:
            raise error

    with suppress(Exception, asyncio.CancelledError):
        await operation.call(probe, 1.0)
    assert operation.breaker.state is state
    assert operation.breaker.wait_seconds == 0 or state is BreakerState.OPEN


async def test_no_call_is_made_if_the_breaker_opens_while_it_waits_for_its_turn(
    operations: Operations, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pace may let a call wait for longer than a provider takes to fail."""
    charge = operations.charge
    charge.pace.throttled()
    await call(charge)

    async def sleep(seconds: float) -> None:
        charge.breaker.failed(charge.breaker.acquire(), 30.0)

    monkeypatch.setattr(clock, "sleep", sleep)
    with pytest.raises(BreakerOpen):
        await charge.call(_never, 1.0)


def test_the_pace_halves_and_grows_in_steps() -> None:
    """Half of the measured rate after the first 429, a step each second after that, no limit at twice the old rate."""
    now = [100.0]
    pace = CallPace(lambda: now[0])
    assert [pace.reserve() for _ in range(1_000)] == [0.0] * 1_000
    for _ in range(200):
        now[0] += 0.025
        pace.succeeded()
    pace.throttled()
    assert pace.rate == pytest.approx(20.0, rel=0.02)
    pace.throttled()  # an answer to a call that was in flight
    assert pace.rate == pytest.approx(20.0, rel=0.02)
    assert [pace.reserve() for _ in range(3)] == pytest.approx([0.0, 0.05, 0.1], rel=0.05)
    now[0] += 60.0
    assert [pace.reserve() for _ in range(3)] == pytest.approx([0.0, 0.05, 0.1], rel=0.05), "no turn is kept for later"
    for _ in range(10):
        pace.succeeded()
    assert pace.rate == pytest.approx(22.0, rel=0.02)
    rates = []
    while pace.rate is not None:
        rates.append(pace.rate)
        now[0] += 1.0
        pace.succeeded()
    assert rates == sorted(rates)
    assert 30 <= len(rates) <= 32
    assert pace.reserve() == 0.0


def test_the_pace_never_stops_the_calls() -> None:
    """Calls must be made, or it would never be noticed that the provider takes them again."""
    now = [0.0]
    pace = CallPace(lambda: now[0])
    for _ in range(50):
        pace.throttled()
        now[0] += 1.0
    assert pace.rate == RATE_MIN


def test_the_pace_is_half_of_that_of_the_last_seconds() -> None:
    """Calls of an hour ago show nothing about what the provider takes now."""
    now = [0.0]
    pace = CallPace(lambda: now[0])
    for seconds in *[0.01] * 500, 3600.0, *[0.1] * 50:
        now[0] += seconds
        pace.succeeded()
    pace.throttled()
    assert pace.rate == pytest.approx(5.0, rel=0.05)


@pytest.mark.parametrize("kind", OperationKind)
def test_each_operation_has_a_breaker_of_its_own(kind: OperationKind, operations: Operations) -> None:
    """None is shared."""
    breakers = [operations.charge.breaker, operations.refund.breaker, operations.look_up.breaker]
    assert len(set(map(id, breakers))) == 3
    assert getattr(operations, kind.value).kind is kind
