"""Now: what needs attention, the state of everything that orders depend on, and the last hour."""

from __future__ import annotations

__all__ = ["SCREEN", "build"]

from collections.abc import Mapping
from typing import Any

from aiohttp import hdrs, web

from app.web.console.frame import Page, Screen, Visit, body_of
from app.web.console.screens.curves import HEIGHT, WIDTH, curves
from app.web.console.screens.parts import ScreenParts, Sources
from config.api_keys import ApiKey
from modules.orders.state import Status

SCREEN = Screen("now", "Now", "/console", ("viewer", "metrics"))

ACT: Mapping[str, tuple[str, str]] = {
    "BreakerOpen": ("/console/orders?waiting_for=payment", "Orders that wait for the provider"),
    "DeadLetters": ("/console/trouble", "Dead letters"),
    "GatewayMisconfigured": ("/console/orders?waiting_for=payment", "Orders that wait for the provider"),
    "MessagesLate": ("/console/orders?status=processing&status=reserved", "Orders in flight"),
    "ModuleUnreachable": ("/console/system", "System"),
    "OrdersSlow": ("/console/orders?status=processing&status=reserved", "Orders in flight"),
    "PaymentsFailing": ("/console/orders?waiting_for=payment", "Orders that wait for the provider"),
    "PaymentsToSettle": ("/console/trouble", "Payments to settle"),
    "RetiredVersionNeeded": ("/console/system", "System"),
    "StockOut": ("/console/stock", "Stock"),
    "TopologyDrift": ("/console/system", "System"),
}
"""Where the console helps, by the name of what needs attention: the page and its name."""

_ENDED = (Status.CONFIRMED.value, Status.CANCELLED.value)
_READER = ApiKey("console", "viewer")


def build(sources: Sources) -> ScreenParts:
    """Return the screen."""
    samples, live, rendering = sources.samples, sources.live, sources.rendering

    async def show(visit: Visit) -> web.StreamResponse:
        if not visit.may(*SCREEN.roles):
            return visit.redirect(visit.frame.home(visit.key))
        overview = await visit.ask("GET", "/v1/overview") if visit.may("viewer") else None
        return visit.page("now.html", **_context(overview, visit.frame))

    def _context(overview: Any, frame: Any) -> dict[str, Any]:
        return {
            "overview": overview,
            "in_flight": {} if overview is None else _in_flight(overview),
            "curves": curves(samples.points),
            "width": WIDTH,
            "height": HEIGHT,
            "act": ACT,
            "paths": {screen.path for screen in frame.screens},
        }

    async def follow(visit: Visit) -> web.StreamResponse:
        """Send what the overview shows, and the curves, after each change."""
        sees_all, frame = visit.may("viewer"), visit.frame

        async def fetch() -> Any:
            overview = None
            if sees_all:
                answer = await sources.api.request("GET", "/v1/overview", principal=_READER)
                overview = body_of(answer)
            return overview, samples.points[-1:]

        def render(state: Any) -> Mapping[str, str]:
            overview, _ = state
            context = _context(overview, frame)
            return {
                "state": rendering.render("now_state.html", **context),
                "curves": rendering.render("now_curves.html", **context),
            }

        return await live.stream(visit, ("now", sees_all), fetch, render)

    roles = ("viewer", "metrics", "shop", "stock")
    return ScreenParts(
        SCREEN,
        (
            Page(hdrs.METH_GET, SCREEN.path, show, SCREEN, roles, is_scoped=True),
            Page(hdrs.METH_GET, f"{SCREEN.path}/live", follow, SCREEN),
        ),
    )


def _in_flight(overview: Any) -> dict[str, int]:
    """Return how many orders are in each status that is not an end; empty if that is unknown."""
    by_status = overview["orders"]["by_status"] or {}
    return {status: count for status, count in by_status.items() if status not in _ENDED}
