"""Endpoints for dead letters: messages that no delivery attempt could process. List, show, replay, discard."""

from __future__ import annotations

__all__ = ["DESCRIPTION", "DeadLetterService", "route_group", "to_json"]

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

import orjson
from aiohttp import hdrs, web

from app.messaging.dead_letters import NotReplayable, StoredDeadLetter
from app.storage.audit import Audit
from app.web.handler import Endpoint, RequestContext, RouteGroup
from app.web.problems import ProblemError
from app.web.requests.command import read_body
from app.web.requests.paging import read_page
from app.web.requests.parameters import path_parameters, read_query
from app.web.responses import UNCACHED, json_response
from app.web.spec.components import Description, body, operation, page_of, query_parameter, ref, response
from bus.contracts.schemas import validator


class DeadLetterService(Protocol):
    """The stored dead letters."""

    async def list(
        self, consumer: str | None, subject: str | None, after: str | None, limit: int, *, error: str | None = None
    ) -> Sequence[StoredDeadLetter]:
        """
        Return up to *limit* dead letters, ordered by id, with ids greater than *after*.

        *consumer*, *subject* and *error* restrict them; None does not.
        """

    async def get(self, id: str) -> StoredDeadLetter | None:
        """Return one dead letter, or None if the id is unknown."""

    async def replay(self, id: str, *, audit: Audit | None = None) -> bool:
        """
        Publish the event of a dead letter to its consumer again, in a new message; return False if the id is unknown.

        Raises:
            NotReplayable: The consumer subscribes to nothing.
        """

    async def replay_many(
        self, consumer: str | None, subject: str | None, error: str | None, dry_run: bool, *, audit: Audit | None = None
    ) -> tuple[int, int]:
        """
        Replay all matching dead letters; return how many match and how many were replayed (0 with *dry_run*).

        *consumer*, *subject* and *error* restrict them; None does not. Those that cannot be replayed do not match.
        """

    async def discard(self, id: str, *, audit: Audit | None = None) -> bool:
        """Delete a dead letter permanently; return False if the id is unknown."""


_TEXT = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"}
_COUNT = {"type": "integer", "minimum": 0}
_REPLAY_REQUEST = {
    "type": "object",
    "additionalProperties": False,
    "required": ["dry_run"],
    "properties": {
        "consumer": _TEXT,
        "subject": _TEXT,
        "error": _TEXT,
        "dry_run": {"type": "boolean", "description": "Count the matching dead letters, and replay none."},
    },
}
_REPLAY_RESULT = {
    "type": "object",
    "required": ["matched", "replayed"],
    "properties": {"matched": _COUNT, "replayed": _COUNT},
}
_REPLAY_ACCEPTED = {
    "type": "object",
    "required": ["id", "status"],
    "properties": {"id": {"type": "string"}, "status": {"const": "replaying"}},
}
_DEAD_LETTER = {
    "type": "object",
    "required": [
        *("id", "consumer", "subject", "error", "detail", "attempts", "first_seen", "last_seen", "replays", "message")
    ],
    "properties": {
        **{name: {"type": "string"} for name in ("id", "consumer", "subject", "error", "detail")},
        "attempts": _COUNT,
        "first_seen": {"type": "string", "format": "date-time"},
        "last_seen": {"type": "string", "format": "date-time"},
        "replays": _COUNT,
        "message": {
            "type": "object",
            "required": ["id", "key", "headers", "body"],
            "properties": {
                "id": {"type": "string"},
                "key": {"type": "string"},
                "headers": {"type": "object", "additionalProperties": {"type": "string"}},
                "body": {"description": 'The JSON value of the body, or {"base64": "..."} if it is not JSON.'},
            },
        },
    },
}
_LIST_PATH = "/v1/dead-letters"
_ITEM_PATH = "/v1/dead-letters/{id}"
_REPLAY_ITEM_PATH = "/v1/dead-letters/{id}/replay"
_REPLAY_PATH = "/v1/dead-letters/replay"
_FILTERS = ("consumer", "subject", "error")

_NOT_FOUND = partial(ProblemError, 404, "not_found", "There is no such dead letter.")


def route_group(service: DeadLetterService) -> RouteGroup:
    """Return the endpoints for the dead letters of *service*."""
    read_replay_request = partial(read_body, is_valid=validator(_REPLAY_REQUEST), schema=_REPLAY_REQUEST)

    async def list_dead_letters(request: web.Request, context: RequestContext) -> web.Response:
        query = read_query(request, {*_FILTERS, "limit", "cursor"})

        async def fetch(after: str | None, limit: int) -> tuple[Sequence[StoredDeadLetter], None]:
            consumer, subject, error = map(query.get, _FILTERS)
            return await service.list(consumer, subject, after, limit, error=error), None

        def key_of(stored: StoredDeadLetter) -> str:
            return str(stored.dead_letter.id)

        return json_response(await read_page(query, _LIST_PATH, fetch, key_of, to_json))

    async def get(request: web.Request, context: RequestContext) -> web.Response:
        stored = await service.get(_id(request))
        if stored is None:
            raise _NOT_FOUND()
        return json_response(to_json(stored))

    async def replay(request: web.Request, context: RequestContext) -> web.Response:
        id = _id(request)
        try:
            is_known = await service.replay(id, audit=_audit(context, "replayDeadLetter", id))
        except NotReplayable as error:
            detail = f"{error} This dead letter needs a manual decision: resolve its cause, then discard it."
            raise ProblemError(409, "not_replayable", detail) from None
        if not is_known:
            raise _NOT_FOUND()
        return json_response({"id": id, "status": "replaying"}, 202)

    async def replay_many(request: web.Request, context: RequestContext) -> web.Response:
        wanted = await read_replay_request(request)
        matched, replayed = await service.replay_many(
            wanted.get("consumer"), wanted.get("subject"), wanted.get("error"), wanted["dry_run"],
            audit=_audit(context, "replayDeadLetters"),
        )  # fmt: skip
        return json_response({"matched": matched, "replayed": replayed})

    async def discard(request: web.Request, context: RequestContext) -> web.Response:
        id = _id(request)
        if not await service.discard(id, audit=_audit(context, "discardDeadLetter", id)):
            raise _NOT_FOUND()
        return web.Response(status=204, headers=UNCACHED)

    return RouteGroup(
        (
            Endpoint(hdrs.METH_GET, _LIST_PATH, list_dead_letters, roles=("viewer",)),
            Endpoint(hdrs.METH_POST, _REPLAY_PATH, replay_many),
            Endpoint(hdrs.METH_GET, _ITEM_PATH, get, roles=("viewer",)),
            Endpoint(hdrs.METH_DELETE, _ITEM_PATH, discard),
            Endpoint(hdrs.METH_POST, _REPLAY_ITEM_PATH, replay),
        ),
        DESCRIPTION,
    )


def _audit(context: RequestContext, action: str, target: str = "") -> Audit:
    return Audit(context.caller, action, target, context.correlation_id)


def _id(request: web.Request) -> str:
    path = path_parameters(request)
    if path is None:
        raise _NOT_FOUND()
    return path["id"]


def to_json(stored: StoredDeadLetter) -> dict[str, Any]:
    """Return *stored* as the API shows it."""
    dead_letter = stored.dead_letter
    try:
        body = orjson.loads(dead_letter.message.body)
        # orjson decodes deeper nesting than it encodes. In a page of dead letters the body is four levels deeper.
        orjson.dumps([[[[body]]]])
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        body = {"base64": b64encode(dead_letter.message.body).decode("ascii")}
    return {
        "id": dead_letter.id,
        "consumer": dead_letter.consumer,
        "subject": dead_letter.message.subject,
        "error": dead_letter.error,
        "detail": dead_letter.detail,
        "attempts": dead_letter.attempts,
        "first_seen": _timestamp(dead_letter.first_seen),
        "last_seen": _timestamp(dead_letter.last_seen),
        "replays": stored.replays,
        "message": {
            "id": dead_letter.message.id,
            "key": dead_letter.message.key,
            "headers": dict(dead_letter.message.headers),
            "body": body,
        },
    }


def _timestamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _describe(name: str, path: str, summary: str, responses: dict[int, Any], *problems: int, **more: Any) -> Any:
    return operation(name, path, summary, "dead letters", responses, (*problems, 503), **more)


DESCRIPTION = Description(
    {
        _LIST_PATH: {
            "get": _describe(
                "listDeadLetters",
                _LIST_PATH,
                "List dead letters",
                {200: response("One page.", ref("schemas", "DeadLetterPage"))},
                400,
                parameters=[
                    *(query_parameter(name, {"type": "string"}) for name in _FILTERS),
                    ref("parameters", "Limit"),
                    ref("parameters", "Cursor"),
                ],
            )
        },
        _REPLAY_PATH: {
            "post": _describe(
                "replayDeadLetters",
                _REPLAY_PATH,
                "Replay all dead letters that match a filter",
                {200: response("How many match, and how many were replayed.", ref("schemas", "ReplayResult"))},
                *(400, 408, 413, 415),
                request_body=body(ref("schemas", "ReplayRequest")),
            )
        },
        _ITEM_PATH: {
            "get": _describe(
                "getDeadLetter",
                _ITEM_PATH,
                "Show a dead letter",
                {200: response("The dead letter.", ref("schemas", "DeadLetter"))},
                404,
            ),
            "delete": _describe(
                "discardDeadLetter", _ITEM_PATH, "Discard a dead letter", {204: response("It is deleted.")}, 404
            ),
        },
        _REPLAY_ITEM_PATH: {
            "post": _describe(
                "replayDeadLetter",
                _REPLAY_ITEM_PATH,
                "Replay a dead letter",
                {202: response("The event is stored in the outbox.", ref("schemas", "ReplayAccepted"))},
                *(404, 409),
            )
        },
    },
    {
        "DeadLetter": _DEAD_LETTER,
        "DeadLetterPage": page_of(ref("schemas", "DeadLetter")),
        "ReplayRequest": _REPLAY_REQUEST,
        "ReplayResult": _REPLAY_RESULT,
        "ReplayAccepted": _REPLAY_ACCEPTED,
    },
)
"""The OpenAPI description of these endpoints."""
