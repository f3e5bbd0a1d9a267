"""The streams of a JetStream server and the consumers on them, listed."""

from __future__ import annotations

__all__ = ["JetStreamConsumerDirectory"]

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo, StreamInfo
from nats.js.errors import NotFoundError

from bus.consumers import UNDERSTOOD, RegisteredConsumer, RegisteredStream

PAGE_SIZE = 256
"""Consumers that the server returns in one answer."""


class JetStreamConsumerDirectory:
    """
    Lists the consumers on *streams*, durable or not.

    *js* returns the current connection's JetStream context. Plain subscriptions without JetStream cannot be listed.
    """

    def __init__(self, js: Callable[[], JetStreamContext], streams: Iterable[str]) -> None:
        self._js = js
        self._streams = tuple(dict.fromkeys(streams))

    async def consumers(self) -> Sequence[RegisteredConsumer]:
        """Return the consumers; one that is on two streams is listed twice, with its subjects of each."""
        return [_registered(info, stream) for stream in self._streams for info in await self._consumers(stream)]

    async def streams(self) -> Sequence[RegisteredStream]:
        """Return those of the streams that exist."""
        found: list[RegisteredStream] = []
        for name in self._streams:
            with suppress(NotFoundError):
                found.append(_stream(name, await self._js().stream_info(name)))
        return found

    async def _consumers(self, stream: str) -> list[ConsumerInfo]:
        found: list[ConsumerInfo] = []
        try:
            while len(page := await self._js().consumers_info(stream, offset=len(found))) == PAGE_SIZE:
                found += page
        except NotFoundError:
            return []  # the stream does not exist yet, so it has no consumers
        return found + page


def _registered(info: ConsumerInfo, stream: str) -> RegisteredConsumer:
    config, in_progress = info.config, info.num_ack_pending or 0
    filters = config.filter_subjects or ([config.filter_subject] if config.filter_subject else [">"])
    return RegisteredConsumer(
        config.durable_name or info.name, tuple(filters), (info.num_pending or 0) + in_progress, in_progress,
        info.num_redelivered or 0, stream, frozenset((config.metadata or {}).get(UNDERSTOOD, "").split()),
    )  # fmt: skip


def _stream(name: str, info: StreamInfo) -> RegisteredStream:
    state = info.state
    return RegisteredStream(name, state.messages, state.bytes, state.last_seq, info.config.num_replicas or 1)
