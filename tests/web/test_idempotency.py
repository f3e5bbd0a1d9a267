"""One key, one effect, one answer."""

from __future__ import annotations

import asyncio

import pytest

from tests.web.conftest import KEY, Start, Web

NEW = {"owner": "o", "items": [{"n": 2}]}


async def test_the_same_key_and_body_get_the_same_answer(web: Web) -> None:
    """The second time nothing happens, and the answer says so; order of names and spaces do not count."""
    first = await web.ask("POST", "/v1/parcels", json=NEW, headers={"Idempotency-Key": "k"})
    body = b'{ "items": [{"n": 2}], "owner": "o" }'
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    second = await web.ask("POST", "/v1/parcels", data=body, headers=headers)
    assert (first.status, first.body, first.headers["Location"]) == (202, second.body, second.headers["Location"])
    assert second.status == 202
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert len(web.service.told) == 1


async def test_fifty_at_once_are_one(web: Web) -> None:
    """However many come at the same time."""
    answers = await asyncio.gather(
        *(web.ask("POST", "/v1/parcels", json=NEW, headers={"Idempotency-Key": "k"}) for _ in range(50))
    )
    assert len({answer.json["parcel_id"] for answer in answers}) == 1
    assert len(web.service.told) == 1


async def test_the_same_key_for_another_body_is_422(web: Web) -> None:
    """A key belongs to what it was first used for."""
    await web.ask("POST", "/v1/parcels", json=NEW, headers={"Idempotency-Key": "k"})
    answer = await web.ask("POST", "/v1/parcels", json={**NEW, "owner": "p"}, headers={"Idempotency-Key": "k"})
    assert (answer.status, answer.json["code"]) == (422, "idempotency_key_reused")


async def test_a_refusal_is_replayed_too(web: Web) -> None:
    """The first answer stays the answer, a no included."""
    for replayed in (None, "true"):
        answer = await web.ask("POST", "/v1/parcels/none/move", headers={"Idempotency-Key": "k"})
        assert (answer.status, answer.headers.get("Idempotency-Replayed")) == (404, replayed)


async def test_a_key_belongs_to_its_route_and_its_path(web: Web) -> None:
    """The same key elsewhere is another key."""
    await web.ask("PUT", "/v1/parcels/a", json={"owner": "o"})
    await web.ask("PUT", "/v1/parcels/b", json={"owner": "o"})
    for path in ("/v1/parcels/a/move", "/v1/parcels/b/move", "/v1/parcels"):
        answer = await web.ask(
            "POST", path, json=NEW if path == "/v1/parcels" else {}, headers={"Idempotency-Key": "k"}
        )
        assert answer.status < 300
        assert "Idempotency-Replayed" not in answer.headers


async def test_a_key_belongs_to_its_route_even_where_paths_say_the_same(web: Web) -> None:
    """What the door is given differs by method and template, though the parameters and the key are equal."""
    await web.ask("PUT", "/v1/parcels/a", json={"owner": "o"})
    for path in ("/v1/parcels/a/move", "/v1/parcels/a/return"):
        assert (await web.ask("POST", path, headers={"Idempotency-Key": "k"})).status == 200
    assert len(web.service.kept) == 2


async def test_a_key_belongs_to_its_caller(start: Start) -> None:
    """Two callers may choose the same key; what the door is given holds neither in the clear."""
    web = await start(is_locked=True)
    bearer = {"Authorization": f"Bearer {KEY}"}
    await web.ask("POST", "/v1/parcels", json=NEW, headers={**bearer, "Idempotency-Key": "k"})
    open_web = await start()
    await open_web.ask("POST", "/v1/parcels", json=NEW, headers={"Idempotency-Key": "k"})
    (locked_key,), (open_key,) = web.service.kept, open_web.service.kept
    assert locked_key != open_key
    assert len(locked_key) == len(open_key) == 64


@pytest.mark.parametrize(
    "key", ["k", "!~", "x" * 255, 'a"b', "a\\b", '"k"', '"a\\"b"', '"a\\\\b"', '"' + "x" * 255 + '"']
)
async def test_a_good_key_is_taken(web: Web, key: str) -> None:
    """1 to 255 visible ASCII characters, quoted or bare."""
    for _ in range(2):
        answer = await web.ask("POST", "/v1/parcels", json=NEW, headers={"Idempotency-Key": key})
        assert answer.status == 202
    assert len(web.service.told) == 1


async def test_quotes_are_not_part_of_a_key(web: Web) -> None:
    """Quoted and bare, it is the same key."""
    for key in ("k\\", '"k\\\\"'):
        assert (await web.ask("POST", "/v1/parcels", json=NEW, headers={"Idempotency-Key": key})).status == 202
    assert len(web.service.told) == 1


BAD = ["", '""', '"', '"k', "a b", '"a b"', "x" * 256, '"' + "x" * 256 + '"', "ä", '"k";a=1', '"a\\b"']


@pytest.mark.parametrize("key", BAD)
async def test_a_bad_key_is_400(web: Web, key: str) -> None:
    """It is refused before anything happens."""
    answer = await web.ask("POST", "/v1/parcels", json=NEW, headers={"Idempotency-Key": key})
    assert (answer.status, answer.json["code"]) == (400, "invalid_idempotency_key")
    assert web.service.told == []


async def test_two_keys_are_none(web: Web) -> None:
    """Which of them would count?"""
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b"), ("Content-Type", "application/json")]
    answer = await web.ask("POST", "/v1/parcels", data=b"{}", headers=headers)
    assert (answer.status, answer.json["code"]) == (400, "invalid_idempotency_key")


async def test_a_key_where_none_is_honoured_changes_nothing(web: Web) -> None:
    """A route that is idempotent by itself does not look at it."""
    for _ in range(2):
        answer = await web.ask("PUT", "/v1/parcels/p", json={"owner": "o"}, headers={"Idempotency-Key": "not valid"})
        assert answer.status == 200
    assert web.service.kept == {}
