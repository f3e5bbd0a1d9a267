"""
Measure the encoding and decoding of an event: ``python -m tests.bench.contracts``.

The event is an order of three lines. Each figure is the best of several rounds, in microseconds: on a machine with
other load, the best round is nearest to the cost of the work itself.
"""

from __future__ import annotations

from collections.abc import Callable
from timeit import Timer

import orjson

from app.messaging.event_registry import all_modules, build_registry
from app.runtime.receiving import EventReader
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
    """Return the time of one call of *work*."""
    return min(Timer(work).repeat(ROUNDS, CALLS)) / CALLS * 1e6


def main() -> None:
    """Measure each operation and print one line for it."""
    contracts = build_registry(all_modules())
    reader = EventReader("inventory", contracts, inventory().consumes)
    new, old = contracts["orders.created.v2"], contracts["orders.created.v1"]
    body, older = contracts.encode(ORDER), contracts.encode(created_v1(ORDER))
    value = orjson.loads(body)
    lines: dict[str, Callable[[], object]] = {
        "validate v2": lambda: new.is_valid_incoming(value),
        "structure v2": lambda: new.structure(value, new.cls),
        "validate and structure v2": lambda: new.is_valid_incoming(value) and new.structure(value, new.cls),
        "read v2 from its bytes": lambda: reader.read(new.subject, body),
        "read v1 from its bytes, as v2": lambda: reader.read(old.subject, older),
        "encode one version": lambda: contracts.encode(ORDER),
        "encode both versions": lambda: contracts.encode_versions(ORDER),
    }
    for name, work in lines.items():
        print(f"{name:<32} {microseconds(work):6.2f} µs")


if __name__ == "__main__":
    main()
