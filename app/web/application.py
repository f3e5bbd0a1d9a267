"""Builds the aiohttp application from the modules' routes, the route groups and the operational endpoints."""

from __future__ import annotations

__all__ = ["ENDPOINTS", "GATE", "STATIC_HANDLERS", "TELEMETRY", "UNMATCHED", "add_endpoint", "build_application"]

import re
from collections.abc import Awaitable, Callable, Collection, Sequence

import orjson
from aiohttp import HttpVersion11, hdrs, web
from attrs import evolve

from app.runtime.service import ModuleService
from app.telemetry.metrics import CONTENT_TYPE
from app.web.access.cors import Cors
from app.web.access.gate import Gate
from app.web.endpoints import docs, module_routes
from app.web.endpoints import health as probes
from app.web.endpoints.health import Health
from app.web.handler import (
    Endpoint,
    EndpointHandler,
    HandlerDeps,
    HttpHandler,
    Pages,
    RequestContext,
    RouteGroup,
    Telemetry,
    build_handler,
)
from app.web.requests.command import BODY_BYTES_MAX
from app.web.responses.problems import ProblemError
from app.web.responses.success import JSON, UNCACHED
from app.web.spec import openapi
from app.web.streams.state_stream import Streams

TELEMETRY: web.AppKey[Telemetry] = web.AppKey("telemetry", Telemetry)

GATE: web.AppKey[Gate] = web.AppKey("gate", Gate)

STATIC_HANDLERS: web.AppKey[dict[tuple[str, str], HttpHandler]] = web.AppKey("static_handlers")
"""Handlers by method and path, for the paths without a parameter: the server calls them without aiohttp's router."""

ENDPOINTS: web.AppKey[dict[tuple[str, str], Endpoint]] = web.AppKey("endpoints")
"""The endpoints by method and path template."""

_REDIRECT_PATH = web.RequestKey("redirect_path", str)

UNMATCHED = "unmatched"
"""Route label of requests that match no route."""


def build_application(
    services: Sequence[ModuleService],
    *,
    health: Health,
    metrics: Telemetry,
    gate: Gate,
    version: str,
    route_groups: tuple[RouteGroup, ...] = (),
    streams: Streams | None = None,
    pages: Pages | None = None,
    cors_origins: Collection[str] = (),
) -> web.Application:
    """
    Return the application that serves *services*, *route_groups* and *pages*; pages of *cors_origins* may call it.

    Run the application with `app.web.server.Runner`, so that requests that aiohttp itself rejects get a problem document,
    too.
    """
    streams = streams or Streams()
    cors = Cors(cors_origins) if cors_origins else None
    deps = HandlerDeps(metrics, gate, cors)
    modules = [service.module for service in services]
    document = openapi.document(modules, version, [group.description for group in route_groups])
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app[TELEMETRY] = metrics
    app[GATE] = gate
    app[STATIC_HANDLERS] = {}
    app[ENDPOINTS] = {}
    for endpoint in (
        *(endpoint for service in services for endpoint in module_routes.endpoints(service, streams)),
        *(endpoint for group in route_groups for endpoint in group.endpoints),
        *probes.endpoints(health),
        Endpoint(hdrs.METH_GET, "/metrics", _metrics(metrics), is_public=True),
        Endpoint(hdrs.METH_GET, "/openapi.json", _fixed(orjson.dumps(document), JSON), is_public=True),
        *docs.endpoints(),
        *(pages.endpoints() if pages is not None else ()),
    ):
        add_endpoint(app, endpoint, deps)
        app[ENDPOINTS][endpoint.method, endpoint.path] = endpoint
    if pages is not None:
        pages.setup(app)
    catch_all = app.router.add_resource("/{rest:.*}")
    unmatched = build_handler(Endpoint(hdrs.METH_ANY, UNMATCHED, _reject_unmatched(catch_all)), deps)
    redirect = build_handler(Endpoint(hdrs.METH_ANY, UNMATCHED, _redirect, is_public=True), deps)

    preflight = build_handler(Endpoint(hdrs.METH_ANY, UNMATCHED, _preflight(cors), is_public=True), deps)
    if cors is not None:
        app.on_response_prepare.append(cors.on_response_prepare)

    async def handle_unmatched(request: web.Request) -> web.StreamResponse:
        if cors is not None and cors.is_preflight(request):
            return await preflight(request)
        return await (unmatched if await _usual_path(request, catch_all) is None else redirect)(request)

    catch_all.add_route(hdrs.METH_ANY, handle_unmatched, expect_handler=_expect_handler(handle_unmatched))

    async def close_streams(app: web.Application) -> None:
        streams.close()

    app.on_shutdown.append(close_streams)
    return app


def add_endpoint(app: web.Application, endpoint: Endpoint, deps: HandlerDeps) -> None:
    """Add a route to *app* for each method that *endpoint* answers."""
    # aiohttp's own pattern for a parameter excludes braces, which an id may contain.
    resource = app.router.add_resource(re.sub(r"\{(\w+)\}", r"{\1:[^/]+}", endpoint.path))
    reject_expectation = build_handler(evolve(endpoint, handle=_reject_expectation), deps)
    methods = [endpoint.method, *([hdrs.METH_HEAD] if endpoint.method == hdrs.METH_GET else [])]
    for method in methods:
        handler = build_handler(evolve(endpoint, method=method), deps)
        resource.add_route(method, handler, expect_handler=_expect_handler(reject_expectation))
        if "{" not in endpoint.path:
            app[STATIC_HANDLERS][method, endpoint.path] = handler


def _expect_handler(reject: HttpHandler) -> Callable[[web.Request], Awaitable[web.StreamResponse | None]]:
    """Return the handler of the header ``Expect``; it returns None where the request continues."""

    async def handle(request: web.Request) -> web.StreamResponse | None:
        if request.version != HttpVersion11:
            return None
        if request.headers[hdrs.EXPECT].lower() != "100-continue":
            return await reject(request)
        return None  # the endpoint requests the body once it needs it, so that a request is refused without one

    return handle


async def _reject_expectation(request: web.Request, context: RequestContext) -> web.StreamResponse:
    raise ProblemError(417, "expectation_failed", "The only supported expectation is 100-continue.", closes=True)


def _metrics(metrics: Telemetry) -> EndpointHandler:
    async def handle(request: web.Request, context: RequestContext) -> web.Response:
        return web.Response(body=metrics.render(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE, **UNCACHED})

    return handle


def _fixed(body: bytes, content_type: str) -> EndpointHandler:
    async def handle(request: web.Request, context: RequestContext) -> web.Response:
        return web.Response(body=body, headers={**UNCACHED, hdrs.CONTENT_TYPE: content_type})

    return handle


def _preflight(cors: Cors | None) -> EndpointHandler:
    async def handle(request: web.Request, context: RequestContext) -> web.Response:
        assert cors is not None
        return cors.preflight()

    return handle


async def _usual_path(request: web.Request, catch_all: web.AbstractResource) -> str | None:
    """Return the path of the route that *request* spells with additional slashes; None if there is no such route."""
    path = "/" + "/".join(part for part in request.rel_url.raw_path.split("/") if part)
    if path == request.rel_url.raw_path:
        return None
    meant = request.clone(rel_url=request.rel_url.with_path(path, encoded=True, keep_query=True))
    for resource in request.app.router.resources():
        if resource is not catch_all and (await resource.resolve(meant))[1]:
            request[_REDIRECT_PATH] = path
            return path
    return None


async def _redirect(request: web.Request, context: RequestContext) -> web.StreamResponse:
    """Redirect to the usual path of the route, with the method, the body and the query of the request (RFC 9110, 308)."""
    query = request.rel_url.raw_query_string
    location = request[_REDIRECT_PATH] + (f"?{query}" if query else "")
    return web.Response(status=308, headers={hdrs.LOCATION: location, **UNCACHED})


def _reject_unmatched(catch_all: web.AbstractResource) -> EndpointHandler:
    """Return the handler of requests that match no route: 405 if the path has other methods, 404 otherwise."""

    async def handle(request: web.Request, context: RequestContext) -> web.Response:
        allowed: set[str] = set()
        for resource in request.app.router.resources():
            if resource is not catch_all:
                allowed |= (await resource.resolve(request))[1]
        if allowed:
            methods = ", ".join(sorted(allowed))
            detail = f"This path supports only {methods}."
            raise ProblemError(405, "method_not_allowed", detail, headers={hdrs.ALLOW: methods})
        raise ProblemError(404, "not_found", "This path does not exist.")

    return handle
