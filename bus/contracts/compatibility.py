"""
Compatibility of two versions of a JSON Schema.

A change is *backward* compatible if readers with the new schema can read everything written with the old one, and
*forward* compatible if readers with the old schema can read everything written with the new one. Readers are tolerant:
they ignore members that they do not know. Writers are strict.

Each keyword is compared by itself, so two changes that compensate each other count as two. What cannot be compared with
certainty (references, ``allOf``, ``not``, two patterns) is `Compatibility.UNKNOWN` and needs review by a person.
"""

from __future__ import annotations

__all__ = ["Change", "Compatibility", "compare", "overall"]

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from attrs import frozen

from bus.contracts.schemas import Schema

_ANNOTATIONS = frozenset(
    {"$comment", "$id", "$schema", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly"}
)
_TYPES = {"array", "boolean", "integer", "null", "number", "object", "string"}
_LOWER = {
    "minimum": None,
    "exclusiveMinimum": None,
    "minLength": 0,
    "minItems": 0,
    "minProperties": 0,
}
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_OWN_RULES = frozenset(
    {"additionalProperties", "anyOf", "const", "enum", "format", "items", "multipleOf", "pattern", "properties"}
    | {"required", "type", "uniqueItems", *_LOWER, *_UPPER}
)


class Compatibility(Enum):
    """Which readers still work after a schema has changed."""

    FULL = "full"
    BACKWARD = "backward"
    FORWARD = "forward"
    NONE = "none"
    UNKNOWN = "unknown"

    @property
    def is_backward(self) -> bool:
        """Whether new readers can read what old writers have written."""
        return self in (Compatibility.FULL, Compatibility.BACKWARD)

    @property
    def is_forward(self) -> bool:
        """Whether old readers can read what new writers write."""
        return self in (Compatibility.FULL, Compatibility.FORWARD)


FULL, BACKWARD, FORWARD = Compatibility.FULL, Compatibility.BACKWARD, Compatibility.FORWARD
NONE, UNKNOWN = Compatibility.NONE, Compatibility.UNKNOWN


@frozen
class Change:
    """One change. *pointer* is a JSON Pointer to the member in a message, with ``*`` for the items of an array."""

    pointer: str
    compatibility: Compatibility
    why: str


def overall(changes: Iterable[Change]) -> Compatibility:
    """Return the compatibility of all *changes* together."""
    found = [change.compatibility for change in changes]
    if UNKNOWN in found:
        return UNKNOWN
    backward, forward = all(each.is_backward for each in found), all(each.is_forward for each in found)
    return {(True, True): FULL, (True, False): BACKWARD, (False, True): FORWARD, (False, False): NONE}[backward, forward]


def compare(old: Schema, new: Schema) -> tuple[Change, ...]:
    """Return every change from *old* to *new*; titles, descriptions and other annotations do not count."""
    return tuple(_compare(old, new, ""))


def _compare(old: Any, new: Any, at: str) -> Iterator[Change]:
    old, new = ({} if schema is True else schema for schema in (old, new))
    if _bare(old) == _bare(new):
        return
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        yield Change(at, UNKNOWN, "allows no value at all; needs review")
        return
    old_rest, new_rest = _without_null(old), _without_null(new)
    if old_rest is not None or new_rest is not None:
        if old_rest is None:
            yield Change(at, BACKWARD, "may now be null")
        elif new_rest is None:
            yield Change(at, FORWARD, "may no longer be null")
        yield from _compare(old if old_rest is None else old_rest, new if new_rest is None else new_rest, at)
        return
    for keyword in sorted((old.keys() | new.keys()) - _ANNOTATIONS - (_OWN_RULES - {"anyOf"})):
        if _bare(old.get(keyword)) != _bare(new.get(keyword)):
            yield Change(at, UNKNOWN, f"{keyword} changed, which cannot be compared; needs review")
    yield from _types(old, new, at)
    yield from _values(old, new, at)
    yield from _limits(old, new, at)
    yield from _texts(old, new, at)
    yield from _objects(old, new, at)
    yield from _arrays(old, new, at)


def _bare(schema: Any) -> Any:
    """Return *schema* without its annotations, which do not restrict the values."""
    if isinstance(schema, Mapping):
        kept = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
        # A member may have the name of an annotation.
        if isinstance(schema.get("properties"), Mapping):
            kept["properties"] = {name: _bare(value) for name, value in schema["properties"].items()}
        if isinstance(schema.get("required"), list):
            kept["required"] = sorted(map(str, schema["required"]))
        return {key: value if key in ("properties", "const", "enum") else _bare(value) for key, value in kept.items()}
    return [_bare(item) for item in schema] if isinstance(schema, list) else schema


def _without_null(schema: Mapping[str, Any]) -> Any:
    """Return the other alternative of *schema* if it is exactly "this or null"; None otherwise."""
    options = schema.get("anyOf")
    if isinstance(options, list) and len(options) == 2 and not schema.keys() - _ANNOTATIONS - {"anyOf"}:
        rest = [option for option in options if _bare(option) != {"type": "null"}]
        if len(rest) == 1:
            return rest[0]
    return None


def _widened(at: str, why: str) -> Change:
    return Change(at, BACKWARD, why)


def _narrowed(at: str, why: str) -> Change:
    return Change(at, FORWARD, why)


def _set_change(old: set[Any], new: set[Any], at: str, what: str, listed: Callable[[set[Any]], str]) -> Iterator[Change]:
    """Yield the change from the allowed set *old* to the allowed set *new*."""
    if old < new:
        yield _widened(at, f"{what} {listed(new - old)} was added")
    elif new < old:
        yield _narrowed(at, f"{what} {listed(old - new)} was removed")
    elif old != new:
        yield Change(at, NONE, f"{what} was {listed(old)} and is {listed(new)}")


def _types(old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[Change]:
    yield from _set_change(_allowed(old), _allowed(new), at, "type", lambda types: ", ".join(sorted(types - {"integer*"})))


def _allowed(schema: Mapping[str, Any]) -> set[str]:
    """Return the types that *schema* allows; "number" includes "integer"."""
    found = schema.get("type")
    if found is None and ("const" in schema or "enum" in schema):
        found = sorted({_type(value) for value in schema.get("enum", [schema.get("const")])})
    types = set(_TYPES) if found is None else {found} if isinstance(found, str) else set(found)
    return types | {"integer"} if "number" in types else types


def _type(value: Any) -> str:
    kinds: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


def _values(old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[Change]:
    before, after = _enumerated(old), _enumerated(new)
    if before is None and after is not None:
        yield _narrowed(at, f"only {_listed(after)} is allowed now")
    elif before is not None and after is None:
        yield _widened(at, f"more than {_listed(before)} is allowed now")
    elif before is not None and after is not None:
        yield from _set_change(before, after, at, "value", _listed)


def _enumerated(schema: Mapping[str, Any]) -> set[str] | None:
    if "const" in schema:
        return {repr(schema["const"])}
    return {repr(value) for value in schema["enum"]} if "enum" in schema else None


def _listed(values: set[str]) -> str:
    return ", ".join(sorted(values))


def _limits(old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[Change]:
    for keyword in (*_LOWER, *_UPPER):
        default = _LOWER.get(keyword)
        before, after = old.get(keyword, default), new.get(keyword, default)
        if before == after:
            continue
        is_narrower = before is None or (after is not None and (after > before) == (keyword in _LOWER))
        yield (_narrowed if is_narrower else _widened)(at, f"{keyword} was {_limit(before)} and is {_limit(after)}")
    before, after = old.get("multipleOf"), new.get("multipleOf")
    if before != after:
        why = f"multipleOf was {_limit(before)} and is {_limit(after)}"
        if before is None or (after is not None and after % before == 0):
            yield _narrowed(at, why)
        elif after is None or before % after == 0:
            yield _widened(at, why)
        else:
            yield Change(at, NONE, why)
    if bool(old.get("uniqueItems")) != bool(new.get("uniqueItems")):
        is_unique = bool(new.get("uniqueItems"))
        yield _narrowed(at, "items must be unique now") if is_unique else _widened(at, "items may be equal now")


def _limit(limit: Any) -> str:
    return "none" if limit is None else str(limit)


def _texts(old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[Change]:
    for keyword, when_both in (("pattern", UNKNOWN), ("format", NONE)):
        before, after = old.get(keyword), new.get(keyword)
        if before == after:
            continue
        if before is None:
            yield _narrowed(at, f"{keyword} {after} was added")
        elif after is None:
            yield _widened(at, f"{keyword} {before} was removed")
        else:
            review = "; needs review" if when_both is UNKNOWN else ""
            yield Change(at, when_both, f"{keyword} was {before} and is {after}{review}")


def _objects(old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[Change]:
    before, after = old.get("properties", {}), new.get("properties", {})
    was_required, is_required = set(old.get("required", ())), set(new.get("required", ()))
    for name in sorted(before.keys() | after.keys() | was_required | is_required):
        pointer = f"{at}/{name.replace('~', '~0').replace('/', '~1')}"
        if name not in before and name not in was_required:
            yield _added(pointer, name in is_required, is_closed=old.get("additionalProperties") is False)
        elif name not in after and name not in is_required:
            yield _removed(pointer, name in was_required, is_closed=new.get("additionalProperties") is False)
        else:
            if name in was_required - is_required:
                yield _widened(pointer, "is optional now")
            elif name in is_required - was_required:
                yield _narrowed(pointer, "is required now")
            yield from _compare(before.get(name, True), after.get(name, True), pointer)
    yield from _other_keywords(old.get("additionalProperties", True), new.get("additionalProperties", True), at)


def _added(pointer: str, is_required: bool, *, is_closed: bool) -> Change:
    if is_required:
        return Change(pointer, FORWARD, "is new and required: older messages lack it")
    if not is_closed:
        return Change(pointer, FORWARD, "is new, and the old schema allowed any value there")
    return Change(pointer, FULL, "is new and optional")


def _removed(pointer: str, was_required: bool, *, is_closed: bool) -> Change:
    if was_required:
        return Change(pointer, BACKWARD, "was removed and was required: old readers need it")
    if not is_closed:
        return Change(pointer, BACKWARD, "was removed, and the new schema allows any value there")
    return Change(pointer, FULL, "was removed and was optional")


def _other_keywords(old: Any, new: Any, at: str) -> Iterator[Change]:
    """Compare the schemas of unlisted members. Allowing or forbidding them does not affect tolerant readers."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _compare(old, new, f"{at}/*")
    elif isinstance(new, Mapping):
        yield Change(f"{at}/*", FULL if old is False else FORWARD, "other members must match a schema now")
    elif isinstance(old, Mapping):
        yield Change(f"{at}/*", FULL if new is False else BACKWARD, "other members need not match a schema any more")
    elif old != new:
        yield Change(at, FULL, f"other members are {'not ' if new is False else ''}allowed now; readers ignore them")


def _arrays(old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[Change]:
    if "items" in old or "items" in new:
        yield from _compare(old.get("items", True), new.get("items", True), f"{at}/*")
