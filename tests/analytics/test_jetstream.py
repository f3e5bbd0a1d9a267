"""The streams of a split deployment: read once, in order, through kills, redelivery, republishing and a lost stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import nats
import orjson
import pytest
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from app.analytics.analytics_file import AnalyticsFile
from app.analytics.errors import SourceUnavailable
from app.analytics.ingest import Ingest
from app.analytics.sources import jetstream
from app.analytics.sources.jetstream import JetStreamSource
from app.messaging.versions.usage import blockers
from app.storage.archive.history_content import HistoryEvent
from bus.contracts.versions import VERSIONS
from bus.jetstream.admin.listing import JetStreamConsumerDirectory
from bus.jetstream.delivery import KEY
from tests.analytics.events import CONTRACTS, START, event, order_events
from tests.nats import NatsServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats"), accounts=20) as server:
        yield server


@pytest.fixture
async def js(broker: NatsServer) -> AsyncIterator[JetStreamContext]:
    """A broker of the test alone, with the stream of orders."""
    client = await nats.connect(broker.account_urls()[0])
    context = client.jetstream()
    await context.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"]))
    yield context
    await client.close()


@pytest.fixture
def file() -> Iterator[AnalyticsFile]:
    opened = AnalyticsFile(None, CONTRACTS)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetstream, "FETCH_SECONDS", 0.2)


async def publish(js: JetStreamContext, events: Sequence[HistoryEvent], *, versions: str = "") -> None:
    """Publish *events* as the outbox relay does, without a message id, so that the broker recognises no duplicate."""
    for each in events:
        headers = {"ce-id": each.event_id, "ce-time": each.at, "ce-correlationid": each.correlation_id, "ce-causationid": each.cause_id}
        headers |= {KEY: each.key} | ({VERSIONS: versions} if versions else {})
        await js.publish(each.subject, orjson.dumps(each.data), headers=headers)


def placed(numbers: Sequence[int]) -> list[HistoryEvent]:
    return [order_events(number)[0] for number in numbers]


async def take(js: JetStreamContext, file: AnalyticsFile) -> None:
    """Take what the stream has, as a process that has just been started does."""
    await Ingest(file, [JetStreamSource("orders", lambda: js, CONTRACTS, file.id)], lambda _: None).run(once=True)


def ids(file: AnalyticsFile) -> list[str]:
    return [row[0] for row in file.connection.execute("SELECT event_id FROM orders_created ORDER BY occurred_at").fetchall()]


async def test_each_event_of_the_stream_is_stored_once(js: JetStreamContext, file: AnalyticsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several batches, with its headers as columns, and again after a republish of everything."""
    monkeypatch.setattr(jetstream, "FETCHED_MAX", 7)
    events = placed(range(20))
    await publish(js, events)
    await take(js, file)
    assert ids(file) == [each.event_id for each in events]
    head = "SELECT cause_id, correlation_id, entity_key, module, seq, occurred_at FROM orders_created ORDER BY occurred_at LIMIT 1"
    assert file.connection.execute(head).fetchall() == [(events[0].cause_id, "corr", events[0].key, "orders", None, START)]
    await publish(js, [*events, *placed([20])])
    await take(js, file)
    assert ids(file) == [each.event_id for each in (*events, *placed([20]))]


async def test_an_event_of_two_days_ago_is_recognised(js: JetStreamContext, file: AnalyticsFile) -> None:
    """A republish of 47 hours brings each event of them again, in the midst of new ones."""
    days = [order_events(n, at=START + timedelta(minutes=n))[0] for n in range(0, 2_820, 20)]
    await publish(js, days)
    await take(js, file)
    new = placed(range(5))
    await publish(js, [*new, *days[::-1]])
    await take(js, file)
    assert len(ids(file)) == len({*ids(file)}) == len(days) + len(new) - 1  # the first order is in both


async def test_what_was_fetched_and_not_stored_comes_again_before_the_rest(js: JetStreamContext, file: AnalyticsFile) -> None:
    """A process that is killed between the fetch and the commit loses nothing, and the next one does not wait for the broker."""
    await publish(js, placed(range(10)))
    assert await JetStreamSource("orders", lambda: js, CONTRACTS, file.id).read({}) is not None  # and the process ends here
    await publish(js, placed(range(10, 12)))
    await take(js, file)
    assert len(ids(file)) == 12


async def test_analytics_that_read_both_versions_let_the_older_one_be_retired(js: JetStreamContext, file: AnalyticsFile) -> None:
    """They subscribe to all subjects of the stream, and name the versions that they understand."""
    await take(js, file)
    consumers = await JetStreamConsumerDirectory(lambda: js, ["ORDERS"]).consumers()
    assert [each.consumer for each in consumers] == [f"analytics-{file.id}"]
    assert blockers("orders.created.v1", ["orders.created.v2"], consumers) == ()
    assert blockers("orders.created.v2", ["orders.created.v3"], consumers), "a version that this release does not know"


async def test_what_was_stored_and_not_acknowledged_is_not_stored_again(js: JetStreamContext, file: AnalyticsFile) -> None:
    """A process that is killed between the commit and the acknowledgement counts nothing twice."""
    await publish(js, placed(range(10)))
    batch = await JetStreamSource("orders", lambda: js, CONTRACTS, file.id).read({})
    assert batch is not None
    file.take(batch.events, batch.position)
    await take(js, file)
    assert len(ids(file)) == 10
    info = await js.consumer_info("ORDERS", f"analytics-{file.id}")
    assert info.num_pending == 0


async def test_a_delivery_that_is_lost_is_read_again(js: JetStreamContext, file: AnalyticsFile) -> None:
    """Nothing that follows it is stored before it."""
    await publish(js, placed(range(10)))
    source = JetStreamSource("orders", lambda: js, CONTRACTS, file.id)
    batch = await source.read({})
    assert batch is not None
    file.take(batch.events, batch.position)
    await source.stored()
    await publish(js, placed(range(10, 20)))
    other = await js.pull_subscribe_bind(consumer=f"analytics-{file.id}", stream="ORDERS")
    await other.fetch(3)  # they never reach the source
    batch = await source.read(file.positions())
    assert batch is not None
    assert batch.events.count == 10


async def test_two_files_read_one_stream(js: JetStreamContext, file: AnalyticsFile) -> None:
    """Each has a durable of its own, so each gets every event."""
    await publish(js, placed(range(10)))
    other = AnalyticsFile(None, CONTRACTS)
    await take(js, file)
    await take(js, other)
    assert ids(file) == ids(other)
    assert len(ids(file)) == 10
    other.close()


async def test_a_stream_that_was_made_anew_is_read_from_its_beginning(js: JetStreamContext, file: AnalyticsFile) -> None:
    """Its numbers begin again; what is published to it again is recognised, and what is new is not skipped."""
    await publish(js, placed(range(10)))
    await take(js, file)
    await js.delete_stream("ORDERS")
    await js.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"]))
    await publish(js, placed(range(5, 15)))
    await take(js, file)
    assert len(ids(file)) == len({*ids(file)}) == 15


async def test_events_that_the_stream_has_deleted_are_a_gap(js: JetStreamContext, file: AnalyticsFile) -> None:
    """The gap is stored, and the rest is read."""
    await publish(js, placed(range(10)))
    await take(js, file)
    await publish(js, placed(range(10, 20)))
    await js.purge_stream("ORDERS", seq=16)
    await take(js, file)
    assert len(ids(file)) == 15
    assert file.connection.execute("SELECT source, first, last FROM analytics_gaps").fetchall() == [("stream ORDERS", 11, 15)]
    await take(js, file)
    assert file.connection.execute("SELECT count(*) FROM analytics_gaps").fetchall() == [(1,)]


async def test_an_event_in_two_versions_is_taken_in_the_newest(js: JetStreamContext, file: AnalyticsFile) -> None:
    """The older version comes first, and knows no address."""
    await publish(js, [event("orders.created.v1", "e1")], versions="v1,v2")
    await take(js, file)
    await publish(js, [event("orders.created.v2", "e1")], versions="v1,v2")
    await publish(js, [event("orders.created.v1", "e2")])
    await take(js, file)
    found = file.connection.execute("SELECT event_id, shipping_address_city FROM orders_created ORDER BY event_id").fetchall()
    assert found == [("e1", "London"), ("e2", None)]


async def test_a_message_that_cannot_be_read_is_kept_apart(js: JetStreamContext, file: AnalyticsFile) -> None:
    """It is no JSON, violates its schema, or is unknown; replays of dead letters are no events. The rest goes on."""
    await js.publish("orders.created.v2", b"{", headers={"ce-id": "broken"})
    await js.publish("orders.created.v2", b'"\xff"')
    await js.publish("orders.created.v2", b"{}", headers={"ce-id": "empty"})
    await js.publish("orders.moved.v1", b"{}", headers={"ce-id": "unknown"})
    await js.publish("orders.replay.orders.payments.captured.v1", b"{}")
    await publish(js, placed([1]))
    await take(js, file)
    rows = file.connection.execute("SELECT event_id, reason FROM unreadable_events").fetchall()
    assert {row[0] for row in rows} == {"broken", "ORDERS:2", "empty", "unknown"}
    assert all(row[1] for row in rows)
    assert len(ids(file)) == 1


async def test_a_stream_that_does_not_exist_is_named(js: JetStreamContext, file: AnalyticsFile) -> None:
    """The reason names the commands that make it."""
    with pytest.raises(SourceUnavailable, match="there is no stream PAYMENTS: start the module payments"):
        await Ingest(file, [JetStreamSource("payments", lambda: js, CONTRACTS, file.id)], lambda _: None).run(once=True)




async def test_a_stream_that_is_made_anew_while_it_is_read(js: JetStreamContext, file: AnalyticsFile) -> None:
    """Without a restart the source reads it from its beginning."""
    await publish(js, placed(range(5)))
    source = JetStreamSource("orders", lambda: js, CONTRACTS, file.id)
    ingest = Ingest(file, [source], lambda _: None)
    await ingest.step(source)
    await js.delete_stream("ORDERS")
    await js.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"]))
    await publish(js, placed(range(4, 8)))
    for _ in range(4):
        with suppress(SourceUnavailable):
            await ingest.step(source)
    assert len(ids(file)) == 8


async def test_a_connection_that_is_lost_is_an_outage(tmp_path: Path, file: AnalyticsFile) -> None:
    """It is taken neither for the end of the stream nor for an error of the program, also while messages are acknowledged."""
    with NatsServer(tmp_path) as server:
        client = await nats.connect(server.url)
        js = client.jetstream(timeout=0.5)
        await js.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"]))
        await publish(js, placed(range(3)))
        source = JetStreamSource("orders", lambda: js, CONTRACTS, file.id)
        assert not await Ingest(file, [source], lambda _: None).step(source)
        other = JetStreamSource("orders", lambda: js, CONTRACTS, "other")
        assert await other.read({}) is not None
        server.pause()
        with pytest.raises(SourceUnavailable, match="NATS is out of reach"):
            await source.read(file.positions())
        server.resume()
        await client.close()
        with pytest.raises(SourceUnavailable, match="NATS is out of reach"):
            await other.stored()
        client = await nats.connect(server.url)
        js = client.jetstream()
        await publish(js, placed(range(3, 5)))
        await Ingest(file, [source], lambda _: None).run(once=True)
        assert len(ids(file)) == 5
        await client.close()
