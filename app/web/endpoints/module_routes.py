"""The endpoints of a module's routes. Everything that is known beforehand is bound when the application is built."""

from __future__ import annotations

__all__ = ["Command", "RunCommand", "command_runner", "endpoints", "plain_endpoint"]

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hashlib import sha256
from operator import attrgetter
from random import randbytes
from typing import Any

import attrs
import orjson
from aiohttp import hdrs, web
from attrs import define, evolve
from uuid_utils import uuid7

from app.runtime.service import ModuleService, Reply, StateService
from app.storage.audit import Audit
from app.telemetry.trace import TRACEPARENT, TraceContext, traceparent
from app.web.access.ownership import is_foreign, is_scoped, owned_only, require_owned
from app.web.endpoints.imports import import_lines
from app.web.handler import Endpoint, EndpointHandler, RequestContext
from app.web.requests.command import idempotency_key, read_body
from app.web.requests.filters import FilterReader
from app.web.requests.paging import read_page
from app.web.requests.parameters import path_parameters, read_query
from app.web.requests.preconditions import read_precondition
from app.web.responses.problems import ProblemError, invalid_input, problem_of
from app.web.responses.success import json_response
from app.web.streams.list_export import export_list
from app.web.streams.list_stream import stream_list
from app.web.streams.state_stream import Streams, stream_state
from bus.contracts.schemas import validator
from bus.errors import SchemaViolation
from modules.routes import (
    CommandRoute,
    ExportRoute,
    GetRoute,
    ImportRoute,
    ListRoute,
    ListStreamRoute,
    Rejection,
    Request,
    StreamRoute,
)
from modules.values import UNCONDITIONAL

IDEMPOTENCY_REPLAYED = "Idempotency-Replayed"

_NOT_FOUND = partial(ProblemError, 404, "not_found", "No resource has this id.")
_PRECONDITION_FAILED = partial(
    ProblemError, 412, "precondition_failed", "The resource does not match If-Match; read it again."
)
_PRECONDITION_REQUIRED = partial(
    ProblemError,
    428,
    "precondition_required",
    "Send If-Match with the ETag that was read, or If-None-Match: * to create. This server requires it.",
)
_BAD_PARAMETER = SchemaViolation("", "must be 1 to 64 characters, without control characters")


@define  # not frozen: every order creates one
class Command:
    """A valid request for a `modules.routes.CommandRoute`, and who sends it."""

    request: Request
    traceparent: str
    """Of the trace that the request belongs to (W3C Trace Context)."""
    caller: str
    """The name of the API key."""
    key: str | None = None
    """The idempotency key, unique to the caller and the route; None without one."""
    fingerprint: str = ""
    """With a *key*: differs if the body of the request differs."""


RunCommand = Callable[[Command], Awaitable[Reply]]
"""Submits the event of a command; raises as `app.runtime.service.ModuleService.submit` does."""


def command_runner(service: ModuleService, route: CommandRoute) -> RunCommand:
    """Return what submits the events of *route* to *service*."""
    make_event, respond, is_express = route.event, route.respond, route.express
    name, is_audited, sheds_load = route.name, route.is_audited, route.sheds_load
    submit = service.submit

    def run(command: Command) -> Awaitable[Reply]:
        request = command.request
        audit = None
        if is_audited:  # about the resource that the path names, or the new one
            target = "/".join(request.path.values()) or request.new_id
            audit = Audit(command.caller, name, target, request.correlation_id)
        return submit(
            make_event(request),
            id=str(uuid7()),
            trace=TraceContext(request.correlation_id, command.traceparent),
            respond=respond,
            is_express=is_express(request),
            key=command.key,
            fingerprint=command.fingerprint,
            sheds_load=sheds_load,
            new_key=request.new_id,
            audit=audit,
        )

    return run


def endpoints(service: ModuleService, streams: Streams) -> tuple[Endpoint, ...]:
    """Return the endpoints for the routes of *service*'s module."""
    found = []
    for route in service.module.routes:
        match route:
            case CommandRoute() | GetRoute() | ListRoute():
                found.append(plain_endpoint(service, route, partial(command_runner, service)))
                continue
            case ImportRoute():
                endpoint = Endpoint(route.method, route.path, import_lines(service, route))
            case ExportRoute():
                endpoint = Endpoint(hdrs.METH_GET, route.path, export_list(service, route, streams))
            case ListStreamRoute():
                handle = stream_list(service, route, streams)
                endpoint = Endpoint(hdrs.METH_GET, route.path, handle, takes_token=True)
            case StreamRoute():
                handle = stream_state(service, route, streams)
                endpoint = Endpoint(hdrs.METH_GET, route.path, handle, takes_token=True)
        found.append(evolve(endpoint, roles=route.roles, is_scoped=is_scoped(route)))
    return tuple(found)


def plain_endpoint(
    service: StateService,
    route: CommandRoute | GetRoute | ListRoute,
    run_command: Callable[[CommandRoute], RunCommand],
) -> Endpoint:
    """
    Return the endpoint for *route*, which needs only the states of *service* and, for a command, *run_command*.

    *run_command* returns what submits the events of a route.
    """
    match route:
        case CommandRoute():
            endpoint = Endpoint(route.method, route.path, _command(service, route, run_command(route)))
        case GetRoute():
            endpoint = Endpoint(hdrs.METH_GET, route.path, _get(service, route))
        case ListRoute():
            endpoint = Endpoint(hdrs.METH_GET, route.path, _list(service, route))
    return evolve(endpoint, roles=route.roles, is_scoped=is_scoped(route))


def _command(service: StateService, route: CommandRoute, run: RunCommand) -> EndpointHandler:
    module = service.module
    read: Callable[[web.Request], Awaitable[Any]] | None = None
    if route.request_schema is not None:
        schema = module.http_schemas[route.request_schema]
        read = partial(read_body, is_valid=validator(schema), schema=schema, is_required=route.needs_body)
    has_parameters = "{" in route.path
    is_idempotent = route.idempotent
    takes_precondition, requires_precondition = route.takes_precondition, route.requires_precondition
    scope = f"{route.method} {route.path}"

    async def handle(request: web.Request, context: RequestContext) -> web.Response:
        path: dict[str, str] | None = {}
        if has_parameters:
            path = path_parameters(request)
            if path is None:
                raise _invalid_path(route)
        key = idempotency_key(request) if is_idempotent else None
        precondition = read_precondition(request) if takes_precondition else UNCONDITIONAL
        if requires_precondition and precondition is UNCONDITIONAL:
            raise _PRECONDITION_REQUIRED()
        body = await read(request) if read is not None else None
        if context.customer is not None:
            await require_owned(service, route, path or {}, body, context.customer)
        # A trace id is no secret, and os.urandom would release the GIL on each call.
        trace = context.traceparent or traceparent(request.headers.get(TRACEPARENT), randbytes)
        fingerprint = ""
        if key is not None:
            # None of the parts can contain the unit separator, so two different calls never get the same key.
            key = sha256("\x1f".join((context.caller, scope, *(path or {}).values(), key)).encode()).hexdigest()
            fingerprint = sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
        made = Request(path or {}, body, str(uuid7()), context.correlation_id, precondition)
        reply = await run(Command(made, trace, context.caller, key, fingerprint))
        outcome = reply.response
        if isinstance(outcome, Rejection):
            replayed: dict[str, str] = {IDEMPOTENCY_REPLAYED: "true"} if reply.is_replay else {}
            raise problem_of(outcome, replayed)
        response = json_response(outcome.body, outcome.status, outcome.headers)
        if reply.is_replay:
            response.headers[IDEMPOTENCY_REPLAYED] = "true"
        return response

    return handle


def _invalid_path(route: CommandRoute) -> ProblemError:
    """Return 404, for no resource can have such an id; a PUT would create one, so it gets the reason."""
    if route.method != hdrs.METH_PUT:
        return _NOT_FOUND()
    return invalid_input("invalid_path", "The path contains an invalid id.", [_BAD_PARAMETER])


def _get(service: StateService, route: GetRoute) -> EndpointHandler:
    async def handle(request: web.Request, context: RequestContext) -> web.Response:
        path = path_parameters(request)
        if path is None:
            raise _NOT_FOUND()
        (key,) = path.values()
        state = await service.get(route.state, key)
        shown = None if state is None or is_foreign(state, context.customer) else route.show(state)
        if shown is None:
            raise _NOT_FOUND()
        if route.etag is None:
            return json_response(shown)
        return _conditional(request, shown, route.etag(state))

    return handle


def _conditional(request: web.Request, shown: Any, etag: str) -> web.Response:
    """Return *shown*, or 304 or 412 if the precondition of *request* does not hold."""
    precondition = read_precondition(request)
    if precondition.holds(etag):
        return json_response(shown, headers={hdrs.ETAG: etag})
    if not evolve(precondition, if_none_match=None).holds(etag):
        raise _PRECONDITION_FAILED()
    return web.Response(status=304, headers={hdrs.ETAG: etag})


def _list(service: StateService, route: ListRoute) -> EndpointHandler:
    filters = FilterReader(route.filters)
    known = {*filters.names, "limit", "cursor"}
    key_of = attrgetter(attrs.fields(route.state)[0].name)

    async def handle(request: web.Request, context: RequestContext) -> web.Response:
        query = owned_only(read_query(request, known), context.customer)
        conditions = filters.read(query)

        async def fetch(after: str | None, limit: int) -> tuple[Sequence[Any], str | None]:
            return await service.search(
                route.state, conditions, after=after, limit=limit, newest_first=route.newest_first
            )

        kept = [condition.filter.keeps for condition in conditions if condition.filter.keeps is not None]

        def show(state: Any) -> Any:
            return route.show(state) if all(keeps(state) for keeps in kept) else None

        return json_response(await read_page(query, route.path, fetch, key_of, show if kept else route.show))

    return handle
