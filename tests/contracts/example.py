"""A small event with three versions, to build registries from."""

from __future__ import annotations

__all__ = ["SCHEMAS", "SentV1", "SentV2", "SentV3", "down_1", "down_2", "schema", "up_2", "up_3"]

from typing import Any

from bus.subjects import event


@event("parcels.sent.v1")
class SentV1:
    parcel_id: str
    grams: int


@event("parcels.sent.v2")
class SentV2:
    parcel_id: str
    grams: int
    carrier: str


@event("parcels.sent.v3")
class SentV3:
    parcel_id: str
    kilograms: float
    carrier: str


def up_2(event: SentV1) -> SentV2:
    return SentV2(parcel_id=event.parcel_id, grams=event.grams, carrier="post")


def up_3(event: SentV2) -> SentV3:
    return SentV3(parcel_id=event.parcel_id, kilograms=event.grams / 1000, carrier=event.carrier)


def down_2(event: SentV3) -> SentV2:
    return SentV2(parcel_id=event.parcel_id, grams=round(event.kilograms * 1000), carrier=event.carrier)


def down_1(event: SentV2) -> SentV1:
    return SentV1(parcel_id=event.parcel_id, grams=event.grams)


def schema(subject: str, example: dict[str, Any], **members: Any) -> dict[str, Any]:
    """Return the strict schema of an event whose *members* are all required."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:fulfilment:{subject}",
        "type": "object",
        "additionalProperties": False,
        "required": list(members),
        "properties": members,
        "examples": [example],
    }


_ID = {"type": "string", "minLength": 1}
_GRAMS = {"type": "integer", "minimum": 1}
SCHEMAS = {
    "parcels.sent.v1": schema("parcels.sent.v1", {"parcel_id": "p", "grams": 250}, parcel_id=_ID, grams=_GRAMS),
    "parcels.sent.v2": schema(
        "parcels.sent.v2",
        {"parcel_id": "p", "grams": 250, "carrier": "dhl"},
        parcel_id=_ID,
        grams=_GRAMS,
        carrier={"type": "string"},
    ),
    "parcels.sent.v3": schema(
        "parcels.sent.v3",
        {"parcel_id": "p", "kilograms": 0.25, "carrier": "dhl"},
        parcel_id=_ID,
        kilograms={"type": "number", "exclusiveMinimum": 0},
        carrier={"type": "string"},
    ),
}
