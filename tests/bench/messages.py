"""
Measure what a message costs on NATS: ``python -m tests.bench.messages``.

One process publishes outbox rows to a real server, and receives them again. The figures are processor time of this process
in microseconds a message, the best of several rounds: on a machine with other load, the best round is nearest to the cost
of the work itself. To compare two versions of the code, run it in turn in both trees.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import uvloop

from app.clock import SystemClock
from app.messaging.cloudevents import event_id_and_trace, occurred_at, to_message, versions_of
from app.storage.tables import DUE_NOW, OutboxMessage
from bus.jetstream.bus import JetStreamBus
from bus.jetstream.servers import Servers
from bus.port import DeadLetter, Subscription
from tests.nats import NatsServer

ROUNDS, MESSAGES, BATCH = 8, 4_000, 50
SUBJECT = "orders.created.v2"
ORDER_ID = "0192f0c1-2b3c-7d4e-8f50-617283940a1b"
BODY = b'{"order_id":"%s","customer_id":"c-1","items":[{"product_id":"SKU-1","quantity":2}],"version":"v2"}' % ORDER_ID.encode()
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class NoDeadLetters:
    """No message becomes a dead letter here."""

    async def add(self, dead_letter: DeadLetter) -> None:
        raise AssertionError(dead_letter)


def outbox_row(number: int, turn: int) -> OutboxMessage:
    """Return a row as the relay gets it; ids are new in each *turn*."""
    id = f"0192f0c1-2b3c-7d4e-{turn:04x}-{number:012x}"
    occurred = "2026-11-28T16:00:00.000000+00:00"
    return OutboxMessage(id, id, SUBJECT, ORDER_ID, BODY, None, ORDER_ID, ORDER_ID, TRACEPARENT, occurred, DUE_NOW, "v1,v2")


async def publish(bus: JetStreamBus, rows: list[OutboxMessage]) -> None:
    """Publish *rows*, each `BATCH` of them together, as a transaction commits them."""
    for start in range(0, len(rows), BATCH):
        await asyncio.gather(*[bus.publish(to_message(row)) for row in rows[start : start + BATCH]])


async def receive(subscription: Subscription, count: int) -> None:
    """Receive *count* messages, read what a consumer needs of their headers, and acknowledge them."""
    while count > 0:
        for delivery in await subscription.fetch(100, 1.0):
            message = delivery.message
            event_id_and_trace(message)
            occurred_at(message)
            versions_of(message)
            await delivery.ack()
            count -= 1


async def measure(url: str) -> None:
    """Print the figures of a bus on the server at *url*."""
    bus = JetStreamBus(SystemClock(), NoDeadLetters(), Servers(urls=(url,)), streams=["ORDERS"])
    await bus.connect()
    subscription = await bus.subscribe("inventory", [SUBJECT])
    await subscription.fetch(1, 1.0)  # until streams and durables exist
    published, received = [], []
    for turn in range(ROUNDS):
        rows = [outbox_row(number, turn) for number in range(MESSAGES)]
        began = time.process_time()
        await publish(bus, rows)
        stored = time.process_time()
        await receive(subscription, MESSAGES)
        published.append(stored - began)
        received.append(time.process_time() - stored)
    for name, seconds in ("publish, until the stream has stored it", published), ("receive and acknowledge", received):
        print(f"{name:<40} {min(seconds) / MESSAGES * 1e6:6.2f} µs")
    await bus.close(1)


def main() -> None:
    """Start a server and measure."""
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder)) as server:
        uvloop.run(measure(server.url))


if __name__ == "__main__":
    main()
