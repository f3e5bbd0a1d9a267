"""What a publish ends with, for each answer of the stream and for none."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import nats.errors
import pytest
from attrs import define, field

from bus.errors import PublishRefused, PublishRetryable
from bus.jetstream.publisher import Publisher
from bus.port import Message
from tests.bus.contract import CREATED, message

PUBLISH_SECONDS = 5.0


@define(slots=False)
class Bench:
    """A publisher whose connection records what it is given to send."""

    seconds: float = 0.0
    is_up: bool = True
    sent: list[Any] = field(factory=list)
    subscriptions: int = 0
    missing: list[str] = field(factory=list)
    recovered: list[str] = field(factory=list)
    stored: dict[int, Any] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        connection: Any = self
        clock: Any = SimpleNamespace(monotonic=lambda: self.seconds)
        self.publisher = Publisher(
            clock, connection, publish_seconds=PUBLISH_SECONDS, on_missing=self.missing.append, on_recovered=self.recovered.append
        )

    # The connection

    @property
    def js(self) -> Any:
        async def get_msg(stream: str, seq: int) -> Any:
            await asyncio.sleep(0)
            return self.stored[seq]

        return SimpleNamespace(get_msg=get_msg)

    def send(self, subject: str, body: bytes, reply: str, headers: dict[str, str], observer: Any) -> None:
        self.sent.append(SimpleNamespace(subject=subject, reply=reply, headers=headers, observer=observer))

    # The client

    def new_inbox(self) -> str:
        return "_INBOX.1"

    async def subscribe_fast(self, subject: str, handler: Any) -> None:
        self.subscriptions += 1

    def answer(self, number: int = -1, **fields: Any) -> None:
        self.publisher._on_published(self.sent[number].reply, "", b"", json.dumps({"stream": "ORDERS", **fields}).encode())

    def refuse(self, code: int, err_code: int) -> None:
        self.answer(error={"code": code, "err_code": err_code, "description": "no"}, seq=0)


@pytest.fixture
async def bench() -> Bench:
    bench = Bench()
    client: Any = bench
    await bench.publisher.bind(client)
    return bench


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_publish_is_complete_when_its_stream_has_stored_it(bench: Bench) -> None:
    """All that were waiting for the same message are, and the newest message of the subject is known with the answer."""
    sent = message(key="order-1", headers={"ce-id": "e-1", "Nats-Msg-Id": "another", "ce-subject": "another"})
    first, second = bench.publisher.publish(sent), bench.publisher.publish(sent)
    assert [each.headers for each in bench.sent] == [{"ce-id": "e-1", "Nats-Msg-Id": sent.id, "ce-subject": "order-1"}]
    bench.answer(seq=7)
    assert (first.done(), second.done(), bench.publisher.is_idle) == (True, True, True)
    id, answer = bench.publisher.newest[CREATED]
    assert (id, json.loads(answer)["seq"]) == (sent.id, 7)


async def test_a_publish_without_an_answer_ends_in_time_for_all_who_wait(bench: Bench) -> None:
    """The stream counts as failing until it stores a message; a late answer has no effect."""
    sent = message()
    first = bench.publisher.publish(sent)
    bench.seconds = 1.0
    second, later = bench.publisher.publish(sent), bench.publisher.publish(message())
    bench.seconds = PUBLISH_SECONDS
    bench.publisher.expire(bench.seconds)
    for each in first, second:
        assert isinstance(each.exception(), PublishRetryable)
    assert (later.done(), bench.publisher.is_failing("ORDERS"), bench.recovered) == (False, True, [])
    assert bench.sent[0].observer.is_done
    bench.answer(0, seq=1)
    assert bench.recovered == []
    bench.answer(1, seq=2)
    assert (bench.publisher.is_failing("ORDERS"), bench.recovered, bench.missing) == (False, ["ORDERS"], [])


async def test_a_stream_that_does_not_answer_at_all_may_be_missing(bench: Bench) -> None:
    published = bench.publisher.publish(message())
    bench.publisher._on_published(bench.sent[0].reply, "", b"NATS/1.0 503\r\n\r\n", b"")
    assert isinstance(published.exception(), PublishRetryable)
    assert (bench.missing, bench.publisher.is_failing("ORDERS")) == (["ORDERS"], True)


@pytest.mark.parametrize(
    ("code", "err_code", "error", "is_failing"),
    [
        (503, 10077, PublishRetryable, True),
        (409, 10158, PublishRetryable, True),
        (400, 10109, PublishRetryable, True),
        (400, 10054, PublishRefused, False),
        (400, 10097, PublishRefused, False),
    ],
)
async def test_only_what_is_too_large_is_refused(
    bench: Bench, code: int, err_code: int, error: type[Exception], is_failing: bool
) -> None:
    """A message that is refused for its size is no sign of a stream that fails; any other refusal is."""
    published = [bench.publisher.publish(message(id="m-1")) for _ in range(2)]
    bench.refuse(code, err_code)
    assert [type(each.exception()) for each in published] == [error, error]
    assert bench.publisher.is_failing("ORDERS") == is_failing


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (nats.errors.OutboundBufferLimitError(), PublishRetryable),
        (nats.errors.ConnectionClosedError(), PublishRetryable),
        (OSError("gone"), PublishRetryable),
        (nats.errors.MaxPayloadError(), PublishRefused),
        (nats.errors.BadSubjectError(), PublishRefused),
        (ValueError("no text"), PublishRefused),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else each.__name__,
)
async def test_what_cannot_be_sent_is_tried_again_unless_the_message_is_the_reason(bench: Bench, error: Exception, end: type) -> None:
    published = bench.publisher.publish(message())
    bench.sent[0].observer.fail(error)
    assert type(published.exception()) is end


async def test_nothing_is_sent_while_the_connection_is_lost(bench: Bench) -> None:
    """The publish ends at once: the outbox has the event, and what waits in a buffer would be sent twice."""
    bench.is_up = False
    assert isinstance(bench.publisher.publish(message()).exception(), PublishRetryable)
    assert (bench.sent, bench.publisher.is_idle) == ([], True)


async def test_a_client_that_reconnects_keeps_its_inbox(bench: Bench) -> None:
    """It subscribes again by itself, and answers to what was sent before still arrive."""
    client: Any = bench
    await bench.publisher.bind(client)
    assert bench.subscriptions == 1


def holds(sent: Message, body: bytes) -> Any:
    return SimpleNamespace(subject=sent.subject, data=body, headers={})


async def test_a_duplicate_is_complete_once_the_stream_is_seen_to_hold_it(bench: Bench) -> None:
    """The bus waits for that before it closes; a duplicate shows nothing about what the stream has stored last."""
    sent = message(b"ours")
    bench.stored[3] = holds(sent, b"ours")
    published = bench.publisher.publish(sent)
    bench.answer(seq=3, duplicate=True)
    assert (published.done(), bench.publisher.is_idle) == (False, False)
    await settle()
    assert (published.done(), bench.publisher.is_idle, bench.publisher.newest) == (True, True, {})


@pytest.mark.parametrize("is_stored", [True, False])
async def test_an_event_whose_id_was_taken_is_complete_when_it_is_stored_under_another(bench: Bench, is_stored: bool) -> None:
    """An id that cannot be predicted; if the stream refuses that, the publish has failed."""
    sent = message(b"ours")
    bench.stored[3] = holds(sent, b"theirs")
    published = bench.publisher.publish(sent)
    bench.answer(seq=3, duplicate=True)
    await settle()
    assert not published.done()
    other = bench.sent[1].headers["Nats-Msg-Id"]
    assert other.startswith(f"{sent.id}.")
    assert len(other) >= len(sent.id) + 17
    if is_stored:
        bench.answer(seq=4)
        await settle()
        assert published.exception() is None
    else:
        bench.refuse(503, 10077)
        await settle()
        assert isinstance(published.exception(), PublishRetryable)
