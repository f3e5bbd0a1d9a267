"""All states of one class, or those that filters select, as one response of newline-delimited JSON, page by page."""

from __future__ import annotations

__all__ = ["break_off", "export_list", "write_lines"]

import asyncio
from collections.abc import AsyncIterator, Sequence
from operator import attrgetter

import attrs
import orjson
from aiohttp import hdrs, web
from loguru import logger

from app.runtime.service import StateService
from app.storage.errors import StorageUnavailable
from app.web.access.ownership import owned_only
from app.web.handler import SERVER, EndpointHandler, RequestContext
from app.web.requests.filters import FilterReader
from app.web.requests.ndjson import NDJSON
from app.web.requests.parameters import read_query
from app.web.responses.problems import X_CORRELATION_ID
from app.web.responses.success import UNCACHED
from app.web.streams.list_stream import SEND_SECONDS_MAX
from app.web.streams.state_stream import Streams
from modules.filters import Condition
from modules.routes import ExportRoute

PAGE = 200
"""States that are in memory at once."""


def export_list(service: StateService, route: ExportRoute, streams: Streams) -> EndpointHandler:
    """
    Return the handler of *route*: 200 with a line for each state, as many as there are.

    A page is read when the client has taken the one before. An export that cannot be completed breaks its connection off, so
    that the client notices.
    """
    filters = FilterReader(route.filters)

    async def handle(request: web.Request, context: RequestContext) -> web.StreamResponse:
        conditions = filters.read(owned_only(read_query(request, filters.names), context.customer))
        headers = {hdrs.CONTENT_TYPE: NDJSON, X_CORRELATION_ID: context.correlation_id, hdrs.SERVER: SERVER, **UNCACHED}
        if request.method == hdrs.METH_HEAD:
            return web.Response(headers=headers)
        with streams.slot(context.caller):
            pages = _pages(service, route, conditions)
            first = await anext(pages, b"")  # a failure of the first read is still an answer
            response = web.StreamResponse(headers=headers)
            context.record_now(response.status)
            await response.prepare(request)
            try:
                await write_lines(response, first)
                async for page in pages:
                    if streams.closed.done():
                        raise ConnectionResetError("the server ends")
                    await write_lines(response, page)
                await response.write_eof()
            except (ConnectionError, TimeoutError, StorageUnavailable):
                break_off(request)
            except Exception as error:
                logger.opt(exception=error).error("export failed", route=route.path, correlation_id=context.correlation_id)
                break_off(request)
        return response

    return handle


async def _pages(service: StateService, route: ExportRoute, conditions: Sequence[Condition]) -> AsyncIterator[bytes]:
    """Yield the lines of one page after the other."""
    key_of = attrgetter(attrs.fields(route.state)[0].name)
    kept = [condition.filter.keeps for condition in conditions if condition.filter.keeps is not None]
    after: str | None = None
    while True:
        states, examined_to = await service.search(
            route.state, conditions, after=after, limit=PAGE, newest_first=route.newest_first
        )
        shown = [route.show(state) for state in states if all(keeps(state) for keeps in kept)]
        yield b"".join(orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in shown if each is not None)
        if len(states) < PAGE and examined_to is None:
            return
        after = examined_to if len(states) < PAGE else key_of(states[-1])


async def write_lines(response: web.StreamResponse, lines: bytes) -> None:
    """
    Send *lines*, which may be empty.

    Raises:
        TimeoutError: The client has not taken them within `SEND_SECONDS_MAX`.
    """
    if lines:
        async with asyncio.timeout(SEND_SECONDS_MAX):
            await response.write(lines)


def break_off(request: web.Request) -> None:
    """Close the connection without the end of the body: what has arrived must not look complete."""
    if request.transport is not None:
        request.transport.abort()


