"""Old and new releases work together, in both directions: each event is processed exactly once."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from uuid_utils import uuid7

from app.bootstrap import build_runners
from app.messaging.cloudevents import event_id_and_trace, to_message
from app.runtime.receiving import DEFER_MAX, DEFER_SECONDS
from app.runtime.runner import ModuleRunner
from app.storage.tables import OutboxMessage
from bus.contracts.versions import VERSIONS
from bus.ids import derived_id
from bus.port import MAX_TRIES, DeadLetter, Message
from modules.inventory.state import Product, Reservation
from modules.orders.events import created_v1
from tests.clock import VirtualClock
from tests.contracts.releases import NEW, OLD, RETIRED, Release, created
from tests.runtime.harness import CONTEXT, Harness, HurriedClock, bus_message, harness_at, oid, submitted, until
from tests.runtime.harness import product as stock

V1, V2 = "orders.created.v1", "orders.created.v2"
RELEASES = {"old": OLD, "new": NEW, "retired": RETIRED}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with harness_at(tmp_path / "test.db", HurriedClock()) as harness:
        yield harness


def runner_of(harness: Harness, name: str, release: Release) -> ModuleRunner:
    """Return the runner of module *name* in *release*, as of one more process."""
    module, relay = release.modules[name], harness.relays[name]
    store, clock = harness.stores[name], harness.clock
    return build_runners(
        [module], {module.name: store}, release.contracts, {module.name: relay}, clock, harness.metrics,
        delivers_locally=False, remote_subjects=(), rng=random.Random(1),
    )[module.name]  # fmt: skip


async def start_inventory(harness: Harness, release: Release) -> ModuleRunner:
    """Start inventory of *release* as a member of its consumer group; return its runner."""
    runner = runner_of(harness, "inventory", release)
    subjects = release.contracts.subjects_for(runner.module.consumes)
    harness.run(runner.consume(await harness.bus.subscribe("inventory", subjects)))
    harness.run(runner.run())
    return runner


async def state(harness: Harness, cls: type, key: str) -> Any:
    return await harness.runners["inventory"].get(cls, key)


def outcomes(harness: Harness, outcome: str) -> float:
    """Return the number of messages of orders.created, in any version, with this *outcome*."""
    return sum(
        value
        for line in harness.metrics.render().decode().splitlines()
        if line.startswith("messages_handled_total{") and f'outcome="{outcome}"' in line and "orders.created" in line
        for value in [float(line.rpartition(" ")[2])]
    )


@pytest.mark.parametrize(("producer", "consumer"), sorted(set(product(RELEASES, RELEASES)) - {("retired", "old")}))
async def test_any_producer_works_with_any_consumer(harness: Harness, producer: str, consumer: str) -> None:
    """
    The stock of each order is reserved once, and no message is dead-lettered.

    Only a consumer that reads nothing but the old version depends on it: while there is one, the version is not retired.
    """
    await harness.submit("inventory", stock(10))
    await start_inventory(harness, RELEASES[consumer])
    harness.runners["orders"] = runner_of(harness, "orders", RELEASES[producer])
    for n in range(3):
        await harness.submit("orders", submitted(oid(n), 2))
    harness.run(harness.relays["orders"].run())
    await until(lambda: harness.relays["orders"].pending == 0)
    assert (await state(harness, Product, "A")).reserved == 6
    assert outcomes(harness, "handled") == 3
    assert outcomes(harness, "superseded") == (3 if producer == "new" and consumer != "old" else 0)
    assert len(await harness.outbox("orders")) == 3 * (2 + (producer == "new"))  # with the time-out of each order
    assert outcomes(harness, "put_aside") == outcomes(harness, "failed") == 0
    assert await harness.dead_letter_store.list(None, None, None, 10) == []


def messages_of(harness: Harness, order_id: str) -> dict[str, Message]:
    """Return the messages of one event in both versions, by subject, as the relay would publish them."""
    event_id = str(uuid7())
    found = {}
    for subject, body, suffix, versions in NEW.contracts.encode_versions(created(order_id)):
        id = event_id if suffix is None else derived_id(event_id, suffix)
        now = harness.clock.now().isoformat(timespec="microseconds")
        trace, correlation = CONTEXT.traceparent, CONTEXT.correlation_id
        outbox_message = OutboxMessage(id, event_id, subject, order_id, body, None, correlation, "c", trace, now, now, versions)
        found[subject] = to_message(outbox_message)
    return found


@pytest.mark.parametrize(
    ("order", "first", "second"),
    [(order, *members) for order in permutations((V1, V2)) for members in product(RELEASES, RELEASES)],
)
async def test_a_consumer_group_of_two_releases_loses_nothing(
    tmp_path: Path, order: tuple[str, str], first: str, second: str
) -> None:
    """
    Whichever member gets which version, first or last, the event is processed once.

    This is what a rolling upgrade looks like on a broker: the members of both releases share one durable, which has the
    filter of the newer one. The old member ignores the version that it does not know, so the new member must not drop
    the other version because of the header alone.
    """
    clock = VirtualClock()
    async with harness_at(tmp_path / "test.db", clock) as harness:
        await harness.submit("inventory", stock(10))
        subscription = await harness.bus.subscribe("inventory", [V1, V2])
        messages = messages_of(harness, oid(1))
        published = [harness.bus.publish(messages[subject]) for subject in order]
        members = [runner_of(harness, "inventory", RELEASES[name]) for name in (first, second)]
        for turn in range(2 * DEFER_MAX + 2):
            for delivery in await subscription.fetch(1, 0):
                consumer = members[turn % 2]
                await consumer._receive(delivery)
                if len(consumer._queue):
                    await consumer.step()
            await clock.advance(DEFER_SECONDS)
        assert all(future.done() for future in published)
        assert (await state(harness, Product, "A")).reserved == 1
        assert outcomes(harness, "handled") == 1
        assert await harness.dead_letter_store.list(None, None, None, 10) == []


async def test_the_newer_version_is_processed(tmp_path: Path) -> None:
    """Even if the older one arrives first: it is deferred, and acknowledged once the newer one is processed."""
    clock = VirtualClock()
    async with harness_at(tmp_path / "test.db", clock) as harness:
        await harness.submit("inventory", stock(10))
        runner = runner_of(harness, "inventory", NEW)
        subscription = await harness.bus.subscribe("inventory", [V1, V2])
        messages = messages_of(harness, oid(1))
        for subject, handled in ((V1, 0), (V2, 1), (V1, 1)):
            if subject == V2 or not handled:
                harness.bus.publish(messages[subject])
            else:
                await clock.advance(DEFER_SECONDS)
            [delivery] = await subscription.fetch(1, 0)
            assert delivery.message.subject == subject
            await runner._receive(delivery)
            await runner.step()
            assert outcomes(harness, "handled") == handled
        assert f'subject="{V2}",outcome="handled"' in harness.metrics.render().decode().replace("{", ",")
        assert outcomes(harness, "superseded") == 1


async def test_a_missing_newer_version_delays_the_event_by_two_seconds(tmp_path: Path) -> None:
    """The header names a newer version that never arrives: the older one is processed instead."""
    clock = VirtualClock()
    async with harness_at(tmp_path / "test.db", clock) as harness:
        await harness.submit("inventory", stock(10))
        runner = runner_of(harness, "inventory", NEW)
        subscription = await harness.bus.subscribe("inventory", [V1, V2])
        harness.bus.publish(messages_of(harness, oid(1))[V1])
        for _ in range(DEFER_MAX):
            [delivery] = await subscription.fetch(1, 0)
            await runner._receive(delivery)
            await runner.step()
            assert await state(harness, Reservation, oid(1)) is None
            await clock.advance(DEFER_SECONDS)
        [delivery] = await subscription.fetch(1, 0)
        await runner._receive(delivery)
        await runner.step()
        assert await state(harness, Reservation, oid(1)) is not None


async def test_both_versions_are_published_unchanged_after_a_restart(tmp_path: Path) -> None:
    """With the same ids and the same versions header; a row of the old release has no such header."""
    path = tmp_path / "test.db"
    async with harness_at(path) as harness:
        await harness.submit("orders", submitted(oid(1)), id=oid(1))
        harness.runners["orders"] = runner_of(harness, "orders", OLD)
        await harness.submit("orders", submitted(oid(2)), id=oid(2))
    async with harness_at(path) as harness:
        found: list[Message] = []
        subscription = await harness.bus.subscribe("observer", [V1, V2])
        await harness.relays["orders"].step()
        found = [delivery.message for delivery in await subscription.fetch(10, 0)]
        first = {message.subject: message for message in found if message.key == oid(1)}
        [second] = [message for message in found if message.key == oid(2)]
        assert {message.headers[VERSIONS] for message in first.values()} == {"v1,v2"}
        assert event_id_and_trace(first[V1]) == event_id_and_trace(first[V2])
        assert first[V1].id == event_id_and_trace(first[V1])[0] != first[V2].id
        assert {message.headers["ce-type"] for message in first.values()} == {V1, V2}
        assert second.subject == V1
        assert VERSIONS not in second.headers


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        (b'{"order_id":', "unreadable", "orders.created.v1: unexpected end of data"),
        (b'{"order_id": 1}', "invalid", "/order_id: must be a string; it is the number 1"),
        (NEW.contracts.encode(created(oid(1))), "invalid", '/version: must be "v1"; it is "v2"'),
        (b"[" * 1000 + b"]" * 1000, "unreadable", "orders.created.v1: the body is nested too deeply"),
    ],
)
async def test_an_unreadable_message_is_dead_lettered_at_once(harness: Harness, body: bytes, error: str, text: str) -> None:
    """With the pointer and the reason, and after one delivery attempt."""
    await start_inventory(harness, NEW)
    await harness.bus.publish(Message(V1, "m-1", body, "k", {"ce-id": "e-1"}))
    [stored] = await harness.dead_letter_store.list(None, None, None, 10)
    dead_letter = stored.dead_letter
    assert (dead_letter.error, dead_letter.attempts, dead_letter.consumer) == (error, 1, "inventory")
    assert text in dead_letter.detail


async def test_an_unknown_version_is_ignored_only_beside_a_readable_one(harness: Harness) -> None:
    """orders.created.v99 alone is dead-lettered; beside a version that the consumer reads, it is ignored."""
    runner = runner_of(harness, "inventory", NEW)
    harness.run(runner.consume(await harness.bus.subscribe("inventory", ["orders.created.v99"])))
    message = evolve(bus_message(harness, created(oid(1))), subject="orders.created.v99")
    await harness.bus.publish(evolve(message, id="m-1", headers={**message.headers, VERSIONS: "v2,v99"}))
    assert await harness.dead_letter_store.list(None, None, None, 10) == []
    await harness.bus.publish(evolve(message, id="m-2", headers={**message.headers, VERSIONS: "v98,v99"}))
    [stored] = await harness.dead_letter_store.list(None, None, None, 10)
    assert (stored.dead_letter.error, stored.dead_letter.attempts) == ("unknown_subject", 1)
    assert stored.dead_letter.detail == "no contract for orders.created.v99"


BODIES = ("readable", "malformed", "invalid", "unknown")


@pytest.mark.parametrize("order", ["older first", "newer first"])
@pytest.mark.parametrize("older", BODIES)
@pytest.mark.parametrize("newer", BODIES)
async def test_an_event_in_two_versions_is_processed_or_one_dead_letter(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, older: str, newer: str, order: str
) -> None:
    """
    It is processed if one version can be read, and a dead letter if one is unreadable, or if no version is known.

    No version relies on another one: only a version that the consumer does not know is acknowledged in favour of a known one.
    """
    monkeypatch.setattr("app.runtime.receiving.DEFER_SECONDS", 0.01)
    await harness.submit("inventory", stock())
    runner = runner_of(harness, "inventory", NEW)
    subjects = {"older": V1, "newer": V2}
    for name, body, unknown in ("older", older, "orders.created.v7"), ("newer", newer, "orders.created.v8"):
        subjects[name] = unknown if body == "unknown" else subjects[name]
    harness.run(runner.consume(await harness.bus.subscribe("inventory", list(subjects.values()))))
    harness.run(runner.run())
    event = created(oid(1))
    readable = {"older": NEW.contracts.encode(created_v1(event)), "newer": NEW.contracts.encode(event)}
    whole = bus_message(harness, event)
    versions = ",".join(subject.rpartition(".")[2] for subject in subjects.values())
    messages = [
        evolve(
            whole,
            subject=subjects[name],
            id=f"m-{name}",
            body={"malformed": b"{not json", "invalid": b"{}"}.get(body, readable[name]),
            headers={**whole.headers, VERSIONS: versions},
        )
        for name, body in (("older", older), ("newer", newer))
    ]
    for message in messages if order == "older first" else messages[::-1]:
        await harness.bus.publish(message)
    bodies = {older, newer}
    is_dead = not bodies.isdisjoint({"malformed", "invalid"}) or bodies == {"unknown"}
    found = await harness.dead_letter_store.list(None, None, None, 10)
    assert len(found) == is_dead
    assert sum(child.value for _, child in harness.metrics.dead_letters.items()) == is_dead
    assert outcomes(harness, "handled") == ("readable" in bodies)
    assert (await state(harness, Product, "A")).reserved == ("readable" in bodies)
    for stored in found:  # the detail describes each unreadable version
        for name, body in ("older", older), ("newer", newer):
            assert body not in ("malformed", "invalid") or subjects[name] in stored.dead_letter.detail


async def test_a_dead_letter_keeps_the_version_that_can_be_replayed(harness: Harness) -> None:
    """One version cannot be read, the other failed in processing: whichever came first, the latter one is kept."""
    whole = bus_message(harness, created(oid(1)))
    now = harness.clock.now()
    for n, order in enumerate((("invalid", "failed"), ("failed", "invalid"))):
        for error in order:
            subject = V1 if error == "invalid" else V2
            message = evolve(whole, subject=subject, id=f"{error}-{n}", headers={**whole.headers, "ce-id": f"e-{n}"})
            await harness.dead_letter_store.add(DeadLetter("", "inventory", message, error, f"why {error}", 1, now, now))
    for stored in await harness.dead_letter_store.list(None, None, None, 10):
        dead_letter = stored.dead_letter
        assert (dead_letter.error, dead_letter.message.subject, dead_letter.message.id[:6]) == ("failed", V2, "failed")
        assert dead_letter.detail == f"why failed; {V1}: why invalid"


async def test_a_malformed_versions_header_is_ignored(harness: Harness) -> None:
    """A version with too many digits is not a version; the consumer continues."""
    await start_inventory(harness, NEW)
    message = evolve(bus_message(harness, created(oid(1))), id="m-1")
    await harness.bus.publish(evolve(message, headers={**message.headers, VERSIONS: f"v2,v{'9' * 5000}"}))
    assert outcomes(harness, "handled") == 1


async def test_an_unexpected_error_affects_only_its_message(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes a dead letter after its last delivery attempt; the next message is processed."""
    runner = await start_inventory(harness, NEW)
    read, broken = runner._receiver._reader.read, bus_message(harness, created(oid(1)))

    def failing_read(subject: str, body: bytes) -> Any:
        if body == broken.body:
            raise RuntimeError("unexpected")
        return read(subject, body)

    monkeypatch.setattr(runner._receiver._reader, "read", failing_read)
    monkeypatch.setattr("app.runtime.receiving.RETRY_SECONDS", 0.01)
    first = harness.bus.publish(broken)
    await harness.bus.publish(bus_message(harness, created(oid(2))))
    await first
    [stored] = await harness.dead_letter_store.list(None, None, None, 10)
    assert (stored.dead_letter.error, stored.dead_letter.attempts) == ("failed", MAX_TRIES)
    assert stored.dead_letter.detail == "RuntimeError: unexpected"
    assert outcomes(harness, "handled") == 1
