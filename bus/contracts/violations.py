"""
Sentences for violations of a JSON Schema, for a client that sends JSON: what is wrong, and what is allowed.

jsonschema finds the violations; its own messages show values as Python does (``None is not one of [...]``), and name
keywords instead of what a client should send.
"""

from __future__ import annotations

__all__ = ["KEYWORDS", "violations"]

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bus.errors import SchemaViolation

_SHOWN_MAX = 80
"""Characters of a value in a sentence; a longer one is cut."""

_ALLOWED_MAX = 30
"""Most allowed values or members in a sentence."""

_TYPES = {
    "array": "an array",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}
_FORMATS = {
    "date-time": "a date and time as in RFC 3339, such as 2026-01-31T09:00:00Z",
    "uuid": "a UUID, such as 0192f0c1-2b3c-7d4e-8f50-617283940a1b",
}
_PATTERNS = {
    "^[^\\u0000-\\u001f\\u007f]*$": "must not contain control characters",
    "^[^\\u0000-\\u001f\\u007f-\\u009f]*$": "must not contain control characters",
    "^[A-Z]{3}$": "must be three capital letters",
    "^[A-Z]{2}$": "must be two capital letters",
}
"""What a pattern means. Others are shown."""


def violations(error: Any) -> Iterator[SchemaViolation]:
    """
    Yield *error*, a ValidationError of jsonschema, as one or more violations.

    Where a value may have one of several forms and is meant to have one of them, the violations are those of that form.
    """
    if error.validator in ("anyOf", "oneOf"):
        meant = [part for part in error.context if part.validator != "type" or part.relative_path]
        branches = {part.schema_path[0] for part in meant}
        if len(branches) == 1 and len(error.validator_value) > 1 and any(
            part.validator == "type" and not part.relative_path for part in error.context
        ):
            for part in meant:
                yield from violations(part)
            return
    sentence = KEYWORDS.get(error.validator, _other)(error.validator_value, error.instance, error)
    yield SchemaViolation("".join(f"/{_escape(part)}" for part in error.absolute_path), sentence)


def _type(allowed: Any, value: Any, error: Any) -> str:
    names = [allowed] if isinstance(allowed, str) else list(allowed)
    return f"must be {' or '.join(_TYPES.get(name, name) for name in names)}; it is {_kind(value)}"


def _enum(allowed: Any, value: Any, error: Any) -> str:
    options = [_json(option) for option in allowed]
    meant = [each for each in allowed if isinstance(each, str) and isinstance(value, str) and each.casefold() == value.casefold()]
    hint = f"; upper and lower case differ: {_json(meant[0])}" if meant else ""
    return f"must be {_listed(options, 'or')}; it is {_json(value)}{hint}"


def _const(allowed: Any, value: Any, error: Any) -> str:
    return f"must be {_json(allowed)}; it is {_json(value)}"


def _required(names: Any, value: Any, error: Any) -> str:
    # jsonschema yields one error for each missing member; only its message names the member.
    missing = next(name for name in names if name not in value and error.message.startswith(repr(name)))
    return f"the member {_json(missing)} is missing"


def _additional(allowed: Any, value: Any, error: Any) -> str:
    known = error.schema.get("properties", {})
    unknown = [_json(name) for name in value if name not in known]
    what = f"{_listed(unknown, 'and')} {'is' if len(unknown) == 1 else 'are'} not allowed here"
    return f"{what}; allowed {'is' if len(known) == 1 else 'are'} {_listed([_json(name) for name in known], 'and')}" if known else what


def _dependent(rules: Any, value: Any, error: Any) -> str:
    given, missing = next((name, need) for name, needs in rules.items() if name in value for need in needs if need not in value)
    return f"{_json(given)} needs the member {_json(missing)}"


def _any_of(options: Any, value: Any, error: Any) -> str:
    if all(set(option) == {"required"} for option in options):
        return f"needs at least one of the members {_listed([_json(name) for option in options for name in option['required']], 'and')}"
    parts = [sentence for part in error.context for sentence in (v.detail for v in violations(part))]
    return _cut(f"has none of the forms that are allowed: {'; or: '.join(dict.fromkeys(parts))}", 400)


def _not(refused: Any, value: Any, error: Any) -> str:
    if "const" in refused or "enum" in refused:
        options = refused.get("enum", [refused.get("const")])
        return f"must not be {_listed([_json(option) for option in options], 'or')}"
    return f"must not match {_json(refused)}"


def _pattern(pattern: Any, value: Any, error: Any) -> str:
    return _PATTERNS.get(pattern) or f"must match the pattern {pattern}; it is {_json(value)}"


def _format(name: Any, value: Any, error: Any) -> str:
    return f"must be {_FORMATS.get(name, f'of the format {name}')}; it is {_json(value)}"


def _other(allowed: Any, value: Any, error: Any) -> str:
    return f"violates the rule {_json({error.validator: allowed})} of its schema"


def _at(limit: str, what: Callable[[Any], str]) -> Callable[[Any, Any, Any], str]:
    def sentence(allowed: Any, value: Any, error: Any) -> str:
        unit = limit.format(allowed if not isinstance(allowed, int) else f"{allowed}")
        return f"{unit if allowed != 1 else unit.removesuffix('s')}; it {what(value)}"

    return sentence


def _is(value: Any) -> str:
    return f"is {_json(value)}"


def _has(value: Any) -> str:
    return f"has {len(value)}"


KEYWORDS: Mapping[str, Callable[[Any, Any, Any], str]] = {
    "additionalProperties": _additional,
    "anyOf": _any_of,
    "const": _const,
    "dependentRequired": _dependent,
    "enum": _enum,
    "exclusiveMaximum": _at("must be less than {}", _is),
    "exclusiveMinimum": _at("must be greater than {}", _is),
    "format": _format,
    "maxItems": _at("must have at most {} items", _has),
    "maxLength": _at("must have at most {} characters", _has),
    "maxProperties": _at("must have at most {} members", _has),
    "maximum": _at("must be at most {}", _is),
    "minItems": _at("must have at least {} items", _has),
    "minLength": _at("must have at least {} characters", _has),
    "minProperties": _at("must have at least {} members", _has),
    "minimum": _at("must be at least {}", _is),
    "multipleOf": _at("must be a multiple of {}", _is),
    "not": _not,
    "oneOf": _any_of,
    "pattern": _pattern,
    "required": _required,
    "type": _type,
    "uniqueItems": lambda allowed, value, error: "must not have the same item twice",
}
"""By keyword of JSON Schema: the sentence for its value, the violating value and the error."""


def _kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return _json(value)
    if isinstance(value, str):
        return f"the string {_json(value)}"
    if isinstance(value, int | float):
        return f"the number {_json(value)}"
    return "an array" if isinstance(value, list | tuple) else "an object"


def _json(value: Any) -> str:
    return _cut(json.dumps(value, ensure_ascii=False), _SHOWN_MAX)


def _listed(options: list[str], word: str) -> str:
    if len(options) > _ALLOWED_MAX:
        options = [*options[:_ALLOWED_MAX], f"{len(options) - _ALLOWED_MAX} more"]
    return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} {word} {options[-1]}"


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 4]} ..."


def _escape(part: str | int) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")
