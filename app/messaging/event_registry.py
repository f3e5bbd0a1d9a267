"""The contract registry of all modules, built from their descriptors."""

from __future__ import annotations

__all__ = ["all_modules", "build_registry"]

from collections.abc import Collection, Iterable

from bus.contracts.registry import ContractRegistry, merge_schemas
from bus.contracts.versions import subject_at, version_of
from bus.errors import ContractError
from bus.subjects import subject_of
from config.files import BadSetting
from modules.module import Module
from modules.registry import MODULES, load_module


def all_modules() -> tuple[Module, ...]:
    """
    Return the descriptors of all registered modules, whether this process runs them or not.

    Raises:
        ModuleError: One of them is incomplete.
    """
    return tuple(load_module(name) for name in MODULES)


def build_registry(modules: Iterable[Module], retired: Collection[str] = ()) -> ContractRegistry:
    """
    Return the registry of all events that the registered modules, and *modules* among them, publish and consume.

    The versions in *retired* (RETIRED_VERSIONS) are read, but not published.

    Raises:
        ContractError: Schemas, classes and versions contradict each other, or a module declares another module's subject.
        ModuleError: A registered module is incomplete.
        BadSetting: One of *retired* cannot be retired.
    """
    descriptors = {module.name: module for module in (*all_modules(), *modules)}.values()
    promises = merge_schemas(*(module.schemas for module in descriptors))
    for module in descriptors:
        steps = [f"{dual.event}.v{dual.from_version}" for dual in module.dual_publishes]
        steps += [f"{upcast.event}.v{upcast.from_version}" for upcast in module.upcasts]
        for subject in (*module.schemas, *steps):
            if not subject.startswith(f"{module.name}."):
                raise ContractError(f"{subject}: {module.name} may declare its own subjects only")
    contracts = ContractRegistry(
        (cls for module in descriptors for cls in (*module.publishes, *module.previous_versions, *module.consumes)),
        promises,
        [step for module in descriptors for step in module.dual_publishes],
        [step for module in descriptors for step in module.upcasts],
        retired,
    )
    for subject in retired:
        _check_retired(subject, contracts, descriptors)
    return contracts


def _check_retired(subject: str, contracts: ContractRegistry, modules: Iterable[Module]) -> None:
    """Raise `BadSetting` if *subject* cannot be retired. A later release may no longer publish it: then it still can."""
    older = [c.subject for c in contracts for d in contracts.dual_publishes if version_of(c.subject) == (d.event, d.from_version)]
    if subject not in contracts:
        raise BadSetting("RETIRED_VERSIONS", f"there is no event {subject}; published beside a newer version: {', '.join(older) or 'none'}")
    event, version = version_of(subject)
    versions = sorted(other for name, other in (version_of(contract.subject) for contract in contracts) if name == event)
    if version == versions[-1]:
        raise BadSetting("RETIRED_VERSIONS", f"{subject} is the newest version of its event, which is always published")
    for other in (subject_at(event, each) for each in versions if each < version):
        if other in older and other not in contracts.retired:
            raise BadSetting("RETIRED_VERSIONS", f"{other} is older than {subject}, and has to be retired with it")
    for module in modules:
        for consumer, classes in {module.name: module.consumes, **module.workers}.items():
            if subject in map(subject_of, classes):
                raise BadSetting("RETIRED_VERSIONS", f"{consumer} reads {subject} and no newer version")
