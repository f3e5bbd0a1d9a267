"""What a change of a schema does to those who rely on it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bus.contracts.compatibility import Change, Compatibility, compare, overall
from bus.contracts.schemas import tolerant, validator

STRING: dict[str, Any] = {"type": "string"}
TEXT: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^a", "format": "uuid"}
NUMBER: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": 10, "multipleOf": 2}
BASE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["id", "text", "lines"],
    "properties": {
        "id": STRING,
        "text": TEXT,
        "count": NUMBER,
        "colour": {"enum": ["red", "green"]},
        "version": {"const": "v1"},
        "lines": {
            "type": "array",
            "minItems": 1,
            "maxItems": 9,
            "uniqueItems": True,
            "items": {"type": "object", "required": ["sku"], "properties": {"sku": STRING}, "additionalProperties": False},
        },
        "to": {"anyOf": [{"type": "object", "required": ["city"], "properties": {"city": STRING}}, {"type": "null"}]},
        "any": {"allOf": [{"type": "string"}]},
        "labels": {"type": "object", "additionalProperties": STRING},
    },
}


def changed(pointer: str, value: Any = None) -> dict[str, Any]:
    """Return BASE with *value* at *pointer*; None takes away what is there."""

    def copied(part: Any, steps: list[str]) -> Any:
        if not steps:
            return value
        if isinstance(part, list):
            return [copied(item, steps[1:]) if str(n) == steps[0] else item for n, item in enumerate(part)]
        rest = {**part, steps[0]: copied(part.get(steps[0]), steps[1:])}
        return {name: each for name, each in rest.items() if each is not None}

    found: dict[str, Any] = copied(BASE, pointer.split("/"))
    return found


def member(name: str, keyword: str, value: Any = None) -> dict[str, Any]:
    return changed(f"properties/{name}/{keyword}", value)


FULL, BACKWARD, FORWARD, NONE, UNKNOWN = (
    Compatibility[name] for name in ("FULL", "BACKWARD", "FORWARD", "NONE", "UNKNOWN")
)
CASES: list[tuple[str, dict[str, Any], str, Compatibility]] = [
    ("an optional member comes", changed("properties/note", STRING), "/note", FULL),
    ("an optional member goes", changed("properties/count"), "/count", FULL),
    (
        "a required member comes",
        {**changed("properties/note", STRING), "required": ["id", "text", "lines", "note"]},
        "/note",
        FORWARD,
    ),
    ("a required member goes", {**changed("properties/id"), "required": ["text", "lines"]}, "/id", BACKWARD),
    ("a member becomes optional", changed("required", ["text", "lines"]), "/id", BACKWARD),
    ("a member becomes required", changed("required", ["id", "text", "lines", "count"]), "/count", FORWARD),
    ("a type is widened", member("id", "type", ["string", "null"]), "/id", BACKWARD),
    ("an integer becomes any number", member("count", "type", "number"), "/count", BACKWARD),
    ("a type is dropped", member("id", "type"), "/id", BACKWARD),
    ("a type becomes another", member("id", "type", "integer"), "/id", NONE),
    ("null is allowed", changed("properties/id", {"anyOf": [STRING, {"type": "null"}]}), "/id", BACKWARD),
    ("null is forbidden", changed("properties/to", BASE["properties"]["to"]["anyOf"][0]), "/to", FORWARD),
    ("below a null, something comes", member("to", "anyOf/0/properties/zip", STRING), "/to/zip", FORWARD),
    ("a value comes", member("colour", "enum", ["red", "green", "blue"]), "/colour", BACKWARD),
    ("a value goes", member("colour", "enum", ["red"]), "/colour", FORWARD),
    ("a value is replaced", member("colour", "enum", ["red", "blue"]), "/colour", NONE),
    ("a constant changes", member("version", "const", "v2"), "/version", NONE),
    ("a constant becomes free", changed("properties/version", STRING), "/version", BACKWARD),
    ("a text becomes a choice", changed("properties/id", {"enum": ["a", "b"]}), "/id", FORWARD),
    ("a minimum falls", member("count", "minimum", 0), "/count", BACKWARD),
    ("a minimum rises", member("count", "minimum", 2), "/count", FORWARD),
    ("a minimum comes", member("count", "exclusiveMinimum", 0), "/count", FORWARD),
    ("a maximum rises", member("count", "maximum", 11), "/count", BACKWARD),
    ("a maximum falls", member("count", "maximum", 9), "/count", FORWARD),
    ("a maximum goes", member("count", "maximum"), "/count", BACKWARD),
    ("a step becomes finer", member("count", "multipleOf", 1), "/count", BACKWARD),
    ("a step becomes coarser", member("count", "multipleOf", 4), "/count", FORWARD),
    ("a step becomes another", member("count", "multipleOf", 3), "/count", NONE),
    ("a text may be longer", member("text", "maxLength", 65), "/text", BACKWARD),
    ("a text must be shorter", member("text", "maxLength", 63), "/text", FORWARD),
    ("a text may be empty", member("text", "minLength"), "/text", BACKWARD),
    ("a text must be longer", member("text", "minLength", 2), "/text", FORWARD),
    ("a pattern comes", member("id", "pattern", "^x"), "/id", FORWARD),
    ("a pattern goes", member("text", "pattern"), "/text", BACKWARD),
    ("a pattern changes", member("text", "pattern", "^b"), "/text", UNKNOWN),
    ("a format comes", member("id", "format", "uuid"), "/id", FORWARD),
    ("a format goes", member("text", "format"), "/text", BACKWARD),
    ("a format changes", member("text", "format", "date-time"), "/text", NONE),
    ("others may be said", changed("additionalProperties"), "", FULL),
    ("others may hold anything", member("labels", "additionalProperties", True), "/labels/*", BACKWARD),
    ("others hold another type", member("labels", "additionalProperties/type", "integer"), "/labels/*", NONE),
    ("more items", member("lines", "maxItems", 10), "/lines", BACKWARD),
    ("fewer items", member("lines", "maxItems", 8), "/lines", FORWARD),
    ("equal items", member("lines", "uniqueItems"), "/lines", BACKWARD),
    ("an item gets a member", member("lines", "items/properties/note", STRING), "/lines/*/note", FULL),
    ("an item's member may be left out", member("lines", "items/required"), "/lines/*/sku", BACKWARD),
    ("an item's member changes type", member("lines", "items/properties/sku/type", "integer"), "/lines/*/sku", NONE),
    ("items may be anything", member("lines", "items"), "/lines/*", BACKWARD),
    ("allOf changes", member("any", "allOf", [{"type": "string", "minLength": 1}]), "/any", UNKNOWN),
    ("a reference comes", member("any", "$ref", "#/properties/id"), "/any", UNKNOWN),
    ("a word that we do not know comes", member("id", "contentEncoding", "base64"), "/id", UNKNOWN),
]


@pytest.mark.parametrize(("new", "pointer", "compatibility"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_change_is_classified_and_its_member_named(
    new: dict[str, Any], pointer: str, compatibility: Compatibility
) -> None:
    """Backward: new readers read what is old. Forward: old readers read what is new. Full: both."""
    changes = compare(BASE, new)
    assert overall(changes) is compatibility, changes
    assert any(change.pointer == pointer or change.pointer.startswith(f"{pointer}/") for change in changes), changes
    assert all(change.why for change in changes)


MIRRORED = {BACKWARD: FORWARD, FORWARD: BACKWARD}


@pytest.mark.parametrize(("new", "compatibility"), [(case[1], case[3]) for case in CASES], ids=[case[0] for case in CASES])
def test_taking_a_change_back_does_the_opposite(new: dict[str, Any], compatibility: Compatibility) -> None:
    """What widened narrows, and what was neither stays neither."""
    assert overall(compare(new, BASE)) is MIRRORED.get(compatibility, compatibility)


def test_what_is_only_described_otherwise_is_no_change() -> None:
    """Titles, descriptions and examples promise nothing; nor does the order of names."""
    new = {
        **changed("properties/id", {**STRING, "description": "Its name."}),
        "required": ["lines", "text", "id"],
        "title": "Something else.",
        "examples": [{}],
    }
    assert compare(BASE, new) == ()
    assert overall(()) is FULL


def test_a_member_may_be_called_like_a_word_of_the_schema() -> None:
    """A member named "title" or "default" is a member."""
    old = {"type": "object", "additionalProperties": False, "properties": {"title": STRING}}
    new = {**old, "properties": {"title": {"type": "integer"}}}
    assert overall(compare(old, new)) is NONE


def test_two_changes_are_judged_together() -> None:
    """One that only new readers survive and one that only old ones do leave nobody."""
    changes = [Change("/a", BACKWARD, "."), Change("/b", FORWARD, ".")]
    assert overall(changes) is NONE
    assert overall([*changes, Change("/c", UNKNOWN, "?")]) is UNKNOWN
    assert overall([Change("/a", BACKWARD, "."), Change("/b", FULL, ".")]) is BACKWARD


LEAVES = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "maxLength": 2},
        {"type": "string", "minLength": 1},
        {"type": "integer"},
        {"type": "integer", "minimum": 0},
        {"type": "number"},
        {"enum": ["a", "bb"]},
        {"const": "a"},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
    ]
)
VALUES = st.sampled_from(["", "a", "bb", "ccc", -1, 0, 1, 0.5, None, True])


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    members = draw(st.dictionaries(st.sampled_from("abc"), LEAVES, max_size=3))
    required = draw(st.lists(st.sampled_from(sorted(members)), unique=True)) if members else []
    return {"type": "object", "properties": members, "required": required, "additionalProperties": False}


@given(schemas(), schemas(), st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3))
def test_a_verdict_is_kept(old: dict[str, Any], new: dict[str, Any], value: dict[str, Any]) -> None:
    """Whatever is called compatible really is: the reader takes every message that the writer may write."""
    found = overall(compare(old, new))
    may_write_old, may_write_new = validator(old)(value), validator(new)(value)
    assume(may_write_old or may_write_new)
    if found.is_backward and may_write_old:
        assert validator(tolerant(new))(value)
    if found.is_forward and may_write_new:
        assert validator(tolerant(old))(value)
