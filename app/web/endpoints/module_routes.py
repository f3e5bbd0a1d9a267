"""A module's routes, as handlers: everything that can be known beforehand is bound when the application is built."""

from __future__ import annotations

__all__ = ["JSON", "operations", "page", "respond_json"]

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from random import randbytes
from typing import Any

import attrs
import orjson
from aiohttp import hdrs, web
from uuid_utils import uuid7

from app.runtime.service import ModuleService
from app.telemetry.trace import TraceContext, traceparent
from app.web.endpoints.state_stream import Streams, stream_state
from app.web.handler import Endpoint, Handle, RequestContext
from app.web.problems import ProblemError, invalid
from app.web.requests.parsing import idempotency_key, is_readable, page_size, parameters, read_body, read_query
from bus.contracts.registry import validator
from bus.errors import SchemaViolation
from modules.routes import CommandRoute, GetRoute, ListRoute, Rejection, Request, StreamRoute

JSON = "application/json"
TRACEPARENT = "traceparent"
IDEMPOTENCY_REPLAYED = "Idempotency-Replayed"
_CURSOR_CHARACTERS_MAX = 128

_NOT_FOUND = partial(ProblemError, 404, "not_found", "There is nothing here under this id.")
_BAD_PARAMETER = SchemaViolation("", "must be 1 to 64 characters, without control characters")


def operations(service: ModuleService, streams: Streams) -> tuple[Endpoint, ...]:
    """Return what answers the routes of *door*'s module."""
    found = []
    for route in service.module.routes:
        match route:
            case CommandRoute():
                found.append(Endpoint(route.method, route.path, _tell(service, route)))
            case GetRoute():
                found.append(Endpoint(hdrs.METH_GET, route.path, _show(service, route)))
            case ListRoute():
                found.append(Endpoint(hdrs.METH_GET, route.path, _browse(service, route)))
            case StreamRoute():
                found.append(Endpoint(hdrs.METH_GET, route.path, stream_state(service, route, streams)))
    return tuple(found)


def respond_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return *value* as a successful answer."""
    all_headers: dict[str, str] = {hdrs.CONTENT_TYPE: JSON}
    if headers:
        all_headers.update(headers)
    return web.Response(body=orjson.dumps(value), status=status, headers=all_headers)


def _tell(service: ModuleService, route: CommandRoute) -> Handle:
    module = service.module
    read: Callable[[web.Request], Awaitable[Any]] | None = None
    if route.request_schema is not None:
        schema = module.http_schemas[route.request_schema]
        read = partial(read_body, fits=validator(schema), schema=schema, is_needed=route.needs_body)
    has_parameters = "{" in route.path
    event, answer, express, sheds, is_keyed = route.event, route.respond, route.express, route.sheds_load, route.idempotent
    tell, scope = service.submit, f"{route.method} {route.path}"

    async def handle(request: web.Request, asked: RequestContext) -> web.Response:
        path: dict[str, str] | None = {}
        if has_parameters:
            path = parameters(request)
            if path is None:
                raise _bad_path(route)
        key = idempotency_key(request) if is_keyed else None
        body = await read(request) if read is not None else None
        said = Request(path or {}, body, str(uuid7()))
        # A trace id is no secret. os.urandom would give the interpreter's lock away each time.
        context = TraceContext(asked.correlation_id, traceparent(request.headers.get(TRACEPARENT), randbytes))
        fingerprint = ""
        if key is not None:
            # The unit separator can be in none of the parts: two different calls never share a key.
            key = sha256("\x1f".join((asked.caller, scope, *said.path.values(), key)).encode()).hexdigest()
            fingerprint = sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
        told = await tell(
            event(said),
            id=str(uuid7()),
            trace=context,
            respond=answer,
            is_express=express(said),
            key=key,
            fingerprint=fingerprint,
            sheds_load=sheds,
            new_key=said.new_id,
        )
        given = told.response
        if isinstance(given, Rejection):
            replayed: dict[str, str] = {IDEMPOTENCY_REPLAYED: "true"} if told.is_replay else {}
            raise ProblemError(given.status, given.code, given.detail, headers=replayed)
        response = respond_json(given.body, given.status, given.headers)
        if told.is_replay:
            response.headers[IDEMPOTENCY_REPLAYED] = "true"
        return response

    return handle


def _bad_path(route: CommandRoute) -> ProblemError:
    """What cannot be an id names nothing; only a PUT, which would have made it, is told why."""
    if route.method != hdrs.METH_PUT:
        return _NOT_FOUND()
    return invalid("invalid_path", "The path holds something that cannot be an id.", [_BAD_PARAMETER])


def _show(service: ModuleService, route: GetRoute) -> Handle:
    async def handle(request: web.Request, asked: RequestContext) -> web.Response:
        path = parameters(request)
        if path is None:
            raise _NOT_FOUND()
        (key,) = path.values()
        state = await service.get(route.state, key)
        shown = None if state is None else route.show(state)
        if shown is None:
            raise _NOT_FOUND()
        return respond_json(shown)

    return handle


def _browse(service: ModuleService, route: ListRoute) -> Handle:
    fits = {name: validator(schema) for name, schema in route.filters.items()}
    known = {*fits, "limit", "cursor"}
    key_of = attrs.fields(route.state)[0].name

    async def handle(request: web.Request, asked: RequestContext) -> web.Response:
        query = read_query(request, known)
        filters = {name: value for name, value in query.items() if name in fits}
        bad = [SchemaViolation(f"/{name}", "is not a value of this filter") for name, v in filters.items() if not fits[name](v)]
        if bad:
            raise invalid("invalid_query", "The query has values that cannot match anything.", bad)

        async def fetch(after: str | None, limit: int) -> Sequence[Any]:
            return await service.list_states(route.state, filters, after=after, limit=limit, newest_first=route.newest_first)

        return respond_json(await page(query, fetch, lambda state: str(getattr(state, key_of)), route.show))

    return handle


async def page(
    query: Mapping[str, str],
    fetch: Callable[[str | None, int], Awaitable[Sequence[Any]]],
    key_of: Callable[[Any], str],
    show: Callable[[Any], Any],
) -> dict[str, Any]:
    """
    Return one page as *query*'s ``limit`` and ``cursor`` say: its items, and the cursor of the next one or None.

    *fetch* is asked for one more than the page holds, which tells whether there is a next.
    """
    limit = page_size(query)
    after = _key_in(query["cursor"]) if "cursor" in query else None
    found = list(await fetch(after, limit + 1))
    items = found[:limit]
    return {
        "items": [show(item) for item in items],
        "next_cursor": _cursor(key_of(items[-1])) if len(found) > limit else None,
    }


def _cursor(key: str) -> str:
    return urlsafe_b64encode(key.encode()).rstrip(b"=").decode("ascii")


def _key_in(cursor: str) -> str:
    try:
        key = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode()
    except (UnicodeError, binascii.Error):
        key = ""
    # Decoding is lenient; what does not come out as it went in was not made by us.
    if len(key) > _CURSOR_CHARACTERS_MAX or not is_readable(key) or _cursor(key) != cursor:
        raise invalid("invalid_query", "The cursor is not one of ours.", [SchemaViolation("/cursor", "is not a cursor")])
    return key
