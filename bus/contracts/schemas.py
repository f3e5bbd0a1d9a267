"""
JSON Schema 2020-12: the fast validator, the slow one that explains, and the comparison of a schema with a class.

jsonschema-rs validates every message, and every schema at start. jsonschema explains a rejection, and the tests compare
the fast validator with it. Where jsonschema reads a pattern or a UUID more loosely than the standards, this file makes
it as strict as they are.
"""

from __future__ import annotations

__all__ = ["Schema", "check_agreement", "check_examples", "check_schema", "explain", "tolerant", "validator"]

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs
import jsonschema_rs

from bus.contracts.violations import violations
from bus.errors import ContractError, SchemaViolation

Schema = Mapping[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_JSON_TYPES = {str: "string", int: "integer", bool: "boolean", float: "number"}


def validator(schema: Schema) -> Callable[[Any], bool]:
    """Return the fast validator of *schema*, which returns whether a value is valid; it also checks formats."""
    check: Callable[[Any], bool] = jsonschema_rs.Draft202012Validator(dict(schema), validate_formats=True).is_valid
    return check


def explain(schema: Schema, value: Any) -> tuple[SchemaViolation, ...]:
    """Return where and why *value* violates *schema*: at most 20 violations, sorted by pointer."""
    # Only the first hundred: a malicious value has tens of thousands, and finding them all blocks the event loop for a
    # second.
    errors = islice(_reference_validator()(dict(schema)).iter_errors(value), 100)
    problems = {problem for error in errors for problem in violations(error)}
    return tuple(sorted(problems, key=lambda problem: (problem.pointer, problem.detail)))[:20]


def tolerant(schema: Any) -> Any:
    """Return *schema* as a consumer applies it: with any ``"additionalProperties": false`` removed."""
    if isinstance(schema, Mapping):
        return {k: tolerant(v) for k, v in schema.items() if not (k == "additionalProperties" and v is False)}
    if isinstance(schema, list):
        return [tolerant(item) for item in schema]
    return schema


@lru_cache(1)
def _reference_validator() -> Callable[[Schema], Any]:
    """Return jsonschema's validator, with patterns and UUIDs as the standards define them; imports it on first use."""
    from jsonschema import Draft202012Validator, FormatChecker, ValidationError
    from jsonschema.validators import extend

    def pattern(validator: Any, expression: str, value: Any, schema: Schema) -> Iterator[ValidationError]:
        # The $ of ECMA 262 matches only at the end; Python's also matches before a final line break.
        if isinstance(value, str) and not re.search(re.sub(r"(?<!\\)\$$", r"\\Z", expression), value):
            yield ValidationError(f"{value!r} does not match {expression!r}")

    formats = FormatChecker()
    formats.checkers = {**Draft202012Validator.FORMAT_CHECKER.checkers, "uuid": (_is_uuid, ())}
    strict = extend(Draft202012Validator, {"pattern": pattern})  # type: ignore[no-untyped-call]
    return lambda schema: strict(schema, format_checker=formats)


def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or _UUID.fullmatch(value) is not None


def check_schema(subject: str, schema: Schema) -> None:
    """
    Check that *schema* is a JSON Schema for *subject*.

    Raises:
        ContractError: It is not a JSON Schema 2020-12, or its ``$id`` names another subject.
    """
    if not isinstance(schema, Mapping):
        raise ContractError(f"{subject}: not a JSON Schema: not an object")
    if schema.get("$schema", DIALECT) != DIALECT:
        raise ContractError(f"{subject}: its $schema is not {DIALECT}")
    id = schema.get("$id")
    if isinstance(id, str) and id.rpartition(":")[2] != subject:
        raise ContractError(f"{subject}: its $id is {id}")
    try:
        validator(schema)
    except ValueError as error:
        why = _schema_error(schema) or " ".join(str(error).split())[:200]
        raise ContractError(f"{subject}: not a JSON Schema: {why}") from None


def _schema_error(schema: Schema) -> str | None:
    """Return in one line why *schema* is invalid; None if only the fast validator finds it (a pattern, a reference)."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(dict(schema))
    except SchemaError as error:
        return str(error.message)
    return None


def check_agreement(subject: str, schema: Schema, cls: type) -> None:
    """
    Check that *schema* and *cls* have the same members with the same types, and that the same ones are required.

    Raises:
        ContractError: They differ; the message names the member.
    """
    problem = next(_disagreements(schema, cls, cls.__name__, ""), None)
    if problem is not None:
        raise ContractError(f"{subject}: {problem}")


def check_examples(subject: str, schema: Schema, round_trip: Callable[[Any], Any]) -> None:
    """
    Check that every example of *schema* is valid, and that *round_trip* (into the class and back) does not change it.

    Raises:
        ContractError: An example fails; the message gives the place and the reason.
    """
    is_valid = validator(schema)
    for number, example in enumerate(schema.get("examples", ())):
        if not is_valid(example):
            problem = next(iter(explain(schema, example)), SchemaViolation("", "does not match"))
            raise ContractError(f"{subject}: example {number}: {problem.pointer or '/'}: {problem.detail}")
        if round_trip(example) != example:
            raise ContractError(f"{subject}: example {number} changes when it is decoded and encoded again")


def _disagreements(schema: Schema, hint: Any, owner: str, at: str) -> Iterator[str]:
    """Yield one sentence for each difference between *schema* and the type *hint*."""
    hint, is_nullable = _unwrapped(hint)
    options = schema.get("anyOf")
    if isinstance(options, list):
        others = [option for option in options if option != {"type": "null"}]
        if is_nullable != (len(others) < len(options)):
            yield f"{at or '/'} may be null in only one of the schema and {owner}"
        if len(others) == 1:
            yield from _disagreements(others[0], hint, owner, at)
    elif attrs.has(hint):
        yield from _members(schema, hint, at)
    elif get_origin(hint) is tuple and get_args(hint)[1:] == (...,):
        if schema.get("type") != "array":
            yield f"{at or '/'} is a tuple in {owner} but not an array in the schema"
        elif isinstance(schema.get("items"), Mapping):
            yield from _disagreements(schema["items"], get_args(hint)[0], owner, f"{at}/*")
    elif hint in _JSON_TYPES and _type_of(schema) not in (_JSON_TYPES[hint], None):
        yield f"{at or '/'} is {hint.__name__} in {owner} and {_type_of(schema)} in the schema"


def _members(schema: Schema, cls: type, at: str) -> Iterator[str]:
    if schema.get("type", "object") != "object":
        yield f"{at or '/'} is {cls.__name__} but not an object in the schema"
        return
    hints = get_type_hints(cls)
    fields = {each.name: each.default is attrs.NOTHING for each in attrs.fields(cls)}
    properties = schema.get("properties", {})
    members = {name: name in schema.get("required", ()) for name in properties}
    for name in sorted(fields.keys() | members.keys()):
        if name not in members:
            yield f"{cls.__name__}.{name} is not in the schema"
        elif name not in fields:
            yield f"the schema's {name!r} is not in {cls.__name__}"
        elif fields[name] != members[name]:
            yield f"{name!r} is required in only one of the schema and {cls.__name__}"
        else:
            # An optional member that is None is omitted, not null.
            hint = hints[name] if members[name] or "anyOf" in properties[name] else _unwrapped(hints[name])[0]
            yield from _disagreements(properties[name], hint, cls.__name__, f"{at}/{name}")


def _unwrapped(hint: Any) -> tuple[Any, bool]:
    """Return *hint* without None, and whether it includes None."""
    if get_origin(hint) in (Union, UnionType):
        rest = [arg for arg in get_args(hint) if arg is not NoneType]
        if len(rest) < len(get_args(hint)) and len(rest) == 1:
            return rest[0], True
    return hint, False


def _type_of(schema: Schema) -> str | None:
    """Return the single JSON type that *schema* allows, or None if it cannot be determined."""
    found = schema.get("type")
    if isinstance(found, str):
        return found
    values = [schema["const"]] if "const" in schema else schema.get("enum", ())
    types = {_JSON_TYPES.get(type(value)) for value in values}
    return types.pop() if len(types) == 1 else None
