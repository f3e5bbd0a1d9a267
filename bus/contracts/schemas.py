"""
What a JSON Schema (2020-12) means here: the fast check of every message, the slow one that explains, and the check that
a schema and a class promise the same.

jsonschema-rs looks at every message, and at every schema at start. jsonschema explains a rejection, and is the oracle of
the fast one; where its Python would read a pattern or a UUID more loosely than the standards, it is told not to.
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

from bus.errors import ContractError, SchemaViolation

Schema = Mapping[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_JSON_TYPES = {str: "string", int: "integer", bool: "boolean", float: "number"}


def validator(schema: Schema) -> Callable[[Any], bool]:
    """Return the fast check for *schema*: true when a value fits. Formats count."""
    check: Callable[[Any], bool] = jsonschema_rs.Draft202012Validator(dict(schema), validate_formats=True).is_valid
    return check


def explain(schema: Schema, value: Any) -> tuple[SchemaViolation, ...]:
    """Say where and why *value* does not fit *schema*, in the order of the pointers; at most 20 reasons."""
    # The first hundred: a hostile value has tens of thousands, and finding them all stops the event loop for a second.
    errors = islice(_oracle()(dict(schema)).iter_errors(value), 100)
    problems = {
        SchemaViolation("".join(f"/{_escape(part)}" for part in error.absolute_path), _shorten(error.message))
        for error in errors
    }
    return tuple(sorted(problems, key=lambda problem: (problem.pointer, problem.detail)))[:20]


def tolerant(schema: Any) -> Any:
    """Return *schema* as a reader applies it: members it does not know are none of its business."""
    if isinstance(schema, Mapping):
        return {k: tolerant(v) for k, v in schema.items() if not (k == "additionalProperties" and v is False)}
    if isinstance(schema, list):
        return [tolerant(item) for item in schema]
    return schema


@lru_cache(1)
def _oracle() -> Callable[[Schema], Any]:
    """Return jsonschema's validator, with patterns and UUIDs as the standards have them; imported when first needed."""
    from jsonschema import Draft202012Validator, FormatChecker, ValidationError
    from jsonschema.validators import extend

    def pattern(validator: Any, expression: str, value: Any, schema: Schema) -> Iterator[ValidationError]:
        # ECMA 262's $ is the end; Python's also stands before a line break there.
        if isinstance(value, str) and not re.search(re.sub(r"(?<!\\)\$$", r"\\Z", expression), value):
            yield ValidationError(f"{value!r} does not match {expression!r}")

    formats = FormatChecker()
    formats.checkers = {**Draft202012Validator.FORMAT_CHECKER.checkers, "uuid": (_is_uuid, ())}
    oracle = extend(Draft202012Validator, {"pattern": pattern})  # type: ignore[no-untyped-call]
    return lambda schema: oracle(schema, format_checker=formats)


def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or _UUID.fullmatch(value) is not None


def check_schema(subject: str, schema: Schema) -> None:
    """
    Check that *schema* is one, for *subject*.

    Raises:
        ContractError: It is no JSON Schema of 2020-12, or its ``$id`` is another subject's.
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
        why = _what_is_wrong(schema) or " ".join(str(error).split())[:200]
        raise ContractError(f"{subject}: not a JSON Schema: {why}") from None


def _what_is_wrong(schema: Schema) -> str | None:
    """Return why *schema* is none, in one line; None where only the fast one finds it: a pattern, a reference."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(dict(schema))
    except SchemaError as error:
        return str(error.message)
    return None


def check_agreement(subject: str, schema: Schema, cls: type) -> None:
    """
    Check that *schema* and *cls* have the same members, of the same types, required and optional alike.

    Raises:
        ContractError: They have not; says which member.
    """
    problem = next(_disagreements(schema, cls, cls.__name__, ""), None)
    if problem is not None:
        raise ContractError(f"{subject}: {problem}")


def check_examples(subject: str, schema: Schema, again: Callable[[Any], Any]) -> None:
    """
    Check that every example of *schema* fits it, and that *again* (into the class and out of it) changes nothing.

    Raises:
        ContractError: One does not; says where and why.
    """
    fits = validator(schema)
    for number, example in enumerate(schema.get("examples", ())):
        if not fits(example):
            problem = next(iter(explain(schema, example)), SchemaViolation("", "does not fit"))
            raise ContractError(f"{subject}: example {number}: {problem.pointer or '/'}: {problem.detail}")
        if again(example) != example:
            raise ContractError(f"{subject}: example {number} does not survive its class")


def _disagreements(schema: Schema, hint: Any, owner: str, at: str) -> Iterator[str]:
    """Yield what *schema* and the type *hint* promise differently, a sentence each."""
    hint, may_be_none = _unwrapped(hint)
    options = schema.get("anyOf")
    if isinstance(options, list):
        plain = [option for option in options if option != {"type": "null"}]
        if may_be_none != (len(plain) < len(options)):
            yield f"{at or '/'} may be null in one of schema and {owner}, not in the other"
        if len(plain) == 1:
            yield from _disagreements(plain[0], hint, owner, at)
    elif attrs.has(hint):
        yield from _members(schema, hint, at)
    elif get_origin(hint) is tuple and get_args(hint)[1:] == (...,):
        if schema.get("type") != "array":
            yield f"{at or '/'} is a tuple in {owner} and no array in the schema"
        elif isinstance(schema.get("items"), Mapping):
            yield from _disagreements(schema["items"], get_args(hint)[0], owner, f"{at}/*")
    elif hint in _JSON_TYPES and _type_of(schema) not in (_JSON_TYPES[hint], None):
        yield f"{at or '/'} is {hint.__name__} in {owner} and {_type_of(schema)} in the schema"


def _members(schema: Schema, cls: type, at: str) -> Iterator[str]:
    if schema.get("type", "object") != "object":
        yield f"{at or '/'} is {cls.__name__} and no object in the schema"
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
            yield f"{name!r} is required in one of schema and {cls.__name__}, optional in the other"
        else:
            # An optional member that is None is left out, not null.
            hint = hints[name] if members[name] or "anyOf" in properties[name] else _unwrapped(hints[name])[0]
            yield from _disagreements(properties[name], hint, cls.__name__, f"{at}/{name}")


def _unwrapped(hint: Any) -> tuple[Any, bool]:
    """Return *hint* without its None, and whether it had one."""
    if get_origin(hint) in (Union, UnionType):
        rest = [arg for arg in get_args(hint) if arg is not NoneType]
        if len(rest) < len(get_args(hint)) and len(rest) == 1:
            return rest[0], True
    return hint, False


def _type_of(schema: Schema) -> str | None:
    """Return the one JSON type that *schema* allows, as far as that can be told."""
    found = schema.get("type")
    if isinstance(found, str):
        return found
    values = [schema["const"]] if "const" in schema else schema.get("enum", ())
    types = {_JSON_TYPES.get(type(value)) for value in values}
    return types.pop() if len(types) == 1 else None


def _escape(part: str | int) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-70:]}"
