"""Everything that the modules promise and understand, gathered from their door plates."""

from __future__ import annotations

__all__ = ["contracts_of", "everybody"]

from collections.abc import Iterable

from bus.contracts.registry import Contracts, united
from bus.errors import ContractError
from modules import inventory, orders, payments
from modules.module import Module


def everybody() -> tuple[Module, ...]:
    """Return the door plates of all modules there are, whether this process runs them or not."""
    return orders.module(), inventory.module(), payments.module()


def contracts_of(modules: Iterable[Module]) -> Contracts:
    """
    Return the registry of everything that *modules* say and hear.

    Raises:
        ContractError: Schemas, classes and versions contradict each other, or a module promises what is another's.
    """
    plates = {module.name: module for module in (*everybody(), *modules)}.values()
    promises = united(*(module.schemas for module in plates))
    for module in plates:
        steps = [f"{migration.event}.v{migration.frm}" for migration in module.migrations]
        steps += [f"{upcast.event}.v{upcast.frm}" for upcast in module.upcasts]
        for subject in (*module.schemas, *steps):
            if not subject.startswith(f"{module.name}."):
                raise ContractError(f"{subject}: it is not for {module.name} to promise")
    return Contracts(
        (cls for module in plates for cls in (*module.says, *module.said_before, *module.hears)),
        promises,
        [step for module in plates for step in module.migrations],
        [step for module in plates for step in module.upcasts],
    )
