"""What a stream has lost is published again from the outbox, once the bus has noticed it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from attrs import define, field

from app.messaging import republish
from app.messaging.loss_repair import Losses, LossRepair
from app.storage.module_store import ModuleStore
from bus.errors import PublishRetryable
from bus.port import Message
from tests.clock import VirtualClock
from tests.messaging.test_republish import insert
from tests.runtime.harness import harness_at, until

LOST_AT = datetime.fromisoformat("2026-03-01T12:00:00+00:00")


@define
class LostStreams:
    """Implements `Losses`."""

    lost_since: Mapping[str, datetime]

    def forget(self, stream: str, since: datetime) -> None:
        self.lost_since = {each: at for each, at in self.lost_since.items() if (each, at) != (stream, since)}


@define
class RecordingBus:
    """A bus that records what it is asked to publish, and accepts it unless it *is_away*."""

    is_away: bool = False
    published: list[str] = field(factory=list)

    def publish(self, message: Message) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.published.append(message.id)
        if self.is_away:
            future.set_exception(PublishRetryable("away"))
        else:
            future.set_result(None)
        return future


async def test_what_was_sent_since_a_loss_is_published_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the module whose stream has lost it, and nothing that was sent before; while the bus is out of reach the loss stays noted."""
    monkeypatch.setattr("tests.messaging.test_republish.NOW", LOST_AT)
    path, clock = tmp_path / "test.db", VirtualClock()
    async with harness_at(path, clock) as harness:
        insert(path, "orders", 2, age=timedelta(minutes=5))
        lost = insert(path, "orders", 3, age=timedelta(seconds=-10))
        insert(path, "payments", 1, age=timedelta(seconds=-10))
        losses, bus = LostStreams({"ORDERS": LOST_AT}), RecordingBus(is_away=True)
        kept: Losses = losses
        stores: dict[str, ModuleStore] = harness.stores
        repair = LossRepair(stores, bus, kept, clock)  # type: ignore[arg-type]
        step = asyncio.create_task(repair.step())
        await until(lambda: bus.published)
        await clock.advance(republish.PATIENCE_SECONDS + 1)
        await step
        assert losses.lost_since == {"ORDERS": LOST_AT}
        bus.is_away, bus.published = False, []
        await repair.step()
        assert (sorted(bus.published), losses.lost_since) == (sorted(lost), {})
        await repair.step()
        assert len(bus.published) == 3
