"""The aiohttp application of a worker: the routes that it answers itself, and the forwarding of all others."""

from __future__ import annotations

__all__ = ["build_worker_application"]

from collections.abc import Callable, Collection, Sequence
from functools import partial

from aiohttp import hdrs, web

from app.runtime.service import StateService
from app.web.access.cors import Cors
from app.web.access.gate import Gate
from app.web.application import GATE, STATIC_HANDLERS, TELEMETRY, add_endpoint
from app.web.endpoints import module_routes
from app.web.endpoints.module_routes import RunCommand
from app.web.handler import HandlerDeps, HttpHandler, Telemetry
from app.web.requests.command import BODY_BYTES_MAX
from app.web.workers.forwarding import Forwarder
from modules.module import Module
from modules.routes import CommandRoute, GetRoute, ListRoute


def build_worker_application(
    services: Sequence[StateService],
    run_command: Callable[[Module, CommandRoute], RunCommand],
    forward: Forwarder,
    *,
    metrics: Telemetry,
    gate: Gate,
    cors_origins: Collection[str] = (),
) -> web.Application:
    """
    Return the application that reads from *services*, submits commands through *run_command*, and forwards the rest.

    It answers the routes of commands, states and lists itself. Like that of `app.web.application.build_application`, it
    runs in an `app.web.server.Runner`.
    """
    cors = Cors(cors_origins) if cors_origins else None
    deps = HandlerDeps(metrics, gate, cors)
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app[TELEMETRY] = metrics
    app[GATE] = gate
    static_handlers: dict[tuple[str, str], HttpHandler] = {}
    app[STATIC_HANDLERS] = static_handlers
    if cors is not None:
        app.on_response_prepare.append(cors.on_response_prepare)
    for service in services:
        module = service.module
        for route in module.routes:
            if isinstance(route, CommandRoute | GetRoute | ListRoute):
                add_endpoint(app, module_routes.plain_endpoint(service, route, partial(run_command, module)), deps)
            elif "{" not in route.path:  # or else it could be taken for an id
                app.router.add_route(hdrs.METH_ANY, route.path, forward.handle, expect_handler=_accept_expectation)
    app.router.add_route(hdrs.METH_ANY, "/{rest:.*}", forward.handle, expect_handler=_accept_expectation)

    async def end_streams(app: web.Application) -> None:
        forward.end_streams()

    app.on_shutdown.append(end_streams)
    return app


async def _accept_expectation(request: web.Request) -> None:
    """Let the request go on; the forwarder asks for the body (`app.web.requests.command.ask_for_body`)."""
