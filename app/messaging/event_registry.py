"""The contract registry of all modules, built from their descriptors."""

from __future__ import annotations

__all__ = ["all_modules", "build_registry"]

from collections.abc import Iterable

from bus.contracts.registry import ContractRegistry, merge_schemas
from bus.errors import ContractError
from modules.module import Module
from modules.registry import MODULES, load_module


def all_modules() -> tuple[Module, ...]:
    """
    Return the descriptors of all registered modules, whether this process runs them or not.

    Raises:
        ModuleError: One of them is incomplete.
    """
    return tuple(load_module(name) for name in MODULES)


def build_registry(modules: Iterable[Module]) -> ContractRegistry:
    """
    Return the registry of all events that the registered modules, and *modules* among them, publish and consume.

    Raises:
        ContractError: Schemas, classes and versions contradict each other, or a module declares another module's subject.
        ModuleError: A registered module is incomplete.
    """
    descriptors = {module.name: module for module in (*all_modules(), *modules)}.values()
    promises = merge_schemas(*(module.schemas for module in descriptors))
    for module in descriptors:
        steps = [f"{migration.event}.v{migration.from_version}" for migration in module.dual_publishes]
        steps += [f"{upcast.event}.v{upcast.from_version}" for upcast in module.upcasts]
        for subject in (*module.schemas, *steps):
            if not subject.startswith(f"{module.name}."):
                raise ContractError(f"{subject}: {module.name} may declare its own subjects only")
    return ContractRegistry(
        (cls for module in descriptors for cls in (*module.publishes, *module.previous_versions, *module.consumes)),
        promises,
        [step for module in descriptors for step in module.dual_publishes],
        [step for module in descriptors for step in module.upcasts],
    )
