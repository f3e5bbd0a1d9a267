"""Idempotency keys: one key, one effect, one response."""

from __future__ import annotations

import asyncio

import pytest

from tests.web.conftest import KEY, Start, Web

NEW = {"owner": "o", "items": [{"n": 2}]}


async def test_the_same_key_and_body_get_the_same_response(web: Web) -> None:
    """The second request has no effect and is marked as a replay; member order and whitespace make no difference."""
    first = await web.request("POST", "/v1/shipments", json=NEW, headers={"Idempotency-Key": "k"})
    body = b'{ "items": [{"n": 2}], "owner": "o" }'
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    second = await web.request("POST", "/v1/shipments", data=body, headers=headers)
    assert (first.status, first.body, first.headers["Location"]) == (202, second.body, second.headers["Location"])
    assert second.status == 202
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert len(web.service.submitted) == 1


async def test_fifty_concurrent_requests_with_one_key_have_one_effect(web: Web) -> None:
    """All of them get the same response."""
    responses = await asyncio.gather(
        *(web.request("POST", "/v1/shipments", json=NEW, headers={"Idempotency-Key": "k"}) for _ in range(50))
    )
    assert len({response.json["shipment_id"] for response in responses}) == 1
    assert len(web.service.submitted) == 1


async def test_the_same_key_with_another_body_is_422(web: Web) -> None:
    """A key belongs to the request that used it first."""
    await web.request("POST", "/v1/shipments", json=NEW, headers={"Idempotency-Key": "k"})
    response = await web.request("POST", "/v1/shipments", json={**NEW, "owner": "p"}, headers={"Idempotency-Key": "k"})
    assert (response.status, response.json["code"]) == (422, "idempotency_key_reused")


async def test_a_rejection_is_replayed_too(web: Web) -> None:
    """The first response is final, also if it is a business rejection."""
    for replayed in (None, "true"):
        response = await web.request("POST", "/v1/shipments/none/move", headers={"Idempotency-Key": "k"})
        assert (response.status, response.headers.get("Idempotency-Replayed")) == (404, replayed)


async def test_a_key_is_scoped_to_its_route_and_path(web: Web) -> None:
    """The same key on another route or another path is a different key."""
    await web.request("PUT", "/v1/shipments/a", json={"owner": "o"})
    await web.request("PUT", "/v1/shipments/b", json={"owner": "o"})
    for path in ("/v1/shipments/a/move", "/v1/shipments/b/move", "/v1/shipments"):
        response = await web.request(
            "POST", path, json=NEW if path == "/v1/shipments" else {}, headers={"Idempotency-Key": "k"}
        )
        assert response.status < 300
        assert "Idempotency-Replayed" not in response.headers


async def test_a_key_is_scoped_to_its_route_even_with_equal_path_parameters(web: Web) -> None:
    """The key that the service receives depends on method and path template, not only on the path parameters."""
    await web.request("PUT", "/v1/shipments/a", json={"owner": "o"})
    for path in ("/v1/shipments/a/move", "/v1/shipments/a/return"):
        assert (await web.request("POST", path, headers={"Idempotency-Key": "k"})).status == 200
    assert len(web.service.idempotent_replies) == 2


async def test_a_key_is_scoped_to_its_caller(start: Start) -> None:
    """Two callers may use the same key; the service receives a hash that contains neither of them in clear text."""
    web = await start(requires_key=True)
    bearer = {"Authorization": f"Bearer {KEY}"}
    await web.request("POST", "/v1/shipments", json=NEW, headers={**bearer, "Idempotency-Key": "k"})
    open_web = await start()
    await open_web.request("POST", "/v1/shipments", json=NEW, headers={"Idempotency-Key": "k"})
    (caller_key,), (anonymous_key,) = web.service.idempotent_replies, open_web.service.idempotent_replies
    assert caller_key != anonymous_key
    assert len(caller_key) == len(anonymous_key) == 64


@pytest.mark.parametrize(
    "key", ["k", "!~", "x" * 255, 'a"b', "a\\b", '"k"', '"a\\"b"', '"a\\\\b"', '"' + "x" * 255 + '"']
)
async def test_a_valid_key_is_accepted(web: Web, key: str) -> None:
    """1 to 255 visible ASCII characters, quoted or bare."""
    for _ in range(2):
        response = await web.request("POST", "/v1/shipments", json=NEW, headers={"Idempotency-Key": key})
        assert response.status == 202
    assert len(web.service.submitted) == 1


async def test_the_quotes_are_not_part_of_a_key(web: Web) -> None:
    """The quoted and the bare form are the same key."""
    for key in ("k\\", '"k\\\\"'):
        response = await web.request("POST", "/v1/shipments", json=NEW, headers={"Idempotency-Key": key})
        assert response.status == 202
    assert len(web.service.submitted) == 1


INVALID = ["", '""', '"', '"k', "a b", '"a b"', "x" * 256, '"' + "x" * 256 + '"', "ä", '"k";a=1', '"a\\b"']


@pytest.mark.parametrize("key", INVALID)
async def test_an_invalid_key_is_400(web: Web, key: str) -> None:
    """The request is rejected before it has any effect."""
    response = await web.request("POST", "/v1/shipments", json=NEW, headers={"Idempotency-Key": key})
    assert (response.status, response.json["code"]) == (400, "invalid_idempotency_key")
    assert web.service.submitted == []


async def test_two_keys_in_one_request_are_400(web: Web) -> None:
    """The server does not choose one of them."""
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b"), ("Content-Type", "application/json")]
    response = await web.request("POST", "/v1/shipments", data=b"{}", headers=headers)
    assert (response.status, response.json["code"]) == (400, "invalid_idempotency_key")


async def test_a_route_without_idempotency_keys_ignores_the_header(web: Web) -> None:
    """PUT is idempotent by itself; even an invalid key is not looked at."""
    for _ in range(2):
        headers = {"Idempotency-Key": "not valid"}
        response = await web.request("PUT", "/v1/shipments/p", json={"owner": "o"}, headers=headers)
        assert response.status == 200
    assert web.service.idempotent_replies == {}
