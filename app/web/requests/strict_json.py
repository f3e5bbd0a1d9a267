"""
A JSON parser that accepts only what every reader understands in the same way (RFC 8259).

orjson itself rejects text that is not JSON in UTF-8: NaN, a byte order mark, lone surrogates, other encodings, trailing
garbage. This module also rejects what orjson accepts but two readers could understand differently: a name twice in one
object, nesting over `DEPTH_MAX` levels, and numbers that are not written as 64-bit integers. The public API has no
other numbers; JSON Schema accepts ``1.0`` as an integer, this API does not.
"""

from __future__ import annotations

__all__ = ["DEPTH_MAX", "NotAnInteger", "NotStrict", "loads"]

import json
from collections.abc import Iterator
from typing import Any

import orjson

from bus.errors import SchemaViolation

DEPTH_MAX = 32
_INTEGER_MAX = 2**63 - 1
_VIOLATIONS_MAX = 20


class NotStrict(Exception):
    """The body is not JSON, or two readers could understand it differently."""

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(detail)


class NotAnInteger(Exception):
    """The body has numbers that are not 64-bit integers."""

    def __init__(self, violations: tuple[SchemaViolation, ...]) -> None:
        self.violations = violations
        super().__init__(f"{len(violations)} numbers are not integers of 64 bits")


class _InvalidNumber(Exception):
    """Ends the fast check; a second, slower pass then finds every invalid number."""


def loads(body: bytes) -> Any:
    """
    Return the value of *body*: dicts, lists, strings, integers, booleans and None.

    Raises:
        NotStrict: The body is not strict JSON; the detail gives the reason and repeats nothing of the body.
        NotAnInteger: A number in it is not a 64-bit integer; the violations point at each, up to 20.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotStrict(
            f"The body is not JSON in UTF-8: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    try:
        members = _check_depth_and_size(value if type(value) is dict else [value], 1 if type(value) is dict else 0)
    except _InvalidNumber:
        raise NotAnInteger(tuple(_invalid_numbers(value))[:_VIOLATIONS_MAX]) from None
    # Each member has one colon, also a duplicate that orjson dropped. As many colons as members: none was dropped.
    if members != body.count(b":"):
        _check_names(body)
    return value


def _check_depth_and_size(value: Any, depth: int) -> int:
    """Return the number of members of all objects in *value*, a dict or a list at nesting *depth*."""
    if depth > DEPTH_MAX:
        raise NotStrict(f"The body is nested over {DEPTH_MAX} levels deep.")
    if type(value) is dict:
        members, children = len(value), value.values()
    else:
        members, children = 0, value
    for child in children:
        kind = type(child)
        if kind is str:
            continue
        if kind is dict or kind is list:
            members += _check_depth_and_size(child, depth + 1)
        elif kind is float or (kind is int and child > _INTEGER_MAX):
            raise _InvalidNumber
    return members


def _check_names(body: bytes) -> None:
    """Raise `NotStrict` if an object in *body* has a name twice."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) != len(pairs):
            raise NotStrict("The body has an object with the same name twice.")

    try:
        # Numbers stay text: their size does not matter here, and int() rejects very long ones.
        json.loads(body.decode(), object_pairs_hook=check, parse_int=str, parse_float=str)
    except RecursionError:  # only a member that orjson dropped can be nested so deep, so it is a duplicate
        raise NotStrict("The body has an object with the same name twice.") from None


def _invalid_numbers(value: Any, pointer: str = "", depth: int = 0) -> Iterator[SchemaViolation]:
    """Yield a violation for each number that is not a 64-bit integer, down to the nesting that a body may have."""
    if depth > DEPTH_MAX:
        return
    if type(value) is dict:
        for name, child in value.items():
            yield from _invalid_numbers(child, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}", depth + 1)
    elif type(value) is list:
        for index, child in enumerate(value):
            yield from _invalid_numbers(child, f"{pointer}/{index}", depth + 1)
    elif type(value) is float or (type(value) is int and value > _INTEGER_MAX):
        yield SchemaViolation(pointer, "must be written as an integer, of at most 64 bits")
