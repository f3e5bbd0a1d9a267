"""
The contract of one subject: its JSON Schema and its class, with everything prepared that each message needs.

Also the converter between classes and JSON values, and the check for duplicate names in a JSON text.
"""

from __future__ import annotations

__all__ = ["Contract", "EncodedEvent", "Value", "build_converter", "has_unique_names"]

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args, get_origin

import attrs
from attrs import frozen
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from bus.contracts.schemas import Schema, explain
from bus.errors import Invalid
from bus.subjects import Event

Value = dict[str, Any]
"""An event as a JSON object, in Python's types."""


class EncodedEvent(NamedTuple):
    """One version of an event, encoded for publishing."""

    subject: str
    body: bytes
    id_suffix: str | None = None
    """The message's id is the event's id if this is None, and derived from the event's id and the suffix otherwise."""
    versions: str | None = None
    """All versions in which the event is published, as the `VERSIONS` header names them; None if there is only one."""


@frozen
class Contract:
    """One subject with its schema, its class, and the functions that convert and validate its messages."""

    subject: str
    cls: type
    schema: Schema
    unstructure: Callable[[Event], Value]
    structure: Callable[[Any, Any], Event]
    is_valid_outgoing: Callable[[Any], bool]
    """Validates strictly, as a publisher must."""
    is_valid_incoming: Callable[[Any], bool]
    """Validates tolerantly, as a consumer does: unknown members are allowed."""
    id_suffix: str
    """The version, such as ``v2``."""
    older: tuple[tuple[Contract, Callable[[Event], Event]], ...] = ()
    """The versions that are published beside this one, newest first, each with its conversion from the next one."""
    versions: str | None = None
    """This version and the older ones, as the `VERSIONS` header names them; None if this is the only one."""

    def to_json(self, event: Event) -> Value:
        """
        Return *event* as a JSON value.

        Raises:
            Invalid: The value violates the schema; the error lists where and why.
        """
        value = self.unstructure(event)
        if not self.is_valid_outgoing(value):
            raise Invalid(self.subject, explain(self.schema, value))
        return value


def build_converter() -> Converter:
    """
    Return a converter for data that a schema has already validated.

    It does not validate again, and it omits attributes that have their default value.
    """
    converter = Converter(detailed_validation=False)
    converter.register_structure_hook_factory(attrs.has, lambda cls: make_dict_structure_fn(cls, converter))
    converter.register_unstructure_hook_factory(
        _is_homogeneous_tuple, lambda hint: _unstructure_each(converter.get_unstructure_hook(get_args(hint)[0]))
    )
    converter.register_unstructure_hook_factory(
        attrs.has, lambda cls: make_dict_unstructure_fn(cls, converter, _cattrs_omit_if_default=True)
    )
    return converter


def has_unique_names(body: bytes) -> bool:
    """Return whether no object in *body*, a JSON text, has two members of the same name (RFC 8259, section 4)."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            raise _DuplicateName

    try:
        json.loads(body, object_pairs_hook=check, parse_int=str, parse_float=str)
    except (_DuplicateName, RecursionError):
        return False
    return True


class _DuplicateName(Exception):
    """Ends the parsing at the first duplicate name."""


def _is_homogeneous_tuple(hint: Any) -> bool:
    return get_origin(hint) is tuple and get_args(hint)[1:] == (...,)


def _unstructure_each(unstructure: Callable[[Any], Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """Return a function that unstructures each item of a sequence: what cattrs does, but without a generator."""
    return lambda values: [unstructure(value) for value in values]
