"""
Import many resources with one request: a command for each line of the body, and an answer for each line.

The lines are read as they arrive and submitted in blocks, so a body of any allowed size needs little memory. The answers
are sent after the last line: a client that reads nothing before it has sent everything could block itself otherwise.
"""

from __future__ import annotations

__all__ = ["import_lines"]

import asyncio
from collections.abc import Callable
from hashlib import sha256
from random import randbytes
from typing import Any

import orjson
from aiohttp import hdrs, web
from uuid_utils import uuid7

from app.runtime.service import ModuleService
from app.storage.audit import Audit
from app.telemetry.trace import TRACEPARENT, TraceContext, traceparent
from app.web.handler import EndpointHandler, RequestContext, problem_for
from app.web.requests.command import idempotency_key, parse_body
from app.web.requests.ndjson import NDJSON, check_media_type, read_lines
from app.web.responses.problems import ProblemError, problem_of
from app.web.responses.success import UNCACHED
from bus.contracts.schemas import validator
from modules.routes import ImportRoute, Rejection, Request

BLOCK_LINES_MAX = 200
"""Lines that are submitted together; one transaction takes about as many."""


def import_lines(service: ModuleService, route: ImportRoute) -> EndpointHandler:
    """Return the handler of *route*: 200 with a line of JSON for each line of the body, in its order."""
    schema = service.module.http_schemas[route.line_schema]
    is_valid = validator(schema)

    async def handle(request: web.Request, context: RequestContext) -> web.Response:
        key = idempotency_key(request)
        check_media_type(request)
        header = context.traceparent or traceparent(request.headers.get(TRACEPARENT), randbytes)
        trace = TraceContext(context.correlation_id, header)
        scope = None if key is None else "\x1f".join((context.caller, f"{route.method} {route.path}", key))
        answers: list[bytes] = []
        is_truncated = False

        async def answer(number: int, line: bytes) -> bytes:
            try:
                value = parse_body(line, is_valid, schema)
                return await _submit(service, route, value, trace, scope, number, context)
            except Exception as error:
                problem = problem_for(error)
                if problem.status == 500:
                    raise
                return _refused(number, problem)

        try:
            async for lines in read_lines(request):
                for start in range(0, len(lines), BLOCK_LINES_MAX):
                    block = lines[start : start + BLOCK_LINES_MAX]
                    answers += await asyncio.gather(*(answer(number, line) for number, line in block))
        except ProblemError as problem:
            if not answers:
                raise
            # What was answered is stored: the client learns where the import ended.
            answers.append(_refused(None, problem))
            is_truncated = True
        response = web.Response(body=b"".join(answers), headers={hdrs.CONTENT_TYPE: NDJSON, **UNCACHED})
        if is_truncated:
            response.force_close()
        return response

    return handle


async def _submit(
    service: ModuleService,
    route: ImportRoute,
    value: Any,
    trace: TraceContext,
    scope: str | None,
    number: int,
    context: RequestContext,
) -> bytes:
    command = Request({}, value, str(uuid7()), context.correlation_id)
    event = route.event(command)
    audit = Audit(context.caller, route.name, _target(service, event), context.correlation_id)
    key, fingerprint = None, ""
    if scope is not None:
        key = sha256(f"{scope}\x1f{number}".encode()).hexdigest()
        fingerprint = sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
    submit: Callable[..., Any] = service.submit
    reply = await submit(
        event, id=str(uuid7()), trace=trace, respond=route.respond, key=key, fingerprint=fingerprint, audit=audit
    )
    outcome = reply.response
    if isinstance(outcome, Rejection):
        return _refused(number, problem_of(outcome))
    shown = {"line": number, "status": outcome.status, "result": outcome.body}
    if etag := outcome.headers.get("ETag"):
        shown["etag"] = etag
    if reply.is_replay:
        shown["replayed"] = True
    return orjson.dumps(shown) + b"\n"


def _target(service: ModuleService, event: Any) -> str:
    """Return the key of the first state that *event* concerns."""
    return next((key for _, key in service.module.keys(event)), "")


def _refused(number: int | None, problem: ProblemError) -> bytes:
    """Return the answer to a line that was refused; *number* is None where the import ended."""
    shown = {"line": number, "status": problem.status, "code": problem.code, "detail": problem.detail}
    return orjson.dumps({**shown, **problem.members}) + b"\n"
