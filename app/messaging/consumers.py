"""Who hears what: the consumers behind the door plates, and what a broker has to hold for them."""

from __future__ import annotations

__all__ = ["EXPRESS_LANE", "planned_topology", "subscriptions"]

from collections.abc import Iterable, Sequence

from app.gateways import payment_worker as worker
from app.messaging.event_registry import build_registry
from bus.contracts.registry import ContractRegistry
from bus.jetstream.admin.topology import Topology, advisory_consumer_plan
from bus.replay_subjects import replay_subject
from bus.subjects import EXPRESS
from config.settings import MODULES
from modules.module import Module

EXPRESS_LANE = "-express"
"""What the consumer of the express lane has behind the other one's name."""


def subscriptions(modules: Iterable[Module], contracts: ContractRegistry) -> dict[str, list[str]]:
    """
    Return what the consumers of *modules* hear, by their names, subjects in full.

    Each module has two, so that neither lane waits for the other, and so has the worker at the payment gateway. Each
    hears, beside its subjects and their older versions, the replays of what it has given up on.
    """
    found: dict[str, list[str]] = {}
    for module in modules:
        found |= _lanes(module.name, contracts.subjects_for(module.consumes))
        if module.name == "payments":
            found |= _lanes(worker.CONSUMER, contracts.subjects_for(worker.HEARS))
    return found


def planned_topology(modules: Sequence[Module]) -> Topology:
    """Return what a broker has to hold for *modules*: everybody's streams, because they hear the others, and their consumers."""
    topology = Topology.of(MODULES, subscriptions(modules, build_registry(modules)))
    return topology.with_consumers(advisory_consumer_plan(module.name, topology.consumers) for module in modules)


def _lanes(consumer: str, subjects: Sequence[str]) -> dict[str, list[str]]:
    lanes = {consumer: list(subjects), consumer + EXPRESS_LANE: [subject + EXPRESS for subject in subjects]}
    return {name: [*lane, *(replay_subject(name, subject) for subject in lane)] for name, lane in lanes.items()}
