"""
The contract of one subject: its JSON Schema and its class, with everything prepared that each message needs.

Also the check for duplicate names in a JSON text.
"""

from __future__ import annotations

__all__ = ["Contract", "EncodedEvent", "Value", "has_unique_names"]

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from attrs import frozen

from bus.contracts.schemas import Schema
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


