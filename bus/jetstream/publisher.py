"""
Messages on their way to their streams, and who waits to hear that a stream has them.

There may be thousands. So all answers come to one inbox, whose last token says which message is meant, and one sweep
ends whatever waits for too long; a message costs neither a task nor a timer.

Whether a message that ended with `PublishRetryable` is in the stream is unknown: it may even be stored later. It is to be sent
again under the same id, and within its window the stream recognises it.
"""

from __future__ import annotations

__all__ = ["Publisher"]

import asyncio
import itertools
import logging
from collections.abc import Callable

import orjson
from attrs import define
from nats.aio.client import Client
from nats.aio.msg import Msg

from bus.errors import BusClosed, PublishRetryable
from bus.jetstream.admin.topology import stream_name
from bus.jetstream.connection import Connection
from bus.jetstream.wire import headers_of
from bus.port import Clock, Message

_NO_RESPONDERS = "503"

_log = logging.getLogger(__name__)


@define(eq=False)
class PendingPublish:
    """One message on its way. Whoever cancels a future only stops listening."""

    subject: str
    id: str
    token: str
    deadline: float
    future: asyncio.Future[None]
    dispatch: Publisher
    followers: list[asyncio.Future[None]] | None = None

    @property
    def is_over(self) -> bool:
        return self.token not in self.dispatch.flights

    def land(self) -> None:
        for future in (self.future, *(self.followers or ())):
            if not future.done():
                future.set_result(None)

    def fail(self, error: Exception) -> None:
        self.dispatch.forget(self)
        for future in (self.future, *(self.followers or ())):
            end(future, error)


class Publisher:
    """
    Send messages over *connection* and end each one's future within *publish_seconds*.

    *on_missing* hears the name of a stream that does not answer at all: it is not there, or has no leader just now.
    *on_taken* hears the name of a stream that takes messages again after any trouble.
    """

    def __init__(
        self,
        clock: Clock,
        connection: Connection,
        *,
        publish_seconds: float,
        on_missing: Callable[[str], None],
        on_taken: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._connection = connection
        self._publish_seconds = publish_seconds
        self._on_missing = on_missing
        self._on_taken = on_taken
        self._ordinals = itertools.count()
        self._inbox = ""
        self._client: Client | None = None
        self._troubles: dict[str, str] = {}
        self._by_id: dict[str, PendingPublish] = {}
        self.flights: dict[str, PendingPublish] = {}

    async def bind(self, client: Client) -> None:
        """Listen for answers on *client*, unless we do so already: it takes its subscriptions along when it reconnects."""
        if client is self._client:
            return
        inbox = f"{client.new_inbox()}."
        await client.subscribe(f"{inbox}*", cb=self._answered, pending_msgs_limit=-1, pending_bytes_limit=-1)
        self._inbox, self._client = inbox, client

    def publish(self, message: Message) -> asyncio.Future[None]:
        """Send *message*; see `bus.port.Bus.publish`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not (self._inbox and self._connection.is_up):
            end(future, PublishRetryable("NATS is out of reach"))
            return future
        if (first := self._by_id.get(message.id)) is not None:
            # A cluster would refuse the copy while it is still busy with the first.
            if first.followers is None:
                first.followers = []
            first.followers.append(future)
            return future
        token = str(next(self._ordinals))
        deadline = self._clock.monotonic() + self._publish_seconds
        flight = PendingPublish(message.subject, message.id, token, deadline, future, self)
        self.flights[token] = self._by_id[message.id] = flight
        self._connection.send(message.subject, message.body, self._inbox + token, headers_of(message), flight)
        return future

    def is_in_trouble(self, stream: str) -> bool:
        """Tell whether *stream* has refused the last message that it was sent."""
        return stream in self._troubles

    def sweep(self, now: float) -> None:
        """End what has waited for too long."""
        overdue = []
        for flight in self.flights.values():  # in the order of time
            if flight.deadline > now:
                break
            overdue.append(flight)
        for flight in overdue:
            self._trouble(flight.subject, "no answer in time")
            flight.fail(PublishRetryable(f"no answer within {self._publish_seconds:g} s"))

    def fail_all(self, error: PublishRetryable | BusClosed) -> None:
        """End everything that is under way."""
        for flight in list(self.flights.values()):
            flight.fail(error)

    def forget(self, flight: PendingPublish) -> None:
        """Let an answer to *flight* be nobody's."""
        self.flights.pop(flight.token, None)
        if self._by_id.get(flight.id) is flight:
            del self._by_id[flight.id]

    async def _answered(self, msg: Msg) -> None:
        flight = self.flights.get(msg.subject[len(self._inbox) :])
        if flight is None:
            return
        data = msg.data
        if data and b'"error"' not in data:
            self.forget(flight)
            flight.land()
            if self._troubles and (stream := stream_name(flight.subject)) in self._troubles:
                del self._troubles[stream]
                _log.info("stream %s takes messages again", stream)
                self._on_taken(stream)
            return
        said = _error_of(msg)
        self._trouble(flight.subject, said)
        flight.fail(PublishRetryable(f"{flight.subject}: {said}"))

    def _trouble(self, subject: str, said: str) -> None:
        stream = stream_name(subject)
        if said == _NO_RESPONDERS:
            self._on_missing(stream)
        if stream not in self._troubles:
            self._troubles[stream] = said
            _log.warning("stream %s does not take messages: %s", stream, said)


def end(future: asyncio.Future[None], error: Exception) -> None:
    """Let *future* end with an error like *error*, and let nobody complain if whoever wanted it has left."""
    if not future.done():
        future.set_exception(type(error)(*error.args))  # one each: whoever raises it hangs a traceback on it
        future.exception()


def _error_of(msg: Msg) -> str:
    """Return what a stream says that has not taken a message; all of it may pass: no leader, no quorum, no room."""
    if not msg.data:
        return (msg.headers or {}).get("Status", "no answer")
    try:
        error = orjson.loads(msg.data)["error"]
        return f"{error.get('description')} ({error.get('err_code')})"
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return "an answer that is none"
