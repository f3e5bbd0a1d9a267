"""Which consumer subscribes to which subjects, and the streams and durables that a broker holds for them."""

from __future__ import annotations

__all__ = ["EXPRESS_LANE", "planned_topology", "subscriptions"]

from collections.abc import Iterable, Sequence

from app.messaging.event_registry import build_registry
from bus.contracts.registry import ContractRegistry
from bus.jetstream.admin.topology import Topology, advisory_consumer_plan
from bus.subjects import EXPRESS, replay_subject
from modules.module import Module
from modules.registry import MODULES

EXPRESS_LANE = "-express"
"""Suffix of the consumer that reads the express lane."""


def subscriptions(modules: Iterable[Module], contracts: ContractRegistry) -> dict[str, list[str]]:
    """
    Return the full subjects that each consumer of *modules* subscribes to, by the consumer's name.

    Each module and each of its workers has two consumers, so that neither lane waits for the other. Beside its subjects
    and their older versions, a consumer subscribes to the replays of its own dead letters.
    """
    found: dict[str, list[str]] = {}
    for module in modules:
        for consumer, consumes in {module.name: module.consumes, **module.workers}.items():
            if consumes:
                found |= _lanes(consumer, contracts.subjects_for(consumes))
    return found


def planned_topology(modules: Sequence[Module]) -> Topology:
    """Return the streams of all modules, since *modules* consume from them, and the durable consumers of *modules*."""
    topology = Topology.of(MODULES, subscriptions(modules, build_registry(modules)))
    return topology.with_consumers(advisory_consumer_plan(module.name, topology.consumers) for module in modules)


def _lanes(consumer: str, subjects: Sequence[str]) -> dict[str, list[str]]:
    lanes = {consumer: list(subjects), consumer + EXPRESS_LANE: [subject + EXPRESS for subject in subjects]}
    return {name: [*lane, *(replay_subject(name, subject) for subject in lane)] for name, lane in lanes.items()}
