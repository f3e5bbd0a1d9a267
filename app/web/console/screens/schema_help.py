"""What a JSON Schema requires, as rows of a table: one row for each member, nested ones included."""

from __future__ import annotations

__all__ = ["Member", "members_of", "path_of"]

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

DEPTH_MAX = 6

_FORMATS = {"uuid": "a UUID", "date-time": "a time as in RFC 3339"}
_PATTERNS = {
    "^[^\\u0000-\\u001f\\u007f]*$": "no control characters",
    "^[^\\u0000-\\u001f\\u007f-\\u009f]*$": "no control characters",
    "^[A-Z]{3}$": "three capital letters",
    "^[A-Z]{2}$": "two capital letters",
}


@frozen
class Member:
    """One member: *path* as ``items[].quantity``, and what the schema allows there, in words."""

    path: str
    type: str
    is_required: bool
    allowed: str
    description: str


def members_of(schema: Mapping[str, Any]) -> list[Member]:
    """Return the members of the object that *schema* describes, in its order, each before its own members."""
    return list(_members(schema, "", 0))


def path_of(pointer: str) -> str:
    """Return the path of the member that the JSON Pointer (RFC 6901) leads to: ``items[].quantity``, whatever the index is."""
    path = ""
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        path += "[]" if name.isdigit() else f".{name}" if path else name
    return path


def _members(schema: Mapping[str, Any], prefix: str, depth: int) -> Iterator[Member]:
    if depth > DEPTH_MAX:
        return
    required = schema.get("required", ())
    for name, part in schema.get("properties", {}).items():
        path = f"{prefix}.{name}" if prefix else name
        options = _options(part)
        yield Member(path, _type(options), name in required, _allowed(options), str(part.get("description", "")))
        for option in options:
            yield from _members(option, path, depth + 1)
            items = option.get("items")
            if isinstance(items, Mapping):
                yield from _elements(items, f"{path}[]", depth + 1)


def _elements(schema: Mapping[str, Any], path: str, depth: int) -> Iterator[Member]:
    options = _options(schema)
    if not any("properties" in option for option in options):
        yield Member(path, _type(options), False, _allowed(options), str(schema.get("description", "")))
    for option in options:
        yield from _members(option, path, depth)


def _options(schema: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the alternative forms of a value."""
    return next((schema[name] for name in ("anyOf", "oneOf") if name in schema), (schema,))


def _type(options: Sequence[Mapping[str, Any]]) -> str:
    names: list[str] = []
    for option in options:
        found = option.get("type", ())
        names += [found] if isinstance(found, str) else found
    return " or ".join(dict.fromkeys(names)) or "one value"


def _allowed(options: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(dict.fromkeys(text for option in options for text in _limits(option)))


def _limits(schema: Mapping[str, Any]) -> Iterator[str]:
    if "const" in schema:
        yield json.dumps(schema["const"], ensure_ascii=False)
    if "enum" in schema:
        yield " or ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    for low, high, unit in (("minimum", "maximum", ""), ("minLength", "maxLength", " characters"), ("minItems", "maxItems", " items")):
        if text := _range(schema.get(low), schema.get(high)):
            yield f"{text}{unit}"
    if "format" in schema:
        yield _FORMATS.get(schema["format"], schema["format"])
    if "pattern" in schema:
        yield _PATTERNS.get(schema["pattern"], schema["pattern"])


def _range(low: Any, high: Any) -> str:
    if low is None or high is None:
        return f"at least {low}" if low is not None else f"at most {high}" if high is not None else ""
    return str(low) if low == high else f"{low} to {high}"
