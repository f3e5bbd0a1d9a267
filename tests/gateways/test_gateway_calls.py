"""How long a request waits after a failed call."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from app.gateways.breakers.circuit_breaker import CircuitBreaker
from app.gateways.gateway_calls import REFUND_RETRY_SECONDS_MAX, RETRY_SECONDS_MAX, GatewayCalls
from app.telemetry.metrics import Metrics
from tests.clock import VirtualClock
from tests.gateways.test_payment_worker import FakeGateway, operations_with


@pytest.fixture
def calls() -> GatewayCalls:
    clock = VirtualClock()
    return GatewayCalls(FakeGateway(), operations_with(CircuitBreaker(clock.monotonic), clock), Metrics(), random.Random(1))


def _bounds(waits: list[float]) -> list[float]:
    return [min(waits), max(waits)]


def test_waits_are_spread_over_half_their_length(calls: GatewayCalls) -> None:
    """Requests that fail together, because the provider is out of reach, are not repeated together."""
    waits = [calls.retry_seconds(1) for _ in range(200)]
    assert _bounds(waits) == pytest.approx([0.5, 0.75], abs=0.01)
    assert len(set(waits)) == len(waits)


@pytest.mark.parametrize("longest", [RETRY_SECONDS_MAX, REFUND_RETRY_SECONDS_MAX])
def test_waits_double_up_to_a_limit(calls: GatewayCalls, longest: float) -> None:
    """Each is at least as long as the provider asks; a refund waits longer than a charge, as no order waits for it."""
    wait = calls.refund_retry_seconds if longest == REFUND_RETRY_SECONDS_MAX else calls.retry_seconds
    shortest = [_bounds([wait(attempt) for _ in range(200)])[0] for attempt in range(1, 20)]
    for before, after in pairwise(shortest):
        assert after == pytest.approx(min(2 * before, longest), rel=0.03)
    assert shortest[-1] == pytest.approx(longest, rel=0.02)
    assert _bounds([wait(1, 60.0) for _ in range(200)]) == pytest.approx([60.0, 90.0], abs=1.0)
