"""The headers that keep answers out of caches, and browsers from taking an answer for a page."""

from __future__ import annotations

from tests.security.conftest import Program

DOCUMENTATION = "/docs"
"""Its files are the same for every caller, and may be cached."""


async def test_no_route_sends_data_that_a_cache_may_keep(program: Program) -> None:
    """Every route of the program that reads, with the streams; a route that is added is asked, too."""
    await program.send("stock", "PUT", "/v1/inventory/p", {"on_hand": 1, "unit_price": {"amount": 1, "currency": "EUR"}})
    body = {"customer_id": "c", "items": [{"product_id": "p", "quantity": 2}]}
    order_id = (await program.send("shop", "POST", "/v1/orders", body)).body["order_id"]
    ids = {"{order_id}": order_id, "{product_id}": "p", "{id}": "1"}
    sent = {}
    for method, template in program.routes():
        path = template
        for name, id in ids.items():
            path = path.replace(name, id)
        if method != "GET" or path == "/" or path.startswith(DOCUMENTATION):
            continue
        reply = await program.send("operator", "GET", path)
        sent[path] = (reply.headers.get("Cache-Control"), reply.headers.get("X-Content-Type-Options"))
    assert {path for path in sent if path.endswith(("/stream", "/asyncapi.json"))} != set()
    assert {path: found for path, found in sent.items() if found != ("no-store", "nosniff")} == {}
