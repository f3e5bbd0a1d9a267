"""A running bus reports messages that its stream has lost before their retention ended, once, with what to do."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from nats.js import JetStreamContext

from bus.jetstream.admin.configs import AGE_MAX_SECONDS
from bus.jetstream.admin.losses import SHOWN_SECONDS, LossDetector
from bus.jetstream.admin.server_config import ServerConfig
from bus.jetstream.admin.topology import ADVISORIES, DEAD_LETTERS
from bus.jetstream.bus import JetStreamBus
from bus.port import Message
from tests.bus.contract import CREATED
from tests.bus.jetstream.harness import JetStreamHarness, publish_all, until

LABEL = "stream ORDERS"


async def update(js: JetStreamContext, **changes: Any) -> None:
    config = {**(await js._api_request("$JS.API.STREAM.INFO.ORDERS"))["config"], **changes}
    await js._api_request("$JS.API.STREAM.UPDATE.ORDERS", json.dumps(config).encode())


async def create_again(js: JetStreamContext) -> None:
    config = (await js.stream_info("ORDERS")).config
    await js.delete_stream("ORDERS")
    await js.add_stream(config)


async def keep_few(js: JetStreamContext) -> None:
    await update(js, max_msgs=1, discard="old")
    await update(js, max_msgs=-1, discard="new")


async def delete_one(js: JetStreamContext) -> None:
    await js.delete_msg("ORDERS", 2)


LOSSES: dict[str, tuple[Callable[[JetStreamContext], Awaitable[Any]], str]] = {
    "purge": (lambda js: js.purge_stream("ORDERS"), "was purged, or had a limit lowered: messages before 4 are gone"),
    "purge of some": (lambda js: js.purge_stream("ORDERS", seq=3), "was purged, or had a limit lowered: messages before 3 are gone"),
    "create again": (create_again, "was deleted and created again"),
    "lower a limit": (keep_few, "was purged, or had a limit lowered: messages before 3 are gone"),
    "delete a message": (delete_one, "had messages deleted"),
}


@pytest.fixture
async def bus(harness: JetStreamHarness) -> JetStreamBus:
    """A bus that looks at its stream all the time; three messages are in it."""
    bus = await harness.another(streams=["ORDERS", ADVISORIES, DEAD_LETTERS], verify_seconds=0.05)
    await publish_all(bus, [Message(CREATED, f"m-{number}", b"{}") for number in range(3)])
    seen = bus._loss_detector._seen
    await until(lambda: LABEL in seen and seen[LABEL].messages == 3)
    return bus


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_loss_is_reported_once_with_what_to_do(
    bus: JetStreamBus, harness: JetStreamHarness, loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Though the stream is as planned again when the bus looks: only its messages are gone."""
    change, what = LOSSES[loss]
    await harness.administer(change)
    await until(lambda: bool(bus.stalls))
    assert bus.stalls == [f"{LABEL} {what}"]
    looks = bus._loss_detector._seen[LABEL]
    await until(lambda: bus._loss_detector._seen[LABEL] is not looks)
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert what in record.getMessage()
    assert "republish" in record.getMessage()


async def test_publishing_and_consuming_is_no_loss(bus: JetStreamBus) -> None:
    await publish_all(bus, [Message(CREATED, f"n-{number}", b"{}") for number in range(50)])
    await until(lambda: bus._loss_detector._seen[LABEL].messages == 53)
    await asyncio.sleep(0)
    assert bus.stalls == []


def stream(first: int, last: int, first_age: float, last_age: float, created: str = "a") -> ServerConfig:
    def at(age: float) -> str:
        minutes = round(100 * 60 - age / 60)
        return f"2026-01-{1 + minutes // 1440:02}T{minutes // 60 % 24:02}:{minutes % 60:02}:00.123456789Z"

    state = {"messages": last - first + 1, "first_seq": first, "last_seq": last, "first_ts": at(first_age), "last_ts": at(last_age)}
    return ServerConfig({}, {"created": created, "state": state, "ts": at(0)})


HOUR = 3600.0


@pytest.mark.parametrize(
    ("before", "after", "is_loss"),
    [
        (stream(1, 90, AGE_MAX_SECONDS, HOUR), stream(5, 95, AGE_MAX_SECONDS, 0), False),
        (stream(1, 90, AGE_MAX_SECONDS, AGE_MAX_SECONDS), stream(91, 90, AGE_MAX_SECONDS, AGE_MAX_SECONDS), False),
        (stream(1, 90, AGE_MAX_SECONDS, HOUR), stream(91, 90, AGE_MAX_SECONDS, HOUR), True),
        (stream(1, 90, 30 * HOUR, HOUR), stream(2, 90, 29 * HOUR, HOUR), True),
        (stream(1, 0, 30 * HOUR, HOUR), stream(1, 0, 30 * HOUR, HOUR, "b"), False),
        (stream(1, 90, 30 * HOUR, HOUR), stream(1, 3, HOUR, HOUR), True),
    ],
    ids=["old ones expire", "all expire", "purged while the first is old", "young ones go", "an empty one", "another one"],
)
def test_what_expires_is_no_loss(before: ServerConfig, after: ServerConfig, is_loss: bool) -> None:
    """A stream gives up its messages at their age; only younger ones are missed. A loss is shown for an hour."""
    now = 0.0
    detector = LossDetector(lambda: now)
    for found in (before, after, after):
        detector.observe(LABEL, found)
    assert bool(detector.losses) == is_loss
    now = SHOWN_SECONDS
    assert detector.losses == []
