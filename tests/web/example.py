"""A small example module: shipments are created, moved and delivered."""

from __future__ import annotations

__all__ = ["SHIPMENTS", "Shipment"]

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from attrs import evolve, frozen
from sqlalchemy import Column, MetaData, String, Table

from bus.subjects import event
from modules.filters import Filter, Match
from modules.module import Decision, DecisionOutcome, Key, Module, Unexpected, no_change
from modules.routes import CommandRoute, GetRoute, ListRoute, ListStreamRoute, Rejection, Request, Response, StreamRoute


@frozen(kw_only=True)
class Shipment:
    id: str
    owner: str
    pieces: int
    place: str = "counter"


@event("shipments.created.v1")
class ShipmentCreated:
    id: str
    owner: str
    pieces: int
    fragile: bool = False


@event("shipments.moved.v1")
class ShipmentMoved:
    id: str
    place: str


@event("shipments.labelled.v1")
class ShipmentLabelled:
    id: str
    owner: str


@frozen
class ShipmentUnknown:
    """A reply without a subject: only the submitter receives it."""


def keys(event: Any) -> tuple[Key, ...]:
    return ((Shipment, event.id),)


def decide(states: Sequence[Any], event: Any, now: datetime) -> Decision:
    (shipment,) = states
    match shipment, event:
        case None, ShipmentCreated():
            return Decision((Shipment(id=event.id, owner=event.owner, pieces=event.pieces),), (event,))
        case _, ShipmentLabelled():
            labelled = Shipment(id=event.id, owner=event.owner, pieces=1) if shipment is None else shipment
            return Decision((evolve(labelled, owner=event.owner),), (event,))
        case None, ShipmentMoved():
            return no_change(ShipmentUnknown())
        case Shipment(), ShipmentMoved():
            return Decision((evolve(shipment, place=event.place),), (event,))
    raise Unexpected(f"{type(event).__name__} about {shipment}")


def show(shipment: Shipment | None) -> dict[str, Any] | None:
    if shipment is None or shipment.place == "nowhere":
        return None
    return {
        "shipment_id": shipment.id,
        "owner": shipment.owner,
        "pieces": shipment.pieces,
        "place": shipment.place,
    }


def respond_created(outcome: DecisionOutcome) -> Response:
    (shipment,) = outcome.states
    assert shipment is not None
    return Response(202, {"shipment_id": shipment.id}, {"Location": f"/v1/shipments/{shipment.id}"})


def respond_moved(outcome: DecisionOutcome) -> Response | Rejection:
    if any(isinstance(event, ShipmentUnknown) for event in outcome.events):
        return Rejection(404, "unknown_shipment", "There is no such shipment.")
    return Response(200, show(outcome.states[0]))


def created(request: Request) -> ShipmentCreated:
    pieces = sum(item["n"] for item in request.body["items"])
    return ShipmentCreated(id=request.new_id, owner=request.body["owner"], pieces=pieces)


TEXT = {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"}
ITEM = {
    "type": "object",
    "additionalProperties": False,
    "required": ["n"],
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 10000}, "of": {"$ref": "#/$defs/text"}},
}
HTTP_SCHEMAS: dict[str, dict[str, Any]] = {
    "ShipmentRequest": {
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
    "ShipmentAccepted": {
        "type": "object",
        "required": ["shipment_id"],
        "properties": {"shipment_id": {"type": "string"}},
    },
    "Shipment": {
        "type": "object",
        "required": ["shipment_id", "owner", "pieces", "place"],
        "properties": {"shipment_id": TEXT, "owner": TEXT, "pieces": {"type": "integer"}, "place": TEXT},
    },
    "MoveRequest": {"type": "object", "additionalProperties": False, "properties": {"place": TEXT}},
    "LabelRequest": {
        "type": "object",
        "additionalProperties": False,
        "required": ["owner"],
        "properties": {"owner": TEXT},
    },
}

FILTERS = (
    Filter("owner", TEXT, is_indexed=True),
    Filter("place", {"type": "string", "enum": ["counter", "van", "delivered"]}, takes_list=True),
    Filter("min_pieces", {"type": "integer", "minimum": 1}, match=Match.AT_LEAST, columns=("pieces",)),
    Filter("since", {"type": "string", "format": "date-time"}, match=Match.AT_LEAST, columns=("place",)),
)

SHIPMENTS = Module(
    name="shipments",
    consumes=(),
    publishes=(ShipmentCreated, ShipmentMoved, ShipmentLabelled),
    tables={Shipment: Table("shipments", MetaData(), Column("id", String, primary_key=True))},
    keys=keys,
    decide=decide,
    schemas={},
    http_schemas=HTTP_SCHEMAS,
    routes=(
        CommandRoute(
            name="createShipment",
            method="POST",
            path="/v1/shipments",
            summary="Create a shipment",
            request_schema="ShipmentRequest",
            event=created,
            respond=respond_created,
            response_schema="ShipmentAccepted",
            status=202,
            idempotent=True,
            express=lambda request: request.body.get("express", False),
            sheds_load=True,
        ),
        ListRoute(
            name="listShipments",
            path="/v1/shipments",
            summary="List shipments",
            state=Shipment,
            show=show,
            response_schema="Shipment",
            newest_first=True,
            filters=FILTERS,
        ),
        GetRoute(
            name="getShipment",
            path="/v1/shipments/{id}",
            summary="Show a shipment",
            state=Shipment,
            show=show,
            response_schema="Shipment",
        ),
        CommandRoute(
            name="labelShipment",
            method="PUT",
            path="/v1/shipments/{id}",
            summary="Label a shipment",
            request_schema="LabelRequest",
            event=lambda request: ShipmentLabelled(id=request.path["id"], owner=request.body["owner"]),
            respond=lambda outcome: Response(200, show(outcome.states[0])),
            response_schema="Shipment",
        ),
        CommandRoute(
            name="moveShipment",
            method="POST",
            path="/v1/shipments/{id}/move",
            summary="Move a shipment",
            request_schema="MoveRequest",
            needs_body=False,
            event=lambda request: ShipmentMoved(id=request.path["id"], place=request.body.get("place", "van")),
            respond=respond_moved,
            response_schema="Shipment",
            idempotent=True,
            rejections=(404,),
        ),
        CommandRoute(
            name="returnShipment",
            method="POST",
            path="/v1/shipments/{id}/return",
            summary="Return a shipment",
            event=lambda request: ShipmentMoved(id=request.path["id"], place="counter"),
            respond=respond_moved,
            response_schema="Shipment",
            idempotent=True,
            rejections=(404,),
        ),
        ListStreamRoute(
            name="streamShipments",
            path="/v1/shipments/stream",
            summary="Stream every shipment's changes",
            state=Shipment,
            show=show,
            event_name="shipment",
            response_schema="Shipment",
            filters=FILTERS,
        ),
        StreamRoute(
            name="streamShipment",
            path="/v1/shipments/{id}/stream",
            summary="Stream a shipment's changes",
            state=Shipment,
            show=show,
            event_name="shipment",
            is_finished=lambda shipment: shipment.place == "delivered",
            response_schema="Shipment",
        ),
    ),
)
