"""One order: where it stands in a sentence, the tree of its events, its payment, reservation, dead letters and audit."""

from __future__ import annotations

__all__ = ["pages"]

from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

import orjson
from aiohttp import hdrs, web

from app.web.console.frame import Page, Screen, Visit, body_of
from app.web.console.screens.orders.actions import ACTIONS, DONE, action_pages
from app.web.console.screens.orders.graph import draw
from app.web.console.screens.parts import Sources
from app.web.operations.module_api import ApiAnswer
from app.web.responses.success import UNCACHED
from config.api_keys import OPERATOR, ApiKey

_ENDED = ("confirmed", "cancelled")
_LETTERS = "/console/trouble"
"""The screen that shows dead letters."""

_HIDDEN = frozenset({"timeline", "updated_at"})
"""Members of a change that the page leaves out: they change with every other one."""


def pages(sources: Sources, screen: Screen, states: Mapping[str, str]) -> tuple[Page, ...]:
    """Return the pages of an order, which belong to *screen*; *states* gives the kind of each status."""
    path = f"{screen.path}/{{order_id}}"
    api, live, rendering = sources.api, sources.live, sources.rendering

    async def read(key: ApiKey, order_id: str) -> ApiAnswer:
        """Return the explanation of the order, or the order alone if the role may not see the explanation."""
        address = f"/v1/orders/{quote(order_id, safe='')}"
        answer = await api.request("GET", f"{address}/explain", principal=key)
        if answer.status != 403:
            return answer
        answer = await api.request("GET", address, principal=key)
        if answer.is_success:
            return ApiAnswer(answer.status, answer.headers, {"order": answer.body, "status": answer.body["status"]})
        return answer

    def context(key: ApiKey, body: Any, dead_letters_at: str | None) -> dict[str, Any]:
        order, events = body.get("order"), body.get("events")
        return {
            "found": body,
            "order": order,
            "events": events,
            "graph": draw(events, body["timers"], api.modules) if events else None,
            "states": states,
            "changes": {record["id"]: changes(record) for record in body.get("audit", ())},
            "actions": [action for action in ACTIONS if action.is_offered(key, body)],
            "dead_letters_at": dead_letters_at,
            "may_replay": key.role == OPERATOR,
            "may_export": key.role in (OPERATOR, "viewer"),
        }

    async def show(visit: Visit) -> web.StreamResponse:
        body = body_of(await read(visit.key, visit.path["order_id"]))
        is_live = body["status"] not in _ENDED or body.get("waiting_for") is not None
        return visit.page(
            "orders/one.html",
            order_id=visit.path["order_id"],
            is_live=is_live,
            done=DONE.get(visit.query.get("done", "")),
            **context(visit.key, body, _place(visit)),
        )

    async def follow(visit: Visit) -> web.StreamResponse:
        """Send what the page shows, after each change."""
        order_id, key = visit.path["order_id"], visit.key
        # One reading for all who may see the same: of a role, and of the customer to whom a key is restricted.
        reader = ApiKey("console", key.role, customer=key.customer)
        body_of(await read(key, order_id))  # an order that the caller may not see is refused here

        async def fetch() -> Any:
            return body_of(await read(reader, order_id))

        render = partial(_render, _place(visit), order_id, reader)
        return await live.stream(visit, ("order", order_id, reader.role, reader.customer), fetch, render)

    def _render(dead_letters_at: str | None, order_id: str, reader: ApiKey, body: Any) -> Mapping[str, str]:
        return {"order": rendering.render("orders/state.html", order_id=order_id, **context(reader, body, dead_letters_at))}

    return (
        Page(hdrs.METH_GET, path, show, screen, is_scoped=True),
        Page(hdrs.METH_GET, f"{path}/live", follow, screen, is_scoped=True),
        Page(hdrs.METH_GET, f"{path}/export", _export, screen, roles=("viewer",)),
        *action_pages(screen, path, read),
    )


async def _export(visit: Visit) -> web.StreamResponse:
    """Send the order as a file that ``python -m app orders import`` takes."""
    order_id = visit.path["order_id"]
    body = await visit.ask("GET", f"/v1/orders/{quote(order_id, safe='')}/export")
    name = "".join(character for character in order_id if character.isalnum() or character in "-_")
    headers = {
        **UNCACHED,
        hdrs.CONTENT_TYPE: "application/json",
        hdrs.CONTENT_DISPOSITION: f'attachment; filename="order-{name}.json"',
    }
    return web.Response(body=orjson.dumps(body), headers=headers)


def changes(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what a record of the audit has changed: the name of each member, its value before, and its value after."""
    before, after = record["from"], record["to"]
    if not isinstance(before, Mapping | None) or not isinstance(after, Mapping | None):
        return [("", _text(before), _text(after))]
    before, after = before or {}, after or {}
    names = sorted({*before, *after} - _HIDDEN)
    return [(name, _text(before.get(name)), _text(after.get(name))) for name in names if before.get(name) != after.get(name)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "nothing" if value is None else orjson.dumps(value).decode()


def _place(visit: Visit) -> str | None:
    """Return the path below which the console shows dead letters, to one who may see them."""
    found = (screen.path for screen in visit.frame.screens if screen.path == _LETTERS and visit.may(*screen.roles))
    return next(found, None)
