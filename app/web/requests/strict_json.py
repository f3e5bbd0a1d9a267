"""
JSON as RFC 8259 has it and no looser: one reading of a body, or none.

orjson refuses by itself what is not JSON in UTF-8: NaN, a byte order mark, lone surrogates, other encodings, garbage
after the end. What it lets through and two readers could take for two things is refused here: a name twice in one
object, nesting over `DEPTH_MAX` levels, numbers that are not integers of 64 bits. The public contract knows no other
numbers: JSON Schema takes ``1.0`` for an integer, this house does not.
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
_PROBLEMS_MAX = 20


class NotStrict(Exception):
    """The body is no JSON text, or one that could be read in two ways."""

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(detail)


class NotAnInteger(Exception):
    """The body holds numbers that are not integers of 64 bits."""

    def __init__(self, problems: tuple[SchemaViolation, ...]) -> None:
        self.problems = problems
        super().__init__(f"{len(problems)} numbers are not integers of 64 bits")


class _Number(Exception):
    """There is a number that must be pointed at; raised only to leave the fast walk."""


def loads(body: bytes) -> Any:
    """
    Return the value that *body* says, in dicts, lists, strings, integers, booleans and None.

    Raises:
        NotStrict: The body is not strict JSON; the sentence says why and holds nothing of the body.
        NotWhole: It is, but a number in it is no integer of 64 bits; says where.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotStrict(
            f"The body is not JSON in UTF-8: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    try:
        members = _check_depth_and_size(value if type(value) is dict else [value], 1 if type(value) is dict else 0)
    except _Number:
        raise NotAnInteger(tuple(_not_whole(value))[:_PROBLEMS_MAX]) from None
    # Every member has its colon, and those that orjson dropped have theirs: with no colon too many, none was dropped.
    if members != body.count(b":"):
        _check_names(body)
    return value


def _check_depth_and_size(value: Any, depth: int) -> int:
    """Count the members of all objects in *value*, a dict or a list at nesting *depth*."""
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
            raise _Number
    return members


def _check_names(body: bytes) -> None:
    def once(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) != len(pairs):
            raise NotStrict("The body has an object with the same name twice.")

    try:
        # Numbers stay text: their length is not what this is about, and int() may refuse it.
        json.loads(body.decode(), object_pairs_hook=once, parse_int=str, parse_float=str)
    except RecursionError:  # only inside a member that orjson dropped, so a name is there twice
        raise NotStrict("The body has an object with the same name twice.") from None


def _not_whole(value: Any, pointer: str = "", depth: int = 0) -> Iterator[SchemaViolation]:
    """Yield a problem for each number that is no integer of 64 bits, as deep as a body may be nested."""
    if depth > DEPTH_MAX:
        return
    if type(value) is dict:
        for name, child in value.items():
            yield from _not_whole(child, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}", depth + 1)
    elif type(value) is list:
        for index, child in enumerate(value):
            yield from _not_whole(child, f"{pointer}/{index}", depth + 1)
    elif type(value) is float or (type(value) is int and value > _INTEGER_MAX):
        yield SchemaViolation(pointer, "must be written as an integer, of at most 64 bits")
