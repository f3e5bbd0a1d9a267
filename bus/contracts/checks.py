"""Checks of the declared versions of an event; the registry runs them once, when it is built."""

from __future__ import annotations

__all__ = ["check_chain", "check_conversion", "check_is_published"]

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import orjson

from bus.contracts.contract import Contract
from bus.contracts.schemas import Schema, explain
from bus.contracts.versions import DualPublish, subject_at, version_of
from bus.errors import ContractError


def check_chain(
    contract: Contract, readable: Container[str], subjects: Iterable[str], contracts: Mapping[str, Contract]
) -> None:
    """
    Check that every older version of the event of *contract* can be read as its class.

    *readable* are the subjects that can be, *subjects* are those that have a schema, *contracts* are all contracts by
    subject.

    Raises:
        ContractError: A version cannot be read, or has no class; the message names it.
    """
    event, version = version_of(contract.subject)
    for subject in sorted(subjects):
        if subject.startswith(f"{event}.v") and version_of(subject)[1] < version:
            if subject not in readable:
                raise ContractError(f"{subject}: no upcast leads from it to v{version}")
            if subject not in contracts:
                raise ContractError(f"{subject}: there is no class")


def check_conversion(
    contracts: Mapping[str, Contract], event: str, from_version: int, to_version: int, convert: Callable[[Any], Any]
) -> None:
    """
    Check that *convert* turns every example of *from_version* of *event* into a valid event of *to_version*.

    Raises:
        ContractError: It does not, or one of the two versions has no schema or no class.
    """
    for version in (from_version, to_version):
        if subject_at(event, version) not in contracts:
            raise ContractError(f"{subject_at(event, version)}: there is no class, and a conversion needs one")
    old, new = contracts[subject_at(event, from_version)], contracts[subject_at(event, to_version)]
    conversion = f"{old.subject}: the conversion to v{to_version}"
    for number, example in enumerate(_examples(old.schema)):
        try:
            converted = convert(old.structure(example, old.cls))
        except Exception as error:
            raise ContractError(f"{conversion} raises {type(error).__name__} for example {number}: {error}") from None
        if not isinstance(converted, new.cls):
            raise ContractError(f"{conversion} returns a {type(converted).__name__}, not a {new.cls.__name__}")
        value = orjson.loads(orjson.dumps(new.unstructure(converted)))
        if not new.is_valid_outgoing(value):
            reason = next((f"{p.pointer or '/'}: {p.detail}" for p in explain(new.schema, value)), "does not match")
            raise ContractError(f"{conversion} makes example {number} invalid: {reason}")


def check_is_published(
    dual_publish: DualPublish, dual_publishes: Iterable[DualPublish], contracts: Iterable[Contract]
) -> None:
    """
    Check that the version from which *dual_publish* makes the older one is itself published.

    It is if it is the newest one, or if another of *dual_publishes* makes it.

    Raises:
        ContractError: It is not.
    """
    event, source = dual_publish.event, dual_publish.to_version
    versions = (version_of(contract.subject) for contract in contracts)
    newest = max(version for name, version in versions if name == event)
    if source != newest and source not in {each.from_version for each in dual_publishes if each.event == event}:
        raise ContractError(f"{event}: v{dual_publish.from_version} is made from v{source}, which is not published")


def _examples(schema: Schema) -> Sequence[Any]:
    examples: Sequence[Any] = schema.get("examples", ())
    return examples
