"""Sentences for violations: what is wrong and what is allowed, for a client that knows JSON and neither Python nor keywords."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.messaging.event_registry import all_modules
from bus.contracts.schemas import explain, validator
from bus.contracts.violations import KEYWORDS
from tests.contracts.events import ODD

NULLABLE_ORDER = {"anyOf": [{"type": "object", "properties": {"a": {"type": "integer"}}}, {"type": "null"}]}

SENTENCES: list[tuple[str, dict[str, Any], Any, list[tuple[str, str]]]] = [
    ("type", {"type": "integer"}, None, [("", "must be an integer; it is null")]),
    ("type", {"type": "integer"}, "1", [("", 'must be an integer; it is the string "1"')]),
    ("type", {"type": "string"}, 1, [("", "must be a string; it is the number 1")]),
    ("type", {"type": ["string", "null"]}, True, [("", "must be a string or null; it is true")]),
    ("type", {"type": "object"}, [], [("", "must be an object; it is an array")]),
    ("type", {"type": "boolean"}, {}, [("", "must be true or false; it is an object")]),
    ("enum", {"enum": ["a", None, 1]}, True, [("", 'must be "a", null or 1; it is true')]),
    ("enum", {"enum": ["confirmed"]}, "CONFIRMED", [("", 'must be "confirmed"; it is "CONFIRMED"; upper and lower case differ: "confirmed"')]),
    ("const", {"const": "v1"}, None, [("", 'must be "v1"; it is null')]),
    ("required", {"required": ["a", "b'"]}, {}, [("", 'the member "a" is missing'), ("", 'the member "b\'" is missing')]),
    (
        "additionalProperties",
        {"additionalProperties": False, "properties": {"a": {}, "b": {}}},
        {"c": 1},
        [("", '"c" is not allowed here; allowed are "a" and "b"')],
    ),
    ("additionalProperties", {"additionalProperties": False}, {"c": 1, "d": 1}, [("", '"c" and "d" are not allowed here')]),
    ("dependentRequired", {"dependentRequired": {"a": ["b"]}}, {"a": 1}, [("", '"a" needs the member "b"')]),
    ("minLength", {"minLength": 1}, "", [("", "must have at least 1 character; it has 0")]),
    ("maxLength", {"maxLength": 2}, "abc", [("", "must have at most 2 characters; it has 3")]),
    ("minItems", {"minItems": 1}, [], [("", "must have at least 1 item; it has 0")]),
    ("maxItems", {"maxItems": 2}, [1, 2, 3], [("", "must have at most 2 items; it has 3")]),
    ("minProperties", {"minProperties": 1}, {}, [("", "must have at least 1 member; it has 0")]),
    ("maxProperties", {"maxProperties": 1}, {"a": 1, "b": 1}, [("", "must have at most 1 member; it has 2")]),
    ("minimum", {"items": {"minimum": 1}}, [0], [("/0", "must be at least 1; it is 0")]),
    ("maximum", {"properties": {"a/~": {"maximum": 1}}}, {"a/~": 2}, [("/a~1~0", "must be at most 1; it is 2")]),
    ("exclusiveMinimum", {"exclusiveMinimum": 1}, 1, [("", "must be greater than 1; it is 1")]),
    ("exclusiveMaximum", {"exclusiveMaximum": 1}, 1, [("", "must be less than 1; it is 1")]),
    ("multipleOf", {"multipleOf": 5}, 7, [("", "must be a multiple of 5; it is 7")]),
    ("uniqueItems", {"uniqueItems": True}, [1, 1], [("", "must not have the same item twice")]),
    ("not", {"not": {"const": 0}}, 0, [("", "must not be 0")]),
    ("not", {"not": {"enum": [".", ".."]}}, ".", [("", 'must not be "." or ".."')]),
    ("pattern", {"pattern": "^[A-Z]{3}$"}, "eur", [("", "must be three capital letters")]),
    ("pattern", {"pattern": "^a+$"}, "b", [("", 'must match the pattern ^a+$; it is "b"')]),
    ("format", {"format": "date-time"}, "today", [("", 'must be a date and time as in RFC 3339, such as 2026-01-31T09:00:00Z; it is "today"')]),
    ("anyOf", NULLABLE_ORDER, {"a": "1"}, [("/a", 'must be an integer; it is the string "1"')]),
    (
        "anyOf",
        NULLABLE_ORDER,
        1,
        [("", "has none of the forms that are allowed: must be an object; it is the number 1; or: must be null; it is the number 1")],
    ),
    ("anyOf", {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {}, [("", 'needs at least one of the members "a" and "b"')]),
    ("oneOf", {"oneOf": [{"const": 1}, {"const": 2}]}, 3, [("", "has none of the forms that are allowed: must be 1; it is 3; or: must be 2; it is 3")]),
]


@pytest.mark.parametrize(("keyword", "schema", "value", "expected"), SENTENCES)
def test_a_violation_is_a_sentence(keyword: str, schema: dict[str, Any], value: Any, expected: list[tuple[str, str]]) -> None:
    """It names what is allowed and what was sent, in JSON notation."""
    assert [(found.pointer, found.detail) for found in explain(schema, value)] == expected


def test_every_keyword_has_a_case() -> None:
    """A keyword that is added to the sentences is added to the table above."""
    assert {keyword for keyword, *_ in SENTENCES} == KEYWORDS.keys()


ANNOTATIONS = {"$schema", "$id", "$defs", "$ref", "title", "description", "examples", "default"}
STRUCTURE = {"properties", "items"}


def keywords(schema: Any) -> Iterator[str]:
    """Yield every keyword that *schema* uses, at any depth."""
    if isinstance(schema, bool):
        return
    for name, part in schema.items():
        yield name
        if name in ("properties", "$defs"):
            for inner in part.values():
                yield from keywords(inner)
        elif name in ("items", "not", "additionalProperties"):
            yield from keywords(part)
        elif name in ("anyOf", "oneOf"):
            for inner in part:
                yield from keywords(inner)


SCHEMAS = [schema for module in all_modules() for schema in (*module.schemas.values(), *module.http_schemas.values())]


def test_every_keyword_of_our_schemas_has_a_sentence() -> None:
    """A module that uses another keyword gets a sentence for it first."""
    assert {name for schema in SCHEMAS for name in keywords(schema)} - ANNOTATIONS - STRUCTURE <= KEYWORDS.keys()


LONG = st.just("x" * 1000)


@given(st.integers(0, len(SCHEMAS) - 1), st.data())
def test_no_sentence_shows_python(number: int, data: st.DataObject) -> None:
    """For any value: no None, True or quotes of Python, and no more than a few lines, however long the value is."""
    schema = SCHEMAS[number]
    value = data.draw(st.sampled_from(schema["examples"]) | ODD | LONG)
    if isinstance(value, dict) and value:
        value = {**value, data.draw(st.sampled_from(sorted(value))): data.draw(st.none() | st.booleans() | LONG | st.lists(st.none()))}
    found = explain(schema, value)
    assert (not found) == validator(schema)(value)
    for violation in found:
        own_words = re.sub(r'"(?:[^"\\]|\\.)*"', '""', violation.detail)  # the value itself may be the text "None"
        assert not re.search(r"\b(None|True|False|dict|list)\b|\{'|\['", own_words), violation
        assert 5 < len(violation.detail) < 1500
