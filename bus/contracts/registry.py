"""
What may be said under which subject: subject ↔ JSON Schema ↔ class.

Schemas are written by hand (JSON Schema 2020-12) because they are a promise to others; classes are for ourselves, and
the two are compared when the registry is built. Both lanes keep the same contract.

jsonschema-rs looks at every message, going out and coming in, and at the schemas themselves; jsonschema explains a
rejection. Publishers are held to the letter of the schema; consumers read tolerantly, so that a newer publisher may add
an optional member before they know it. How an event gets a new version is `bus.contracts.versions`' business; what one consumer
understands is `bus.contracts.event_reader`'s.
"""

from __future__ import annotations

__all__ = ["Contract", "ContractError", "ContractRegistry", "EncodedEvent", "Value", "explain", "merge_schemas", "validator"]

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_origin

import attrs
import orjson
from attrs import evolve, frozen
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from bus.contracts.checks import check_chain, check_is_published, check_step
from bus.contracts.schemas import Schema, check_agreement, check_examples, check_schema, explain, tolerant, validator
from bus.contracts.versions import DualPublish, Upcast, subject_at, version_of, versions_header
from bus.errors import ContractError, Invalid, UnknownSubject, Unreadable
from bus.subjects import Event, subject_of, without_lane

Value = dict[str, Any]


def merge_schemas(*promises: Mapping[str, Schema]) -> dict[str, Schema]:
    """
    Return all *promises* (schemas by subject) in one.

    Raises:
        ContractError: Two of them have a schema for one subject.
    """
    found: dict[str, Schema] = {}
    for promise in promises:
        for subject, schema in promise.items():
            if subject in found:
                raise ContractError(f"{subject}: there are two schemas")
            found[subject] = schema
    return found


class EncodedEvent(NamedTuple):
    """One version of an *event*, as it goes out. Without a *mark* it keeps the event's id; else the mark makes it one."""

    subject: str
    body: bytes
    id_suffix: str | None = None
    versions: str | None = None
    """All the versions that the event is said in, for the header; None where there is one."""


@frozen
class Contract:
    """One subject, its schema and its class, with everything per-message prepared."""

    subject: str
    cls: type
    schema: Schema
    unstructure: Callable[[Event], Value]
    structure: Callable[[Any, Any], Event]
    is_valid_outgoing: Callable[[Any], bool]
    is_valid_incoming: Callable[[Any], bool]
    id_suffix: str
    """Its version, as in ``v2``."""
    older: tuple[tuple[Contract, Callable[[Event], Event]], ...] = ()
    """The versions that are said beside this one, the next lower first, each with what makes it from the one before."""
    versions: str | None = None
    """All that are said with it, for the header; None where it is the only one."""


class ContractRegistry:
    """The registry: built once, asked for every message."""

    def __init__(
        self,
        classes: Iterable[type],
        schemas: Mapping[str, Schema],
        migrations: Iterable[DualPublish] = (),
        upcasts: Iterable[Upcast] = (),
    ) -> None:
        """
        Build the registry for *classes*, finding each one's schema by its subject in *schemas*.

        Raises:
            ContractError: A schema is missing, is no JSON Schema, or contradicts its class or its examples; one subject
                has two classes; an older version cannot be read as the newer one; a migration does not do what it says.
        """
        self.dual_publishes = tuple(migrations)
        self._converter = _converter()
        self._by_subject: dict[str, Contract] = {}
        for cls in classes:
            self._add(cls, schemas)
        self._ups: dict[str, Upcast] = {}
        for step in (*upcasts, *(Upcast(m.event, m.from_version, m.to_version, m.up) for m in self.dual_publishes)):
            self._add_upcast(step)
        for contract in self:
            check_chain(self, contract, schemas)
        for step in self._ups.values():
            check_step(self, step.event, step.from_version, step.to_version, step.up)
        for migration in self.dual_publishes:
            check_step(self, migration.event, migration.to_version, migration.from_version, migration.down)
            check_is_published(self, migration)
        for contract in self:
            older = tuple(self._older(contract))
            said = (contract, *(each for each, _ in older))
            versions = versions_header(version_of(each.subject)[1] for each in said) if older else None
            self._by_subject[contract.subject] = evolve(contract, older=older, versions=versions)

    def __iter__(self) -> Iterator[Contract]:
        return iter(tuple(self._by_subject.values()))

    def __contains__(self, subject: str) -> bool:
        return without_lane(subject) in self._by_subject

    def __getitem__(self, subject: str) -> Contract:
        """
        Return the contract for *subject*, in either lane.

        Raises:
            UnknownSubject: There is none.
        """
        contract = self._by_subject.get(subject) or self._by_subject.get(without_lane(subject))
        if contract is None:
            raise UnknownSubject(f"no contract for {subject}")
        return contract

    def readable_subjects(self, cls: type) -> dict[str, tuple[Callable[[Event], Event], ...]]:
        """
        Return every subject that can be read as *cls*, its own first, each with the upcasts that lead there.

        All of them are to be subscribed to by whoever hears *cls*, in both lanes.
        """
        found: dict[str, tuple[Callable[[Event], Event], ...]] = {subject_of(cls): ()}
        event, _ = version_of(subject_of(cls))
        older = [s for s in self._ups.values() if s.event == event]
        for step in sorted(older, key=lambda step: step.from_version, reverse=True):
            rest = found.get(subject_at(event, step.to_version))
            if rest is not None:
                found[subject_at(event, step.from_version)] = (step.up, *rest)
        return found

    def subjects_for(self, classes: Iterable[type]) -> list[str]:
        """Return the subjects that somebody who hears *classes* has to subscribe to, older versions included."""
        return [subject for cls in classes for subject in self.readable_subjects(cls)]

    def to_json(self, event: Event) -> Value:
        """
        Return *event* as the JSON value that goes out, in its own version.

        Raises:
            Invalid: The event breaks its own schema.
        """
        return _value(self._by_subject[event.__subject__], event)

    def encode_versions(self, event: Event, value: Value | None = None) -> tuple[EncodedEvent, ...]:
        """
        Return *event* as it goes out: in its own version first, and in every older one that a migration declares.

        *value* is what `value` returned for it, if somebody has asked already. The oldest keeps the event's id for its
        message, for nothing is to change for those who hear it.

        Raises:
            Invalid: The event breaks its own schema, or a schema of the older versions.
        """
        contract = self._by_subject[event.__subject__]
        body = orjson.dumps(_value(contract, event) if value is None else value)
        if not contract.older:
            return (EncodedEvent(contract.subject, body),)
        versions, oldest = contract.versions, contract.older[-1][0]
        sayings = [EncodedEvent(contract.subject, body, contract.id_suffix, versions)]
        for older, down in contract.older:
            event = down(event)
            mark = None if older is oldest else older.id_suffix
            sayings.append(EncodedEvent(older.subject, orjson.dumps(_value(older, event)), mark, versions))
        return tuple(sayings)

    def encode(self, event: Event) -> bytes:
        """
        Return *event* as the JSON that goes out, in its own version.

        Raises:
            Invalid: The event breaks its own schema.
        """
        return orjson.dumps(self.to_json(event))

    def decode(self, subject: str, body: bytes) -> Event:
        """
        Return the event that *body* says under *subject*, in the version of the subject.

        Raises:
            UnknownSubject: There is no such contract.
            Unreadable: The body is not JSON in UTF-8, is nested beyond measure, or says a name twice in one object.
            Invalid: The body breaks the schema; says where and why.
        """
        contract = self[subject]
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Unreadable(f"{subject}: {error}") from None
        try:
            again = orjson.dumps(value)
        except TypeError:  # it reads deeper than it writes
            raise Unreadable(f"{subject}: it is nested too deeply") from None
        # Whatever one of us has said is written the same again; only a stranger's hand is worth a second, slow look.
        if again != body and not _has_unique_names(body):
            raise Unreadable(f"{subject}: a name comes twice in one object, so two readers could take it for two things")
        if not contract.is_valid_incoming(value):
            raise Invalid(subject, explain(tolerant(contract.schema), value))
        return contract.structure(value, contract.cls)

    # Being built

    def _add(self, cls: type, schemas: Mapping[str, Schema]) -> None:
        subject = subject_of(cls)
        if subject in self._by_subject:
            other = self._by_subject[subject].cls
            if other is not cls:
                raise ContractError(f"{subject}: two classes claim it, {cls.__name__} and {other.__name__}")
            return
        if subject not in schemas:
            raise ContractError(f"{subject}: there is no schema")
        schema = schemas[subject]
        check_schema(subject, schema)
        check_agreement(subject, schema, cls)
        structure, unstructure = self._converter.get_structure_hook(cls), self._converter.get_unstructure_hook(cls)
        check_examples(subject, schema, lambda example: orjson.loads(orjson.dumps(unstructure(structure(example, cls)))))
        self._by_subject[subject] = Contract(
            subject=subject,
            cls=cls,
            schema=schema,
            unstructure=unstructure,
            structure=structure,
            is_valid_outgoing=validator(schema),
            is_valid_incoming=validator(tolerant(schema)),
            id_suffix=subject.rpartition(".")[2],
        )

    def _add_upcast(self, step: Upcast) -> None:
        subject = subject_at(step.event, step.from_version)
        if not 0 < step.from_version < step.to_version:
            raise ContractError(f"{step.event}: an upcast leads from v{step.from_version} to v{step.to_version}, which is not up")
        if subject in self._ups:
            raise ContractError(f"{subject}: there are two upcasters")
        self._ups[subject] = step

    def _older(self, contract: Contract) -> Iterator[tuple[Contract, Callable[[Event], Event]]]:
        event, version = version_of(contract.subject)
        downs = {m.to_version: m for m in self.dual_publishes if m.event == event}
        if any(m.from_version == version for m in self.dual_publishes if m.event == event):
            return  # an older version is said because its newer one is, never by itself
        while version in downs:
            migration = downs[version]
            version = migration.from_version
            yield self[subject_at(event, version)], migration.down


def _value(contract: Contract, event: Event) -> Value:
    value = contract.unstructure(event)
    if not contract.is_valid_outgoing(value):
        raise Invalid(contract.subject, explain(contract.schema, value))
    return value


def _converter() -> Converter:
    """Return a converter for data that a schema has already seen: no second validation, defaults left out."""
    converter = Converter(detailed_validation=False)
    converter.register_structure_hook_factory(attrs.has, lambda cls: make_dict_structure_fn(cls, converter))
    converter.register_unstructure_hook_factory(
        _is_all_of_one, lambda hint: _unstructured_all(converter.get_unstructure_hook(get_args(hint)[0]))
    )
    converter.register_unstructure_hook_factory(
        attrs.has, lambda cls: make_dict_unstructure_fn(cls, converter, _cattrs_omit_if_default=True)
    )
    return converter


def _is_all_of_one(hint: Any) -> bool:
    return get_origin(hint) is tuple and get_args(hint)[1:] == (...,)


def _unstructured_all(each: Callable[[Any], Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """Return how to unstructure a sequence: what cattrs does, without a generator in between."""
    return lambda values: [each(value) for value in values]


def _has_unique_names(body: bytes) -> bool:
    def unique(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            raise _DuplicateName

    try:
        json.loads(body, object_pairs_hook=unique, parse_int=str, parse_float=str)
    except (_DuplicateName, RecursionError):
        return False
    return True


class _DuplicateName(Exception):
    """Raised to leave a reading at the first name that comes twice."""
