"""
Measure systems in pairs: the reference and one other in turn, both new, one directly after the other.

The speed of a machine changes from minute to minute, so a figure by itself shows little; both halves of a pair see the
same minute, and the result is the median of the ratios. The order within a pair alternates.

An order counts once it is confirmed: the clock runs from the first request until as many orders are confirmed as the
client has seen accepted.
"""

from __future__ import annotations

__all__ = ["Load", "Measurement", "Pair", "measure", "pairs"]

import json
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from bench.load import drive
from bench.processes import cpu_seconds
from bench.systems import Running, System

WARM_UP_SECONDS = 1
STALLED_SECONDS = 60.0
"""A system that has confirmed no order for so long is stuck."""

FINAL_SECONDS = 30.0


@frozen
class Load:
    """The load that every system gets."""

    client: str
    connections: int
    seconds: int


@frozen
class Measurement:
    """What one run of one system has shown."""

    orders: int
    """Orders that were confirmed."""
    orders_per_second: float
    p99_ms: float
    """Of POST."""
    failed: int
    """Requests without an answer of success."""
    own_cpu_ms: float
    """Processor time an order of the system's own processes."""
    server_cpu_ms: float
    """Processor time an order of the NATS and the PostgreSQL server."""

    @property
    def cpu_ms(self) -> float:
        """Both together."""
        return self.own_cpu_ms + self.server_cpu_ms


@frozen
class Pair:
    """Two runs, one directly after the other."""

    reference: Measurement
    other: Measurement

    @property
    def ratio(self) -> float:
        """The orders a second of *other*, divided by those of *reference*."""
        return self.other.orders_per_second / self.reference.orders_per_second

    @property
    def cpu_ratio(self) -> float:
        """The processor time of an order with *other*, divided by that with *reference*, servers included."""
        return self.other.cpu_ms / self.reference.cpu_ms


def pairs(reference: System, others: Sequence[System], rounds: int, load: Load) -> Iterator[tuple[System, Pair | Exception]]:
    """Yield a pair for each of *others* in each of the *rounds*, or the error that ended it."""
    for number in range(rounds):
        for other in others:
            try:
                if number % 2:
                    second, first = measure(other, load), measure(reference, load)
                else:
                    first, second = measure(reference, load), measure(other, load)
            except (RuntimeError, OSError) as error:
                yield other, error
            else:
                yield other, Pair(first, second)


def measure(system: System, load: Load) -> Measurement:
    """
    Start *system* with an empty database, drive it, and stop it.

    Raises:
        RuntimeError: It does not start, confirms no order, or shows an order in another state than it is in.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name, system.start(Path(name)) as running:
        warm_up = drive(running.url, load.connections, WARM_UP_SECONDS, load.client)
        _wait_for(running.completed, 0, warm_up.accepted)
        before = _settled(running.completed)
        own, servers = cpu_seconds(running.own), cpu_seconds(running.servers)
        began = time.monotonic()
        result = drive(running.url, load.connections, load.seconds, load.client)
        orders = _wait_for(running.completed, before, result.accepted)
        seconds = time.monotonic() - began
        own, servers = cpu_seconds(running.own) - own, cpu_seconds(running.servers) - servers
        _check_state(running)
    share = 1e3 / orders
    return Measurement(orders, orders / seconds, result.p99_ms, result.failed, own * share, servers * share)


def _settled(completed: Callable[[], int]) -> int:
    """Return the number of confirmed orders once it does not change any more: requests were in flight at the end."""
    count, unchanged = completed(), 0
    while unchanged < 5:
        time.sleep(0.1)
        now = completed()
        unchanged = unchanged + 1 if now == count else 0
        count = now
    return count


def _wait_for(completed: Callable[[], int], before: int, accepted: int) -> int:
    """
    Return how many orders were confirmed since there were *before*, once they are at least as many as *accepted*.

    Raises:
        RuntimeError: No order was accepted, or the system is stuck.
    """
    count, until = completed() - before, time.monotonic() + STALLED_SECONDS
    while count < accepted:
        began = time.monotonic()
        now = completed() - before
        # A count that takes long is asked for rarely: it must not slow down what it measures.
        time.sleep(max(0.02, 20 * (time.monotonic() - began)))
        if now > count:
            count, until = now, time.monotonic() + STALLED_SECONDS
        elif time.monotonic() > until:
            raise RuntimeError(f"{count} of {accepted} accepted orders are confirmed, and no other for {STALLED_SECONDS:g} s")
    if not count:
        raise RuntimeError("no order was accepted")
    return count


def _check_state(running: Running) -> None:
    """Place one more order as a customer does, and read its state until it is confirmed."""
    body = b'{"customer_id":"c-1","items":[{"product_id":"SKU-1","quantity":1}]}'
    order = _ask(f"{running.url}/v1/orders", body)
    until = time.monotonic() + FINAL_SECONDS
    while (state := _ask(f"{running.url}/v1/orders/{order['order_id']}"))["status"] != "confirmed":
        if time.monotonic() > until:
            raise RuntimeError(f"an order is not confirmed after {FINAL_SECONDS:g} s: {state}")
        time.sleep(0.02)


def _ask(url: str, body: bytes | None = None) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
