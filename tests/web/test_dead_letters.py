"""Dead letters: to look at, to send again, to throw away."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import pytest
from attrs import evolve

from app.messaging.dead_letters import NotReplayable
from app.web import DeadLetterService, StoredDeadLetter
from app.web.endpoints.dead_letters import route_group
from bus.port import DeadLetter, Message
from tests.web.conftest import Start, Web

SEEN = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))


class FakeDesk:
    """A desk that keeps letters in a dictionary."""

    def __init__(self) -> None:
        self.letters: dict[str, StoredDeadLetter] = {}

    def lay_down(self, id: str, body: bytes = b"{}", subject: str = "parcels.moved.v1", error: str = "invalid") -> None:
        message = Message(subject, f"m-{id}", body, "p", {"ce-id": "e"})
        self.letters[id] = StoredDeadLetter(DeadLetter(id, "vans", message, error, "No van.", 5, SEEN, SEEN), 0)

    def _fitting(self, consumer: str | None, subject: str | None, error: str | None) -> list[StoredDeadLetter]:
        return [
            kept
            for _, kept in sorted(self.letters.items())
            if consumer in (None, kept.dead_letter.consumer)
            and subject in (None, kept.dead_letter.message.subject)
            and error in (None, kept.dead_letter.error)
        ]

    async def list(
        self, consumer: str | None, subject: str | None, after: str | None, limit: int, *, error: str | None = None
    ) -> Sequence[StoredDeadLetter]:
        return [kept for kept in self._fitting(consumer, subject, error) if after is None or kept.dead_letter.id > after][:limit]

    async def get(self, id: str) -> StoredDeadLetter | None:
        return self.letters.get(id)

    async def replay(self, id: str) -> bool:
        if id not in self.letters:
            return False
        if self.letters[id].dead_letter.error == "deaf":
            raise NotReplayable("vans hears nothing.")
        self.letters[id] = evolve(self.letters[id], replays=self.letters[id].replays + 1)
        return True

    async def replay_many(
        self, consumer: str | None, subject: str | None, error: str | None, dry_run: bool
    ) -> tuple[int, int]:
        found = self._fitting(consumer, subject, error)
        for kept in found if not dry_run else ():
            await self.replay(kept.dead_letter.id)
        return len(found), 0 if dry_run else len(found)

    async def discard(self, id: str) -> bool:
        return self.letters.pop(id, None) is not None


@pytest.fixture
def service() -> FakeDesk:
    return FakeDesk()


@pytest.fixture
async def web(start: Start, service: FakeDesk) -> Web:
    kept: DeadLetterService = service
    return await start(extra=(route_group(kept),))


async def test_a_letter_is_shown_whole(web: Web, service: FakeDesk) -> None:
    """With its message; times in UTC."""
    service.lay_down("a", b'{"n": 1}')
    assert (await web.ask("GET", "/v1/dead-letters/a")).json == {
        "id": "a",
        "consumer": "vans",
        "subject": "parcels.moved.v1",
        "error": "invalid",
        "detail": "No van.",
        "attempts": 5,
        "first_seen": "2026-01-01T00:00:00.000000Z",
        "last_seen": "2026-01-01T00:00:00.000000Z",
        "replays": 0,
        "message": {"id": "m-a", "key": "p", "headers": {"ce-id": "e"}, "body": {"n": 1}},
    }


async def test_a_body_that_is_no_json_is_shown_all_the_same(web: Web, service: FakeDesk) -> None:
    """In base64: unreadable is just what many of them are."""
    service.lay_down("a", b"\xff{")
    assert (await web.ask("GET", "/v1/dead-letters/a")).json["message"]["body"] == {"base64": "/3s="}


@pytest.mark.parametrize("depth", [252, 255, 1000])
async def test_a_body_nested_beyond_measure_hides_no_other(web: Web, service: FakeDesk, depth: int) -> None:
    """What can be read and not be written again, or not within a page, is shown in base64, too."""
    service.lay_down("a", b"[" * depth + b"]" * depth)
    service.lay_down("b", b'{"n": 1}')
    a, b = (await web.ask("GET", "/v1/dead-letters")).json["items"]
    assert b64decode(a["message"]["body"]["base64"]) == b"[" * depth + b"]" * depth
    assert b["message"]["body"] == {"n": 1}


async def test_letters_are_listed_by_page_and_filter(web: Web, service: FakeDesk) -> None:
    """As all lists are."""
    for id in "abc":
        service.lay_down(id, subject="parcels.lost.v1" if id == "b" else "parcels.moved.v1")
    first = (await web.ask("GET", "/v1/dead-letters?limit=2")).json
    rest = (await web.ask("GET", f"/v1/dead-letters?limit=2&cursor={first['next_cursor']}")).json
    assert [dead_letter["id"] for dead_letter in first["items"] + rest["items"]] == ["a", "b", "c"]
    assert rest["next_cursor"] is None
    found = (await web.ask("GET", "/v1/dead-letters?consumer=vans&subject=parcels.lost.v1")).json["items"]
    assert [dead_letter["id"] for dead_letter in found] == ["b"]
    assert (await web.ask("GET", "/v1/dead-letters?detail=invalid")).status == 400


async def test_what_would_be_sent_again_can_be_looked_at_first(web: Web, service: FakeDesk) -> None:
    """A list takes every filter that a replay of many takes, page by page."""
    for id in "abcd":
        service.lay_down(id, error="invalid" if id == "b" else "failed")
    assert (await web.ask("POST", "/v1/dead-letters/replay", json={"error": "failed", "dry_run": True})).json["matched"] == 3
    first = (await web.ask("GET", "/v1/dead-letters?error=failed&limit=2")).json
    rest = (await web.ask("GET", f"/v1/dead-letters?error=failed&limit=2&cursor={first['next_cursor']}")).json
    assert [dead_letter["id"] for dead_letter in first["items"] + rest["items"]] == ["a", "c", "d"]
    described = (await web.ask("GET", "/openapi.json")).json
    body = described["paths"]["/v1/dead-letters/replay"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    named = {each.get("name") for each in described["paths"]["/v1/dead-letters"]["get"]["parameters"]}
    assert body["properties"].keys() - {"dry_run"} <= named


async def test_one_letter_is_sent_again(web: Web, service: FakeDesk) -> None:
    """Accepted, no more: what becomes of it is seen later."""
    service.lay_down("a")
    assert (await web.ask("POST", "/v1/dead-letters/a/replay")).status == 202
    assert service.letters["a"].replays == 1


async def test_what_nobody_hears_is_not_said_to_be_on_its_way(web: Web, service: FakeDesk) -> None:
    """It is for a person, and the answer says so."""
    service.lay_down("a", error="deaf")
    answer = await web.ask("POST", "/v1/dead-letters/a/replay")
    assert (answer.status, answer.json["code"]) == (409, "not_replayable")
    assert answer.json["detail"].startswith("vans hears nothing.")


async def test_many_are_sent_again_after_a_rehearsal(web: Web, service: FakeDesk) -> None:
    """A dry run counts and sends nothing."""
    for id in "abc":
        service.lay_down(id)
    path = "/v1/dead-letters/replay"
    assert (await web.ask("POST", path, json={"error": "invalid", "dry_run": True})).json == {
        "matched": 3,
        "replayed": 0,
    }
    assert (await web.ask("POST", path, json={"error": "other", "dry_run": False})).json == {
        "matched": 0,
        "replayed": 0,
    }
    assert (await web.ask("POST", path, json={"dry_run": False})).json == {"matched": 3, "replayed": 3}
    assert [kept.replays for kept in service.letters.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    "body", [{}, {"dry_run": 1}, {"dry_run": False, "all": True}, {"dry_run": True, "error": "\x00"}]
)
async def test_a_wrong_replay_is_400_and_sends_nothing(web: Web, service: FakeDesk, body: object) -> None:
    """Least of all by default."""
    service.lay_down("a")
    assert (await web.ask("POST", "/v1/dead-letters/replay", json=body)).status == 400
    assert service.letters["a"].replays == 0


async def test_a_letter_is_thrown_away_once(web: Web, service: FakeDesk) -> None:
    """204 without a body, and then it is not there."""
    service.lay_down("a")
    answer = await web.ask("DELETE", "/v1/dead-letters/a")
    assert (answer.status, answer.body) == (204, b"")
    for method, path in (("DELETE", ""), ("GET", ""), ("POST", "/replay")):
        assert (await web.ask(method, f"/v1/dead-letters/a{path}")).status == 404
    assert (await web.ask("GET", "/v1/dead-letters/%00")).status == 404


async def test_without_a_desk_there_is_nothing(start: Start) -> None:
    """A process answers only for what it runs."""
    web = await start()
    assert (await web.ask("GET", "/v1/dead-letters")).status == 404
