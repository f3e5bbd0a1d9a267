"""A simulated durable pull consumer: requests, deliveries, acknowledgements, and the end of ``ack_wait``."""

from __future__ import annotations

__all__ = ["Consumer", "ConsumerHost"]

import asyncio
import json
import random
from collections import deque
from typing import Any, Protocol

from attrs import define, field

from bus.port import Clock
from tests.simulation.broker.stream import Stored, Stream
from tests.simulation.broker.wire import NatsMessage, header_block

_NANOSECONDS = 1_000_000_000
_DEFAULTS = {"deliver_policy": "all", "ack_policy": "explicit", "ack_wait": 30 * _NANOSECONDS, "max_deliver": -1}
_MORE_DEFAULTS = {"replay_policy": "instant", "max_waiting": 512, "max_ack_pending": 1000, "num_replicas": 0}
_REQUESTS_MAX = 512


class ConsumerHost(Protocol):
    """What a consumer needs from its server."""

    clock: Clock
    rng: random.Random

    def now_ns(self) -> int:
        """Return the Unix time in nanoseconds."""

    def route(self, to: str, message: NatsMessage) -> bool:
        """Deliver *message* to the subscriptions of the subject *to*; return whether there are any."""

    def publish(self, message: NatsMessage) -> None:
        """Publish *message* as the server itself does: to subscriptions, and to the stream that stores its subject."""

    def has_interest(self, subject: str) -> bool:
        """Return whether a client subscribes to *subject*."""


@define(eq=False)
class _Request:
    """A request for *left* messages, to be sent to *reply*."""

    reply: str
    left: int
    expires_at: float
    is_no_wait: bool


@define(eq=False)
class Consumer:
    """
    One durable on *stream*.

    *keeps_order* redelivers in the order of the stream; otherwise the random generator of the host decides.
    """

    host: ConsumerHost
    stream: Stream
    config: dict[str, Any]
    keeps_order: bool = True
    position: int = 0
    """The sequence of the last message that was delivered for the first time."""
    delivered: int = 0
    pending: dict[int, float] = field(factory=dict)
    """By sequence: when it is redelivered unless it is acknowledged."""
    tries: dict[int, int] = field(factory=dict)
    redeliver: dict[int, None] = field(factory=dict)
    acked: deque[int] = field(factory=lambda: deque(maxlen=100))
    """The sequences that were acknowledged last."""
    requests: deque[_Request] = field(factory=deque)
    _timer: asyncio.Handle | None = None
    _timer_at: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.change(self.config)
        if self.config["deliver_policy"] == "by_start_sequence":
            self.position = self.config["opt_start_seq"] - 1

    @property
    def name(self) -> str:
        return str(self.config.get("durable_name") or self.config["name"])

    @property
    def subjects(self) -> tuple[str, ...]:
        single = self.config.get("filter_subject")
        return tuple(self.config.get("filter_subjects") or ([single] if single else ()))

    @property
    def unsettled(self) -> int:
        """How many messages wait for their delivery, or for an acknowledgement."""
        return len(self.pending) + self.stream.count_after(self.position, self.subjects)

    def change(self, config: dict[str, Any]) -> None:
        """Apply *config* from now on."""
        given = {name: value for name, value in config.items() if value is not None}
        self.config = _DEFAULTS | _MORE_DEFAULTS | given
        if self.config["max_deliver"] == 0:
            self.config["max_deliver"] = -1

    # Requests

    def request(self, body: bytes, reply: str) -> None:
        """Take the request *body* for messages to *reply*."""
        wanted = json.loads(body) if body.startswith(b"{") else {"batch": int(body or b"1")}
        expires = wanted.get("expires", 0) / _NANOSECONDS
        expires_at = self.host.clock.monotonic() + expires if expires else float("inf")
        request = _Request(reply, wanted.get("batch", 1), expires_at, bool(wanted.get("no_wait")))
        waiting = self._count_waiting() if request.is_no_wait else 0
        if request.is_no_wait and not waiting and not expires:
            self._status(request, "404 No Messages")
        elif request.is_no_wait and waiting and waiting < sum(each.left for each in self.requests):
            self._status(request, "408 Requests Pending")
        elif len(self.requests) >= _REQUESTS_MAX:
            self._status(request, "409 Exceeded MaxWaiting")
        else:
            self.requests.append(request)
            self.pump()

    def _count_waiting(self) -> int:
        return self.stream.count_after(self.position, self.subjects) + len(self.redeliver)

    def pump(self) -> None:
        """Deliver what can be delivered now."""
        self._expire_requests()
        while (request := self._next_request()) is not None and (stored := self._next()) is not None:
            self._deliver(stored, request.reply)
            request.left -= 1
            self.requests.remove(request)
            if request.left:
                self.requests.append(request)  # the others come first now
        for request in [each for each in self.requests if each.is_no_wait]:
            self.requests.remove(request)
            self._status(request, "408 Request Timeout")
        self._set_timer()

    def _next_request(self) -> _Request | None:
        """Return the oldest request whose inbox a client reads; drop those before it."""
        while self.requests and not self.host.has_interest(self.requests[0].reply):
            self.requests.popleft()
        return self.requests[0] if self.requests else None

    def _expire_requests(self) -> None:
        now = self.host.clock.monotonic()
        for request in [each for each in self.requests if each.expires_at <= now]:
            self.requests.remove(request)
            self._status(request, "408 Request Timeout")

    def _status(self, request: _Request, status: str) -> None:
        unused = {"Nats-Pending-Messages": str(request.left), "Nats-Pending-Bytes": "0"}
        self.host.route(request.reply, NatsMessage(request.reply, "", header_block(status, unused), b""))

    # Deliveries

    def _next(self) -> Stored | None:
        """Return the next message to deliver, and count its delivery."""
        while self.redeliver:
            sequence = next(iter(self.redeliver)) if self.keeps_order else self.host.rng.choice(list(self.redeliver))
            del self.redeliver[sequence]
            stored = self.stream.messages.get(sequence)
            if stored is None:
                self._drop(sequence)
            elif 0 < self.config["max_deliver"] <= self.tries[sequence]:
                self._drop(sequence)
                self._announce_exhausted(sequence)
            else:
                return self._counted(stored)
        if len(self.pending) >= self.config["max_ack_pending"] > 0:
            return None
        stored = self.stream.next_after(self.position, self.subjects)
        if stored is not None:
            self.position = stored.sequence
            return self._counted(stored)
        return None

    def _counted(self, stored: Stored) -> Stored:
        self.tries[stored.sequence] = self.tries.get(stored.sequence, 0) + 1
        self.delivered += 1
        self.pending[stored.sequence] = self.host.clock.monotonic() + self.config["ack_wait"] / _NANOSECONDS
        return stored

    def _deliver(self, stored: Stored, inbox: str) -> None:
        left = self.stream.last_sequence - self.position  # the program does not read it, so other subjects may count
        tries = self.tries[stored.sequence]
        reply = f"$JS.ACK.{self.stream.name}.{self.name}.{tries}.{stored.sequence}.{self.delivered}.{stored.at}.{left}"
        self.host.route(inbox, NatsMessage(stored.subject, reply, stored.head, stored.body))

    # Acknowledgements

    def answer(self, sequence: int, body: bytes) -> None:
        """Take the answer *body* to a delivery of the message *sequence*."""
        word, _, options = body.partition(b" ")
        if sequence not in self.pending:
            return
        now, ack_wait = self.host.clock.monotonic(), self.config["ack_wait"] / _NANOSECONDS
        if word in (b"+ACK", b"", b"+TERM"):
            self._drop(sequence)
            self.acked.append(sequence)
        elif word == b"+WPI" and sequence not in self.redeliver:
            self.pending[sequence] = now + ack_wait
        elif word == b"-NAK" and options:
            self.redeliver.pop(sequence, None)
            self.pending[sequence] = now + json.loads(options)["delay"] / _NANOSECONDS
        elif word == b"-NAK":
            self._redeliver(sequence)
        self.pump()

    def _redeliver(self, sequence: int) -> None:
        self.pending[sequence] = float("inf")
        self.redeliver[sequence] = None

    def _tick(self) -> None:
        self._timer = None
        now = self.host.clock.monotonic()
        for sequence in [each for each, at in self.pending.items() if at <= now]:
            self._redeliver(sequence)
        self.pump()

    def _set_timer(self) -> None:
        at = min([*self.pending.values(), *(each.expires_at for each in self.requests)], default=float("inf"))
        if self._timer is not None and at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at < float("inf"):
            self._timer, self._timer_at = asyncio.get_running_loop().call_at(at, self._tick), at

    # Losses

    def restart(self, lost_acks: int = 0) -> None:
        """
        Continue under a new leader: the requests are gone, the last *lost_acks* acknowledgements too, and what is
        unacknowledged is redelivered.
        """
        self.requests.clear()
        for _ in range(min(lost_acks, len(self.acked))):
            self.pending[self.acked.pop()] = 0.0
        last = self.stream.last_sequence
        # Another message may get the sequence of one that the stream has lost.
        self.acked = deque((each for each in self.acked if each <= last), self.acked.maxlen)
        self.position = min(self.position, last)
        self.pending = dict.fromkeys((each for each in self.pending if each <= last), self.host.clock.monotonic())
        self.tries = {sequence: count for sequence, count in self.tries.items() if sequence <= last}
        self.redeliver.clear()
        self._set_timer()

    def close(self, status: str) -> None:
        """End: the durable is deleted."""
        for request in self.requests:
            self._status(request, status)
        self.requests.clear()
        self.pending.clear()
        self._set_timer()

    def info(self) -> dict[str, Any]:
        """Return what the server reports about the consumer."""
        return {
            "stream_name": self.stream.name,
            "name": self.name,
            "config": self.config,
            "created": "2026-01-01T00:00:00.000000000Z",
            "delivered": {"consumer_seq": self.delivered, "stream_seq": self.position},
            "ack_floor": {"consumer_seq": 0, "stream_seq": 0},
            "num_ack_pending": len(self.pending),
            "num_redelivered": sum(self.tries.get(each, 0) > 1 for each in self.pending),
            "num_waiting": len(self.requests),
            "num_pending": self.stream.count_after(self.position, self.subjects),
        }

    # Deliveries that end

    def _drop(self, sequence: int) -> None:
        self.pending.pop(sequence, None)
        self.redeliver.pop(sequence, None)

    def _announce_exhausted(self, sequence: int) -> None:
        subject = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{self.stream.name}.{self.name}"
        fields = {"stream": self.stream.name, "consumer": self.name, "stream_seq": sequence, "deliveries": self.tries[sequence]}
        self.host.publish(NatsMessage(subject, "", b"", json.dumps(fields).encode()))
