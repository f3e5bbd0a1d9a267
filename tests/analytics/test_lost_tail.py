"""A stream that has lost its last messages and stored others in their place is read again, on a simulated server."""

from __future__ import annotations

import random
from collections.abc import Sequence

import orjson
import pytest
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from app.analytics.analytics_file import AnalyticsFile
from app.analytics.ingest import Ingest
from app.analytics.sources.jetstream import JetStreamSource
from app.messaging.nats_session import session
from app.storage.archive.history_content import HistoryEvent
from bus.jetstream.delivery import KEY
from bus.jetstream.servers import Servers
from tests.analytics.events import CONTRACTS, order_events
from tests.parts import in_parts
from tests.simulation.broker.network import Network
from tests.simulation.broker.server import Server
from tests.simulation.broker.virtual_loop import client_time
from tests.simulation.world.loop import ProcessClock, SimulatedLoop


async def publish(js: JetStreamContext, events: Sequence[HistoryEvent]) -> None:
    for each in events:
        await js.publish(each.subject, orjson.dumps(each.data), headers={"ce-id": each.event_id, "ce-time": each.at, KEY: each.key})


async def take(js: JetStreamContext, file: AnalyticsFile) -> set[str]:
    """Take what the stream has, as a process that has just been started does; return the ids of all events in the file."""
    await Ingest(file, [JetStreamSource("orders", lambda: js, CONTRACTS, file.id)], lambda _: None).run(once=True)
    return {row[0] for row in file.connection.execute("SELECT event_id FROM orders_created").fetchall()}


@pytest.mark.parametrize("lost", in_parts([0, 3, 1, 6], everyday=2))
@pytest.mark.parametrize("more", in_parts([1, 8, 0, 3], everyday=2))
def test_what_has_taken_the_place_of_lost_messages_is_read(lost: int, more: int) -> None:
    """Also if the stream has as many messages as before or more when the analytics look again."""
    loop = SimulatedLoop()
    first, others = ([order_events(number)[0] for number in numbers] for numbers in (range(6), range(10, 10 + more)))

    async def run() -> None:
        clock = ProcessClock(loop.time)
        server = Server(clock, random.Random(1))
        network = Network(clock, random.Random(1), server)
        loop.connect = network.connect
        network.link("analytics")
        file = AnalyticsFile(None, CONTRACTS)
        async with session(lambda: Servers(urls=("nats://analytics:4222",)), clock) as connection:
            js = connection.js
            await js.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"]))
            await publish(js, first)
            assert len(await take(js, file)) == len(first)
            server.jetstream.streams["ORDERS"].lose_tail(lost)
            await publish(js, others)
            assert await take(js, file) == {each.event_id for each in (*first, *others)}
        file.close()

    with client_time(loop.time):
        loop.run_until_complete(run())
    loop.close()
