"""A module small enough to read: parcels are handed in, moved, and delivered."""

from __future__ import annotations

__all__ = ["PARCELS", "Parcel"]

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from attrs import evolve, frozen
from sqlalchemy import Column, MetaData, String, Table

from bus.subjects import event
from modules.module import Decision, DecisionOutcome, Key, Module, Unexpected, no_change
from modules.routes import CommandRoute, GetRoute, ListRoute, Rejection, Request, Response, StreamRoute


@frozen(kw_only=True)
class Parcel:
    id: str
    owner: str
    pieces: int
    place: str = "counter"


@event("parcels.handed_in.v1")
class HandedIn:
    id: str
    owner: str
    pieces: int
    fragile: bool = False


@event("parcels.moved.v1")
class Moved:
    id: str
    place: str


@event("parcels.labelled.v1")
class Labelled:
    id: str
    owner: str


@frozen
class NotThere:
    """A reply: who told it hears that there is no such parcel."""


def touches(event: Any) -> tuple[Key, ...]:
    return ((Parcel, event.id),)


def decide(states: Sequence[Any], event: Any, now: datetime) -> Decision:
    (parcel,) = states
    match parcel, event:
        case None, HandedIn():
            return Decision((Parcel(id=event.id, owner=event.owner, pieces=event.pieces),), (event,))
        case _, Labelled():
            made = Parcel(id=event.id, owner=event.owner, pieces=1) if parcel is None else parcel
            return Decision((evolve(made, owner=event.owner),), (event,))
        case None, Moved():
            return no_change(NotThere())
        case Parcel(), Moved():
            return Decision((evolve(parcel, place=event.place),), (event,))
    raise Unexpected(f"{type(event).__name__} about {parcel}")


def show(parcel: Parcel | None) -> dict[str, Any] | None:
    if parcel is None or parcel.place == "nowhere":
        return None
    return {"parcel_id": parcel.id, "owner": parcel.owner, "pieces": parcel.pieces, "place": parcel.place}


def taken(outcome: DecisionOutcome) -> Response:
    (parcel,) = outcome.states
    assert parcel is not None
    return Response(202, {"parcel_id": parcel.id}, {"Location": f"/v1/parcels/{parcel.id}"})


def moved(outcome: DecisionOutcome) -> Response | Rejection:
    if any(isinstance(said, NotThere) for said in outcome.events):
        return Rejection(404, "unknown_parcel", "There is no such parcel.")
    return Response(200, show(outcome.states[0]))


def hand_in(request: Request) -> HandedIn:
    return HandedIn(id=request.new_id, owner=request.body["owner"], pieces=sum(i["n"] for i in request.body["items"]))


TEXT = {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"}
ITEM = {
    "type": "object",
    "additionalProperties": False,
    "required": ["n"],
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 10000}, "of": {"$ref": "#/$defs/text"}},
}
RESOURCES: dict[str, dict[str, Any]] = {
    "new_parcel": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {"text": TEXT},
        "type": "object",
        "additionalProperties": False,
        "required": ["owner", "items"],
        "properties": {
            "owner": {"$ref": "#/$defs/text"},
            "items": {"type": "array", "minItems": 1, "maxItems": 100, "items": ITEM},
            "express": {"type": "boolean"},
            "deep": {},
        },
    },
    "taken": {"type": "object", "required": ["parcel_id"], "properties": {"parcel_id": {"type": "string"}}},
    "parcel": {
        "type": "object",
        "required": ["parcel_id", "owner", "pieces", "place"],
        "properties": {"parcel_id": TEXT, "owner": TEXT, "pieces": {"type": "integer"}, "place": TEXT},
    },
    "move": {"type": "object", "additionalProperties": False, "properties": {"place": TEXT}},
    "label": {
        "type": "object",
        "additionalProperties": False,
        "required": ["owner"],
        "properties": {"owner": TEXT},
    },
}

PARCELS = Module(
    name="parcels",
    consumes=(),
    publishes=(HandedIn, Moved, Labelled),
    tables={Parcel: Table("parcels", MetaData(), Column("id", String, primary_key=True))},
    keys=touches,
    decide=decide,
    schemas={},
    http_schemas=RESOURCES,
    routes=(
        CommandRoute(
            "POST",
            "/v1/parcels",
            "Hand in a parcel",
            hand_in,
            taken,
            "taken",
            status=202,
            request_schema="new_parcel",
            idempotent=True,
            express=lambda request: request.body.get("express", False),
            sheds_load=True,
        ),
        ListRoute("/v1/parcels", "List parcels", Parcel, show, "parcel", newest_first=True, filters={"owner": TEXT}),
        GetRoute("/v1/parcels/{id}", "Show a parcel", Parcel, show, "parcel"),
        CommandRoute(
            "PUT",
            "/v1/parcels/{id}",
            "Label a parcel",
            lambda request: Labelled(id=request.path["id"], owner=request.body["owner"]),
            lambda outcome: Response(200, show(outcome.states[0])),
            "parcel",
            request_schema="label",
        ),
        CommandRoute(
            "POST",
            "/v1/parcels/{id}/move",
            "Move a parcel",
            lambda request: Moved(id=request.path["id"], place=request.body.get("place", "van")),
            moved,
            "parcel",
            request_schema="move",
            needs_body=False,
            idempotent=True,
            rejections=(404,),
        ),
        CommandRoute(
            "POST",
            "/v1/parcels/{id}/return",
            "Return a parcel",
            lambda request: Moved(id=request.path["id"], place="counter"),
            moved,
            "parcel",
            idempotent=True,
            rejections=(404,),
        ),
        StreamRoute("/v1/parcels/{id}/stream", "Follow a parcel", Parcel, show, lambda p: p.place == "delivered", "parcel"),
    ),
)
