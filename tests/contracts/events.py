"""Random events: values that a schema allows, for schemas that use the keywords of this project."""

from __future__ import annotations

__all__ = ["ODD", "valid"]

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

TEXT = st.characters(exclude_categories=["Cs", "Cc"])
"""The characters that the pattern of the schemas allows: no control characters, no surrogates."""

PATTERNS = {"^[A-Z]{3}$": "[A-Z]{3}", "^[A-Z]{2}$": "[A-Z]{2}"}
PRINTABLE = "^[^\\u0000-\\u001f\\u007f]*$"

ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(TEXT, max_size=300),
    st.just([]),
    st.just({}),
    st.sampled_from(["EUR\n", "eur", "v1", "v2", "", "0192f0c1-2b3c-7d4e-8f50-617283940a1", "\u0000", "\x7f", "\u2028"]),
)
"""Values that are likely to be invalid wherever they are put."""


def valid(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for the values that *schema* allows; it may use only the keywords of this project."""
    if "anyOf" in schema:
        return st.one_of(*(valid(option) for option in schema["anyOf"]))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum", 2**63 - 1))
        case "string":
            return _text(schema)
        case "array":
            # A few items suffice; a hundred would make an event of a megabyte.
            most = min(schema.get("maxItems", 4), max(schema.get("minItems", 0), 4))
            return st.lists(valid(schema["items"]), min_size=schema.get("minItems", 0), max_size=most)
        case "object":
            required = set(schema.get("required", ()))
            members = {name: valid(member) for name, member in schema["properties"].items()}
            return st.fixed_dictionaries(
                {name: member for name, member in members.items() if name in required},
                optional={name: member for name, member in members.items() if name not in required},
            )
    raise NotImplementedError(schema)


def _text(schema: Mapping[str, Any]) -> st.SearchStrategy[str]:
    if schema.get("format") == "uuid":
        return st.uuids().map(str)
    if schema.get("pattern") in PATTERNS:
        return st.from_regex(PATTERNS[schema["pattern"]], fullmatch=True)
    assert schema.get("pattern", PRINTABLE) == PRINTABLE, schema
    return st.text(TEXT, min_size=schema.get("minLength", 0), max_size=schema.get("maxLength", 40))
