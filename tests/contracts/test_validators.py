"""Two validators, one meaning: what checks every message, and what explains a rejection, never disagree."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, SchemaError

from app.messaging.event_registry import all_modules, build_registry
from bus.contracts.contract import Contract
from bus.contracts.schemas import check_examples, check_schema, explain, tolerant, validator
from bus.errors import ContractError
from tests.contracts.events import ODD, valid

CONTRACTS = {contract.subject: contract for contract in build_registry(all_modules())}
SUBJECTS = sorted(CONTRACTS)
EXAMPLES = 50


@st.composite
def broken(draw: st.DrawFn, schema: dict[str, Any]) -> Any:
    """Return an event with one to three wounds; now and then it survives them."""
    value = copy.deepcopy(draw(valid(schema)))
    for _ in range(draw(st.integers(1, 3))):
        value = draw(wounded(value))
    return value


def wounded(value: Any) -> st.SearchStrategy[Any]:
    """Return *value*, or something within it, taken away, replaced or added to."""
    ways: list[st.SearchStrategy[Any]] = [ODD]
    if isinstance(value, dict):
        ways.append(st.tuples(st.text(max_size=8), ODD).map(lambda pair: {**value, pair[0]: pair[1]}))
        for name in value:
            ways.append(st.just({key: part for key, part in value.items() if key != name}))
            ways.append(wounded(value[name]).map(partial(changed, value, name)))
    elif isinstance(value, list):
        ways.append(st.just(value * 60))
        for n, part in enumerate(value[:3]):
            ways.append(wounded(part).map(partial(changed, value, n)))
    elif isinstance(value, str):
        ways += [st.just(value[:-1]), st.just(value + "\n"), st.just(value * 40), st.just(value.upper())]
    elif isinstance(value, int):
        ways += [st.just(-value), st.just(value * 10**19), st.just(float(value)), st.just(value + 0.5)]
    return st.one_of(ways)


def changed(value: Any, where: Any, part: Any) -> Any:
    """Return *value*, but with *part* at *where*."""
    value = copy.copy(value)
    value[where] = part
    return value


def agree(contract: Contract, value: Any) -> bool:
    """Assert that both validators say the same of *value*, to the letter and tolerantly; return what they say."""
    for schema, fits in ((contract.schema, contract.is_valid_outgoing), (tolerant(contract.schema), contract.is_valid_incoming)):
        reasons = explain(schema, value)
        assert fits(value) == (not reasons), (value, reasons)
        assert all(reason.pointer == "" or reason.pointer.startswith("/") for reason in reasons)
    return contract.is_valid_outgoing(value)


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_fits_fits_for_both_and_survives_its_class(subject: str) -> None:
    """A valid event is valid to both, and comes out of its class as it went in."""
    contract = CONTRACTS[subject]

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(valid(contract.schema))
    def look(value: Any) -> None:
        assert agree(contract, value), explain(contract.schema, value)
        body = orjson.dumps(value)
        again = contract.unstructure(contract.structure(orjson.loads(body), contract.cls))
        assert orjson.loads(orjson.dumps(again)) == value

    look()


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_is_broken_is_broken_for_both(subject: str) -> None:
    """Whatever has happened to an event: they agree whether it still is one, and the reasons point somewhere."""
    contract = CONTRACTS[subject]

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(broken(dict(contract.schema)))
    def look(value: Any) -> None:
        agree(contract, value)

    look()


@pytest.mark.parametrize(
    ("schema", "value", "fits"),
    [
        ({"format": "uuid"}, "0192f0c1-2b3c-7d4e-8f50-617283940a1b", True),
        ({"format": "uuid"}, "0192F0C1-2B3C-7D4E-8F50-617283940A1B", True),
        ({"format": "uuid"}, "0192f0c12b3c7d4e8f50617283940a1b", False),
        ({"format": "uuid"}, "0192f0c1-2b3c-7d4e-8f50-6172839_0a1b", False),
        ({"format": "uuid"}, "{0192f0c1-2b3c-7d4e-8f50-617283940a1b}", False),
        ({"format": "uuid"}, "٠192f0c1-2b3c-7d4e-8f50-617283940a1b", False),
        ({"format": "uuid"}, "0192f0c1-2b3c-7d4e-8f50-617283940a1b\n", False),
        ({"format": "uuid"}, 7, True),
        ({"pattern": "^[A-Z]{3}$"}, "EUR", True),
        ({"pattern": "^[A-Z]{3}$"}, "EUR\n", False),
        ({"pattern": "^[^\\u0000-\\u001f\\u007f]*$"}, "a\n", False),
        ({"pattern": "a\\$"}, "a$", True),
        ({"type": "integer"}, 1.0, True),
        ({"type": "integer"}, True, False),
        ({"type": "string", "maxLength": 1}, "😀", True),
        ({"type": "string", "minLength": 2}, "😀", False),
        ({"const": "v1"}, "v1", True),
        ({"enum": [1]}, True, False),
    ],
)
def test_they_agree_where_libraries_are_wont_to_differ(schema: dict[str, Any], value: Any, fits: bool) -> None:
    """Formats, line breaks, whole floats, astral characters, truth and one."""
    assert validator(schema)(value) is fits
    assert (not explain(schema, value)) is fits


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_schema_is_one_to_both(subject: str) -> None:
    """At start only the fast one looks at the schemas; here the other one does."""
    Draft202012Validator.check_schema(CONTRACTS[subject].schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "thing"},
        {"properties": {"a": {"type": 3}}},
        {"properties": []},
        {"required": ["a", "a"]},
        {"minLength": -1},
        {"minimum": "1"},
        {"enum": 1},
        {"anyOf": []},
        {"additionalProperties": "no"},
        {"pattern": "("},
        {"format": 3},
    ],
)
def test_what_is_no_schema_is_none_to_both(schema: dict[str, Any]) -> None:
    """And the line that refuses it is the one of the validator that explains."""
    with pytest.raises(SchemaError) as refused:
        Draft202012Validator.check_schema(schema)
    with pytest.raises(ContractError) as said:
        check_schema("parcels.sent.v1", schema)
    assert str(said.value) == f"parcels.sent.v1: not a JSON Schema: {refused.value.message}"


def test_a_disagreement_would_be_seen() -> None:
    """The comparison above can fail."""
    contract = CONTRACTS["orders.timed_out.v1"]
    value = {"order_id": "no uuid"}
    other = {**contract.schema, "properties": {"order_id": {"type": "string"}}}
    assert not contract.is_valid_outgoing(value)
    assert not explain(other, value)
    check_examples(contract.subject, contract.schema, lambda example: example)
