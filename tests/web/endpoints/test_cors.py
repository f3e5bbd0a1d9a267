"""Cross-origin requests: pages of the origins that are named may call and read, others may not."""

from __future__ import annotations

import pytest

from tests.web.conftest import KEY, Start
from tests.web.example import Shipment

SHOP = "https://shop.example"
PREFLIGHT = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization,if-match"}


async def test_a_page_of_an_allowed_origin_may_read_every_answer(start: Start) -> None:
    """States, lists, refusals and streams; also on the paths that bypass the router."""
    web = await start(cors_origins=(SHOP, "http://127.0.0.1:3000"))
    web.service.put(Shipment(id="p", owner="o", pieces=1, place="delivered"))
    for path in ("/v1/shipments/p", "/v1/shipments", "/v1/shipments?limit=0", "/v1/shipments/p/stream", "/nothing", "/livez"):
        response = await web.request("GET", path, headers={"Origin": SHOP})
        assert response.headers.getall("Access-Control-Allow-Origin") == [SHOP], path
        assert "ETag" in response.headers["Access-Control-Expose-Headers"]
        assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", ["https://evil.example", "http://shop.example", "https://shop.example:8443", "null", None])
async def test_a_page_of_another_origin_may_not(start: Start, origin: str | None) -> None:
    """No header names it; ``Vary`` shows caches that the answer depends on the origin."""
    web = await start(cors_origins=(SHOP,))
    headers = {} if origin is None else {"Origin": origin}
    response = await web.request("GET", "/v1/shipments", headers=headers)
    assert (response.status, response.headers["Vary"]) == (200, "Origin")
    assert "Access-Control-Allow-Origin" not in response.headers
    asked = await web.request("OPTIONS", "/v1/shipments", headers={**headers, **PREFLIGHT})
    assert asked.status == 405
    assert "Access-Control-Allow-Origin" not in asked.headers


async def test_a_preflight_needs_no_key(start: Start) -> None:
    """Browsers send it without one; the request that follows needs it."""
    web = await start(requires_key=True, cors_origins=(SHOP,))
    for path in ("/v1/shipments", "/v1/shipments/p"):
        asked = await web.request("OPTIONS", path, headers={"Origin": SHOP, **PREFLIGHT})
        assert (asked.status, asked.body, asked.headers["Access-Control-Allow-Origin"]) == (204, b"", SHOP)
        assert "PUT" in asked.headers["Access-Control-Allow-Methods"]
        assert {"Authorization", "If-Match"} <= {*asked.headers["Access-Control-Allow-Headers"].split(", ")}
        assert "Access-Control-Allow-Credentials" not in asked.headers
    assert (await web.request("GET", "/v1/shipments", headers={"Origin": SHOP})).status == 401
    allowed = {"Origin": SHOP, "Authorization": f"Bearer {KEY}"}
    assert (await web.request("GET", "/v1/shipments", headers=allowed)).status == 200


async def test_without_origins_nothing_is_added(start: Start) -> None:
    """As before: no header for pages, and OPTIONS is no method of any path."""
    web = await start()
    response = await web.request("GET", "/v1/shipments", headers={"Origin": SHOP})
    assert not {"Vary", "Access-Control-Allow-Origin"} & {*response.headers}
    assert (await web.request("OPTIONS", "/v1/shipments", headers={"Origin": SHOP, **PREFLIGHT})).status == 405
