"""A dead letter is stored first and then published on its stream, whatever it contains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import nats
import pytest
from attrs import define, evolve, field
from nats.js import JetStreamContext

from app.clock import SystemClock
from bus.errors import PublishRetryable
from bus.jetstream.admin.topology import DEAD_LETTERS
from bus.jetstream.bus import JetStreamBus, Servers
from bus.jetstream.recovery.dead_letter_stream import DeadLetterPublisher
from bus.port import DeadLetter, Message
from tests.nats import NatsServer

NOW = datetime.now(UTC)
DEAD_LETTER = DeadLetter(
    id="l-1",
    consumer="inventory-express",
    message=Message("orders.created.v1.express", "m-1", b"\x00body", "k-1", {"ce-id": "e-1"}),
    error="failed",
    detail="ValueError: grün\nist nicht rot",
    attempts=5,
    first_seen=NOW,
    last_seen=NOW,
)


@define
class Table:
    """A store of dead letters in memory."""

    kept: list[DeadLetter] = field(factory=list)
    is_broken: bool = False

    async def add(self, dead_letter: DeadLetter) -> None:
        if self.is_broken:
            raise OSError("the disk is full")
        self.kept.append(dead_letter)


@define
class Harness:
    table: Table
    publisher: DeadLetterPublisher
    js: JetStreamContext
    server: NatsServer

    async def count(self) -> int:
        return (await self.js.stream_info(DEAD_LETTERS)).state.messages

    async def add(self, dead_letter: DeadLetter) -> None:
        """Add *dead_letter* as a bus does: until it is stored. The stream may have to be created first."""
        async with asyncio.timeout(30):
            while True:
                try:
                    return await self.publisher.add(dead_letter)
                except PublishRetryable:
                    await asyncio.sleep(0.05)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    with NatsServer(tmp_path) as server:
        table = Table()
        publisher = DeadLetterPublisher(table, lambda: bus)
        bus = JetStreamBus(SystemClock(), publisher, Servers(urls=server.urls), publish_seconds=1.0)
        await bus.connect()
        client = await nats.connect(server.url)
        yield Harness(table, publisher, client.jetstream(), server)
        await client.close()
        await bus.close(0)


async def test_a_dead_letter_is_published_with_its_message_and_its_reason(harness: Harness) -> None:
    """The body is unchanged; what is not one line of ASCII is percent-encoded in its header."""
    await harness.add(DEAD_LETTER)
    found = await harness.js.get_msg(DEAD_LETTERS, 1)
    assert (found.subject, found.data) == ("dead.inventory-express.orders.created.v1.express", b"\x00body")
    assert found.headers == {
        "Nats-Msg-Id": "l-1",
        "ce-id": "e-1",
        "ce-subject": "k-1",
        "dead-letter-error": "failed",
        "dead-letter-detail": "ValueError: gr%C3%BCn%0Aist nicht rot",
        "dead-letter-attempts": "5",
        "dead-letter-consumer": "inventory-express",
        "dead-letter-message-id": "m-1",
    }


async def test_a_dead_letter_added_twice_is_on_the_stream_once(harness: Harness) -> None:
    """The stream recognises it by its id."""
    for _ in range(3):
        await harness.add(DEAD_LETTER)
    assert await harness.count() == 1


async def test_the_dead_letter_of_a_replay_is_published_on_the_original_subject(harness: Harness) -> None:
    """A subscriber to a subject sees everything that fails on it."""
    replayed = evolve(DEAD_LETTER.message, subject="inventory.replay.inventory-express.orders.created.v1.express")
    await harness.add(evolve(DEAD_LETTER, message=replayed))
    assert (await harness.js.get_msg(DEAD_LETTERS, 1)).subject == "dead.inventory-express.orders.created.v1.express"


async def test_a_dead_letter_that_is_not_stored_is_not_published(harness: Harness) -> None:
    """The table comes first."""
    await harness.add(DEAD_LETTER)
    harness.table.is_broken = True
    with pytest.raises(OSError, match="full"):
        await harness.publisher.add(evolve(DEAD_LETTER, id="l-2"))
    assert await harness.count() == 1


async def test_a_dead_letter_that_is_not_published_is_added_again(harness: Harness) -> None:
    """The bus retries, and neither the table nor the stream has it twice."""
    await harness.add(DEAD_LETTER)
    harness.server.kill()
    with pytest.raises(PublishRetryable):
        await harness.publisher.add(evolve(DEAD_LETTER, id="l-2"))
    harness.server.start()
    await harness.add(evolve(DEAD_LETTER, id="l-2"))
    assert await harness.count() == 2


@pytest.mark.parametrize(
    "name", ["Nats-Expected-Last-Sequence", "Nats-Expected-Stream", "nats-rollup", "", "a b", "ü", "a:b", "a\r\nb"]
)
async def test_headers_for_another_stream_do_not_prevent_the_publish(harness: Harness, name: str) -> None:
    """Any publisher may set such a header on a message, or a malformed one."""
    await harness.add(evolve(DEAD_LETTER, message=evolve(DEAD_LETTER.message, headers={name: "99", "x": "a\r\nb", "y": "ü"})))
    found = (await harness.js.get_msg(DEAD_LETTERS, 1)).headers or {}
    assert {"x", name} & set(found) == set()
    assert "y" in found


async def test_a_message_of_the_largest_size_is_published_without_its_body(harness: Harness) -> None:
    """With its reason it would always be too large for the server; the table has it whole."""
    await harness.add(evolve(DEAD_LETTER, message=evolve(DEAD_LETTER.message, body=b"x" * (1024 * 1024 - 200))))
    found = await harness.js.get_msg(DEAD_LETTERS, 1)
    assert (found.data or b"", (found.headers or {})["dead-letter-body"]) == (b"", "too large, see the table")
    assert len(harness.table.kept[-1].message.body) > 1_000_000
