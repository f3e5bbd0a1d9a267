"""
What may be said under which subject: subject ↔ JSON Schema ↔ class.

A subject is ``<module>.<event>.v<N>``; the version is part of the name. Express traffic travels under the same name
with a trailing ``.express`` and keeps the same contract. Schemas are written by hand (JSON Schema 2020-12) because
they are a promise to others; classes are for ourselves, and the two are compared when the registry is built.

jsonschema-rs looks at every message, going out and coming in. jsonschema checks the schemas themselves and explains a
rejection. Publishers are held to the letter of the schema; consumers read tolerantly, so that a newer publisher may add
an optional member before they know it.
"""

from __future__ import annotations

__all__ = [
    "EXPRESS",
    "Contract",
    "ContractError",
    "Contracts",
    "Event",
    "event",
    "explain",
    "is_express",
    "plain",
    "subject_of",
]

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar, dataclass_transform

import attrs
import jsonschema_rs
import orjson
from attrs import frozen
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from bus.errors import Invalid, Problem, UnknownSubject, Unreadable

Event = Any
"""An instance of a class made by `event`."""

Schema = Mapping[str, Any]
T = TypeVar("T")

SAID_MAX = 2_048
"""Events that a process remembers having said, and as many before them, so as not to read its own handwriting."""

EXPRESS = ".express"
_SUBJECT = re.compile(r"[a-z][a-z_]*\.[a-z][a-z_]*\.v[1-9][0-9]*")


class ContractError(Exception):
    """A schema, a class and a subject contradict each other; the program must not start."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(attrs.field,))
def event(subject: str) -> Callable[[type[T]], type[T]]:
    """Make a class an event: frozen, keyword-only, travelling under *subject*."""
    if not _SUBJECT.fullmatch(subject):
        raise ContractError(f"{subject!r} is not a subject: <module>.<event>.v<N>")

    def decorate(cls: type[T]) -> type[T]:
        cls = attrs.frozen(cls, kw_only=True)
        cls.__subject__ = subject  # type: ignore[attr-defined]
        return cls

    return decorate


def subject_of(event: Event) -> str:
    """Return the subject that an event, or a class of events, travels under."""
    subject: str = event.__subject__
    return subject


def is_express(subject: str) -> bool:
    """Tell whether a message under *subject* goes by the express lane."""
    return subject.endswith(EXPRESS)


def plain(subject: str) -> str:
    """Return *subject* without its lane: the name its contract is filed under."""
    return subject.removesuffix(EXPRESS)


@frozen
class Contract:
    """One subject, its schema and its class, with everything per-message prepared."""

    subject: str
    cls: type
    schema: Schema
    unstructure: Callable[[Event], dict[str, Any]]
    structure: Callable[[Any, Any], Event]
    may_say: Callable[[Any], bool]
    may_hear: Callable[[Any], bool]


class Contracts:
    """The registry: built once, asked for every message."""

    def __init__(self, classes: Iterable[type], schemas: Mapping[str, Schema]) -> None:
        """
        Build the registry for *classes*, finding each one's schema by its subject in *schemas*.

        Raises:
            ContractError: A schema is missing, is no JSON Schema, or contradicts its class; or one subject has two
                classes.
        """
        converter = _converter()
        self._said: dict[bytes, Event] = {}
        self._said_before: dict[bytes, Event] = {}
        self._by_subject: dict[str, Contract] = {}
        for cls in classes:
            subject = subject_of(cls)
            if subject in self._by_subject:
                if self._by_subject[subject].cls is cls:
                    continue
                raise ContractError(
                    f"{subject}: two classes claim it, {cls.__name__} and {self._by_subject[subject].cls.__name__}"
                )
            if subject not in schemas:
                raise ContractError(f"{subject}: there is no schema")
            schema = schemas[subject]
            _check_schema(subject, schema)
            _check_agreement(subject, schema, cls)
            self._by_subject[subject] = Contract(
                subject=subject,
                cls=cls,
                schema=schema,
                unstructure=converter.get_unstructure_hook(cls),
                structure=converter.get_structure_hook(cls),
                may_say=validator(schema),
                may_hear=validator(_tolerant(schema)),
            )

    def __iter__(self) -> Iterator[Contract]:
        return iter(self._by_subject.values())

    def __getitem__(self, subject: str) -> Contract:
        """
        Return the contract for *subject*, in either lane.

        Raises:
            UnknownSubject: There is none.
        """
        contract = self._by_subject.get(subject) or self._by_subject.get(plain(subject))
        if contract is None:
            raise UnknownSubject(f"no contract for {subject}")
        return contract

    def encode(self, event: Event) -> bytes:
        """
        Return *event* as the JSON that goes out.

        Raises:
            Invalid: The event breaks its own schema.
        """
        contract = self._by_subject[event.__subject__]
        value = contract.unstructure(event)
        if not contract.may_say(value):
            raise Invalid(contract.subject, explain(contract.schema, value))
        body = orjson.dumps(value)
        self._said[body] = event
        if len(self._said) > SAID_MAX:
            self._said_before, self._said = self._said, {}
        return body

    def decode(self, subject: str, body: bytes) -> Event:
        """
        Return the event that *body* says under *subject*.

        Raises:
            UnknownSubject: There is no such contract.
            Unreadable: The body is not JSON in UTF-8, or says a name twice in one object.
            Invalid: The body breaks the schema; says where and why.
        """
        event = self._said.get(body) or self._said_before.get(body)
        if event is not None and event.__subject__ == plain(subject):
            return event  # our own words: validated when we said them, and frozen since
        contract = self[subject]
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Unreadable(f"{subject}: {error}") from None
        # Whatever one of us has said is written the same again; only a stranger's hand is worth a second, slow look.
        if orjson.dumps(value) != body and not _says_each_name_once(body):
            raise Unreadable(f"{subject}: a name comes twice in one object, so two readers could take it for two things")
        if not contract.may_hear(value):
            raise Invalid(subject, explain(_tolerant(contract.schema), value))
        return contract.structure(value, contract.cls)


def _says_each_name_once(body: bytes) -> bool:
    def unique(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            raise _Twice

    try:
        json.loads(body, object_pairs_hook=unique, parse_int=str, parse_float=str)
    except (_Twice, RecursionError):
        return False
    return True


class _Twice(Exception):
    """Raised to leave a reading at the first name that comes twice."""


def validator(schema: Schema) -> Callable[[Any], bool]:
    """Return the fast check for *schema*: true when a value fits. Formats count."""
    check: Callable[[Any], bool] = jsonschema_rs.Draft202012Validator(dict(schema), validate_formats=True).is_valid
    return check


def explain(schema: Schema, value: Any) -> tuple[Problem, ...]:
    """Say where and why *value* does not fit *schema*, in the order of the pointers; at most 20 reasons."""
    from jsonschema import Draft202012Validator

    slow = Draft202012Validator(dict(schema), format_checker=Draft202012Validator.FORMAT_CHECKER)
    # The first hundred: a hostile value has tens of thousands, and finding them all stops the event loop for a second.
    errors = islice(slow.iter_errors(value), 100)
    problems = {
        Problem("".join(f"/{_escape(part)}" for part in error.absolute_path), _shorten(error.message))
        for error in errors
    }
    return tuple(sorted(problems, key=lambda problem: (problem.pointer, problem.detail)))[:20]


def _escape(part: str | int) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-70:]}"


def _converter() -> Converter:
    """Return a converter for data that a schema has already seen: no second validation, defaults left out."""
    converter = Converter(detailed_validation=False)
    converter.register_structure_hook_factory(attrs.has, lambda cls: make_dict_structure_fn(cls, converter))
    converter.register_unstructure_hook_factory(
        attrs.has, lambda cls: make_dict_unstructure_fn(cls, converter, _cattrs_omit_if_default=True)
    )
    return converter


def _check_schema(subject: str, schema: Schema) -> None:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(dict(schema))
    except SchemaError as error:
        raise ContractError(f"{subject}: not a JSON Schema: {error.message}") from None


def _check_agreement(subject: str, schema: Schema, cls: type) -> None:
    fields = {f.name: f.default is attrs.NOTHING for f in attrs.fields(cls)}
    members = {name: name in schema.get("required", ()) for name in schema.get("properties", {})}
    for name in sorted(fields.keys() | members.keys()):
        if name not in members:
            raise ContractError(f"{subject}: {cls.__name__}.{name} is not in the schema")
        if name not in fields:
            raise ContractError(f"{subject}: the schema's {name!r} is not in {cls.__name__}")
        if fields[name] != members[name]:
            raise ContractError(
                f"{subject}: {name!r} is required in one of schema and {cls.__name__}, optional in the other"
            )


def _tolerant(schema: Any) -> Any:
    """Return *schema* as a reader applies it: members it does not know are none of its business."""
    if isinstance(schema, Mapping):
        return {k: _tolerant(v) for k, v in schema.items() if not (k == "additionalProperties" and v is False)}
    if isinstance(schema, list):
        return [_tolerant(item) for item in schema]
    return schema
