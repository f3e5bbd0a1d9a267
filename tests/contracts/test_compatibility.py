"""How a change of a schema affects its readers."""

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
    """Return BASE with *value* at *pointer*, or without that member if *value* is None."""

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
    ("an optional member is added", changed("properties/note", STRING), "/note", FULL),
    ("an optional member is removed", changed("properties/count"), "/count", FULL),
    (
        "a required member is added",
        {**changed("properties/note", STRING), "required": ["id", "text", "lines", "note"]},
        "/note",
        FORWARD,
    ),
    ("a required member is removed", {**changed("properties/id"), "required": ["text", "lines"]}, "/id", BACKWARD),
    ("a member becomes optional", changed("required", ["text", "lines"]), "/id", BACKWARD),
    ("a member becomes required", changed("required", ["id", "text", "lines", "count"]), "/count", FORWARD),
    ("a type is widened", member("id", "type", ["string", "null"]), "/id", BACKWARD),
    ("an integer becomes any number", member("count", "type", "number"), "/count", BACKWARD),
    ("a type is dropped", member("id", "type"), "/id", BACKWARD),
    ("a type becomes another", member("id", "type", "integer"), "/id", NONE),
    ("null is allowed", changed("properties/id", {"anyOf": [STRING, {"type": "null"}]}), "/id", BACKWARD),
    ("null is forbidden", changed("properties/to", BASE["properties"]["to"]["anyOf"][0]), "/to", FORWARD),
    ("a member is added to a nullable object", member("to", "anyOf/0/properties/zip", STRING), "/to/zip", FORWARD),
    ("a value is added", member("colour", "enum", ["red", "green", "blue"]), "/colour", BACKWARD),
    ("a value is removed", member("colour", "enum", ["red"]), "/colour", FORWARD),
    ("a value is replaced", member("colour", "enum", ["red", "blue"]), "/colour", NONE),
    ("a constant changes", member("version", "const", "v2"), "/version", NONE),
    ("a constant becomes a string", changed("properties/version", STRING), "/version", BACKWARD),
    ("a string becomes an enumeration", changed("properties/id", {"enum": ["a", "b"]}), "/id", FORWARD),
    ("a minimum decreases", member("count", "minimum", 0), "/count", BACKWARD),
    ("a minimum increases", member("count", "minimum", 2), "/count", FORWARD),
    ("a minimum is added", member("count", "exclusiveMinimum", 0), "/count", FORWARD),
    ("a maximum increases", member("count", "maximum", 11), "/count", BACKWARD),
    ("a maximum decreases", member("count", "maximum", 9), "/count", FORWARD),
    ("a maximum is removed", member("count", "maximum"), "/count", BACKWARD),
    ("a multiple becomes finer", member("count", "multipleOf", 1), "/count", BACKWARD),
    ("a multiple becomes coarser", member("count", "multipleOf", 4), "/count", FORWARD),
    ("a multiple is replaced", member("count", "multipleOf", 3), "/count", NONE),
    ("a string may be longer", member("text", "maxLength", 65), "/text", BACKWARD),
    ("a string must be shorter", member("text", "maxLength", 63), "/text", FORWARD),
    ("a string may be empty", member("text", "minLength"), "/text", BACKWARD),
    ("a string must be longer", member("text", "minLength", 2), "/text", FORWARD),
    ("a pattern is added", member("id", "pattern", "^x"), "/id", FORWARD),
    ("a pattern is removed", member("text", "pattern"), "/text", BACKWARD),
    ("a pattern changes", member("text", "pattern", "^b"), "/text", UNKNOWN),
    ("a format is added", member("id", "format", "uuid"), "/id", FORWARD),
    ("a format is removed", member("text", "format"), "/text", BACKWARD),
    ("a format changes", member("text", "format", "date-time"), "/text", NONE),
    ("other members are allowed", changed("additionalProperties"), "", FULL),
    ("other members may hold any value", member("labels", "additionalProperties", True), "/labels/*", BACKWARD),
    ("other members change type", member("labels", "additionalProperties/type", "integer"), "/labels/*", NONE),
    ("more items", member("lines", "maxItems", 10), "/lines", BACKWARD),
    ("fewer items", member("lines", "maxItems", 8), "/lines", FORWARD),
    ("equal items are allowed", member("lines", "uniqueItems"), "/lines", BACKWARD),
    ("an optional member is added to an item", member("lines", "items/properties/note", STRING), "/lines/*/note", FULL),
    ("an item's member becomes optional", member("lines", "items/required"), "/lines/*/sku", BACKWARD),
    ("an item's member changes type", member("lines", "items/properties/sku/type", "integer"), "/lines/*/sku", NONE),
    ("items may have any value", member("lines", "items"), "/lines/*", BACKWARD),
    ("allOf changes", member("any", "allOf", [{"type": "string", "minLength": 1}]), "/any", UNKNOWN),
    ("a reference is added", member("any", "$ref", "#/properties/id"), "/any", UNKNOWN),
    ("an unknown keyword is added", member("id", "contentEncoding", "base64"), "/id", UNKNOWN),
]


@pytest.mark.parametrize(("new", "pointer", "compatibility"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_change_is_classified_and_its_member_named(
    new: dict[str, Any], pointer: str, compatibility: Compatibility
) -> None:
    """Backward: new readers read old messages. Forward: old readers read new messages. Full: both."""
    changes = compare(BASE, new)
    assert overall(changes) is compatibility, changes
    assert any(change.pointer == pointer or change.pointer.startswith(f"{pointer}/") for change in changes), changes
    assert all(change.why for change in changes)


MIRRORED = {BACKWARD: FORWARD, FORWARD: BACKWARD}


@pytest.mark.parametrize(("new", "compatibility"), [(case[1], case[3]) for case in CASES], ids=[case[0] for case in CASES])
def test_reverting_a_change_has_the_opposite_compatibility(new: dict[str, Any], compatibility: Compatibility) -> None:
    """Widening becomes narrowing, and the other kinds stay the same."""
    assert overall(compare(new, BASE)) is MIRRORED.get(compatibility, compatibility)


def test_a_change_of_annotations_is_not_a_change() -> None:
    """Titles, descriptions and examples promise nothing; nor does the order of names."""
    new = {
        **changed("properties/id", {**STRING, "description": "Its name."}),
        "required": ["lines", "text", "id"],
        "title": "Something else.",
        "examples": [{}],
    }
    assert compare(BASE, new) == ()
    assert overall(()) is FULL


def test_a_member_may_have_the_name_of_a_keyword() -> None:
    """A member named "title" or "default" is a member."""
    old = {"type": "object", "additionalProperties": False, "properties": {"title": STRING}}
    new = {**old, "properties": {"title": {"type": "integer"}}}
    assert overall(compare(old, new)) is NONE


def test_the_compatibility_of_several_changes_is_combined() -> None:
    """A backward and a forward compatible change are together neither."""
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
def test_a_compatible_reader_accepts_every_message_of_the_writer(old: dict[str, Any], new: dict[str, Any], value: dict[str, Any]) -> None:
    """Whatever is classified as compatible really is."""
    found = overall(compare(old, new))
    may_write_old, may_write_new = validator(old)(value), validator(new)(value)
    assume(may_write_old or may_write_new)
    if found.is_backward and may_write_old:
        assert validator(tolerant(new))(value)
    if found.is_forward and may_write_new:
        assert validator(tolerant(old))(value)
