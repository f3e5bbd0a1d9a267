"""Everything that the modules promise and understand, gathered from their door plates."""

from __future__ import annotations

__all__ = ["all_modules", "build_registry"]

from collections.abc import Iterable

from bus.contracts.registry import ContractRegistry, merge_schemas
from bus.errors import ContractError
from modules import inventory, orders, payments
from modules.module import Module


def all_modules() -> tuple[Module, ...]:
    """Return the door plates of all modules there are, whether this process runs them or not."""
    return orders.module(), inventory.module(), payments.module()


def build_registry(modules: Iterable[Module]) -> ContractRegistry:
    """
    Return the registry of everything that *modules* say and hear.

    Raises:
        ContractError: Schemas, classes and versions contradict each other, or a module promises what is another's.
    """
    descriptors = {module.name: module for module in (*all_modules(), *modules)}.values()
    promises = merge_schemas(*(module.schemas for module in descriptors))
    for module in descriptors:
        steps = [f"{migration.event}.v{migration.from_version}" for migration in module.dual_publishes]
        steps += [f"{upcast.event}.v{upcast.from_version}" for upcast in module.upcasts]
        for subject in (*module.schemas, *steps):
            if not subject.startswith(f"{module.name}."):
                raise ContractError(f"{subject}: it is not for {module.name} to promise")
    return ContractRegistry(
        (cls for module in descriptors for cls in (*module.publishes, *module.previous_versions, *module.consumes)),
        promises,
        [step for module in descriptors for step in module.dual_publishes],
        [step for module in descriptors for step in module.upcasts],
    )
