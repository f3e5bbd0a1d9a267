"""
What an event costs between its bytes and its class: ``python -m tests.bench_contracts``.

An order of three lines, read as if it came from another process (what a process has said itself it does not read
again). Each figure is the best of several rounds, in microseconds: on a machine that does other things as well, the
best is what comes nearest to the cost of the work itself.
"""

from __future__ import annotations

from collections.abc import Callable
from timeit import Timer

import orjson

from app.messaging.event_registry import all_modules, build_registry
from bus.contracts.event_reader import EventReader
from modules.inventory import module as inventory
from modules.orders.events import OrderCreated, created_v1
from modules.values import Address, Line

ROUNDS, CALLS = 15, 5_000
ORDER = OrderCreated(
    order_id="0192f0c1-2b3c-7d4e-8f50-617283940a1b",
    customer_id="c-1",
    items=(Line("SKU-1", 2), Line("SKU-2", 1), Line("SKU-3", 5)),
    version="v2",
    shipping_address=Address(line1="12 St James's Square", city="London", postal_code="SW1Y 4JH", country="GB"),
)


def microseconds(work: Callable[[], object]) -> float:
    """Return what one call of *work* costs."""
    return min(Timer(work).repeat(ROUNDS, CALLS)) / CALLS * 1e6


def main() -> None:
    """Measure, and print a line for each."""
    contracts = build_registry(all_modules())
    hearing = EventReader("inventory", contracts, inventory().consumes)
    new, old = contracts["orders.created.v2"], contracts["orders.created.v1"]
    body, older = contracts.encode(ORDER), contracts.encode(created_v1(ORDER))
    value = orjson.loads(body)
    lines: dict[str, Callable[[], object]] = {
        "validate v2": lambda: new.is_valid_incoming(value),
        "structure v2": lambda: new.structure(value, new.cls),
        "validate and structure v2": lambda: new.is_valid_incoming(value) and new.structure(value, new.cls),
        "read v2 from its bytes": lambda: hearing.read(new.subject, body),
        "read v1 from its bytes, as v2": lambda: hearing.read(old.subject, older),
        "encode one version": lambda: contracts.encode(ORDER),
        "say it in both versions": lambda: contracts.encode_versions(ORDER),
    }
    for name, work in lines.items():
        print(f"{name:<32} {microseconds(work):6.2f} µs")


if __name__ == "__main__":
    main()
