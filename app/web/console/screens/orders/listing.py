"""Orders: search, filters, pages, live updates, and the export of what the filters select."""

from __future__ import annotations

__all__ = ["FIELDS", "SCREEN", "STATES", "build"]

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson
from aiohttp import hdrs, web
from attrs import frozen

from app.web.console.frame import Page, Screen, Visit, body_of
from app.web.console.screens.orders import one_order
from app.web.console.screens.parts import ScreenParts, Sources
from app.web.responses.problems import ProblemError
from app.web.responses.success import UNCACHED
from app.web.streams.list_export import break_off, write_lines
from config.api_keys import ApiKey
from modules.orders.routes import REASONS

SCREEN = Screen("orders", "Orders", "/console/orders", ("viewer", "shop"))

STATES: Mapping[str, str] = {"processing": "busy", "reserved": "busy", "confirmed": "good", "cancelled": "idle"}
"""The kind of each status, for its shape and colour."""

PAGE_MAX = 50
_EXPORT_PAGE = 200
_LOCAL_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?")


@frozen
class Field:
    """A filter of the API, as a field of the form."""

    name: str
    label: str
    kind: str = "text"
    """text, number, datetime-local, or choice."""
    choices: tuple[str, ...] = ()
    takes_many: bool = False


FIELDS = (
    Field("q", "Id begins with"),
    Field("status", "Status", "choice", tuple(STATES), takes_many=True),
    Field("waiting_for", "Waits for", "choice", ("payment",)),
    Field("reason", "Cancelled because", "choice", REASONS),
    Field("customer_id", "Customer"),
    Field("product_id", "Product"),
    Field("correlation_id", "Correlation id"),
    Field("created_after", "Placed at or after (UTC)", "datetime-local"),
    Field("created_before", "Placed before (UTC)", "datetime-local"),
    Field("min_total", "Total from (minor units)", "number"),
    Field("max_total", "Total to (minor units)", "number"),
)
"""Every filter of ``GET /v1/orders``."""


def read_filters(visit: Visit) -> dict[str, str]:
    """Return the filters that the address has; a time without an offset is in UTC."""
    found = {}
    for field in FIELDS:
        values = [value.strip() for value in visit.request.query.getall(field.name, ()) if value.strip()]
        if values:
            found[field.name] = ",".join(values)
            if field.kind == "datetime-local" and _LOCAL_TIME.fullmatch(values[0]):
                found[field.name] = f"{values[0]}{':00' if values[0].count(':') == 1 else ''}Z"
    return found


def shown_filters(filters: Mapping[str, str]) -> dict[str, Any]:
    """Return *filters* as the form shows them: sets of choices, and times without their offset."""
    found: dict[str, Any] = {}
    for field in FIELDS:
        value = filters.get(field.name, "")
        if field.kind == "choice":
            found[field.name] = set(value.split(","))
        else:
            found[field.name] = value.removesuffix("Z") if field.kind == "datetime-local" else value
    return found


def build(sources: Sources) -> ScreenParts:
    """Return the screen."""
    api, live, rendering = sources.api, sources.live, sources.rendering

    async def show(visit: Visit) -> web.StreamResponse:
        filters, cursor = read_filters(visit), visit.query.get("cursor", "")
        query = {**filters, "limit": PAGE_MAX, **({"cursor": cursor} if cursor else {})}
        found = await visit.ask("GET", "/v1/orders", query=query)
        return visit.page(
            "orders/list.html",
            items=found["items"],
            next_cursor=found["next_cursor"],
            cursor=cursor,
            fields=FIELDS,
            filters=filters,
            shown=shown_filters(filters),
            states=STATES,
        )

    async def follow(visit: Visit) -> web.StreamResponse:
        """Send the first page of what the filters select, after each change."""
        filters = read_filters(visit)
        await visit.ask("GET", "/v1/orders", query={**filters, "limit": 1})  # a wrong filter is refused here
        # One reading for all who may see the same: of a role, and of the customer to whom a key is restricted.
        reader = ApiKey("console", visit.key.role, customer=visit.key.customer)
        key = ("orders", reader.role, reader.customer, tuple(sorted(filters.items())))
        return await live.stream(visit, key, partial(_first_page, reader, filters), _rows)

    async def _first_page(reader: ApiKey, filters: Mapping[str, str]) -> Any:
        answer = await api.request("GET", "/v1/orders", query={**filters, "limit": PAGE_MAX}, principal=reader)
        return body_of(answer)["items"]

    def _rows(items: Any) -> Mapping[str, str]:
        return {"orders": rendering.render("orders/rows.html", items=items, states=STATES)}

    return ScreenParts(
        SCREEN,
        (
            Page(hdrs.METH_GET, SCREEN.path, show, SCREEN, is_scoped=True),
            Page(hdrs.METH_GET, f"{SCREEN.path}/live", follow, SCREEN, is_scoped=True),
            Page(hdrs.METH_GET, f"{SCREEN.path}/export", _export, SCREEN, is_scoped=True),
            *one_order.pages(sources, SCREEN, STATES),
        ),
    )


async def _export(visit: Visit) -> web.StreamResponse:
    """Send all orders that the filters select, one a line (NDJSON), page by page; break the connection off if that fails."""
    filters = read_filters(visit)
    page = await visit.ask("GET", "/v1/orders", query={**filters, "limit": _EXPORT_PAGE})
    response = web.StreamResponse(
        headers={
            **UNCACHED,
            hdrs.CONTENT_TYPE: "application/x-ndjson",
            hdrs.CONTENT_DISPOSITION: 'attachment; filename="orders.ndjson"',
        }
    )
    visit.record_now(response.status)
    await response.prepare(visit.request)
    try:
        while True:
            await write_lines(response, b"".join(orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in page["items"]))
            if page["next_cursor"] is None:
                break
            page = await visit.ask("GET", "/v1/orders", query={**filters, "limit": _EXPORT_PAGE, "cursor": page["next_cursor"]})
        await response.write_eof()
    except (ConnectionError, TimeoutError, ProblemError):
        break_off(visit.request)
    return response
