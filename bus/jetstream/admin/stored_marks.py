"""
Find out that a stream has lost the last messages that it had stored, although it acknowledged them.

A server writes to its disk every two minutes by default, and acknowledges a message before that. After a loss of power, the
messages that were not on the disk are gone, and the stream continues from an earlier sequence. Nothing else shows it: the
configuration is as planned, and the last sequence is soon as high as before. So the publisher keeps marks, each the sequence
and the id of a message, and asks from time to time whether the newest is still there. If it is not, the newest mark that is
still there shows since when messages may be lost.
"""

from __future__ import annotations

__all__ = ["StoredMarks"]

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import nats.errors
import orjson
from attrs import frozen
from nats.js import JetStreamContext
from nats.js.api import Header, RawStreamMsg
from nats.js.errors import NotFoundError

from bus.jetstream.admin.configs import AGE_MAX_SECONDS
from bus.jetstream.admin.topology import ADVISORIES, DEAD_LETTERS, stream_name
from bus.port import Clock

SEEN_MAX = 1_024
FRESH_MAX = 64
"""Marks of one stream that are kept, and that are looked for at once; beyond that every second one is dropped."""

EVERYTHING = datetime(1970, 1, 1, tzinfo=UTC)

_SOON_GONE = timedelta(seconds=AGE_MAX_SECONDS / 2)
_TOLERANCE = timedelta(seconds=5)
"""Marks are made a moment after the answer, and the clocks of two processes may differ a little."""

_log = logging.getLogger(__name__)


@frozen
class _Mark:
    """A message that the stream has stored: when this process has seen that, or the server's time."""

    at: datetime
    sequence: int
    id: str


class StoredMarks:
    """
    The marks of one process for the *streams* to which it publishes.

    *js* returns the current connection's JetStream context; *newest* are the id of the last message that was stored on each
    subject, and the stream's answer; the marks are made from them.
    """

    def __init__(
        self, js: Callable[[], JetStreamContext], clock: Clock, streams: Iterable[str], newest: dict[str, tuple[str, bytes]]
    ) -> None:
        self._js = js
        self._clock = clock
        self._newest = newest
        self._seen: dict[str, list[_Mark]] = {stream: [] for stream in streams if stream not in (ADVISORIES, DEAD_LETTERS)}
        """Marks that were there at the last look, the oldest first: a loss takes the last of them."""
        self._fresh: dict[str, list[_Mark]] = {stream: [] for stream in self._seen}
        """Those since then. The stream may have lost some of them, and have stored the later ones in their place."""
        self._lost_since: dict[str, datetime] = {}

    @property
    def lost_since(self) -> Mapping[str, datetime]:
        """By stream: since when messages that it had stored are lost, until `forget`."""
        return self._lost_since

    def has_stored(self, stream: str) -> bool:
        """Return whether *stream* is known to have stored messages."""
        is_marked = bool(self._seen.get(stream) or self._fresh.get(stream))
        return is_marked or any(stream_name(subject) == stream for subject in self._newest)

    def forget(self, stream: str, since: datetime) -> None:
        """Note that what *stream* has lost *since* then is published again."""
        if self._lost_since.get(stream) == since:
            del self._lost_since[stream]

    def add(self) -> None:
        """Make marks of the newest messages."""
        now = self._clock.now()
        for subject, (id, answer) in self._newest.items():
            marks, sequence = self._fresh.get(stream_name(subject)), orjson.loads(answer).get("seq")
            if marks is not None and isinstance(sequence, int):
                marks.append(_Mark(now - _TOLERANCE, sequence, id))
                if len(marks) > FRESH_MAX:
                    del marks[1:-1:2]
        self._newest.clear()

    async def check(self) -> None:
        """
        Look for the marks since the last look, and note the streams that have lost one.

        A stream that does not answer now is looked at the next time.
        """
        young = self._clock.now() - _SOON_GONE  # what is older, the stream may have deleted for its age
        for stream, marks in self._seen.items():
            seen, fresh = [mark for mark in marks if mark.at > young], self._fresh[stream]
            self._fresh[stream] = []
            try:
                self._seen[stream] = await self._look(stream, seen, fresh)
            except (nats.errors.Error, TimeoutError, OSError, ValueError) as error:
                self._fresh[stream] = fresh + self._fresh[stream]
                _log.debug("stream %s cannot be compared with what it has stored: %r", stream, error)

    async def _look(self, stream: str, seen: list[_Mark], fresh: list[_Mark]) -> list[_Mark]:
        """Return the marks that are there, the last of *fresh* or of *seen* among them unless *stream* has lost something."""
        if not seen and not fresh:
            return await self._last_of(stream)
        there: _Mark | None = None
        for mark in [*seen[-1:], *fresh]:
            if not await self._is_there(stream, mark):
                left = [*seen, there] if there in fresh else seen[: await self._count_there(stream, seen)]
                self._lose(stream, left[-1].at if left else EVERYTHING)
                return left
            there = mark
        return _thinned([*seen, *fresh[-1:]])

    async def _last_of(self, stream: str) -> list[_Mark]:
        """Return a mark of the last message of *stream*: this process may publish nothing for long."""
        sequence = (await self._js().stream_info(stream)).state.last_seq
        if not sequence:
            return []
        found: RawStreamMsg = await self._js().get_msg(stream, seq=sequence)
        return [_Mark(found.time or self._clock.now(), sequence, _id_of(found))]

    async def _count_there(self, stream: str, marks: Sequence[_Mark]) -> int:
        """Return how many of *marks* are there, which are the first ones."""
        there, gone = 0, len(marks)
        while there < gone:
            middle = (there + gone) // 2
            if await self._is_there(stream, marks[middle]):
                there = middle + 1
            else:
                gone = middle
        return there

    def _lose(self, stream: str, since: datetime) -> None:
        _log.warning("stream %s has lost messages that it had stored; they are published again", stream)
        self._lost_since[stream] = min(since, self._lost_since.get(stream, since))

    async def _is_there(self, stream: str, mark: _Mark) -> bool:
        try:
            found: RawStreamMsg = await self._js().get_msg(stream, seq=mark.sequence)
        except NotFoundError:
            return False
        return _id_of(found) == mark.id


def _id_of(found: RawStreamMsg) -> str:
    return str((found.headers or {}).get(Header.MSG_ID, ""))


def _thinned(marks: list[_Mark]) -> list[_Mark]:
    """Return *marks*; of too many the first, the last and every second one between them."""
    return marks if len(marks) <= SEEN_MAX else [marks[0], *marks[1:-1:2], marks[-1]]
