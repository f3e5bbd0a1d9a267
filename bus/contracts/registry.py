"""
The registry of contracts: which JSON Schema and which class belong to a subject.

Schemas are written by hand (JSON Schema 2020-12), because they are the promise to other services; classes are internal.
The registry compares the two when it is built. Both lanes of a subject have the same contract.

jsonschema-rs validates every message, outgoing and incoming, and the schemas themselves; jsonschema explains a
rejection. Publishers validate strictly. Consumers validate tolerantly, so that a newer publisher can add an optional
member before they know it. `bus.contracts.versions` describes how an event gets a new version.
"""

from __future__ import annotations

__all__ = ["ContractRegistry", "merge_schemas"]

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, get_args, get_origin

import attrs
import orjson
from attrs import evolve
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from bus.contracts.checks import check_chain, check_conversion, check_is_published
from bus.contracts.contract import Contract, EncodedEvent, Value, has_unique_names
from bus.contracts.schemas import Schema, check_agreement, check_examples, check_schema, explain, tolerant, validator
from bus.contracts.versions import DualPublish, Upcast, subject_at, version_of, versions_header
from bus.errors import ContractError, Invalid, UnknownSubject, Unreadable
from bus.subjects import Event, subject_of, without_lane

_SUBJECT = re.compile(r"[a-z][a-z_]*\.[a-z][a-z_]*\.v[1-9][0-9]*").fullmatch


def merge_schemas(*groups: Mapping[str, Schema]) -> dict[str, Schema]:
    """
    Return the schemas of all *groups*, each of which has them by subject.

    Raises:
        ContractError: Two groups have a schema for the same subject.
    """
    merged: dict[str, Schema] = {}
    for group in groups:
        for subject, schema in group.items():
            if subject in merged:
                raise ContractError(f"{subject}: there are two schemas")
            merged[subject] = schema
    return merged


class ContractRegistry:
    """All contracts, by subject. Built once; encodes and decodes every message."""

    def __init__(
        self,
        classes: Iterable[type],
        schemas: Mapping[str, Schema],
        dual_publishes: Iterable[DualPublish] = (),
        upcasts: Iterable[Upcast] = (),
        retired: Iterable[str] = (),
    ) -> None:
        """
        Build the registry for *classes*; *schemas* are by subject, and *retired* are subjects.

        Raises:
            ContractError: A schema is missing, is not a JSON Schema, or contradicts its class or its examples; a
                subject is malformed or has two classes; an older version cannot be read as the newer one; a conversion
                between versions is wrong.
        """
        self.dual_publishes = tuple(dual_publishes)
        self.retired = frozenset(retired)
        """Older versions that are read but not published, although a `DualPublish` may declare them."""
        self._converter = _converter()
        self._contracts: dict[str, Contract] = {}
        self._plain: dict[type, Callable[[Any], Value]] = {}
        for cls in classes:
            self._add(cls, schemas)
        self._upcasts: dict[str, Upcast] = {}
        for upcast in (*upcasts, *(Upcast(d.event, d.from_version, d.to_version, d.up) for d in self.dual_publishes)):
            self._add_upcast(upcast)
        self._check(schemas)
        self.keep_publishing(())

    def keep_publishing(self, subjects: Collection[str]) -> None:
        """
        Publish those of `retired` that are in *subjects* for now, and no other; it replaces the call before.

        A version between two that are published is published, too, since the older one is made from it. Other threads may
        encode meanwhile: an event is encoded as before the call or as after it.
        """
        for contract in self:
            older = list(self._older_versions(contract))
            while older and older[-1][0].subject in self.retired.difference(subjects):
                older.pop()
            published = (contract, *(each for each, _ in older))
            versions = versions_header(version_of(each.subject)[1] for each in published) if older else None
            self._contracts[contract.subject] = evolve(contract, older=tuple(older), versions=versions)

    def is_published(self, subject: str) -> bool:
        """Return whether *subject*, without a lane, is published now: as the newest version of its event, or beside it."""
        event, _ = version_of(subject)
        newest = max((each for each in self if version_of(each.subject)[0] == event), key=lambda each: version_of(each.subject))
        return subject in (newest.subject, *(older.subject for older, _ in newest.older))

    def __iter__(self) -> Iterator[Contract]:
        return iter(tuple(self._contracts.values()))

    def __contains__(self, subject: str) -> bool:
        return without_lane(subject) in self._contracts

    def __getitem__(self, subject: str) -> Contract:
        """
        Return the contract of *subject*, in either lane.

        Raises:
            UnknownSubject: There is none.
        """
        contract = self._contracts.get(subject) or self._contracts.get(without_lane(subject))
        if contract is None:
            raise UnknownSubject(f"no contract for {subject}")
        return contract

    def readable_subjects(self, cls: type) -> dict[str, tuple[Callable[[Event], Event], ...]]:
        """
        Return every subject that can be read as *cls*, its own first, each with the upcasts that lead to *cls*.

        A consumer of *cls* subscribes to all of them, in both lanes.
        """
        found: dict[str, tuple[Callable[[Event], Event], ...]] = {subject_of(cls): ()}
        event, _ = version_of(subject_of(cls))
        upcasts = [upcast for upcast in self._upcasts.values() if upcast.event == event]
        for upcast in sorted(upcasts, key=lambda upcast: upcast.from_version, reverse=True):
            rest = found.get(subject_at(event, upcast.to_version))
            if rest is not None:
                found[subject_at(event, upcast.from_version)] = (upcast.up, *rest)
        return found

    def subjects_for(self, classes: Iterable[type]) -> list[str]:
        """Return the subjects to which a consumer of *classes* subscribes, older versions included, without lanes."""
        return [subject for cls in classes for subject in self.readable_subjects(cls)]

    def to_json(self, event: Event) -> Value:
        """
        Return *event* as a JSON value, in its own version.

        Raises:
            Invalid: The event violates its schema.
        """
        return _to_json(self._contracts[event.__subject__], event)

    def encode_versions(self, event: Event, value: Value | None = None) -> tuple[EncodedEvent, ...]:
        """
        Return *event* encoded in its own version, followed by every older version that is published beside it.

        *value* is the result of `to_json` for it, if the caller has it. The oldest version has no id suffix: its
        message keeps the event's id, so nothing changes for the consumers of that version.

        Raises:
            Invalid: The event violates its schema, or the schema of an older version.
        """
        contract = self._contracts[event.__subject__]
        body = orjson.dumps(_to_json(contract, event) if value is None else value)
        if not contract.older:
            return (EncodedEvent(contract.subject, body),)
        versions, oldest = contract.versions, contract.older[-1][0]
        encoded = [EncodedEvent(contract.subject, body, contract.id_suffix, versions)]
        for older, down in contract.older:
            event = down(event)
            suffix = None if older is oldest else older.id_suffix
            encoded.append(EncodedEvent(older.subject, orjson.dumps(_to_json(older, event)), suffix, versions))
        return tuple(encoded)

    def encode(self, event: Event) -> bytes:
        """
        Return *event* as a JSON text, in its own version.

        Raises:
            Invalid: The event violates its schema.
        """
        return orjson.dumps(self.to_json(event))

    def decode(self, subject: str, body: bytes) -> Event:
        """
        Return the event in *body*, in the version of *subject*.

        Raises:
            UnknownSubject: The subject has no contract.
            Unreadable: The body is not JSON in UTF-8, is nested too deeply, or has a duplicate name in an object.
            Invalid: The body violates the schema; the error lists where and why.
        """
        contract = self[subject]
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Unreadable(f"{subject}: {error}") from None
        try:
            canonical = orjson.dumps(value)
        except TypeError:  # orjson reads deeper nesting than it writes
            raise Unreadable(f"{subject}: the body is nested too deeply") from None
        # A body that this program encoded comes out unchanged, so it has no duplicate names. Only other bodies need the
        # second, slow parser.
        if canonical != body and not has_unique_names(body):
            raise Unreadable(f"{subject}: an object has two members of the same name, which readers could resolve differently")
        if not contract.is_valid_incoming(value):
            raise Invalid(subject, explain(tolerant(contract.schema), value))
        return contract.structure(value, contract.cls)

    def to_plain(self, event: Any) -> Value:
        """Return *event*, an instance of any attrs class, as a JSON value; it need not be published, and is not checked."""
        cls = type(event)
        unstructure = self._plain.get(cls)
        if unstructure is None:
            unstructure = self._plain[cls] = self._converter.get_unstructure_hook(cls)
        value: Value = unstructure(event)
        return value

    def from_plain(self, value: Value, cls: type) -> Any:
        """
        Return the instance of *cls* that `to_plain` has made *value* of.

        Raises:
            Exception: *value* does not fit *cls*.
        """
        return self._converter.structure(value, cls)

    # Construction

    def _add(self, cls: type, schemas: Mapping[str, Schema]) -> None:
        subject = subject_of(cls)
        if not _SUBJECT(subject):
            raise ContractError(f"{subject!r} is not a subject: <module>.<event>.v<N>")
        if subject in self._contracts:
            other = self._contracts[subject].cls
            if other is not cls:
                raise ContractError(f"{subject}: there are two classes, {cls.__name__} and {other.__name__}")
            return
        if subject not in schemas:
            raise ContractError(f"{subject}: there is no schema")
        schema = schemas[subject]
        check_schema(subject, schema)
        check_agreement(subject, schema, cls)
        structure, unstructure = self._converter.get_structure_hook(cls), self._converter.get_unstructure_hook(cls)
        check_examples(subject, schema, lambda example: orjson.loads(orjson.dumps(unstructure(structure(example, cls)))))
        self._contracts[subject] = Contract(
            subject=subject,
            cls=cls,
            schema=schema,
            unstructure=unstructure,
            structure=structure,
            is_valid_outgoing=validator(schema),
            is_valid_incoming=validator(tolerant(schema)),
            id_suffix=subject.rpartition(".")[2],
        )

    def _add_upcast(self, upcast: Upcast) -> None:
        event, from_version, to_version = upcast.event, upcast.from_version, upcast.to_version
        if not 0 < from_version < to_version:
            raise ContractError(f"{event}: an upcast leads from v{from_version} to v{to_version}, which is not newer")
        subject = subject_at(event, from_version)
        if subject in self._upcasts:
            raise ContractError(f"{subject}: there are two upcasts")
        self._upcasts[subject] = upcast

    def _check(self, schemas: Mapping[str, Schema]) -> None:
        for contract in self:
            check_chain(contract, self.readable_subjects(contract.cls), schemas, self._contracts)
        for upcast in self._upcasts.values():
            check_conversion(self._contracts, upcast.event, upcast.from_version, upcast.to_version, upcast.up)
        for dual in self.dual_publishes:
            check_conversion(self._contracts, dual.event, dual.to_version, dual.from_version, dual.down)
            check_is_published(dual, self.dual_publishes, self)

    def _older_versions(self, contract: Contract) -> Iterator[tuple[Contract, Callable[[Event], Event]]]:
        """Yield what `Contract.older` holds. Nothing for a version that is itself published beside a newer one."""
        event, version = version_of(contract.subject)
        duals = [dual for dual in self.dual_publishes if dual.event == event]
        if any(dual.from_version == version for dual in duals):
            return
        by_source = {dual.to_version: dual for dual in duals}
        while version in by_source:
            dual = by_source[version]
            version = dual.from_version
            yield self[subject_at(event, version)], dual.down


def _to_json(contract: Contract, event: Event) -> Value:
    """Return *event*, of the class of *contract*, as a JSON value; raise `Invalid` if that violates the schema."""
    value = contract.unstructure(event)
    if not contract.is_valid_outgoing(value):
        raise Invalid(contract.subject, explain(contract.schema, value))
    return value


@cache
def _converter() -> Converter:
    """
    Return the converter for data that a schema has already validated, the same for all registries: it generates code for each class.

    It does not validate again, and it omits attributes that have their default value.
    """
    converter = Converter(detailed_validation=False)
    converter.register_structure_hook_factory(attrs.has, lambda cls: make_dict_structure_fn(cls, converter))
    converter.register_structure_hook_factory(
        _is_homogeneous_tuple, lambda hint: _structure_each(converter.get_structure_hook(get_args(hint)[0]), get_args(hint)[0])
    )
    converter.register_unstructure_hook_factory(
        _is_homogeneous_tuple, lambda hint: _unstructure_each(converter.get_unstructure_hook(get_args(hint)[0]))
    )
    converter.register_unstructure_hook_factory(
        attrs.has, lambda cls: make_dict_unstructure_fn(cls, converter, _cattrs_omit_if_default=True)
    )
    return converter


def _is_homogeneous_tuple(hint: Any) -> bool:
    return get_origin(hint) is tuple and get_args(hint)[1:] == (...,)


def _structure_each(structure: Callable[[Any, Any], Any], cls: Any) -> Callable[[Sequence[Any], Any], tuple[Any, ...]]:
    """Return a function that structures each item of a sequence as a *cls*: cattrs looks for the hook each time."""
    return lambda values, _: tuple([structure(value, cls) for value in values])


def _unstructure_each(unstructure: Callable[[Any], Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """Return a function that unstructures each item of a sequence: what cattrs does, but without a generator."""
    return lambda values: [unstructure(value) for value in values]
