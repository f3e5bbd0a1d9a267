"""Whether what is declared about an event's versions holds: looked at once, when the registry is built."""

from __future__ import annotations

__all__ = ["check_chain", "check_is_published", "check_step"]

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from bus.contracts.schemas import Schema, explain
from bus.contracts.versions import DualPublish, subject_at, version_of
from bus.errors import ContractError

if TYPE_CHECKING:
    from bus.contracts.registry import Contract, ContractRegistry


def check_chain(contracts: ContractRegistry, contract: Contract, schemas: Mapping[str, Schema]) -> None:
    """
    Check that every older version that was ever promised can be read as *contract*'s.

    Raises:
        ContractError: One cannot; says which.
    """
    event, version = version_of(contract.subject)
    readable = contracts.readable_subjects(contract.cls)
    for subject in sorted(schemas):
        if subject.startswith(f"{event}.v") and version_of(subject)[1] < version:
            if subject not in readable:
                raise ContractError(f"{subject}: no upcaster leads from it to v{version}")
            if subject not in contracts:
                raise ContractError(f"{subject}: there is no class")


def check_step(contracts: ContractRegistry, event: str, frm: int, to: int, cast: Callable[[Any], Any]) -> None:
    """
    Check that *cast* makes of every example of version *frm* something that version *to* allows.

    Raises:
        ContractError: It does not; or one of the two versions has no schema or no class.
    """
    for version in (frm, to):
        if subject_at(event, version) not in contracts:
            raise ContractError(f"{subject_at(event, version)}: there is no class, and a migration needs one")
    old, new = contracts[subject_at(event, frm)], contracts[subject_at(event, to)]
    way = f"{old.subject}: the way to v{to}"
    for number, example in enumerate(old.schema.get("examples", ())):
        try:
            made = cast(old.structure(example, old.cls))
        except Exception as error:
            raise ContractError(f"{way} raises {type(error).__name__} for example {number}: {error}") from None
        if not isinstance(made, new.cls):
            raise ContractError(f"{way} makes a {type(made).__name__}, not a {new.cls.__name__}")
        value = orjson.loads(orjson.dumps(new.unstructure(made)))
        if not new.is_valid_outgoing(value):
            reason = next((f"{p.pointer or '/'}: {p.detail}" for p in explain(new.schema, value)), "does not fit")
            raise ContractError(f"{way} makes of example {number} what its schema refuses: {reason}")


def check_is_published(contracts: ContractRegistry, migration: DualPublish) -> None:
    """
    Check that what *migration* starts from is said: the newest version, or one that another migration makes.

    Raises:
        ContractError: Nobody says it.
    """
    versions = [version_of(contract.subject) for contract in contracts]
    newest = max(version for event, version in versions if event == migration.event)
    others = {other.from_version for other in contracts.dual_publishes if other.event == migration.event}
    if migration.to_version != newest and migration.to_version not in others:
        raise ContractError(f"{migration.event}: v{migration.from_version} is made from v{migration.to_version}, which nobody says")
