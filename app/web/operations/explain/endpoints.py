"""The endpoints that explain an order, and the records of one process about it."""

from __future__ import annotations

__all__ = ["route_group"]

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import hdrs, web

from app.web.handler import Endpoint, RequestContext, RouteGroup
from app.web.operations.explain.explanation import RECORDS_PATH, Explainer, OrderUnreachable
from app.web.operations.explain.records import OrderRecords
from app.web.operations.explain.spec import EXPLAIN_PATH, EXPORT_PATH, description
from app.web.requests.one_module import MODULE, require_module
from app.web.requests.parameters import path_parameters, read_query
from app.web.responses.problems import ProblemError, invalid_input
from app.web.responses.success import json_response
from bus.errors import SchemaViolation

LIST_MAX = 500


def route_group(
    explainer: Explainer, records: OrderRecords, gateway: Callable[[], dict[str, Any]] | None, *, has_orders: bool
) -> RouteGroup:
    """
    Return the endpoints of *explainer* and *records*; *gateway* returns what the overview shows of the payment provider.

    Without *has_orders* this process explains no order: it neither runs the module orders nor knows its address.
    """

    async def explain(request: web.Request, context: RequestContext) -> web.Response:
        read_query(request, ())
        return json_response(await explained(explainer, request, context))

    async def export(request: web.Request, context: RequestContext) -> web.Response:
        read_query(request, ())
        found = await explained(explainer, request, context, has_states=True)
        if found["unreachable"]:
            names = " and ".join(found["unreachable"])
            detail = f"The export would not be complete without {names}: no answer."
            raise ProblemError(503, "module_unreachable", detail, {"unreachable": found["unreachable"]}, {hdrs.RETRY_AFTER: "2"})
        name = re.sub(r"[^A-Za-z0-9-]", "", found["order_id"])
        return json_response(found, headers={hdrs.CONTENT_DISPOSITION: f'attachment; filename="order-{name}.json"'})

    async def own(request: web.Request, context: RequestContext) -> web.Response:
        query = read_query(request, {MODULE.name, "moments", "events", "states"})
        module = query.get(MODULE.name)
        require_module(module, records.modules)
        moments, ids = _moments(query.get("moments")), _listed(query.get("events"))
        found = await records.of(_order_id(request), moments, ids, has_states=query.get("states") == "true")
        if "payments" in found and gateway is not None:
            found["payments"]["gateway"] = gateway()
        return json_response({"modules": found if module is None else {module: found[module]}})

    endpoints = [Endpoint(hdrs.METH_GET, RECORDS_PATH, own, roles=("viewer",))]
    if has_orders:
        endpoints.append(Endpoint(hdrs.METH_GET, EXPLAIN_PATH, explain, roles=("shop", "viewer"), is_scoped=True))
        endpoints.append(Endpoint(hdrs.METH_GET, EXPORT_PATH, export, roles=("viewer",)))
    return RouteGroup(tuple(endpoints), description(has_orders=has_orders))


async def explained(
    explainer: Explainer, request: web.Request, context: RequestContext, *, has_states: bool = False
) -> dict[str, Any]:
    """
    Return the explanation of the order that *request* names.

    Raises:
        ProblemError: 404, there is none, or it belongs to another customer; 503, its process gives no answer.
    """
    try:
        found = await explainer.explain(_order_id(request), context.customer, has_states=has_states)
    except OrderUnreachable as error:
        detail = f"The process of orders gives no answer: {error.reason}."
        raise ProblemError(503, "module_unreachable", detail, {"unreachable": ["orders"]}, {hdrs.RETRY_AFTER: "2"}) from None
    if found is None:
        raise ProblemError(404, "not_found", "No resource has this id.")
    return found


def _order_id(request: web.Request) -> str:
    path = path_parameters(request)
    if path is None:
        raise ProblemError(404, "not_found", "No resource has this id.")
    return path["order_id"]


def _listed(text: str | None) -> list[str]:
    return [] if text is None else text.split(",")[:LIST_MAX]


def _moments(text: str | None) -> list[datetime]:
    try:
        return [datetime.fromisoformat(each).astimezone(UTC) for each in _listed(text)]
    except (ValueError, OverflowError):
        detail = "must be a list of times in RFC 3339, separated by commas"
        raise invalid_input("invalid_query", "The query has invalid parameters.", [SchemaViolation("/moments", detail)]) from None
