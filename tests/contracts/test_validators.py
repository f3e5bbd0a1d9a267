"""The fast validator, which checks every message, and the slow one, which explains a rejection, never disagree."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import attrs
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
from tests.examples import examples

CONTRACTS = {contract.subject: contract for contract in build_registry(all_modules())}
SUBJECTS = sorted(CONTRACTS)
EXAMPLES = 50


@st.composite
def damaged(draw: st.DrawFn, schema: dict[str, Any]) -> Any:
    """Return an event damaged in one to three places; it may still be valid."""
    value = copy.deepcopy(draw(valid(schema)))
    for _ in range(draw(st.integers(1, 3))):
        value = draw(with_damage(value))
    return value


def with_damage(value: Any) -> st.SearchStrategy[Any]:
    """Return *value* with something in it removed, replaced or added."""
    ways: list[st.SearchStrategy[Any]] = [ODD]
    if isinstance(value, dict):
        ways.append(st.tuples(st.text(max_size=8), ODD).map(lambda pair: {**value, pair[0]: pair[1]}))
        for name in value:
            ways.append(st.just({key: part for key, part in value.items() if key != name}))
            ways.append(with_damage(value[name]).map(partial(changed, value, name)))
    elif isinstance(value, list):
        ways.append(st.just(value * 60))
        for n, part in enumerate(value[:3]):
            ways.append(with_damage(part).map(partial(changed, value, n)))
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
    """Assert that both validators agree about *value*, strictly and tolerantly; return whether it is strictly valid."""
    for schema, is_valid in ((contract.schema, contract.is_valid_outgoing), (tolerant(contract.schema), contract.is_valid_incoming)):
        reasons = explain(schema, value)
        assert is_valid(value) == (not reasons), (value, reasons)
        assert all(reason.pointer == "" or reason.pointer.startswith("/") for reason in reasons)
    return contract.is_valid_outgoing(value)


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_valid_event_is_valid_for_both_validators_and_unchanged_by_its_class(subject: str) -> None:
    """Decoded into its class and encoded again, it is the same value; a member may be left out that has its default."""
    contract = CONTRACTS[subject]
    defaults = {field.name: field.default for field in attrs.fields(contract.cls) if field.default is not attrs.NOTHING}

    @settings(max_examples=examples(EXAMPLES), deadline=None)
    @given(valid(contract.schema))
    def compare(value: Any) -> None:
        assert agree(contract, value), explain(contract.schema, value)
        body = orjson.dumps(value)
        round_trip = contract.unstructure(contract.structure(orjson.loads(body), contract.cls))
        left_out = {name: defaults[name] for name in value.keys() - round_trip.keys() if name in defaults}
        assert orjson.loads(orjson.dumps(round_trip)) | left_out == value

    compare()


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_both_validators_agree_about_a_damaged_event(subject: str) -> None:
    """Whatever the damage: they agree whether it is still valid, and each reason has a pointer."""
    contract = CONTRACTS[subject]

    @settings(max_examples=examples(EXAMPLES), deadline=None)
    @given(damaged(dict(contract.schema)))
    def compare(value: Any) -> None:
        agree(contract, value)

    compare()


@pytest.mark.parametrize(
    ("schema", "value", "is_valid"),
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
def test_both_validators_agree_where_libraries_often_differ(schema: dict[str, Any], value: Any, is_valid: bool) -> None:
    """Formats, line breaks, whole floats, astral characters, booleans and numbers."""
    assert validator(schema)(value) is is_valid
    assert (not explain(schema, value)) is is_valid


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_schema_is_valid_for_both_validators(subject: str) -> None:
    """At start only the fast validator checks the schemas; here the other one does."""
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
def test_an_invalid_schema_is_invalid_for_both_validators(schema: dict[str, Any]) -> None:
    """The error has the text of the validator that explains."""
    with pytest.raises(SchemaError) as expected:
        Draft202012Validator.check_schema(schema)
    with pytest.raises(ContractError) as raised:
        check_schema("parcels.sent.v1", schema)
    assert str(raised.value) == f"parcels.sent.v1: not a JSON Schema: {expected.value.message}"


def test_a_disagreement_of_the_validators_is_detected() -> None:
    """The comparison above can fail."""
    contract = CONTRACTS["orders.timed_out.v1"]
    value = {"order_id": "no uuid"}
    other = {**contract.schema, "properties": {"order_id": {"type": "string"}}}
    assert not contract.is_valid_outgoing(value)
    assert not explain(other, value)
    check_examples(contract.subject, contract.schema, lambda example: example)
