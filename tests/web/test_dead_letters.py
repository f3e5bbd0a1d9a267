"""The endpoints for dead letters: list, show, replay, discard."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import pytest
from attrs import evolve

from app.messaging.dead_letters import DeadLetterGroup, NotReplayable
from app.messaging.dead_letters.groups import grouped
from app.storage.audit import Audit
from app.web import DeadLetterService, StoredDeadLetter
from app.web.endpoints.dead_letters import route_group
from bus.errors import Invalid, SchemaViolation, UnknownSubject
from bus.port import DeadLetter, Message
from tests.web.conftest import Start, Web

SEEN = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))


class FakeDeadLetterService:
    """Keeps dead letters in a dictionary."""

    def __init__(self) -> None:
        self.stored: dict[str, StoredDeadLetter] = {}

    def store(self, id: str, body: bytes = b"{}", subject: str = "shipments.moved.v1", error: str = "invalid") -> None:
        message = Message(subject, f"m-{id}", body, "p", {"ce-id": "e"})
        self.stored[id] = StoredDeadLetter(DeadLetter(id, "vans", message, error, "No van.", 5, SEEN, SEEN), 0)

    def _matching(self, consumer: str | None, subject: str | None, error: str | None) -> list[StoredDeadLetter]:
        return [
            stored
            for _, stored in sorted(self.stored.items())
            if consumer in (None, stored.dead_letter.consumer)
            and subject in (None, stored.dead_letter.message.subject)
            and error in (None, stored.dead_letter.error)
        ]

    async def list(
        self, consumer: str | None, subject: str | None, after: str | None, limit: int, *, error: str | None = None
    ) -> Sequence[StoredDeadLetter]:
        matching = self._matching(consumer, subject, error)
        return [stored for stored in matching if after is None or stored.dead_letter.id > after][:limit]

    async def get(self, id: str) -> StoredDeadLetter | None:
        return self.stored.get(id)

    async def groups(self, consumer: str | None, subject: str | None, error: str | None) -> Sequence[DeadLetterGroup]:
        return grouped(
            DeadLetterGroup(
                consumer=each.consumer, subject=each.message.subject, error=each.error, pattern=each.detail, count=1,
                first_seen=each.first_seen, last_seen=each.last_seen, example=id,
            )
            for id, each in ((stored.dead_letter.id, stored.dead_letter) for stored in self._matching(consumer, subject, error))
        )  # fmt: skip

    async def replay(self, id: str, *, body: bytes | None = None, audit: Audit | None = None) -> bool:
        if id not in self.stored:
            return False
        subject, error = self.stored[id].dead_letter.message.subject, self.stored[id].dead_letter.error
        if error == "not_subscribed":
            raise NotReplayable("vans subscribes to nothing.")
        if body is not None and error == "unknown_subject":
            raise UnknownSubject(f"no contract for {subject}")
        if body is not None and body != b'{"van":1}':
            raise Invalid(subject, (SchemaViolation("/van", "is required"),))
        edited = self.stored[id].edited_body if body is None else body
        self.stored[id] = evolve(self.stored[id], replays=self.stored[id].replays + 1, edited_body=edited)
        return True

    async def replay_many(
        self, consumer: str | None, subject: str | None, error: str | None, dry_run: bool, *, audit: Audit | None = None
    ) -> tuple[int, int]:
        matching = self._matching(consumer, subject, error)
        for stored in matching if not dry_run else ():
            await self.replay(stored.dead_letter.id)
        return len(matching), 0 if dry_run else len(matching)

    async def discard(self, id: str, *, audit: Audit | None = None) -> bool:
        return self.stored.pop(id, None) is not None

    async def discard_many(
        self, consumer: str | None, subject: str | None, error: str | None, dry_run: bool, *, audit: Audit | None = None
    ) -> tuple[int, int]:
        matching = self._matching(consumer, subject, error)
        for stored in matching if not dry_run else ():
            await self.discard(str(stored.dead_letter.id))
        return len(matching), 0 if dry_run else len(matching)


@pytest.fixture
def service() -> FakeDeadLetterService:
    return FakeDeadLetterService()


@pytest.fixture
async def web(start: Start, service: FakeDeadLetterService) -> Web:
    dead_letters: DeadLetterService = service
    return await start(route_groups=(route_group(dead_letters),))


async def test_a_dead_letter_is_shown_with_its_message(web: Web, service: FakeDeadLetterService) -> None:
    """Every member is shown, times in UTC."""
    service.store("a", b'{"n": 1}')
    assert (await web.request("GET", "/v1/dead-letters/a")).json == {
        "id": "a",
        "consumer": "vans",
        "subject": "shipments.moved.v1",
        "error": "invalid",
        "detail": "No van.",
        "attempts": 5,
        "first_seen": "2026-01-01T00:00:00.000000Z",
        "last_seen": "2026-01-01T00:00:00.000000Z",
        "replays": 0,
        "edited_body": None,
        "message": {"id": "m-a", "key": "p", "headers": {"ce-id": "e"}, "body": {"n": 1}},
    }


async def test_a_body_that_is_not_json_is_shown_in_base64(web: Web, service: FakeDeadLetterService) -> None:
    """Many dead letters are dead because their body is unreadable; they can be shown nevertheless."""
    service.store("a", b"\xff{")
    assert (await web.request("GET", "/v1/dead-letters/a")).json["message"]["body"] == {"base64": "/3s="}


@pytest.mark.parametrize("depth", [252, 255, 1000])
async def test_a_body_nested_too_deep_does_not_prevent_the_list(
    web: Web, service: FakeDeadLetterService, depth: int
) -> None:
    """A body that can be decoded but not encoded again, alone or inside a page, is shown in base64."""
    service.store("a", b"[" * depth + b"]" * depth)
    service.store("b", b'{"n": 1}')
    a, b = (await web.request("GET", "/v1/dead-letters")).json["items"]
    assert b64decode(a["message"]["body"]["base64"]) == b"[" * depth + b"]" * depth
    assert b["message"]["body"] == {"n": 1}


async def test_dead_letters_are_listed_by_page_and_filter(web: Web, service: FakeDeadLetterService) -> None:
    """The list pages and filters like every other list, and rejects an unknown parameter."""
    for id in "abc":
        service.store(id, subject="shipments.lost.v1" if id == "b" else "shipments.moved.v1")
    first = (await web.request("GET", "/v1/dead-letters?limit=2")).json
    rest = (await web.request("GET", f"/v1/dead-letters?limit=2&cursor={first['next_cursor']}")).json
    assert [dead_letter["id"] for dead_letter in first["items"] + rest["items"]] == ["a", "b", "c"]
    assert rest["next_cursor"] is None
    found = (await web.request("GET", "/v1/dead-letters?consumer=vans&subject=shipments.lost.v1")).json["items"]
    assert [dead_letter["id"] for dead_letter in found] == ["b"]
    assert (await web.request("GET", "/v1/dead-letters?detail=invalid")).status == 400


async def test_the_list_takes_every_filter_of_a_replay(web: Web, service: FakeDeadLetterService) -> None:
    """An operator can list, page by page, exactly what a replay of many would send."""
    for id in "abcd":
        service.store(id, error="invalid" if id == "b" else "failed")
    dry_run = await web.request("POST", "/v1/dead-letters/replay", json={"error": "failed", "dry_run": True})
    assert dry_run.json["matched"] == 3
    first = (await web.request("GET", "/v1/dead-letters?error=failed&limit=2")).json
    rest = (await web.request("GET", f"/v1/dead-letters?error=failed&limit=2&cursor={first['next_cursor']}")).json
    assert [dead_letter["id"] for dead_letter in first["items"] + rest["items"]] == ["a", "c", "d"]
    document = (await web.request("GET", "/openapi.json")).json
    parameters = {each.get("name") for each in document["paths"]["/v1/dead-letters"]["get"]["parameters"]}
    filters = document["components"]["schemas"]["ReplayRequest"]["properties"].keys() - {"dry_run"}
    assert filters
    assert filters <= parameters


async def test_a_replay_of_one_dead_letter_is_accepted(web: Web, service: FakeDeadLetterService) -> None:
    """202: the outcome of the new delivery is not known yet."""
    service.store("a")
    assert (await web.request("POST", "/v1/dead-letters/a/replay")).status == 202
    assert service.stored["a"].replays == 1


async def test_a_dead_letter_without_a_subscribed_consumer_is_not_replayable(
    web: Web, service: FakeDeadLetterService
) -> None:
    """409, with the reason: an operator has to decide."""
    service.store("a", error="not_subscribed")
    response = await web.request("POST", "/v1/dead-letters/a/replay")
    assert (response.status, response.json["code"]) == (409, "not_replayable")
    assert response.json["detail"].startswith("vans subscribes to nothing.")


async def test_a_dry_run_counts_what_a_replay_of_many_would_send(web: Web, service: FakeDeadLetterService) -> None:
    """A dry run sends nothing."""
    for id in "abc":
        service.store(id)
    path = "/v1/dead-letters/replay"
    assert (await web.request("POST", path, json={"error": "invalid", "dry_run": True})).json == {
        "matched": 3,
        "replayed": 0,
    }
    assert (await web.request("POST", path, json={"error": "other", "dry_run": False})).json == {
        "matched": 0,
        "replayed": 0,
    }
    assert (await web.request("POST", path, json={"dry_run": False})).json == {"matched": 3, "replayed": 3}
    assert [stored.replays for stored in service.stored.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    "body", [{}, {"dry_run": 1}, {"dry_run": False, "all": True}, {"dry_run": True, "error": "\x00"}]
)
async def test_an_invalid_replay_request_is_400_and_sends_nothing(
    web: Web, service: FakeDeadLetterService, body: object
) -> None:
    """Without an explicit dry_run nothing is replayed by default."""
    service.store("a")
    assert (await web.request("POST", "/v1/dead-letters/replay", json=body)).status == 400
    assert service.stored["a"].replays == 0


async def test_a_dead_letter_is_discarded_once(web: Web, service: FakeDeadLetterService) -> None:
    """204 without a body; afterwards every request for it is 404."""
    service.store("a")
    response = await web.request("DELETE", "/v1/dead-letters/a")
    assert (response.status, response.body) == (204, b"")
    for method, path in (("DELETE", ""), ("GET", ""), ("POST", "/replay")):
        assert (await web.request(method, f"/v1/dead-letters/a{path}")).status == 404
    assert (await web.request("GET", "/v1/dead-letters/%00")).status == 404


async def test_without_the_route_group_the_paths_do_not_exist(start: Start) -> None:
    """A process serves only what it runs."""
    web = await start()
    assert (await web.request("GET", "/v1/dead-letters")).status == 404


async def test_dead_letters_are_counted_by_their_cause(web: Web, service: FakeDeadLetterService) -> None:
    """The largest group first, each with the id of one of its dead letters."""
    for id in "abc":
        service.store(id, subject="shipments.lost.v1" if id == "b" else "shipments.moved.v1")
    many, one = (await web.request("GET", "/v1/dead-letters/groups")).json["items"]
    assert many == {
        "consumer": "vans",
        "subject": "shipments.moved.v1",
        "error": "invalid",
        "pattern": "No van.",
        "count": 2,
        "first_seen": "2026-01-01T00:00:00.000000Z",
        "last_seen": "2026-01-01T00:00:00.000000Z",
        "example": "a",
    }
    assert (one["count"], one["example"]) == (1, "b")
    filtered = (await web.request("GET", "/v1/dead-letters/groups?consumer=vans&subject=shipments.lost.v1")).json["items"]
    assert filtered == [one]
    assert (await web.request("GET", "/v1/dead-letters/groups?limit=1")).status == 400


async def test_an_edited_body_is_replayed_and_shown_beside_the_stored_one(web: Web, service: FakeDeadLetterService) -> None:
    """A replay without a body sends the stored one."""
    service.store("a", b'{"vans": 1}')
    assert (await web.request("POST", "/v1/dead-letters/a/replay", json={"body": {"van": 1}})).status == 202
    shown = (await web.request("GET", "/v1/dead-letters/a")).json
    assert (shown["message"]["body"], shown["edited_body"], shown["replays"]) == ({"vans": 1}, {"van": 1}, 1)
    assert (await web.request("POST", "/v1/dead-letters/a/replay", json={})).status == 202


@pytest.mark.parametrize(
    ("edit", "status", "code", "pointer"),
    [
        ({"body": {"van": "x"}}, 400, "invalid_body", "/body/van"),
        ({"body": None}, 400, "invalid_body", "/body/van"),
        ({"text": 1}, 400, "invalid_body", ""),
        ([], 400, "invalid_body", ""),
    ],
)
async def test_a_bad_edit_is_refused(
    web: Web, service: FakeDeadLetterService, edit: object, status: int, code: str, pointer: str
) -> None:
    """The consumer would refuse it as well. Nothing is replayed."""
    service.store("a")
    refused = await web.request("POST", "/v1/dead-letters/a/replay", json=edit)
    assert (refused.status, refused.json["code"]) == (status, code)
    assert refused.json["errors"][0]["pointer"] == pointer
    assert service.stored["a"].replays == 0


async def test_a_body_of_an_unknown_subject_cannot_be_checked(web: Web, service: FakeDeadLetterService) -> None:
    """409: there is no schema to check it with. It can be replayed as it is."""
    service.store("a", error="unknown_subject")
    refused = await web.request("POST", "/v1/dead-letters/a/replay", json={"body": {"van": 1}})
    assert (refused.status, refused.json["code"]) == (409, "unknown_subject")
    assert (await web.request("POST", "/v1/dead-letters/a/replay")).status == 202


async def test_dead_letters_are_discarded_by_filter(web: Web, service: FakeDeadLetterService) -> None:
    """With dry_run they are only counted; without it, in the request, nothing happens."""
    for id in "abc":
        service.store(id, error="failed" if id == "b" else "invalid")
    path, wanted = "/v1/dead-letters/discard", {"error": "invalid", "dry_run": True}
    assert (await web.request("POST", path, json={"error": "invalid"})).status == 400
    assert (await web.request("POST", path, json={"dry_run": False})).status == 400, "no filter"
    assert (await web.request("POST", f"{path}?consumer=cars", json={"consumer": "vans", "dry_run": False})).status == 400
    assert len(service.stored) == 3
    assert (await web.request("POST", path, json=wanted)).json == {"matched": 2, "discarded": 0}
    assert sorted(service.stored) == ["a", "b", "c"]
    assert (await web.request("POST", path, json=wanted | {"dry_run": False})).json == {"matched": 2, "discarded": 2}
    assert sorted(service.stored) == ["b"]
