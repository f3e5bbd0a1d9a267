"""Conversion of events to JSON values and back, and the check for duplicate names in a JSON text."""

from __future__ import annotations

__all__ = ["build_converter", "has_unique_names", "to_valid_value"]

import json
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from bus.contracts.contract import Contract, Value
from bus.contracts.schemas import explain
from bus.errors import Invalid
from bus.subjects import Event


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


def to_valid_value(contract: Contract, event: Event) -> Value:
    """
    Return *event* as a JSON value that is valid under *contract*.

    Raises:
        Invalid: The value violates the schema; the error lists where and why.
    """
    value = contract.unstructure(event)
    if not contract.is_valid_outgoing(value):
        raise Invalid(contract.subject, explain(contract.schema, value))
    return value


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
