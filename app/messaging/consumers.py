"""Who hears what: the consumers behind the door plates, and what a broker has to hold for them."""

from __future__ import annotations

__all__ = ["EXPRESS_LANE", "hears", "plan"]

from collections.abc import Iterable, Sequence

from app.gateways import payment_worker as worker
from app.messaging.event_registry import contracts_of
from bus.contracts.registry import Contracts
from bus.jetstream.admin.topology import Topology, patrol_plan
from bus.replay_subjects import replay_subject
from bus.subjects import EXPRESS
from config.settings import MODULES
from modules.module import Module

EXPRESS_LANE = "-express"
"""What the consumer of the express lane has behind the other one's name."""


def hears(modules: Iterable[Module], contracts: Contracts) -> dict[str, list[str]]:
    """
    Return what the consumers of *modules* hear, by their names, subjects in full.

    Each module has two, so that neither lane waits for the other, and so has the worker at the payment gateway. Each
    hears, beside its subjects and their older versions, the replays of what it has given up on.
    """
    found: dict[str, list[str]] = {}
    for module in modules:
        found |= _lanes(module.name, contracts.heard_subjects(module.hears))
        if module.name == "payments":
            found |= _lanes(worker.CONSUMER, contracts.heard_subjects(worker.HEARS))
    return found


def plan(modules: Sequence[Module]) -> Topology:
    """Return what a broker has to hold for *modules*: everybody's streams, because they hear the others, and their consumers."""
    topology = Topology.of(MODULES, hears(modules, contracts_of(modules)))
    return topology.with_consumers(patrol_plan(module.name, topology.consumers) for module in modules)


def _lanes(consumer: str, subjects: Sequence[str]) -> dict[str, list[str]]:
    lanes = {consumer: list(subjects), consumer + EXPRESS_LANE: [subject + EXPRESS for subject in subjects]}
    return {name: [*lane, *(replay_subject(name, subject) for subject in lane)] for name, lane in lanes.items()}
