"""A publisher that remembers a few of its messages finds out what its stream has lost, whenever and however much."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import nats.errors
import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.js.errors import NotFoundError

from bus.jetstream.admin.configs import AGE_MAX_SECONDS
from bus.jetstream.admin.stored_marks import EVERYTHING, StoredMarks
from tests.bus.contract import CREATED
from tests.clock import VirtualClock
from tests.examples import examples

TOLERANCE = timedelta(seconds=5)


@define(slots=False)
class Publishing:
    """A process that publishes to one stream, which may lose its last messages, or not answer."""

    clock: VirtualClock = field(factory=VirtualClock)
    messages: list[tuple[str, datetime]] = field(factory=list)
    """What the stream holds: id and time of each, by sequence."""
    published: int = 0
    is_away: bool = False
    looks: int = 0
    newest: dict[str, tuple[str, bytes]] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        js: Any = self
        self.marks = StoredMarks(lambda: js, self.clock, ["ORDERS"], self.newest)

    def publish(self, count: int = 1) -> None:
        for _ in range(count):
            self.published += 1
            self.messages.append((f"m-{self.published}", self.clock.now()))
            answer = json.dumps({"stream": "ORDERS", "seq": len(self.messages)}).encode()
            self.newest[CREATED] = self.messages[-1][0], answer

    async def stream_info(self, stream: str) -> Any:
        if self.is_away:
            raise nats.errors.TimeoutError
        return SimpleNamespace(state=SimpleNamespace(last_seq=len(self.messages)))

    async def get_msg(self, stream: str, seq: int) -> Any:
        self.looks += 1
        if self.is_away:
            raise nats.errors.TimeoutError
        if seq > len(self.messages):
            raise NotFoundError
        id, at = self.messages[seq - 1]
        return SimpleNamespace(headers={"Nats-Msg-Id": id}, time=at)

    def lose(self, count: int) -> datetime:
        """Lose the last *count* messages, and return when the first of them was stored."""
        first = max(0, len(self.messages) - count)
        at = self.messages[first][1]
        del self.messages[first:]
        return at


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 3)),
        st.tuples(st.just("mark"), st.just(0)),
        st.tuples(st.just("check"), st.just(0)),
        st.tuples(st.just("away"), st.just(0)),
        st.tuples(st.just("lose"), st.integers(1, 12)),
        st.tuples(st.just("wait"), st.integers(1, 600)),
    ),
    max_size=60,
)


@settings(max_examples=examples(300), deadline=None)
@given(STEPS)
def test_what_is_published_again_has_everything_that_was_lost(steps: list[tuple[str, int]]) -> None:
    """A loss that is noticed begins no later than its first message; where nothing is lost, none is noticed."""

    async def run() -> None:
        process = Publishing()
        lost: datetime | None = None
        for what, number in [*steps, ("mark", 0), ("check", 0)]:
            if what == "publish":
                process.publish(number)
            elif what == "mark":
                process.marks.add()
            elif what == "wait":
                await process.clock.advance(number)
            elif what == "lose" and process.messages:
                process.marks.add()
                at = process.lose(number)
                lost = at if lost is None else min(lost, at)
            elif what in ("check", "away"):
                process.is_away = what == "away"
                await process.marks.check()
                since = process.marks.lost_since.get("ORDERS")
                if since is not None:
                    assert lost is not None
                    assert since <= lost
                    process.marks.forget("ORDERS", since)
                    lost = None
        process.is_away = False
        process.marks.add()
        await process.marks.check()

    asyncio.run(run())


async def prepared(*, looks: bool = True) -> Publishing:
    """Return a process that has published a message a minute for ten minutes, and has looked after each."""
    process = Publishing()
    for _ in range(10):
        process.publish()
        process.marks.add()
        if looks:
            await process.marks.check()
        await process.clock.advance(60)
    return process


@pytest.mark.parametrize("looks", [True, False], ids=["after each", "once"])
@pytest.mark.parametrize("refill", [0, 3, 12])
@pytest.mark.parametrize("count", [1, 2, 7, 10])
async def test_a_loss_is_noticed_by_the_next_look(count: int, refill: int, looks: bool) -> None:
    """Also when the sequence is as high as before; what is still there is not published again, but for a few seconds."""
    process = await prepared(looks=looks)
    before = process.messages[-count - 1][1] if count < 10 else EVERYTHING
    since = process.lose(count)
    process.publish(refill)
    process.marks.add()
    await process.marks.check()
    noticed = process.marks.lost_since["ORDERS"]
    assert before - TOLERANCE <= noticed <= since if before != EVERYTHING else noticed == EVERYTHING
    process.looks = 0
    await process.marks.check()
    assert process.marks.lost_since == {"ORDERS": noticed}
    assert process.looks <= 2


async def test_a_second_loss_before_the_first_is_repaired_begins_with_the_earlier_one() -> None:
    """And a repair of the first alone does not end it."""
    process = await prepared()
    early = process.lose(7)
    await process.marks.check()
    first = process.marks.lost_since["ORDERS"]
    for _ in range(3):
        process.publish()
        process.marks.add()
        await process.marks.check()
        await process.clock.advance(60)
    process.lose(1)
    await process.marks.check()
    assert process.marks.lost_since["ORDERS"] == first <= early
    process.lose(4)
    await process.marks.check()
    second = process.marks.lost_since["ORDERS"]
    assert second < first
    process.marks.forget("ORDERS", first)
    assert process.marks.lost_since == {"ORDERS": second}
    process.marks.forget("ORDERS", second)
    assert process.marks.lost_since == {}


async def test_a_mark_is_not_younger_than_what_was_stored_after_its_message() -> None:
    """Marks are made a moment after the answers: what another process has published in between is lost with what comes later."""
    process = Publishing()
    process.publish()
    await process.clock.advance(0.1)
    process.messages.append(("of another", process.clock.now()))
    await process.clock.advance(0.1)
    process.marks.add()
    await process.marks.check()
    process.publish()
    process.marks.add()
    await process.marks.check()
    since = process.lose(2)
    await process.marks.check()
    assert EVERYTHING < process.marks.lost_since["ORDERS"] <= since


async def test_a_stream_that_does_not_answer_is_looked_at_later() -> None:
    """With all marks that were made meanwhile."""
    process = await prepared()
    process.publish(2)
    process.marks.add()
    process.is_away = True
    await process.marks.check()
    process.lose(1)
    process.is_away = False
    await process.marks.check()
    assert list(process.marks.lost_since) == ["ORDERS"]


async def test_what_has_expired_is_not_lost() -> None:
    """Half the retention after the last message its stream may have given it up."""
    process = await prepared()
    await process.clock.advance(AGE_MAX_SECONDS / 2)
    process.messages = [("gone", at) for _, at in process.messages]
    await process.marks.check()
    assert process.marks.lost_since == {}


async def test_a_process_that_has_published_nothing_remembers_the_last_message() -> None:
    """Of another process, since its start; an empty stream has none."""
    process = Publishing()
    await process.marks.check()
    process.publish(2)
    process.newest.clear()
    await process.marks.check()
    process.lose(1)
    await process.marks.check()
    assert list(process.marks.lost_since) == ["ORDERS"]


async def test_the_number_of_marks_has_a_limit_and_the_last_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at thousands of messages costs a few questions, and a loss of the last one is noticed."""
    monkeypatch.setattr("bus.jetstream.admin.stored_marks.FRESH_MAX", 8)
    monkeypatch.setattr("bus.jetstream.admin.stored_marks.SEEN_MAX", 32)
    process = Publishing()
    for _ in range(50):
        for _ in range(20):
            process.publish()
            process.marks.add()
            await process.clock.advance(1)
        assert len(process.marks._fresh["ORDERS"]) <= 8
        await process.marks.check()
        seen = process.marks._seen["ORDERS"]
        assert len(seen) <= 32
        assert seen[-1].id == f"m-{process.published}"
    since = process.lose(1)
    await process.marks.check()
    assert since - timedelta(seconds=60) <= process.marks.lost_since["ORDERS"] <= since
