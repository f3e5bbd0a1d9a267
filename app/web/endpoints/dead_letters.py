"""What no try could deliver: to look at, to send again, to throw away."""

from __future__ import annotations

__all__ = ["DESCRIBED", "DeadLetterService", "route_group", "shown"]

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

import orjson
from aiohttp import hdrs, web

from app.messaging.dead_letters import NotReplayable, StoredDeadLetter
from app.web.endpoints.module_routes import page, respond_json
from app.web.handler import Endpoint, RequestContext
from app.web.problems import ProblemError
from app.web.requests.parsing import page_size, parameters, read_body, read_query
from app.web.route_group import RouteGroup
from app.web.spec.components import Description, body, operation, parameter, ref, response
from bus.contracts.registry import validator


class DeadLetterService(Protocol):
    """Where dead letters lie, and how to get them going again."""

    async def list(
        self, consumer: str | None, subject: str | None, after: str | None, limit: int, *, error: str | None = None
    ) -> Sequence[StoredDeadLetter]:
        """Return up to *limit* letters of *consumer*, *subject* and *error* (None: of any), by id, beyond *after*."""

    async def get(self, id: str) -> StoredDeadLetter | None:
        """Return one letter."""

    async def replay(self, id: str) -> bool:
        """
        Send a letter's message to its consumer again, as a new message that carries the old event; false: no such.

        Raises:
            NotReplayable: That consumer hears nothing.
        """

    async def replay_many(
        self, consumer: str | None, subject: str | None, error: str | None, dry_run: bool
    ) -> tuple[int, int]:
        """
        Replay every letter that fits what is not None; return how many fit, and how many went (with *dry_run* 0).

        Those that cannot be replayed do not fit.
        """

    async def discard(self, id: str) -> bool:
        """Throw a letter away for good; false: no such."""


_TEXT = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"}
_COUNT = {"type": "integer", "minimum": 0}
_REPLAY = {
    "type": "object",
    "additionalProperties": False,
    "required": ["dry_run"],
    "properties": {"consumer": _TEXT, "subject": _TEXT, "error": _TEXT, "dry_run": {"type": "boolean"}},
}
_REPLAYED = {
    "type": "object",
    "required": ["matched", "replayed"],
    "properties": {"matched": _COUNT, "replayed": _COUNT},
}
_ACCEPTED = {
    "type": "object",
    "required": ["id", "status"],
    "properties": {"id": {"type": "string"}, "status": {"const": "replaying"}},
}
_LETTER = {
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
                "body": {"description": 'The JSON that it is, or {"base64": "..."} where it is none.'},
            },
        },
    },
}
_ALL = "/v1/dead-letters"
_ONE = "/v1/dead-letters/{id}"
_REPLAY_ONE = "/v1/dead-letters/{id}/replay"
_REPLAY_MANY = "/v1/dead-letters/replay"
_FILTERS = ("consumer", "subject", "error")

_NOT_FOUND = partial(ProblemError, 404, "not_found", "There is no such dead letter.")


def route_group(service: DeadLetterService) -> RouteGroup:
    """Return the routes of *desk*."""
    read = partial(read_body, fits=validator(_REPLAY), schema=_REPLAY)

    async def browse(request: web.Request, asked: RequestContext) -> web.Response:
        query = read_query(request, {*_FILTERS, "limit", "cursor"})
        page_size(query)

        async def fetch(after: str | None, limit: int) -> Sequence[StoredDeadLetter]:
            consumer, subject, error = map(query.get, _FILTERS)
            return await service.list(consumer, subject, after, limit, error=error)

        return respond_json(await page(query, fetch, lambda kept: str(kept.dead_letter.id), shown))

    async def show(request: web.Request, asked: RequestContext) -> web.Response:
        kept = await service.get(_id(request))
        if kept is None:
            raise _NOT_FOUND()
        return respond_json(shown(kept))

    async def replay(request: web.Request, asked: RequestContext) -> web.Response:
        id = _id(request)
        try:
            is_known = await service.replay(id)
        except NotReplayable as error:
            raise ProblemError(
                409, "not_replayable", f"{error} This letter is for a person: deal with it, then throw it away."
            ) from None
        if not is_known:
            raise _NOT_FOUND()
        return respond_json({"id": id, "status": "replaying"}, 202)

    async def replay_many(request: web.Request, asked: RequestContext) -> web.Response:
        asked_for = await read(request)
        matched, replayed = await service.replay_many(
            asked_for.get("consumer"), asked_for.get("subject"), asked_for.get("error"), asked_for["dry_run"]
        )
        return respond_json({"matched": matched, "replayed": replayed})

    async def discard(request: web.Request, asked: RequestContext) -> web.Response:
        if not await service.discard(_id(request)):
            raise _NOT_FOUND()
        return web.Response(status=204)

    return RouteGroup(
        (
            Endpoint(hdrs.METH_GET, _ALL, browse),
            Endpoint(hdrs.METH_POST, _REPLAY_MANY, replay_many),
            Endpoint(hdrs.METH_GET, _ONE, show),
            Endpoint(hdrs.METH_DELETE, _ONE, discard),
            Endpoint(hdrs.METH_POST, _REPLAY_ONE, replay),
        ),
        DESCRIBED,
    )


def _id(request: web.Request) -> str:
    path = parameters(request)
    if path is None:
        raise _NOT_FOUND()
    return path["id"]


def shown(kept: StoredDeadLetter) -> dict[str, Any]:
    """Return *kept* as the API shows it."""
    dead_letter = kept.dead_letter
    try:
        said = orjson.loads(dead_letter.message.body)
        orjson.dumps([[[[said]]]])  # it reads deeper than it writes; so deep it lies in a page of letters
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        said = {"base64": b64encode(dead_letter.message.body).decode("ascii")}
    return {
        "id": dead_letter.id,
        "consumer": dead_letter.consumer,
        "subject": dead_letter.message.subject,
        "error": dead_letter.error,
        "detail": dead_letter.detail,
        "attempts": dead_letter.attempts,
        "first_seen": _moment(dead_letter.first_seen),
        "last_seen": _moment(dead_letter.last_seen),
        "replays": kept.replays,
        "message": {
            "id": dead_letter.message.id,
            "key": dead_letter.message.key,
            "headers": dict(dead_letter.message.headers),
            "body": said,
        },
    }


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _page() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {
            "items": {"type": "array", "items": ref("schemas", "dead_letter")},
            "next_cursor": {"type": ["string", "null"]},
        },
    }


def _described(method: str, path: str, summary: str, answers: dict[int, Any], *problems: int, **more: Any) -> Any:
    return operation(method, path, summary, "dead letters", answers, (*problems, 503), **more)


DESCRIBED = Description(
    {
        _ALL: {
            "get": _described(
                *("get", _ALL, "List dead letters", {200: response("One page.", _page())}, 400),
                parameters=[
                    *(parameter(name, {"type": "string"}) for name in _FILTERS),
                    ref("parameters", "limit"),
                    ref("parameters", "cursor"),
                ],
            )
        },
        _REPLAY_MANY: {
            "post": _described(
                *("post", _REPLAY_MANY, "Send many again", {200: response("How many.", _REPLAYED)}, 400, 408, 413, 415),
                request_body=body(_REPLAY),
            )
        },
        _ONE: {
            "get": _described(
                "get", _ONE, "Show one", {200: response("The letter.", ref("schemas", "dead_letter"))}, 404
            ),
            "delete": _described("delete", _ONE, "Throw one away", {204: response("Gone.")}, 404),
        },
        _REPLAY_ONE: {
            "post": _described("post", _REPLAY_ONE, "Send one again", {202: response("On its way.", _ACCEPTED)}, 404, 409)
        },
    },
    {"dead_letter": _LETTER},
)
"""The routes of a desk, for the API's description."""
