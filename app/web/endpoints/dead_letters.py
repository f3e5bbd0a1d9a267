"""Endpoints for dead letters, messages that no delivery attempt could process: list, group, show, replay, edit, discard."""

from __future__ import annotations

__all__ = ["DESCRIPTION", "DeadLetterService", "group_to_json", "route_group", "to_json"]

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

import orjson
from aiohttp import hdrs, web
from attrs import evolve

from app.messaging.dead_letters import DeadLetterGroup, NotReplayable, StoredDeadLetter, WaitsForDeadLetter
from app.storage.audit import Audit
from app.web.handler import Endpoint, RequestContext, RouteGroup
from app.web.requests.command import read_body
from app.web.requests.paging import read_page
from app.web.requests.parameters import path_parameters, read_query
from app.web.responses.problems import ProblemError, invalid_input
from app.web.responses.success import UNCACHED, json_response
from app.web.spec.dead_letters import (
    DESCRIPTION,
    DISCARD_PATH,
    DISCARD_REQUEST,
    EDIT,
    FILTERS,
    GROUP_NAMES,
    GROUPS_PATH,
    ITEM_PATH,
    LIST_PATH,
    REPLAY_ITEM_PATH,
    REPLAY_PATH,
    REPLAY_REQUEST,
)
from bus.contracts.schemas import validator
from bus.errors import Invalid, Rejected, UnknownSubject


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

    async def groups(self, consumer: str | None, subject: str | None, error: str | None) -> Sequence[DeadLetterGroup]:
        """
        Return the dead letters in groups of one cause, the largest first.

        *consumer*, *subject* and *error* restrict them; None does not.
        """

    async def replay(self, id: str, *, body: bytes | None = None, audit: Audit | None = None) -> bool:
        """
        Publish the event of a dead letter to its consumer again, in a new message; return False if the id is unknown.

        With *body*, a JSON text, the message has this body in place of its own.

        Raises:
            WaitsForDeadLetter: It waits for another dead letter, and is published after that.
            NotReplayable: The consumer subscribes to nothing.
            Rejected: *body* violates the schema of the message's subject.
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

    async def discard_many(
        self, consumer: str | None, subject: str | None, error: str | None, dry_run: bool, *, audit: Audit | None = None
    ) -> tuple[int, int]:
        """
        Delete all matching dead letters; return how many match and how many were deleted (0 with *dry_run*).

        *consumer*, *subject* and *error* restrict them; None does not.
        """


_NOT_FOUND = partial(ProblemError, 404, "not_found", "There is no such dead letter.")

_read_replay_request = partial(read_body, is_valid=validator(REPLAY_REQUEST), schema=REPLAY_REQUEST)
_read_discard_request = partial(read_body, is_valid=validator(DISCARD_REQUEST), schema=DISCARD_REQUEST)
_read_edit = partial(read_body, is_valid=validator(EDIT), schema=EDIT, is_required=False)


def route_group(service: DeadLetterService) -> RouteGroup:
    """Return the endpoints for the dead letters of *service*."""
    on = _Handlers(service)
    return RouteGroup(
        (
            Endpoint(hdrs.METH_GET, LIST_PATH, on.list, roles=("viewer",)),
            Endpoint(hdrs.METH_GET, GROUPS_PATH, on.list_groups, roles=("viewer",)),
            Endpoint(hdrs.METH_POST, REPLAY_PATH, on.replay_many),
            Endpoint(hdrs.METH_POST, DISCARD_PATH, on.discard_many),
            Endpoint(hdrs.METH_GET, ITEM_PATH, on.get, roles=("viewer",)),
            Endpoint(hdrs.METH_DELETE, ITEM_PATH, on.discard),
            Endpoint(hdrs.METH_POST, REPLAY_ITEM_PATH, on.replay),
        ),
        DESCRIPTION,
    )


class _Handlers:
    """Handle the requests for the dead letters of *service*."""

    def __init__(self, service: DeadLetterService) -> None:
        self._service = service

    async def list(self, request: web.Request, context: RequestContext) -> web.Response:
        query = read_query(request, {*FILTERS, "limit", "cursor"})

        async def fetch(after: str | None, limit: int) -> tuple[Sequence[StoredDeadLetter], None]:
            consumer, subject, error = map(query.get, FILTERS)
            return await self._service.list(consumer, subject, after, limit, error=error), None

        def key_of(stored: StoredDeadLetter) -> str:
            return str(stored.dead_letter.id)

        return json_response(await read_page(query, LIST_PATH, fetch, key_of, to_json))

    async def get(self, request: web.Request, context: RequestContext) -> web.Response:
        stored = await self._service.get(_id(request))
        if stored is None:
            raise _NOT_FOUND()
        return json_response(to_json(stored))

    async def list_groups(self, request: web.Request, context: RequestContext) -> web.Response:
        consumer, subject, error = map(read_query(request, set(FILTERS)).get, FILTERS)
        found = await self._service.groups(consumer, subject, error)
        return json_response({"items": [group_to_json(group) for group in found]})

    async def replay(self, request: web.Request, context: RequestContext) -> web.Response:
        id = _id(request)
        edit = await _read_edit(request)
        body = orjson.dumps(edit["body"]) if "body" in edit else None
        try:
            is_known = await self._service.replay(id, body=body, audit=_audit(context, "replayDeadLetter", id))
        except NotReplayable as error:
            detail = f"{error} This dead letter needs a manual decision: resolve its cause, then discard it."
            raise ProblemError(409, "not_replayable", detail) from None
        except WaitsForDeadLetter as error:
            raise ProblemError(409, "waits", str(error)) from None
        except Rejected as error:
            raise _bad_edit(error) from None
        if not is_known:
            raise _NOT_FOUND()
        return json_response({"id": id, "status": "replaying"}, 202)

    async def replay_many(self, request: web.Request, context: RequestContext) -> web.Response:
        wanted = await _read_replay_request(request)
        matched, replayed = await self._service.replay_many(
            wanted.get("consumer"), wanted.get("subject"), wanted.get("error"), wanted["dry_run"],
            audit=_audit(context, "replayDeadLetters"),
        )  # fmt: skip
        return json_response({"matched": matched, "replayed": replayed})

    async def discard_many(self, request: web.Request, context: RequestContext) -> web.Response:
        wanted = await _read_discard_request(request)
        named = request.query.get("consumer")  # the reverse proxy sends the request to the module of this one
        if named is not None and named != wanted.get("consumer"):
            raise ProblemError(400, "invalid_body", "The query names another consumer than the body.")
        matched, discarded = await self._service.discard_many(
            wanted.get("consumer"), wanted.get("subject"), wanted.get("error"), wanted["dry_run"],
            audit=_audit(context, "discardDeadLetters"),
        )  # fmt: skip
        return json_response({"matched": matched, "discarded": discarded})

    async def discard(self, request: web.Request, context: RequestContext) -> web.Response:
        id = _id(request)
        if not await self._service.discard(id, audit=_audit(context, "discardDeadLetter", id)):
            raise _NOT_FOUND()
        return web.Response(status=204, headers=UNCACHED)


def _audit(context: RequestContext, action: str, target: str = "") -> Audit:
    return Audit(context.caller, action, target, context.correlation_id)


def _bad_edit(error: Rejected) -> ProblemError:
    """Return the problem of an edited body that its consumer would refuse as well."""
    if isinstance(error, Invalid):
        violations = [evolve(each, pointer=f"/body{each.pointer}") for each in error.problems]
        return invalid_input("invalid_body", f"The body does not match the schema of {error.subject}.", violations)
    if isinstance(error, UnknownSubject):
        return ProblemError(409, "unknown_subject", f"The body cannot be checked: {error}.")
    return invalid_input("invalid_body", f"The body cannot be read: {error}.", ())


def _id(request: web.Request) -> str:
    path = path_parameters(request)
    if path is None:
        raise _NOT_FOUND()
    return path["id"]


def to_json(stored: StoredDeadLetter) -> dict[str, Any]:
    """Return *stored* as the API shows it."""
    dead_letter = stored.dead_letter
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
        "edited_body": None if stored.edited_body is None else _json_value(stored.edited_body),
        "message": {
            "id": dead_letter.message.id,
            "key": dead_letter.message.key,
            "headers": dict(dead_letter.message.headers),
            "body": _json_value(dead_letter.message.body),
        },
    }


def group_to_json(group: DeadLetterGroup) -> dict[str, Any]:
    """Return *group* as the API shows it."""
    times = {"first_seen": _timestamp(group.first_seen), "last_seen": _timestamp(group.last_seen)}
    return {**{name: getattr(group, name) for name in GROUP_NAMES}, "count": group.count, **times}


def _json_value(body: bytes) -> Any:
    try:
        value = orjson.loads(body)
        # orjson decodes deeper nesting than it encodes. In a page of dead letters the body is four levels deeper.
        orjson.dumps([[[[value]]]])
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return {"base64": b64encode(body).decode("ascii")}
    return value


def _timestamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
