"""Releases of the modules for tests that combine them: orders.created has one version, two, or two of which one is retired."""

from __future__ import annotations

__all__ = ["NEW", "OLD", "RETIRED", "Release", "created"]

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import attrs
from attrs import frozen

from bus.contracts.registry import ContractRegistry
from bus.subjects import subject_of
from modules import inventory, orders
from modules.module import Decision, Module
from modules.orders.events import OrderCreated, OrderCreatedV1, created_v1, created_v2
from modules.values import Line

V2 = subject_of(OrderCreated)


@frozen
class Release:
    """The modules of a release and their registry."""

    modules: dict[str, Module]
    contracts: ContractRegistry


def _registry(modules: Sequence[Module], retired: Sequence[str] = ()) -> ContractRegistry:
    return ContractRegistry(
        (cls for module in modules for cls in (*module.publishes, *module.previous_versions, *module.consumes)),
        {subject: schema for module in modules for subject, schema in module.schemas.items()},
        [step for module in modules for step in module.dual_publishes],
        retired=retired,
    )


def _new(*retired: str) -> Release:
    from modules import payments

    modules = (orders.module(), inventory.module(), payments.module())
    return Release({module.name: module for module in modules}, _registry(modules, retired))


def _old() -> Release:
    """Return the modules as they were while orders.created had only one version."""
    new = _new().modules

    def decide_orders(states: Sequence[Any], event: Any, now: datetime) -> Decision:
        decision = new["orders"].decide(states, event, now)
        events = (created_v1(each) if isinstance(each, OrderCreated) else each for each in decision.events)
        return attrs.evolve(decision, events=tuple(events))

    def decide_inventory(states: Sequence[Any], event: Any, now: datetime) -> Decision:
        return new["inventory"].decide(states, created_v2(event) if isinstance(event, OrderCreatedV1) else event, now)

    old = {
        **new,
        "orders": attrs.evolve(
            new["orders"],
            publishes=tuple(OrderCreatedV1 if cls is OrderCreated else cls for cls in new["orders"].publishes),
            previous_versions=(),
            dual_publishes=(),
            decide=decide_orders,
            schemas={subject: schema for subject, schema in new["orders"].schemas.items() if subject != V2},
        ),
        "inventory": attrs.evolve(
            new["inventory"],
            consumes=tuple(OrderCreatedV1 if cls is OrderCreated else cls for cls in new["inventory"].consumes),
            decide=decide_inventory,
        ),
    }
    return Release(old, _registry(tuple(old.values())))


OLD, NEW, RETIRED = _old(), _new(), _new("orders.created.v1")


def created(order_id: str, quantity: int = 1) -> OrderCreated:
    """Return the event of a small order, in the newest version."""
    return OrderCreated(
        order_id=order_id,
        customer_id="c-1",
        items=(Line("A", quantity),),
        version="v2",
        shipping_address=None,
    )
