"""
Every role against every route.

The matrix is made of the routes of the running program, so that a route without a decision fails here.
"""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
from aiohttp.test_utils import make_mocked_request

from app.web.access.authentication import Authenticator
from app.web.access.gate import Gate
from app.web.responses.problems import ProblemError
from config.api_keys import ROLES, ApiKey
from modules.registry import MODULES
from tests.security.conftest import Program

PUBLIC = {
    "/", "/livez", "/readyz", "/health", "/metrics", "/openapi.json", "/asyncapi.json", "/docs", "/docs/{name}", "/console",
    "/console/{name}", "/v1/payments/webhooks/stripe",
}  # fmt: skip
"""Paths that need no key: probes, metrics, descriptions, the console's files, and what signs its requests itself."""

SHOP, STOCK, VIEWER = "shop", "stock", "viewer"

PERMISSIONS = {
    # orders
    "POST /v1/orders": {SHOP},
    "GET /v1/orders": {SHOP, VIEWER},
    "GET /v1/orders/{order_id}": {SHOP, VIEWER},
    "GET /v1/orders/{order_id}/stream": {SHOP, VIEWER},
    "GET /v1/orders/stream": {SHOP, VIEWER},
    "POST /v1/orders/{order_id}/cancel": {SHOP},
    "POST /v1/orders/{order_id}/refund": set(),  # money leaves the account
    "POST /v1/stream-tokens": {SHOP, VIEWER},
    # inventory
    "PUT /v1/inventory/{product_id}": {STOCK},
    "PATCH /v1/inventory/{product_id}": {STOCK},
    "PUT /v1/inventory": {STOCK},
    "POST /v1/inventory/import": {STOCK},
    "POST /v1/inventory/{product_id}/restock": {STOCK},
    "POST /v1/inventory/{product_id}/adjust": {STOCK},
    "GET /v1/inventory": {STOCK, VIEWER},
    "GET /v1/inventory/{product_id}": {STOCK, VIEWER},
    # payments
    "GET /v1/payments": {VIEWER},
    "GET /v1/payments/{order_id}": {VIEWER},
    "POST /v1/payments/{order_id}/settle": set(),
    # operation; dead letters hold customers' addresses, so only reading is for viewers
    "GET /v1/dead-letters": {VIEWER},
    "GET /v1/dead-letters/{id}": {VIEWER},
    "POST /v1/dead-letters/{id}/replay": set(),
    "POST /v1/dead-letters/replay": set(),
    "POST /v1/dead-letters/discard": set(),
    "GET /v1/dead-letters/groups": {VIEWER},
    "DELETE /v1/dead-letters/{id}": set(),
    "GET /v1/contracts": {VIEWER},
    "GET /v1/audit": {VIEWER},
    "GET /v1/history": {VIEWER},
    "GET /v1/orders/{order_id}/explain": {SHOP, VIEWER},
    "GET /v1/orders/{order_id}/export": {VIEWER},
    "GET /v1/orders/export": {SHOP, VIEWER},
    "GET /v1/order-records/{order_id}": {VIEWER},
    "GET /v1/overview": {VIEWER},
    "GET /v1/overview/stream": {VIEWER},
    "GET /v1/overview/process": {VIEWER},
    "GET /v1/system": {VIEWER},
}
"""The roles beside the operator's, by method and path. HEAD is decided as GET is."""


async def test_every_route_has_a_decision_and_every_role_gets_what_it_says(program: Program) -> None:
    """A role that may not is answered with 403 ``forbidden``, without a key with 401; a role that may with neither."""
    routes = {route for route in program.routes() if not is_of_fourth_module(route[1])}
    asked = set()
    for method, path in sorted(routes):
        target = path.replace("{order_id}", "o-1").replace("{product_id}", "p-1").replace("{id}", "d-1")
        if path in PUBLIC or path.startswith(("/docs", "/console")):
            assert (await program.send("", method, target)).status not in (401, 403), (method, path)
            continue
        route = decided(method, path)
        assert route in PERMISSIONS, f"{route}: decide here who may call it"
        asked.add(route)
        assert (await program.send("", method, target)).status == 401, (method, path)
        for role in ROLES:
            reply = await program.send(role, method, target)
            if role in {"operator", *PERMISSIONS[route]}:
                assert reply.status not in (401, 403), (role, method, path, reply.text)
            else:
                assert reply.status == 403, (role, method, path, reply.text)
                assert method == "HEAD" or reply.body["code"] == "forbidden"
    assert asked == set(PERMISSIONS)


def decided(method: str, path: str) -> str:
    """Return the key of `PERMISSIONS` for a route."""
    return f"{'GET' if method == 'HEAD' else method} {path}"


def is_of_fourth_module(path: str) -> bool:
    """Return whether a module that is not part of this project has the route; nothing is decided about it here."""
    others = set(MODULES) - {"inventory", "orders", "payments"}
    return any(path.startswith(f"/v1/{name}") for name in others)


async def test_a_key_of_one_customer_sees_and_places_orders_of_that_customer_only(program: Program) -> None:
    """Another customer's order does not exist for it, in any route; a list is restricted without being asked to."""
    price = {"on_hand": 10, "unit_price": {"amount": 100, "currency": "EUR"}}
    assert (await program.send("stock", "PUT", "/v1/inventory/SKU-1", price)).status == 200

    async def place(caller: str, customer: str) -> tuple[int, str]:
        body = {"customer_id": customer, "items": [{"product_id": "SKU-1", "quantity": 1}]}
        reply = await program.send(caller, "POST", "/v1/orders", body)
        return reply.status, reply.body.get("order_id") or reply.body["code"]

    assert await place("web-1", "c-2") == (403, "forbidden")
    mine, theirs = await place("web-1", "c-1"), await place("web-2", "c-2")
    assert (mine[0], theirs[0]) == (202, 202)
    for path in f"/v1/orders/{theirs[1]}", f"/v1/orders/{theirs[1]}/stream", f"/v1/orders/{theirs[1]}/explain":
        assert (await program.send("web-1", "GET", path)).status == 404
    assert (await program.send("web-1", "POST", f"/v1/orders/{theirs[1]}/cancel")).status == 404
    assert (await program.send("web-1", "GET", f"/v1/orders/{mine[1]}")).status == 200
    assert (await program.send("web-1", "GET", f"/v1/orders/{mine[1]}/explain")).status == 200
    for path in f"/v1/orders/{mine[1]}/export", f"/v1/order-records/{mine[1]}":
        assert (await program.send("web-1", "GET", path)).status == 403
    exported = (await program.send("web-1", "GET", "/v1/orders/export")).text.splitlines()
    assert [json.loads(line)["order_id"] for line in exported] == [mine[1]]
    assert (await program.send("web-1", "GET", "/v1/orders/export?customer_id=c-2")).status == 403
    listed = json.loads((await program.send("web-1", "GET", "/v1/orders")).text)["items"]
    assert [order["order_id"] for order in listed] == [mine[1]]
    assert (await program.send("web-1", "GET", "/v1/orders?customer_id=c-1")).status == 200
    assert (await program.send("web-1", "GET", "/v1/orders?customer_id=c-2")).status == 403
    everything = json.loads((await program.send("shop", "GET", "/v1/orders")).text)["items"]
    assert {order["order_id"] for order in everything} == {mine[1], theirs[1]}
    assert (await program.send("web-1", "POST", f"/v1/orders/{mine[1]}/cancel")).status == 202


def test_a_route_that_does_not_know_customers_is_refused_to_a_key_of_one() -> None:
    """Also where the role alone would be admitted: a new route for shops is closed to such a key until it restricts itself."""
    keys = {name: ApiKey(name, "shop", sha256(name.encode()).hexdigest(), customer) for name, customer in (("all", None), ("one", "c-1"))}
    gate = Gate(Authenticator(keys))
    for name, is_scoped, is_admitted in (("all", False, True), ("one", True, True), ("one", False, False)):
        request = make_mocked_request("GET", "/", {"Authorization": f"Bearer {name}"})
        if is_admitted:
            assert gate.admit(request, {"shop"}, is_scoped).name == name
        else:
            with pytest.raises(ProblemError, match="restricted to one customer"):
                gate.admit(request, {"shop"}, is_scoped)


async def test_a_key_of_one_customer_reaches_no_route_that_does_not_know_customers(program: Program) -> None:
    """What a role may do for all customers is refused to a key of one, unless the route restricts itself."""
    scoped = {
        "POST /v1/orders",
        "GET /v1/orders",
        "GET /v1/orders/{order_id}",
        "GET /v1/orders/{order_id}/stream",
        "GET /v1/orders/stream",
        "GET /v1/orders/{order_id}/explain",
        "GET /v1/orders/export",
        "POST /v1/orders/{order_id}/cancel",
        "POST /v1/stream-tokens",
    }
    for method, path in program.routes():
        if path in PUBLIC or path.startswith(("/docs", "/console")):
            continue
        target = path.replace("{order_id}", "o-1").replace("{product_id}", "p-1").replace("{id}", "d-1")
        reply = await program.send("web-1", method, target)
        assert (reply.status == 403) == (decided(method, path) not in scoped), (method, path, reply.status)
