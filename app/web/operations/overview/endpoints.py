"""The endpoints of the overview: once, as it changes, and the part of one process."""

from __future__ import annotations

__all__ = ["DESCRIPTION", "route_group"]

import orjson
from aiohttp import hdrs, web
from aiohttp_sse import EventSourceResponse
from loguru import logger

from app.web.access.stream_tokens import TOKEN
from app.web.handler import SERVER, Endpoint, RequestContext, RouteGroup
from app.web.operations.overview.overview import OWN_PATH, Overview
from app.web.operations.overview.spec import DESCRIPTION, PATH, STREAM_PATH
from app.web.requests.filters import FilterReader
from app.web.requests.one_module import MODULE, require_module
from app.web.requests.parameters import read_query
from app.web.responses.problems import X_CORRELATION_ID
from app.web.responses.success import UNCACHED, json_response
from app.web.streams.list_stream import SEND_SECONDS_MAX
from app.web.streams.state_stream import PING_SECONDS, Streams


def route_group(overview: Overview, streams: Streams, running: tuple[str, ...]) -> RouteGroup:
    """Return the endpoints of *overview* in a process that runs the modules *running*."""
    filters = FilterReader((MODULE,))

    async def show(request: web.Request, context: RequestContext) -> web.Response:
        read_query(request, ())
        return json_response(await overview.read())

    async def own(request: web.Request, context: RequestContext) -> web.Response:
        for condition in filters.read(read_query(request, filters.names)):
            require_module(condition.values[0], running)
        return json_response(await overview.status.to_json())

    async def stream(request: web.Request, context: RequestContext) -> web.StreamResponse:
        read_query(request, {TOKEN})
        response = EventSourceResponse(
            headers={X_CORRELATION_ID: context.correlation_id, hdrs.SERVER: SERVER},
            ping_interval=PING_SECONDS,
            send_timeout=SEND_SECONDS_MAX,
        )
        response.headers.update(UNCACHED)  # aiohttp-sse sets a Cache-Control of its own
        if request.method == hdrs.METH_HEAD:
            return web.Response(headers=response.headers)
        with streams.slot(context.caller):
            context.record_now(response.status)
            await response.prepare(request)
            async with response:
                try:
                    async for shown in overview.watch(streams.closed, lambda: _is_open(request)):
                        await response.send(orjson.dumps(shown).decode(), event="overview")
                except (ConnectionError, TimeoutError):
                    pass  # the client has gone, or does not read
                except Exception as error:  # the headers are sent, so the stream can only end; clients reconnect
                    logger.opt(exception=error).error("stream failed", route=STREAM_PATH, correlation_id=context.correlation_id)
        return response

    endpoints = (
        Endpoint(hdrs.METH_GET, PATH, show, roles=("viewer",)),
        Endpoint(hdrs.METH_GET, STREAM_PATH, stream, roles=("viewer",), takes_token=True),
        Endpoint(hdrs.METH_GET, OWN_PATH, own, roles=("viewer",)),
    )
    return RouteGroup(endpoints, DESCRIPTION)


def _is_open(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()
