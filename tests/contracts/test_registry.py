"""The registry rejects schemas, classes and versions that contradict each other, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from app.runtime.receiving import EventReader
from bus.contracts.registry import ContractRegistry, merge_schemas
from bus.contracts.versions import DualPublish, Upcast
from bus.errors import ContractError
from bus.subjects import event
from modules.values import Address, Line
from tests.contracts.example import SCHEMAS, SentV1, SentV2, SentV3, down_1, down_2, schema, up_2, up_3

UP_2 = Upcast("parcels.sent", 1, 2, up_2)
UP_3 = Upcast("parcels.sent", 2, 3, up_3)
TO_2 = DualPublish("parcels.sent", 1, 2, down_1, up_2, "1.1")
TO_3 = DualPublish("parcels.sent", 2, 3, down_2, up_3, "1.2")
EVERY = (SentV1, SentV2, SentV3)


def without(*versions: int) -> dict[str, Any]:
    return {subject: found for subject, found in SCHEMAS.items() if int(subject[-1]) not in versions}


def changed(version: int, **members: Any) -> dict[str, Any]:
    subject = f"parcels.sent.v{version}"
    return {**SCHEMAS, subject: {**SCHEMAS[subject], **members}}


def wrong_kind(event: Any) -> Any:
    return {"parcel_id": event.parcel_id}


def too_light(event: SentV2) -> SentV1:
    return SentV1(parcel_id=event.parcel_id, grams=0)


def raises(event: SentV2) -> SentV1:
    raise LookupError("no such carrier")


@event("parcels.sent.v1")
class Another:
    parcel_id: str


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: ContractRegistry([SentV1], {}), "parcels.sent.v1: there is no schema"),
        (lambda: ContractRegistry([SentV1, Another], SCHEMAS), "parcels.sent.v1: there are two classes, Another and SentV1"),
        (lambda: merge_schemas(SCHEMAS, without(2, 3)), "parcels.sent.v1: there are two schemas"),
        (lambda: ContractRegistry(EVERY, SCHEMAS, (), [UP_2]), "parcels.sent.v1: no upcast leads from it to v3"),
        (lambda: ContractRegistry(EVERY, SCHEMAS, (), [UP_3]), "parcels.sent.v1: no upcast leads from it to v2"),
        (lambda: ContractRegistry([SentV2], SCHEMAS), "parcels.sent.v1: no upcast leads from it to v2"),
        (lambda: ContractRegistry([SentV2], SCHEMAS, [TO_2]), "parcels.sent.v1: there is no class"),
        (lambda: ContractRegistry(EVERY, SCHEMAS, [TO_2], [UP_2, UP_3]), "parcels.sent.v1: there are two upcasts"),
        (lambda: ContractRegistry(EVERY, SCHEMAS, [TO_2], [UP_3]), "parcels.sent: v1 is made from v2, which is not published"),
        (
            lambda: ContractRegistry([SentV1, SentV2], without(3), [DualPublish("parcels.sent", 2, 1, up_2, down_1, "1")]),
            "parcels.sent: an upcast leads from v2 to v1, which is not newer",
        ),
        (
            lambda: ContractRegistry([SentV1, SentV2], without(3), [DualPublish("parcels.sent", 1, 2, wrong_kind, up_2, "1")]),
            "parcels.sent.v2: the conversion to v1 returns a dict, not a SentV1",
        ),
        (
            lambda: ContractRegistry([SentV1, SentV2], without(3), [DualPublish("parcels.sent", 1, 2, too_light, up_2, "1")]),
            "parcels.sent.v2: the conversion to v1 makes example 0 invalid: /grams: must be at least 1",
        ),
        (
            lambda: ContractRegistry([SentV1, SentV2], without(3), [DualPublish("parcels.sent", 1, 2, raises, up_2, "1")]),
            "parcels.sent.v2: the conversion to v1 raises LookupError for example 0: no such carrier",
        ),
        (
            lambda: ContractRegistry([SentV1], without(2, 3), [DualPublish("parcels.lost", 1, 2, down_1, up_2, "1")]),
            "parcels.lost.v1: there is no class",
        ),
        (lambda: ContractRegistry([event("parcels.Sent")(type("Sent", (), {}))], {}), "'parcels.Sent' is not a subject: <module>.<event>.v<N>"),
        (lambda: ContractRegistry([SentV1], changed(1, type="thing")), "parcels.sent.v1: not a JSON Schema: 'thing' is not"),
        (lambda: ContractRegistry([SentV1], changed(1, pattern="(")), "parcels.sent.v1: not a JSON Schema"),
        (lambda: ContractRegistry([SentV1], without(1) | {"parcels.sent.v1": ["no"]}), "parcels.sent.v1: not a JSON Schema"),
        (
            lambda: ContractRegistry([SentV1], {"parcels.sent.v1": SCHEMAS["parcels.sent.v2"]}),
            "parcels.sent.v1: its $id is urn:fulfilment:parcels.sent.v2",
        ),
        (
            lambda: ContractRegistry([SentV1], changed(1, **{"$schema": "http://json-schema.org/draft-07/schema#"})),
            "parcels.sent.v1: its $schema is not",
        ),
        (
            lambda: ContractRegistry([SentV1], changed(1, examples=[{"parcel_id": "", "grams": 1}])),
            "parcels.sent.v1: example 0: /parcel_id: must have at least 1 character",
        ),
    ],
)
def test_a_contradiction_is_rejected_with_one_line(build: Callable[[], Any], line: str) -> None:
    """The line names the subject and the fault."""
    with pytest.raises(ContractError) as rejected:
        build()
    assert str(rejected.value).startswith(line)
    assert "\n" not in str(rejected.value)


@event("parcels.packed.v1")
class Packed:
    parcel_id: str
    lines: tuple[Line, ...]
    to: Address | None
    fragile: bool = False


PACKED = schema(
    "parcels.packed.v1",
    {"parcel_id": "p", "lines": [{"product_id": "A", "quantity": 1}], "to": None},
    parcel_id={"type": "string"},
    lines={
        "type": "array",
        "items": {
            "type": "object",
            "required": ["product_id", "quantity"],
            "properties": {"product_id": {"type": "string"}, "quantity": {"type": "integer"}},
        },
    },
    to={
        "anyOf": [
            {
                "type": "object",
                "required": ["line1", "city", "postal_code", "country"],
                "properties": {
                    name: {"type": "string"} for name in ("name", "line1", "line2", "city", "postal_code", "country")
                },
            },
            {"type": "null"},
        ]
    },
    fragile={"type": "boolean"},
)
PACKED["required"].remove("fragile")


def with_change(pointer: str, value: Any) -> dict[str, Any]:
    """Return PACKED with *value* at *pointer*, or without that member if *value* is None."""

    def copied(part: Any, steps: list[str]) -> Any:
        if not steps:
            return value
        key: Any = int(steps[0]) if isinstance(part, list) else steps[0]
        rest = part[key] if isinstance(part, list) else part.get(key)
        new = copied(rest, steps[1:])
        if isinstance(part, list):
            return [*part[:key], new, *part[key + 1 :]]
        return {**part, key: new} if new is not None else {name: each for name, each in part.items() if name != key}

    found: dict[str, Any] = copied(PACKED, pointer.strip("/").split("/"))
    return found


@pytest.mark.parametrize(
    ("pointer", "value", "text"),
    [
        ("/properties/parcel_id", None, "Packed.parcel_id is not in the schema"),
        ("/properties/weight", {"type": "integer"}, "the schema's 'weight' is not in Packed"),
        ("/required", ["parcel_id", "lines", "to", "fragile"], "'fragile' is required in only one of the schema and Packed"),
        ("/properties/parcel_id/type", "integer", "/parcel_id is str in Packed and integer in the schema"),
        ("/properties/parcel_id", {"enum": [1, 2]}, "/parcel_id is str in Packed and integer in the schema"),
        ("/properties/fragile/type", "string", "/fragile is bool in Packed and string in the schema"),
        ("/properties/lines/type", "object", "/lines is a tuple in Packed but not an array in the schema"),
        ("/properties/lines/items/type", "string", "/lines/* is Line but not an object in the schema"),
        ("/properties/lines/items/properties/quantity/type", "string", "/lines/*/quantity is int in Line and string"),
        ("/properties/lines/items/required", ["product_id"], "'quantity' is required in only one of the schema and Line"),
        ("/properties/to/anyOf", [{"type": "object"}], "/to may be null in only one of the schema and Packed"),
        ("/properties/to/anyOf/0/properties/zip", {"type": "string"}, "the schema's 'zip' is not in Address"),
    ],
)
def test_a_schema_that_contradicts_its_class_is_rejected(pointer: str, value: Any, text: str) -> None:
    """The members, their types, and whether they are required, at any depth."""
    ContractRegistry([Packed], {"parcels.packed.v1": PACKED})
    with pytest.raises(ContractError, match=r"parcels\.packed\.v1: ") as rejected:
        ContractRegistry([Packed], {"parcels.packed.v1": with_change(pointer, value)})
    assert text in str(rejected.value)


def test_a_class_may_be_listed_more_than_once() -> None:
    """Its producer and its consumers all list it."""
    assert [contract.cls for contract in ContractRegistry([SentV1, SentV1], without(2, 3))] == [SentV1]


def test_a_consumer_cannot_read_one_event_as_two_classes() -> None:
    """An older version could be read as either."""
    contracts = ContractRegistry(EVERY, SCHEMAS, [TO_2, TO_3])
    with pytest.raises(ContractError, match=r"depot would read parcels\.sent\.v2 as two classes"):
        EventReader("depot", contracts, [SentV2, SentV3])
