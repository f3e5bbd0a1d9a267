"""Dead letters on their stream: first kept, then published, however strange what they carry."""

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
LETTER = DeadLetter(
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
    """Dead letters in memory."""

    kept: list[DeadLetter] = field(factory=list)
    is_broken: bool = False

    async def add(self, dead_letter: DeadLetter) -> None:
        if self.is_broken:
            raise OSError("the disk is full")
        self.kept.append(dead_letter)


@define
class Harness:
    table: Table
    letters: DeadLetterPublisher
    js: JetStreamContext
    server: NatsServer

    async def count(self) -> int:
        return (await self.js.stream_info(DEAD_LETTERS)).state.messages

    async def add(self, dead_letter: DeadLetter) -> None:
        """Add *letter* as a bus does: until it is kept. The stream may have to be founded first."""
        async with asyncio.timeout(10):
            while True:
                try:
                    return await self.letters.add(dead_letter)
                except PublishRetryable:
                    await asyncio.sleep(0.05)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    with NatsServer(tmp_path) as server:
        table = Table()
        letters = DeadLetterPublisher(table, lambda: bus)
        bus = JetStreamBus(SystemClock(), letters, Servers(urls=server.urls), publish_seconds=1.0)
        await bus.connect()
        client = await nats.connect(server.url)
        yield Harness(table, letters, client.jetstream(), server)
        await client.close()
        await bus.close(0)


async def test_a_letter_is_published_with_its_message_and_its_reason(harness: Harness) -> None:
    """The body as it was; what is no plain line of ASCII is percent-encoded in its header."""
    await harness.add(LETTER)
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


async def test_a_letter_added_twice_is_on_the_stream_once(harness: Harness) -> None:
    """Under its own id."""
    for _ in range(3):
        await harness.add(LETTER)
    assert await harness.count() == 1


async def test_the_letter_of_a_replay_goes_under_the_original_subject(harness: Harness) -> None:
    """Whoever watches a subject sees all that fails on it."""
    replayed = evolve(LETTER.message, subject="inventory.replay.inventory-express.orders.created.v1.express")
    await harness.add(evolve(LETTER, message=replayed))
    assert (await harness.js.get_msg(DEAD_LETTERS, 1)).subject == "dead.inventory-express.orders.created.v1.express"


async def test_what_is_not_kept_is_not_published(harness: Harness) -> None:
    """The table comes first."""
    await harness.add(LETTER)
    harness.table.is_broken = True
    with pytest.raises(OSError, match="full"):
        await harness.letters.add(evolve(LETTER, id="l-2"))
    assert await harness.count() == 1


async def test_what_is_not_published_is_not_added(harness: Harness) -> None:
    """The bus tries again, and neither of the two has it twice."""
    await harness.add(LETTER)
    harness.server.kill()
    with pytest.raises(PublishRetryable):
        await harness.letters.add(evolve(LETTER, id="l-2"))
    harness.server.start()
    await harness.add(evolve(LETTER, id="l-2"))
    assert await harness.count() == 2


@pytest.mark.parametrize(
    "name", ["Nats-Expected-Last-Sequence", "Nats-Expected-Stream", "nats-rollup", "", "a b", "ü", "a:b", "a\r\nb"]
)
async def test_instructions_for_another_stream_do_not_keep_a_letter_out(harness: Harness, name: str) -> None:
    """Anybody may write such a header on a message, or one that is none."""
    await harness.add(evolve(LETTER, message=evolve(LETTER.message, headers={name: "99", "x": "a\r\nb", "y": "ü"})))
    found = (await harness.js.get_msg(DEAD_LETTERS, 1)).headers or {}
    assert {"x", name} & set(found) == set()
    assert "y" in found


async def test_a_message_that_is_as_large_as_can_be_is_named_without_its_body(harness: Harness) -> None:
    """With its reason on it, it would be too large for the server, for ever; the table has it whole."""
    await harness.add(evolve(LETTER, message=evolve(LETTER.message, body=b"x" * (1024 * 1024 - 200))))
    found = await harness.js.get_msg(DEAD_LETTERS, 1)
    assert (found.data or b"", (found.headers or {})["dead-letter-body"]) == (b"", "too large, see the table")
    assert len(harness.table.kept[-1].message.body) > 1_000_000
