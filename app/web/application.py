"""Where the web's parts meet: doors, operations and documentation become one aiohttp application."""

from __future__ import annotations

__all__ = ["STATIC_ROUTES", "TELEMETRY", "build"]

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import orjson
from aiohttp import HttpVersion11, hdrs, web
from attrs import evolve

from app.runtime.service import ModuleService
from app.telemetry.metrics import CONTENT_TYPE
from app.web.endpoints import docs
from app.web.endpoints import module_routes as routes
from app.web.endpoints.health import Health
from app.web.endpoints.health import operations as probes
from app.web.endpoints.module_routes import JSON
from app.web.endpoints.state_stream import Streams
from app.web.handler import Endpoint, Handle, HandlerDeps, RequestContext, Telemetry, build_handler
from app.web.problems import ProblemError
from app.web.requests.parsing import BODY_BYTES_MAX
from app.web.route_group import RouteGroup
from app.web.spec import openapi

TELEMETRY: web.AppKey[Telemetry] = web.AppKey("telemetry", Telemetry)

Answers = Callable[[web.Request], Awaitable[web.StreamResponse]]

STATIC_ROUTES: web.AppKey[dict[tuple[str, str], Answers]] = web.AppKey("straight")
"""Who answers which method on which path, for paths without a parameter: to them nobody has to be shown the way."""

UNMATCHED = "unmatched"


def build(
    services: Sequence[ModuleService],
    *,
    health: Health,
    metrics: Telemetry,
    keys: Mapping[str, str] | None,
    version: str,
    extra: tuple[RouteGroup, ...] = (),
    streams: Streams | None = None,
) -> web.Application:
    """
    Return the application that answers for *doors*, and for *extra* beside them.

    *keys* are the callers' names, each with the SHA-256 of its key; None asks nobody. Run it with
    `app.web.server.Runner`, so that what aiohttp itself refuses is a problem too.
    """
    streams = streams or Streams()
    around = HandlerDeps(metrics, keys)
    document = openapi.document([service.module for service in services], version, [table.described for table in extra])
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app[TELEMETRY] = metrics
    straight = app[STATIC_ROUTES] = {}
    resources: dict[str, web.Resource] = {}
    for operation in (
        *(operation for service in services for operation in routes.operations(service, streams)),
        *(operation for table in extra for operation in table.operations),
        *probes(health),
        Endpoint(hdrs.METH_GET, "/metrics", _metrics(metrics), is_open=True),
        Endpoint(hdrs.METH_GET, "/openapi.json", _bytes(orjson.dumps(document), JSON), is_open=True),
        *docs.operations(),
    ):
        if operation.path not in resources:
            # aiohttp's own pattern for a parameter leaves out braces, which an id may have.
            resources[operation.path] = app.router.add_resource(re.sub(r"\{(\w+)\}", r"{\1:[^/]+}", operation.path))
        for method, answer in _add(resources[operation.path], operation, around):
            if "{" not in operation.path:
                straight[method, operation.path] = answer
    catch_all = app.router.add_resource("/{rest:.*}")
    catch_all.add_route(hdrs.METH_ANY, build_handler(Endpoint(hdrs.METH_ANY, UNMATCHED, _nothing_here(catch_all)), around))

    async def close_streams(app: web.Application) -> None:
        streams.close()

    app.on_shutdown.append(close_streams)
    return app


def _add(resource: web.Resource, operation: Endpoint, around: HandlerDeps) -> Iterator[tuple[str, Answers]]:
    """Add a route for each method that *operation* answers; yield the method, and what answers it."""
    refuse = build_handler(evolve(operation, handle=_refuse_expectation), around)
    methods = [operation.method, *([hdrs.METH_HEAD] if operation.method == hdrs.METH_GET else [])]
    for method in methods:
        answer = build_handler(evolve(operation, method=method), around)
        resource.add_route(method, answer, expect_handler=_expect(refuse))
        yield method, answer


def _expect(refuse: Answers) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
    async def answer(request: web.Request) -> web.StreamResponse | None:
        if request.version != HttpVersion11:
            return None
        if request.headers[hdrs.EXPECT].lower() != "100-continue":
            return await refuse(request)
        # Who asks before sending too much is told so instead of being asked to send it.
        if (request.content_length or 0) <= BODY_BYTES_MAX:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer itself has not begun
        return None

    return answer


async def _refuse_expectation(request: web.Request, asked: RequestContext) -> web.StreamResponse:
    raise ProblemError(417, "expectation_failed", "The only expectation that can be met is 100-continue.", closes=True)


def _metrics(metrics: Telemetry) -> Handle:
    async def handle(request: web.Request, asked: RequestContext) -> web.Response:
        return web.Response(body=metrics.render(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})

    return handle


def _bytes(body: bytes, content_type: str) -> Handle:
    async def handle(request: web.Request, asked: RequestContext) -> web.Response:
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})

    return handle


def _nothing_here(catch_all: web.AbstractResource) -> Handle:
    async def handle(request: web.Request, asked: RequestContext) -> web.Response:
        allowed: set[str] = set()
        for resource in request.app.router.resources():
            if resource is not catch_all:
                allowed |= (await resource.resolve(request))[1]
        if allowed:
            methods = ", ".join(sorted(allowed))
            detail = f"This path takes {methods} only."
            raise ProblemError(405, "method_not_allowed", detail, headers={hdrs.ALLOW: methods})
        raise ProblemError(404, "not_found", "There is nothing at this path.")

    return handle
