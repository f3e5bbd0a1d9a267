"""
The JetStream of a simulated server: the calls of its API, the storing of messages, and its faults.

- A leader that is lost: until the next one is elected, what reaches the stream waits, is lost, or gets the answer that
  there is no responder; what waits may be stored after the publish has timed out. The ids of what waits are "in process".
- With the leader the last messages and acknowledgements may be lost that were not on its disk yet.
- Answers and requests that are lost on the way between two servers, while the client's connection stays.
- A stream that is full, purged, or deleted; a durable that is deleted.
- A stream that is created while the server still deletes the old one of its name: it stores nothing and answers nothing
  from then on. nats-server 2.15.1 does that in one of twelve deletions under load; this server always.
"""

from __future__ import annotations

__all__ = ["JetStream", "JetStreamHost"]

import asyncio
import json
import random
from typing import Any, Protocol

from bus.port import Clock
from tests.simulation.broker.consumer import Consumer
from tests.simulation.broker.stream import Refused, Stream
from tests.simulation.broker.wire import NatsMessage, headers_of

_API = "$JS.API."
_ACK = "$JS.ACK."


DELETION_SECONDS = 0.3
"""For how long the files of a stream are deleted after it is no longer found."""


class JetStreamHost(Protocol):
    """The server."""

    clock: Clock
    rng: random.Random

    def now_ns(self) -> int:
        """Return the Unix time in nanoseconds."""

    def route(self, to: str, message: NatsMessage) -> bool:
        """Deliver *message* to the subscriptions of the subject *to*; return whether there are any."""

    def publish(self, message: NatsMessage) -> None:
        """Publish *message* as the server itself does."""

    def has_interest(self, subject: str) -> bool:
        """Return whether a client subscribes to *subject*."""


class JetStream:
    """Streams and consumers; *keeps_order* redelivers in the order of the stream."""

    def __init__(self, host: JetStreamHost, *, keeps_order: bool) -> None:
        self._host = host
        self._keeps_order = keeps_order
        self.streams: dict[str, Stream] = {}
        self.consumers: dict[tuple[str, str], Consumer] = {}
        self.loss_rate = 0.0
        """The share of requests, and of answers, that are lost between two servers."""
        self.lost_at = float("-inf")
        """When messages were lost that had been acknowledged, by the monotonic clock."""
        self._deleted_at: dict[str, float] = {}
        self._without_files: set[str] = set()
        self._has_leader = True
        self._held: list[NatsMessage] = []
        """What has reached a stream without a leader, and is stored once there is one."""

    # Faults

    def lose_leader(self, for_seconds: float, *, tail: int = 0, acks: int = 0) -> None:
        """
        Have no leader *for_seconds*; then continue without the last *tail* messages of each stream, and the last *acks*
        acknowledgements of each consumer.
        """
        if self._has_leader:
            self._has_leader = False
            asyncio.get_running_loop().call_later(for_seconds, self._elect, tail, acks)

    def _elect(self, tail: int, acks: int) -> None:
        if tail:
            self.lost_at = self._host.clock.monotonic()
        for stream in self.streams.values():
            stream.lose_tail(tail)
        self._has_leader = True
        held, self._held = self._held, []
        for consumer in self.consumers.values():
            consumer.restart(acks)
        for message in held:
            self.receive(message)

    def delete_stream(self, name: str) -> None:
        """Delete the stream *name* with its consumers."""
        del self.streams[name]
        self._without_files.discard(name)
        self._deleted_at[name] = self.lost_at = self._host.clock.monotonic()
        for key in [key for key in self.consumers if key[0] == name]:
            self.delete_consumer(*key)

    def delete_consumer(self, stream: str, name: str) -> None:
        """Delete a durable; its requests end with that."""
        self.consumers.pop((stream, name)).close("409 Consumer Deleted")

    def _is_lost(self) -> bool:
        return bool(self.loss_rate) and self._host.rng.random() < self.loss_rate

    # Messages

    def receive(self, message: NatsMessage) -> bool:
        """Process *message*; return False if nothing here is responsible for it."""
        if message.subject.startswith(_API):
            return self._on_request(message)
        if message.subject.startswith(_ACK):
            self._on_ack(message)
            return True
        for stream in self.streams.values():
            if stream.takes(message.subject):
                return self._on_publish(stream, message)
        return False

    def _on_publish(self, stream: Stream, message: NatsMessage) -> bool:
        if self._is_lost() or stream.name in self._without_files:
            return True
        if not self._has_leader:
            return self._on_publish_without_leader(message)
        try:
            stored, is_duplicate = stream.store(message, self._host.now_ns())
        except Refused as refusal:
            self._reply(message, refusal.answer() | {"stream": stream.name, "seq": 0})
            return True
        answer = {"stream": stream.name, "seq": stored.sequence}
        self._reply(message, answer | ({"duplicate": True} if is_duplicate else {}))
        if not is_duplicate:
            for consumer in self.consumers.values():
                if consumer.stream is stream and consumer.requests:
                    consumer.pump()
        return True

    def _on_publish_without_leader(self, message: NatsMessage) -> bool:
        id = headers_of(message.head).get("Nats-Msg-Id")
        if id and any(headers_of(each.head).get("Nats-Msg-Id") == id for each in self._held):
            self._reply(message, Refused(409, 10158, "duplicate message id is in process").answer())
            return True
        what = self._host.rng.choice(["held", "held", "lost", "refused"])
        if what == "held":
            self._held.append(message)
        return what != "refused"

    def _on_ack(self, message: NatsMessage) -> None:
        _, _, stream, name, _, sequence, *_ = message.subject.split(".")
        consumer = self.consumers.get((stream, name))
        if consumer is None or not self._has_leader or self._is_lost():
            return
        if message.reply:
            self._host.route(message.reply, NatsMessage(message.reply, "", b"", b""))
        consumer.answer(int(sequence), message.body)

    def _reply(self, message: NatsMessage, answer: dict[str, Any]) -> None:
        if message.reply and not self._is_lost():
            self._host.route(message.reply, NatsMessage(message.reply, "", b"", json.dumps(answer).encode()))

    # The API

    def _on_request(self, message: NatsMessage) -> bool:
        words = message.subject.removeprefix(_API).split(".")
        if not self._has_leader:
            return bool(self._host.rng.random() < 0.5)  # otherwise there is no responder
        if self._is_lost():
            return True
        if words[:3] == ["CONSUMER", "MSG", "NEXT"]:
            consumer = self.consumers.get((words[3], words[4]))
            if consumer is None:
                return False
            consumer.request(message.body, message.reply)
            return True
        request = json.loads(message.body or b"{}")
        try:
            answer = self._call(words, request)
        except Refused as refusal:
            answer = refusal.answer()
        self._reply(message, answer)
        return True

    def _call(self, words: list[str], request: dict[str, Any]) -> dict[str, Any]:
        match words:
            case ["INFO"]:
                return {"memory": 0, "storage": 0, "streams": len(self.streams), "consumers": len(self.consumers), "limits": {}, "api": {}}
            case ["STREAM", "LIST"]:
                found = [each.info({}, self._host.now_ns()) for each in self.streams.values()]
                return {"total": len(found), "offset": 0, "limit": 256, "streams": found}
            case ["STREAM", "CREATE", name]:
                return self._create_stream(name, request)
            case ["STREAM", "UPDATE", name]:
                self._stream(name).config |= request
                return self._stream(name).info({}, self._host.now_ns())
            case ["STREAM", "INFO", name]:
                return self._stream(name).info(request, self._host.now_ns())
            case ["STREAM", "DELETE", name]:
                self._stream(name)
                self.delete_stream(name)
                return {"success": True}
            case ["STREAM", "PURGE", name]:
                return {"success": True, "purged": self._stream(name).purge()}
            case ["STREAM", "MSG", "GET", name]:
                return {"message": self._stream(name).get(request).as_json()}
            case ["STREAM", "MSG", "DELETE", name]:
                self._stream(name).delete(request["seq"])
                return {"success": True}
            case ["CONSUMER", "CREATE", stream, name, *_] | ["CONSUMER", "DURABLE", "CREATE", stream, name]:
                return self._create_consumer(self._stream(stream), name, request)
            case ["CONSUMER", "INFO", stream, name]:
                return self._consumer(stream, name).info()
            case ["CONSUMER", "DELETE", stream, name]:
                self._consumer(stream, name)
                self.delete_consumer(stream, name)
                return {"success": True}
        raise AssertionError(f"this server does not know {'.'.join(words)}")

    def _create_stream(self, name: str, config: dict[str, Any]) -> dict[str, Any]:
        if name in self.streams:
            raise Refused(400, 10058, "stream name already in use with a different configuration")
        self.streams[name] = Stream(config, self._host.now_ns())
        if self._host.clock.monotonic() < self._deleted_at.get(name, float("-inf")) + DELETION_SECONDS:
            self._without_files.add(name)
        return self.streams[name].info({}, self._host.now_ns())

    def _create_consumer(self, stream: Stream, name: str, request: dict[str, Any]) -> dict[str, Any]:
        key = stream.name, name
        if key not in self.consumers:
            self.consumers[key] = Consumer(self._host, stream, request["config"], self._keeps_order)
        elif request.get("action") == "create":
            raise Refused(400, 10148, "consumer already exists")
        else:
            self.consumers[key].change(request["config"])
        return self.consumers[key].info()

    def _stream(self, name: str) -> Stream:
        if name not in self.streams:
            raise Refused(404, 10059, "stream not found")
        return self.streams[name]

    def _consumer(self, stream: str, name: str) -> Consumer:
        self._stream(stream)
        if (stream, name) not in self.consumers:
            raise Refused(404, 10014, "consumer not found")
        return self.consumers[stream, name]
