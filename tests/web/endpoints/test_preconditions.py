"""Entity tags and preconditions of products, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from modules import inventory
from tests.web.conftest import Response, Start, Web

PRODUCT = {"on_hand": 100, "unit_price": {"amount": 1250, "currency": "EUR"}}
PATH = "/v1/inventory/SKU-1"


@pytest.fixture
async def web(start: Start) -> Web:
    return await start(module=inventory.module())


async def put(web: Web, body: Any = PRODUCT, **headers: str) -> Response:
    return await web.request("PUT", PATH, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


async def test_every_answer_with_a_product_has_its_tag(web: Web) -> None:
    """Whether it was set, changed, counted or read; the tag changes with the product and only with it."""
    tags = [(await put(web)).headers["ETag"]]
    for method, path, body in (
        ("PATCH", PATH, {"name": "Teapot"}),
        ("POST", f"{PATH}/adjust", {"quantity": -3, "reason": "damaged"}),
        ("POST", f"{PATH}/restock", {"quantity": 3}),
    ):
        tags.append((await web.request(method, path, json=body)).headers["ETag"])
        assert (await web.request("GET", PATH)).headers["ETag"] == tags[-1]
        assert (await web.request("HEAD", PATH)).headers["ETag"] == tags[-1]
    assert len(set(tags)) == 3
    assert tags[1] == tags[3]  # 100 pieces named Teapot, twice


async def test_a_price_is_changed_without_the_stock(web: Web) -> None:
    """PATCH takes what it changes, and at least one of both."""
    await put(web)
    changed = await web.request("PATCH", PATH, json={"unit_price": {"amount": 1350, "currency": "EUR"}})
    assert (changed.status, changed.json["unit_price"]["amount"], changed.json["on_hand"]) == (200, 1350, 100)
    for body in ({}, {"on_hand": 5}, {"unit_price": None}, {"unit_price": {"amount": 1}}):
        assert (await web.request("PATCH", PATH, json=body)).status == 400
    assert (await web.request("PATCH", "/v1/inventory/none", json={"name": "x"})).json["code"] == "product_not_found"


async def test_stock_is_adjusted_by_a_signed_quantity_with_a_reason(web: Web) -> None:
    """Once for each Idempotency-Key, and never below what is reserved."""
    await put(web)
    taken = {"quantity": -3, "reason": "damaged"}
    for _ in range(2):
        adjusted = await web.request("POST", f"{PATH}/adjust", json=taken, headers={"Idempotency-Key": "k"})
        assert (adjusted.status, adjusted.json["on_hand"]) == (200, 97)
    below = await web.request("POST", f"{PATH}/adjust", json={"quantity": -98, "reason": "lost"})
    assert (below.status, below.json["code"]) == (409, "below_reserved")
    above = await web.request("PUT", PATH, json={**PRODUCT, "on_hand": 10**15})
    assert above.status == 200
    above = await web.request("POST", f"{PATH}/restock", json={"quantity": 1})
    assert (above.status, above.json["code"]) == (409, "above_maximum")
    for body in ({"quantity": 0, "reason": "x"}, {"quantity": -3}, {"quantity": -3, "reason": ""}, {"quantity": 1.5, "reason": "x"}):
        assert (await web.request("POST", f"{PATH}/adjust", json=body)).status == 400
    assert (await web.request("POST", "/v1/inventory/none/adjust", json=taken)).status == 404


async def test_a_stale_put_is_412(web: Web) -> None:
    """If-Match has to name the present representation, and nothing is written otherwise."""
    read = (await put(web)).headers["ETag"]
    await web.request("POST", f"{PATH}/adjust", json={"quantity": -30, "reason": "sold elsewhere"})
    stale = await put(web, If_Match=read)
    assert (stale.status, stale.json["code"]) == (412, "precondition_failed")
    fresh = await web.request("GET", PATH)
    assert fresh.json["on_hand"] == 70
    assert (await put(web, If_Match=fresh.headers["ETag"])).status == 200


@pytest.mark.parametrize(
    ("name", "value", "exists", "status"),
    [
        ("If_Match", "*", True, 200),
        ("If_Match", "*", False, 412),
        ("If_None_Match", "*", False, 200),
        ("If_None_Match", "*", True, 412),
        ("If_Match", '"x", W/"y" , {tag}', True, 200),
        ("If_Match", "W/{tag}", True, 412),
        ("If_None_Match", "W/{tag}", True, 412),
        ("If_None_Match", '"x"', True, 200),
        *((name, value, True, 400) for name in ("If_Match", "If_None_Match") for value in ("", "x", "{tag} {tag}", '*, "x"', '"', "'x'")),
        ("If_Match", ", ".join(['"x"'] * 101), True, 400),
    ],
)
async def test_preconditions_are_honoured(web: Web, name: str, value: str, exists: bool, status: int) -> None:
    """As RFC 9110 says; a header that is neither * nor a list of tags is refused, not ignored."""
    tag = (await put(web)).headers["ETag"]
    if not exists:
        web.service.states.clear()
    response = await put(web, {**PRODUCT, "on_hand": 5}, **{name: value.replace("{tag}", tag)})
    assert response.status == status
    if status == 400:
        assert response.json["code"] == "invalid_precondition"


@pytest.mark.parametrize(("name", "status"), [("If-Match", 200), ("If-None-Match", 304)])
@pytest.mark.parametrize("order", [1, -1])
async def test_tags_may_stand_in_several_lines(web: Web, name: str, status: int, order: int) -> None:
    """Lines of one header are one list (RFC 9110, section 5.3)."""
    tag = (await put(web)).headers["ETag"]
    response = await web.request("GET", PATH, headers=[(name, value) for value in ('"x"', tag)[::order]])
    assert response.status == status


async def test_a_product_that_is_known_is_not_sent_again(web: Web) -> None:
    """GET with If-None-Match answers 304 without a body; with If-Match 412 if the product has changed."""
    tag = (await put(web)).headers["ETag"]
    known = await web.request("GET", PATH, headers={"If-None-Match": tag})
    assert (known.status, known.body, known.headers["ETag"]) == (304, b"", tag)
    assert (await web.request("GET", PATH, headers={"If-None-Match": '"other"'})).status == 200
    assert (await web.request("GET", PATH, headers={"If-Match": '"other"'})).status == 412


async def test_a_precondition_can_be_required(start: Start) -> None:
    """PUT without one is 428 then; PATCH and adjust are safe without."""
    web = await start(module=inventory.module(requires_precondition=True))
    refused = await put(web)
    assert (refused.status, refused.json["code"]) == (428, "precondition_required")
    created = await put(web, If_None_Match="*")
    assert (await put(web, If_Match=created.headers["ETag"])).status == 200
    assert (await web.request("PATCH", PATH, json={"name": "x"})).status == 200
