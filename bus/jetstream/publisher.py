"""
Publishing to streams, and waiting until a stream has stored each message.

Thousands of messages may be in flight. So all answers come to one inbox, whose last token names the message, and one
sweep ends what waits for too long; a message costs neither a task nor a timer.

Whether a message that ended with `PublishRetryable` is in the stream is unknown: it may even be stored later. The caller
publishes it again under the same id, and within its deduplication window the stream recognises it.
"""

from __future__ import annotations

__all__ = ["Publisher"]

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

import nats.errors
import orjson
from attrs import define

from bus.errors import BusClosed, PublishRefused, PublishRetryable
from bus.jetstream.admin.duplicates import DuplicateCheck, salted
from bus.jetstream.admin.topology import stream_name
from bus.jetstream.connection import Connection
from bus.jetstream.delivery import headers_of, parse_headers
from bus.jetstream.nats_client import NatsClient
from bus.port import Clock, Message

_NO_RESPONDERS = "503"
_FAULTS_OF_THE_MESSAGE = (10054, 10097)
"""The server's error codes for: the message, or its headers, are larger than the stream allows."""
_NEVER_SENT = (nats.errors.MaxPayloadError, nats.errors.BadSubjectError, nats.errors.BadHeaderError, ValueError)
"""What the client raises for a message that no server would accept; `ValueError` is for text that cannot be encoded."""

_log = logging.getLogger(__name__)


@define(eq=False)
class PendingPublish:
    """One message in flight to its stream. A cancelled future ends the waiting, not the publish."""

    message: Message
    token: str
    deadline: float
    future: asyncio.Future[None]
    publisher: Publisher
    duplicate_futures: list[asyncio.Future[None]] | None = None

    @property
    def subject(self) -> str:
        return self.message.subject

    @property
    def is_done(self) -> bool:
        return self.token not in self.publisher.pending

    def complete(self) -> None:
        """End every future of this message with success."""
        for future in (self.future, *(self.duplicate_futures or ())):
            if not future.done():
                future.set_result(None)

    def fail(self, error: Exception) -> None:
        """End every future of this message with *error*, and ignore what the stream may answer later."""
        if isinstance(error, _NEVER_SENT):
            error = PublishRefused(f"{self.subject}: {error or type(error).__name__}")
        elif isinstance(error, (nats.errors.Error, OSError)):
            error = PublishRetryable(f"{self.subject}: {error or type(error).__name__}")
        self.publisher.forget(self)
        for future in (self.future, *(self.duplicate_futures or ())):
            _fail_future(future, error)


class Publisher:
    """
    Sends messages over *connection* and ends the future of each within *publish_seconds*.

    *on_missing* is called with the name of a stream that does not answer at all: it does not exist, or has no leader now.
    *on_recovered* is called with the name of a stream that stores messages again after it has failed.
    """

    def __init__(
        self,
        clock: Clock,
        connection: Connection,
        *,
        publish_seconds: float,
        on_missing: Callable[[str], None],
        on_recovered: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._connection = connection
        self._publish_seconds = publish_seconds
        self._on_missing = on_missing
        self._on_recovered = on_recovered
        self._ordinals = itertools.count()
        self._inbox = ""
        self._is_stopped = False
        self._client: NatsClient | None = None
        self._failing_streams: set[str] = set()
        self.unanswered_streams: set[str] = set()
        """The streams that have not answered a publish in time, and have stored none since."""
        self._by_id: dict[str, PendingPublish] = {}
        self._duplicates = DuplicateCheck(lambda: connection.js)
        self._looking: set[asyncio.Task[None]] = set()
        self.pending: dict[str, PendingPublish] = {}
        """The messages in flight by token, the oldest first."""
        self.newest: dict[str, tuple[str, bytes]] = {}
        """By subject: the id of the message that was stored last, and the answer of its stream."""

    async def bind(self, client: NatsClient) -> None:
        """Subscribe to the answers on *client*, unless that is done: a client keeps its subscriptions when it reconnects."""
        if client is self._client:
            return
        inbox = f"{client.new_inbox()}."
        await client.subscribe_fast(f"{inbox}*", self._on_published)
        self._inbox, self._client = inbox, client

    def publish(self, message: Message) -> asyncio.Future[None]:
        """Send *message*; see `bus.port.Bus.publish`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._is_stopped or not (self._inbox and self._connection.is_up):
            _fail_future(future, BusClosed("the bus is closed") if self._is_stopped else PublishRetryable("NATS is out of reach"))
            return future
        if (first := self._by_id.get(message.id)) is not None:
            # A cluster would refuse the duplicate while it is still storing the first.
            if first.duplicate_futures is None:
                first.duplicate_futures = []
            first.duplicate_futures.append(future)
            return future
        token = str(next(self._ordinals))
        deadline = self._clock.monotonic() + self._publish_seconds
        pending = PendingPublish(message, token, deadline, future, self)
        self.pending[token] = self._by_id[message.id] = pending
        self._connection.send(message.subject, message.body, self._inbox + token, headers_of(message), pending)
        return future

    def stop(self) -> None:
        """Send nothing more; what is in flight still ends."""
        self._is_stopped = True

    @property
    def is_idle(self) -> bool:
        """No message is in flight, and no duplicate is being compared."""
        return not self.pending and not self._looking

    def is_failing(self, stream: str) -> bool:
        """Return whether publishes to *stream* fail: the last one was refused or not answered, and none was stored since."""
        return stream in self._failing_streams

    def expire(self, now: float) -> None:
        """Fail what has waited for too long."""
        overdue = []
        for pending in self.pending.values():
            if pending.deadline > now:
                break
            overdue.append(pending)
        for pending in overdue:
            self.unanswered_streams.add(stream_name(pending.subject))
            self._note_failure(pending.subject, "no answer in time")
            pending.fail(PublishRetryable(f"no answer within {self._publish_seconds:g} s"))

    def fail_all(self, error: PublishRetryable | BusClosed) -> None:
        """Fail everything that is in flight."""
        for pending in list(self.pending.values()):
            pending.fail(error)

    def forget(self, pending: PendingPublish) -> None:
        """Ignore a later answer to *pending*."""
        self.pending.pop(pending.token, None)
        if self._by_id.get(pending.message.id) is pending:
            del self._by_id[pending.message.id]

    def _on_published(self, subject: str, reply: str, headers: bytes, data: bytes) -> None:
        pending = self.pending.get(subject[len(self._inbox) :])
        if pending is None:
            return
        if data and b'"error"' not in data:
            self.forget(pending)
            if b'"duplicate"' in data:
                self._look_at_duplicate(pending, data)
            else:
                self.newest[pending.subject] = pending.message.id, data
                pending.complete()
            if self._failing_streams and (stream := stream_name(pending.subject)) in self._failing_streams:
                self._failing_streams.discard(stream)
                self.unanswered_streams.discard(stream)
                _log.info("stream %s takes messages again", stream)
                self._on_recovered(stream)
            return
        reason, is_refused = _error_of(headers, data)
        if is_refused:
            pending.fail(PublishRefused(f"{pending.subject}: {reason}"))
            return
        self._note_failure(pending.subject, reason)
        pending.fail(PublishRetryable(f"{pending.subject}: {reason}"))

    def _look_at_duplicate(self, pending: PendingPublish, data: bytes) -> None:
        """Complete *pending* once the stream is seen to hold it; the time limit of a publish does not apply to looking."""
        task = asyncio.get_running_loop().create_task(self._settle_duplicate(pending, orjson.loads(data).get("seq")))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _settle_duplicate(self, pending: PendingPublish, sequence: Any) -> None:
        try:
            if type(sequence) is not int or await self._duplicates.is_stored(pending.message, sequence):
                pending.complete()
                return
            await self.publish(salted(pending.message))
        except Exception as error:
            pending.fail(error)
        else:
            pending.complete()

    def _note_failure(self, subject: str, reason: str) -> None:
        stream = stream_name(subject)
        if reason == _NO_RESPONDERS:
            self._on_missing(stream)
        if stream not in self._failing_streams:
            self._failing_streams.add(stream)
            _log.warning("stream %s does not take messages: %s", stream, reason)


def _fail_future(future: asyncio.Future[None], error: Exception) -> None:
    """End *future* with an error like *error*; the loop does not complain if the caller has stopped waiting."""
    if not future.done():
        future.set_exception(type(error)(*error.args))  # one for each future: raising it adds a traceback to it
        future.exception()


def _error_of(headers: bytes, data: bytes) -> tuple[str, bool]:
    """
    Return why a stream has not stored a message, and whether that is so because of the message itself.

    It is if the message, or its headers, are too large for the stream. All other reasons are the stream's, also those for
    which the server answers with the code 400 (a sealed stream): no leader, no quorum, no space.
    """
    if not data:
        return parse_headers(headers).get("Status", "no answer"), False
    try:
        error = orjson.loads(data)["error"]
        return f"{error.get('description')} ({error.get('err_code')})", error.get("err_code") in _FAULTS_OF_THE_MESSAGE
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return "an unreadable answer", False
