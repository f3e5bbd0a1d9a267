"""Streams for browsers: a token in place of a key, and an end to reconnects."""

from __future__ import annotations

import asyncio

import pytest
from attrs import evolve

from app.web.access import stream_tokens
from config.api_keys import read_api_keys
from tests.web.conftest import KEY, Start, Web
from tests.web.example import Shipment

DONE = Shipment(id="p", owner="o", pieces=1, place="delivered")
PATH = "/v1/shipments/p/stream"
KEYS = f"shop:operator:{KEY}\nother:operator:another-key-of-another-caller\n"
BEARER = {"Authorization": f"Bearer {KEY}"}


async def token_of(web: Web) -> str:
    response = await web.request("POST", "/v1/stream-tokens", headers=BEARER)
    assert response.status == 200
    assert response.json.keys() == {"token", "expires_at"}
    token: str = response.json["token"]
    return token


async def last_id(web: Web) -> str:
    """Read the stream of a final state to its end; return the id of its only event."""
    response = await web.request("GET", PATH)
    (line,) = [line for line in response.body.decode().splitlines() if line.startswith("id: ")]
    return line.removeprefix("id: ")


async def test_a_reconnect_that_has_the_final_state_is_204(web: Web) -> None:
    """An EventSource connects again after every end, unless the answer is 204."""
    web.service.put(DONE)
    id = await last_id(web)
    response = await web.request("GET", PATH, headers={"Last-Event-ID": id})
    assert (response.status, response.body) == (204, b"")


async def test_a_reconnect_that_lacks_the_final_state_gets_it(web: Web) -> None:
    """Another id is that of an earlier state; a state may also change after its end."""
    web.service.put(DONE)
    id = await last_id(web)
    web.service.put(evolve(DONE, owner="new"))
    for known in (id, "0", ""):
        response = await web.request("GET", PATH, headers={"Last-Event-ID": known})
        assert response.status == 200
        assert b'"owner":"new"' in response.body
    assert await last_id(web) != id


async def test_a_reconnect_during_the_order_gets_its_next_states(web: Web) -> None:
    """The client has the present state, which is not the final one: 204 would end its stream permanently."""
    web.service.put(evolve(DONE, place="harbour"))
    async with web.client.get(PATH) as response:
        async with asyncio.timeout(30):
            while not (line := (await response.content.readline()).decode()).startswith("id: "):
                assert line
    async with web.client.get(PATH, headers={"Last-Event-ID": line.removeprefix("id: ").strip()}) as response:
        assert response.status == 200
        web.service.put(DONE)
        async with asyncio.timeout(30):
            assert b'"delivered"' in await response.read()


async def test_a_token_opens_a_stream_and_nothing_else(start: Start) -> None:
    """It ends up in addresses, and addresses end up in logs."""
    web = await start(requires_key=True, keys=KEYS)
    web.service.put(DONE)
    token = await token_of(web)
    assert KEY not in token
    assert (await web.request("GET", f"{PATH}?token={token}")).status == 200
    for method, path in (("GET", "/v1/shipments/p"), ("GET", "/v1/shipments"), ("POST", "/v1/stream-tokens"), ("PUT", "/v1/shipments/p")):
        assert (await web.request(method, f"{path}?token={token}")).status == 401
    assert (await web.request("GET", PATH, headers={"Authorization": f"Bearer {token}"})).status == 401
    assert (await web.request("POST", "/v1/stream-tokens")).status == 401


async def test_a_token_is_bound_to_its_caller_and_its_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in it can be changed, it ends after five minutes, and with the caller's key."""
    web = await start(requires_key=True, keys=KEYS)
    web.service.put(DONE)
    token = await token_of(web)
    name, expires_at, mac = token.split("~")
    later = int(expires_at) + 1
    for forged in (f"other~{expires_at}~{mac}", f"{name}~{later}~{mac}", f"{name}~{expires_at}~{'A' * 43}", f"none~{expires_at}~{mac}", "x", "", "%00"):
        assert (await web.request("GET", f"{PATH}?token={forged}")).status == 401, forged

    monkeypatch.setattr(stream_tokens, "time", lambda: int(expires_at) - 0.5)
    assert (await web.request("GET", f"{PATH}?token={token}")).status == 200
    monkeypatch.setattr(stream_tokens, "time", lambda: float(expires_at))
    assert (await web.request("GET", f"{PATH}?token={token}")).status == 401

    fresh = await token_of(web)
    web.gate.authenticator.replace(read_api_keys(b"shop:operator:a-new-key-for-the-shop-front"))
    assert (await web.request("GET", f"{PATH}?token={fresh}")).status == 401


async def test_without_keys_a_token_is_given_and_not_needed(web: Web) -> None:
    """A page works with and without authentication."""
    web.service.put(DONE)
    token = (await web.request("POST", "/v1/stream-tokens")).json["token"]
    assert (await web.request("GET", f"{PATH}?token={token}")).status == 200
    assert (await web.request("GET", PATH)).status == 200
