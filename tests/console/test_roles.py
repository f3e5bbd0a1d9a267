"""
Every role against every page of the console.

The pages are those of the running program, so that a page without a decision fails here.
"""

from __future__ import annotations

import re

from tests.console.conftest import Served

ONE_CUSTOMER = "web-1"
"""The name of a key of the role shop that is restricted to one customer."""

VIEWER, SHOP, STOCK, METRICS = {"viewer"}, {"shop", ONE_CUSTOMER}, {"stock"}, {"metrics"}
EVERYONE = VIEWER | SHOP | STOCK | METRICS
OPERATOR_ONLY: set[str] = set()

PERMISSIONS = {
    "GET /console": EVERYONE,  # leads a role to the first screen that it may see
    "GET /console/live": VIEWER | METRICS,
    "POST /console/logout": EVERYONE,
    "GET /console/{a}": EVERYONE,  # 404
    "GET /console/{a}/{b}": EVERYONE,
    "GET /console/orders": VIEWER | SHOP,
    "GET /console/orders/live": VIEWER | SHOP,
    "GET /console/orders/export": VIEWER | SHOP,
    "GET /console/orders/{order_id}": VIEWER | SHOP,
    "GET /console/orders/{order_id}/live": VIEWER | SHOP,
    "GET /console/orders/{order_id}/export": VIEWER,
    "GET /console/orders/{order_id}/cancel": SHOP,
    "POST /console/orders/{order_id}/cancel": SHOP,
    "GET /console/orders/{order_id}/refund": OPERATOR_ONLY,  # money leaves the account
    "POST /console/orders/{order_id}/refund": OPERATOR_ONLY,
    "GET /console/orders/{order_id}/settle": OPERATOR_ONLY,
    "POST /console/orders/{order_id}/settle": OPERATOR_ONLY,
    "GET /console/orders/{order_id}/replay/{letter}": OPERATOR_ONLY,
    "POST /console/orders/{order_id}/replay/{letter}": OPERATOR_ONLY,
    "GET /console/stock": VIEWER | STOCK,
    "POST /console/stock": STOCK,
    "GET /console/stock/{product_id}": VIEWER | STOCK,
    "POST /console/stock/{product_id}/adjust": STOCK,
    "POST /console/stock/{product_id}/restock": STOCK,
    "POST /console/stock/{product_id}/set": STOCK,
    "GET /console/trouble": VIEWER,
    "GET /console/trouble/live": VIEWER,
    "GET /console/trouble/group": VIEWER,
    "GET /console/trouble/many": OPERATOR_ONLY,
    "POST /console/trouble/many": OPERATOR_ONLY,
    "POST /console/trouble/selected": OPERATOR_ONLY,
    "POST /console/trouble/settle": OPERATOR_ONLY,
    "GET /console/trouble/{module}/{id}": VIEWER,
    "POST /console/trouble/{module}/{id}/replay": OPERATOR_ONLY,
    "POST /console/trouble/{module}/{id}/edit": OPERATOR_ONLY,
    "POST /console/trouble/{module}/{id}/discard": OPERATOR_ONLY,
    "GET /console/system": VIEWER,
    "GET /console/system/live": VIEWER,
    "GET /console/system/audit": VIEWER,
    "GET /console/analytics": VIEWER,
    "GET /console/analytics/live": VIEWER,
}
"""The keys beside the operator's that may ask for each page. HEAD is decided as GET is."""


def routes(served: Served) -> list[tuple[str, str]]:
    """Return method and path template of every page that needs a session."""
    app = served.application._web.app
    assert app is not None
    found = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
    public = ("/console/static/", "/console/login")
    return sorted((method, path) for method, path in found if path.startswith("/console") and not path.startswith(public))


async def test_every_page_has_a_decision_and_a_session_that_may_not_is_refused(served: Served) -> None:
    """Without a session every page leads to the log-in. A form lacks its token here, so that no allowed one does anything."""
    pages = [(method, path) for method, path in routes(served) if method in ("HEAD", "POST")]
    assert {f"{method.replace('HEAD', 'GET')} {path}" for method, path in pages} == set(PERMISSIONS)
    stranger = served.browser()
    for method, path in pages:
        seen = await stranger.send(method, re.sub(r"{\w+}", "x", path))
        assert (seen.status, seen.headers["Location"].startswith("/console/login")) == (303, True), (method, path)
    for name in sorted({"operator", *EVERYONE}):
        browser = await served.as_role(name)
        for method, path in pages:
            seen = await browser.send(method, re.sub(r"{\w+}", "x", path))
            is_allowed = name == "operator" or name in PERMISSIONS[f"{method.replace('HEAD', 'GET')} {path}"]
            if method == "HEAD":
                assert (seen.status != 403) is is_allowed, (name, path, seen.status)
            else:
                assert seen.status == 403, (name, path, seen.status)
                assert ("nothing was done" in seen.words) is is_allowed, (name, path, seen.words)
