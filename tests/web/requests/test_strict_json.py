"""The strict JSON parser, compared with the standard library's parser and strict hooks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.web.requests.command import DEPTH_MAX, NotAnInteger, NotStrict, loads

NAMES = st.sampled_from(["a", "b", "c", ":", "a:b", '"', "\\", "ü", "😀", ""]) | st.text(max_size=3)
INTEGERS = st.integers(-(2**65), 2**65) | st.sampled_from([0, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64])
LEAVES = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=True) | NAMES


@st.composite
def pairs(draw: st.DrawFn, children: st.SearchStrategy[str]) -> str:
    """Write an object, whose names may repeat and may be escaped."""
    names = draw(st.lists(NAMES, max_size=4))
    written = [json.dumps(name, ensure_ascii=draw(st.booleans())) for name in names]
    return "{" + ",".join(f"{name}:{draw(children)}" for name in written) + "}"


TEXTS = st.recursive(
    LEAVES.map(json.dumps) | st.sampled_from(["1.0", "1e2", "-0", "01", "1e400", '"\\ud800"', '"\\udc00\\ud800"']),
    lambda children: st.lists(children, max_size=4).map(lambda found: f"[{','.join(found)}]") | pairs(children),
    max_leaves=12,
)
BODIES = TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=20)


class Rejected(Exception):
    """The reference parser rejects the text."""


def reject(text: str) -> Any:
    raise Rejected(text)


def integer(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise Rejected(text)
    return value


def unique_names(found: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(found)) != len(found):
        raise Rejected("a name twice")
    return dict(found)


def reference_loads(body: bytes) -> Any:
    value = json.loads(
        body.decode(), object_pairs_hook=unique_names, parse_constant=reject, parse_float=reject, parse_int=integer
    )
    json.dumps(value, ensure_ascii=False).encode()  # fails for halves of surrogate pairs
    return value


@given(BODIES)
@example(b'{"a":{"a":1},"b":[{"a":1}]}')
@example(b'{"a":":","a":":"}')
@example(b'{"a:b":1}')
@example(b"\xef\xbb\xbf{}")
def test_a_body_has_the_same_value_as_for_the_reference_parser_or_is_rejected_by_both(body: bytes) -> None:
    """There is no text for which the two parsers disagree."""
    try:
        expected = reference_loads(body)
    except (Rejected, ValueError):
        with pytest.raises((NotStrict, NotAnInteger)):
            loads(body)
    else:
        value = loads(body)
        assert value == expected
        assert json.dumps(value) == json.dumps(expected)  # true is not 1


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_is_limited_to_32_levels(opening: str, closing: str) -> None:
    """32 levels are accepted; 33 and up to 100,000 are rejected."""

    def nested(levels: int) -> bytes:
        return (opening * levels + ("1" if closing == "}" else "") + closing * levels).encode()

    assert loads(nested(DEPTH_MAX))
    for levels in (DEPTH_MAX + 1, 500, 1000, 1024, 1025, 100_000):
        with pytest.raises(NotStrict):
            loads(nested(levels))


def test_every_number_that_is_not_an_integer_is_pointed_at() -> None:
    """The violations have JSON Pointers with escaped names, and do not repeat the values."""
    with pytest.raises(NotAnInteger) as caught:
        loads(b'{"a/b": [1, 1.5], "c~d": {"": 18446744073709551615}, "e": 1}')
    assert [violation.pointer for violation in caught.value.violations] == ["/a~1b/1", "/c~0d/"]


def test_at_most_twenty_numbers_are_pointed_at() -> None:
    """Also if the body has thousands of them."""
    with pytest.raises(NotAnInteger) as caught:
        loads(b"[" + b",".join([b"1.5"] * 10000) + b"]")
    assert len(caught.value.violations) == 20


def test_a_rejection_repeats_nothing_of_the_body() -> None:
    """The content of a body may be confidential: it is neither returned nor logged."""
    for body in (b'{"pin": 1234', b'{"pin1234": 1, "pin1234": 2}', b'"1234\xff"'):
        with pytest.raises(NotStrict) as caught:
            loads(body)
        assert "1234" not in caught.value.detail
