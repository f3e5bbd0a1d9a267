"""
A simulated NATS server with JetStream: it speaks the protocol to real clients, on a virtual clock.

The clients are those of the program. So what is simulated is what `bus.jetstream` does with a server: its connection,
requests, time-outs and acknowledgements. The facts about JetStream that the program relies on, or has to survive, are in
`tests.simulation.broker.jetstream`; ``tests/bus/contract.py`` holds this server and a real one to the same promises.
"""

from __future__ import annotations

__all__ = ["Server"]

import json
import random
from collections.abc import Iterator

from attrs import define, field

from bus.port import Clock
from tests.simulation.broker.jetstream import JetStream
from tests.simulation.broker.network import Connection
from tests.simulation.broker.wire import CommandReader, NatsMessage, header_block, is_match

PAYLOAD_MAX = 1 << 20


@define(eq=False)
class _Client:
    """A connected client: what it has sent so far, and its subscriptions by their ids."""

    connection: Connection
    reader: CommandReader = field(factory=CommandReader)
    subjects: dict[str, str] = field(factory=dict)
    """That of each subscription, by its id."""
    exact: dict[str, dict[str, None]] = field(factory=dict)
    """By subject the ids of the subscriptions without wildcards."""
    patterns: dict[str, str] = field(factory=dict)
    """The subjects with wildcards, by the ids of their subscriptions."""
    wants_no_responders: bool = False


class Server:
    """One server. *rng* decides what a real one leaves open; its *jetstream* has the faults."""

    def __init__(self, clock: Clock, rng: random.Random, *, keeps_order: bool = False) -> None:
        self.clock = clock
        self.rng = rng
        self.is_up = True
        self._clients: dict[Connection, _Client] = {}
        self.jetstream = JetStream(self, keeps_order=keeps_order)

    def now_ns(self) -> int:
        """Return the Unix time in nanoseconds."""
        now = self.clock.now()
        return int(now.timestamp()) * 1_000_000_000 + now.microsecond * 1_000

    # Connections

    def accept(self, connection: Connection) -> None:
        """Greet the client of *connection*."""
        self._clients[connection] = _Client(connection)
        info = {"server_id": "S", "version": "2.15.1", "proto": 1, "headers": True, "jetstream": True, "max_payload": PAYLOAD_MAX}
        connection.send(b"INFO %s\r\n" % json.dumps(info).encode())

    def receive(self, connection: Connection, data: bytes) -> None:
        """Process *data* from the client of *connection*."""
        client = self._clients.get(connection)
        if client is None or not self.is_up:
            return
        for command in client.reader.feed(data):
            if isinstance(command, NatsMessage):
                self._on_message(client, command)
            else:
                self._on_command(client, command)

    def forget(self, connection: Connection) -> None:
        """Note that *connection* is closed."""
        self._clients.pop(connection, None)

    def kill(self) -> None:
        """End without a word: all connections are closed, and others are refused until `start`."""
        self.is_up = False
        for connection in list(self._clients):
            connection.drop()

    def start(self) -> None:
        """Accept connections again."""
        self.is_up = True

    def _on_command(self, client: _Client, words: list[str]) -> None:
        match words:
            case ["PING"]:
                client.connection.send(b"PONG\r\n")
            case ["CONNECT", options]:
                client.wants_no_responders = bool(json.loads(options).get("no_responders"))
            case ["SUB", subject, *_, sid]:
                client.subjects[sid] = subject
                if subject[-1] == ">" or "*" in subject:
                    client.patterns[sid] = subject
                else:
                    client.exact.setdefault(subject, {})[sid] = None
            case ["UNSUB", sid, *_]:
                client.patterns.pop(sid, None)
                client.exact.get(client.subjects.pop(sid, ""), {}).pop(sid, None)
            case ["PONG"] | []:
                pass
            case _:
                client.connection.send(b"-ERR 'Unknown Protocol Operation'\r\n")
                client.connection.down.send(None)
                self.forget(client.connection)

    # Messages

    def _on_message(self, client: _Client, message: NatsMessage) -> None:
        has_taken = self.jetstream.receive(message)
        has_routed = self.route(message.subject, message)
        if message.reply and not has_taken and not has_routed and client.wants_no_responders:
            self.route(message.reply, NatsMessage(message.reply, "", header_block("503"), b""))

    def publish(self, message: NatsMessage) -> None:
        """Publish *message* as the server itself does: to subscriptions, and to the stream that stores its subject."""
        self.jetstream.receive(message)
        self.route(message.subject, message)

    def route(self, to: str, message: NatsMessage) -> bool:
        """Deliver *message* to the subscriptions of the subject *to*; return whether there are any."""
        found = list(self._interested(to))
        for client, sid in found:
            client.connection.send(message.delivered(sid))
        return bool(found)

    def has_interest(self, subject: str) -> bool:
        """Return whether a client subscribes to *subject*."""
        return next(self._interested(subject), None) is not None

    def _interested(self, subject: str) -> Iterator[tuple[_Client, str]]:
        for client in self._clients.values():
            yield from ((client, sid) for sid in client.exact.get(subject, ()))
            yield from ((client, sid) for sid, pattern in client.patterns.items() if is_match(pattern, subject))
