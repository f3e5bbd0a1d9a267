"""Keep a caller that is restricted to one customer to what belongs to that customer."""

from __future__ import annotations

__all__ = ["is_foreign", "is_scoped", "owned_only", "require_owned"]

from collections.abc import Mapping
from typing import Any

import attrs

from app.runtime.service import StateService
from app.web.responses.problems import ProblemError
from modules.routes import (
    OWNER,
    CommandRoute,
    ExportRoute,
    GetRoute,
    ImportRoute,
    ListRoute,
    ListStreamRoute,
    Route,
    StreamRoute,
)


def is_scoped(route: Route) -> bool:
    """Return whether *route* declares which customer its states belong to."""
    match route:
        case CommandRoute():
            return route.customer is not None or route.owned is not None
        case ImportRoute():
            return False
        case ExportRoute() | ListRoute() | ListStreamRoute():
            return any(filter.name == OWNER for filter in route.filters)
        case GetRoute() | StreamRoute():
            return OWNER in attrs.fields_dict(route.state)


def is_foreign(state: Any, customer: str | None) -> bool:
    """Return whether *state* belongs to another customer than the one to whom the caller is restricted, if it is."""
    return customer is not None and getattr(state, OWNER, None) != customer


def owned_only(query: dict[str, str], customer: str | None) -> dict[str, str]:
    """
    Return *query*, restricted to *customer* unless that is None.

    Raises:
        ProblemError: 403, the query names another customer.
    """
    if customer is None:
        return query
    if query.get(OWNER, customer) != customer:
        raise ProblemError(403, "forbidden", "This key may see one customer only, and not the one that the request names.")
    return {**query, OWNER: customer}


async def require_owned(
    service: StateService, route: CommandRoute, path: Mapping[str, str], body: Any, customer: str
) -> None:
    """
    Ensure that a command is about *customer*.

    Raises:
        ProblemError: 403, the body names another customer; 404, the state belongs to another one, and the answer does not reveal that it exists.
    """
    if route.customer is not None and (body or {}).get(route.customer) != customer:
        raise ProblemError(403, "forbidden", f"This key may act for one customer only; {route.customer} names another.")
    if route.owned is not None:
        (key,) = path.values()
        state = await service.get(route.owned, key)
        if state is None or is_foreign(state, customer):
            raise ProblemError(404, "not_found", "No resource has this id.")
