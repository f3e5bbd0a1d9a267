"""Old and new speak with each other, in both directions and back: whatever they say is acted on once."""

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
from app.storage.outbox import OutboxMessage
from bus.contracts.versions import VERSIONS
from bus.ids import derived_id
from bus.port import MAX_TRIES, Message
from modules.inventory.state import Product, Reservation
from tests.clock import VirtualClock
from tests.contracts.releases import NEW, OLD, Release, created
from tests.runtime.harness import CONTEXT, Harness, HurriedClock, bus_message, harness_at, oid, submitted, until
from tests.runtime.harness import product as counted

V1, V2 = "orders.created.v1", "orders.created.v2"
RELEASES = {"old": OLD, "new": NEW}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with harness_at(tmp_path / "test.db", HurriedClock()) as harness:
        yield harness


def runner_of(harness: Harness, name: str, release: Release) -> ModuleRunner:
    """Return one more process's shell of a module, as *release* has it."""
    module, relay = release.modules[name], harness.relays[name]
    store, clock = harness.stores[name], harness.clock
    return build_runners(
        [module], {module.name: store}, release.contracts, {module.name: relay}, clock, harness.metrics,
        delivers_locally=False, remote_subjects=(), rng=random.Random(1),
    )[module.name]  # fmt: skip


async def heard(harness: Harness, release: Release) -> ModuleRunner:
    """Let inventory of *release* join its group, and hear what it knows; return its shell."""
    runner = runner_of(harness, "inventory", release)
    subjects = release.contracts.subjects_for(runner.module.consumes)
    harness.run(runner.consume(await harness.bus.subscribe("inventory", subjects)))
    harness.run(runner.run())
    return runner


async def state(harness: Harness, cls: type, key: str) -> Any:
    return await harness.runners["inventory"].get(cls, key)


def outcomes(harness: Harness, outcome: str) -> float:
    """Return how many messages of orders.created, in whatever version, ended so."""
    return sum(
        value
        for line in harness.metrics.render().decode().splitlines()
        if line.startswith("messages_handled_total{") and f'outcome="{outcome}"' in line and "orders.created" in line
        for value in [float(line.rpartition(" ")[2])]
    )


@pytest.mark.parametrize("producer", RELEASES)
@pytest.mark.parametrize("hearer", RELEASES)
async def test_any_producer_and_any_consumer_understand_each_other(harness: Harness, producer: str, hearer: str) -> None:
    """Stock is held once for each order, and nothing is put aside."""
    await harness.submit("inventory", counted(10))
    await heard(harness, RELEASES[hearer])
    harness.runners["orders"] = runner_of(harness, "orders", RELEASES[producer])
    for n in range(3):
        await harness.submit("orders", submitted(oid(n), 2))
    harness.run(harness.relays["orders"].run())
    await until(lambda: harness.relays["orders"].pending == 0)
    assert (await state(harness, Product, "A")).reserved == 6
    assert outcomes(harness, "handled") == 3
    assert outcomes(harness, "superseded") == (3 if (producer, hearer) == ("new", "new") else 0)
    assert outcomes(harness, "put_aside") == outcomes(harness, "failed") == 0
    assert await harness.dead_letter_store.list(None, None, None, 10) == []


def both(harness: Harness, order_id: str) -> dict[str, Message]:
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
    [(order, *hearers) for order in permutations((V1, V2)) for hearers in product(RELEASES, RELEASES)],
)
async def test_a_group_of_two_releases_loses_nothing(
    tmp_path: Path, order: tuple[str, str], first: str, second: str
) -> None:
    """
    Whichever member gets which version, first or last: the event is acted on once.

    That is what a rolling upgrade on a broker looks like: the members of both releases share one durable, whose filter
    is the newer one's. The old member lets the version go that it does not know, so the new one must not have let go
    the other on the mere promise of this.
    """
    clock = VirtualClock()
    async with harness_at(tmp_path / "test.db", clock) as harness:
        await harness.submit("inventory", counted(10))
        subscription = await harness.bus.subscribe("inventory", [V1, V2])
        messages = both(harness, oid(1))
        published = [harness.bus.publish(messages[subject]) for subject in order]
        hearers = [runner_of(harness, "inventory", RELEASES[name]) for name in (first, second)]
        for turn in range(2 * DEFER_MAX + 2):
            for delivery in await subscription.fetch(1, 0):
                hearer = hearers[turn % 2]
                await hearer._receive(delivery)
                if len(hearer._queue):
                    await hearer.step()
            await clock.advance(DEFER_SECONDS)
        assert all(future.done() for future in published)
        assert (await state(harness, Product, "A")).reserved == 1
        assert outcomes(harness, "handled") == 1
        assert await harness.dead_letter_store.list(None, None, None, 10) == []


async def test_the_higher_version_is_the_one_that_is_acted_on(tmp_path: Path) -> None:
    """Even if the lower one comes first: it gives way for a moment, and is done with when the other one is."""
    clock = VirtualClock()
    async with harness_at(tmp_path / "test.db", clock) as harness:
        await harness.submit("inventory", counted(10))
        runner = runner_of(harness, "inventory", NEW)
        subscription = await harness.bus.subscribe("inventory", [V1, V2])
        messages = both(harness, oid(1))
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


async def test_a_promise_that_is_not_kept_costs_two_seconds(tmp_path: Path) -> None:
    """The header names a higher version, and it never comes: the lower one is as good."""
    clock = VirtualClock()
    async with harness_at(tmp_path / "test.db", clock) as harness:
        await harness.submit("inventory", counted(10))
        runner = runner_of(harness, "inventory", NEW)
        subscription = await harness.bus.subscribe("inventory", [V1, V2])
        harness.bus.publish(both(harness, oid(1))[V1])
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


async def test_both_versions_survive_a_restart_as_they_were_said(tmp_path: Path) -> None:
    """Under the ids that they had, with the versions that there are; a row of the old release promises nothing."""
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
    ("body", "error", "says"),
    [
        (b'{"order_id":', "unreadable", "orders.created.v1: unexpected end of data"),
        (b'{"order_id": 1}', "invalid", "/order_id: 1 is not of type 'string'"),
        (NEW.contracts.encode(created(oid(1))), "invalid", "/version: 'v1' was expected"),
        (b"[" * 1000 + b"]" * 1000, "unreadable", "orders.created.v1: the body is nested too deeply"),
    ],
)
async def test_what_makes_no_sense_is_put_aside_at_once(harness: Harness, body: bytes, error: str, says: str) -> None:
    """With the pointer and the reason; it never spends five tries."""
    await heard(harness, NEW)
    await harness.bus.publish(Message(V1, "m-1", body, "k", {"ce-id": "e-1"}))
    [kept] = await harness.dead_letter_store.list(None, None, None, 10)
    dead_letter = kept.dead_letter
    assert (dead_letter.error, dead_letter.attempts, dead_letter.consumer) == (error, 1, "inventory")
    assert says in dead_letter.detail


async def test_a_version_that_nobody_knows_goes_by_only_if_it_is_said_otherwise(harness: Harness) -> None:
    """orders.created.v99 on its own is put aside; beside a version that we know it is none of our business."""
    runner = runner_of(harness, "inventory", NEW)
    harness.run(runner.consume(await harness.bus.subscribe("inventory", ["orders.created.v99"])))
    message = evolve(bus_message(harness, created(oid(1))), subject="orders.created.v99")
    await harness.bus.publish(evolve(message, id="m-1", headers={**message.headers, VERSIONS: "v2,v99"}))
    assert await harness.dead_letter_store.list(None, None, None, 10) == []
    await harness.bus.publish(evolve(message, id="m-2", headers={**message.headers, VERSIONS: "v98,v99"}))
    [kept] = await harness.dead_letter_store.list(None, None, None, 10)
    assert (kept.dead_letter.error, kept.dead_letter.attempts) == ("unknown_subject", 1)
    assert kept.dead_letter.detail == "no contract for orders.created.v99"


async def test_a_header_that_makes_no_sense_is_nobodys_end(harness: Harness) -> None:
    """A version too long to be a number is no version; who hears the message goes on hearing."""
    await heard(harness, NEW)
    message = evolve(bus_message(harness, created(oid(1))), id="m-1")
    await harness.bus.publish(evolve(message, headers={**message.headers, VERSIONS: f"v2,v{'9' * 5000}"}))
    assert outcomes(harness, "handled") == 1


async def test_what_nobody_foresaw_spends_the_tries_of_one_message(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that breaks is the message's trouble: five tries, then a dead letter; the next one is heard."""
    runner = await heard(harness, NEW)
    read, broken = runner._receiver._reader.read, bus_message(harness, created(oid(1)))

    def breaking(subject: str, body: bytes) -> Any:
        if body == broken.body:
            raise RuntimeError("nobody foresaw this")
        return read(subject, body)

    monkeypatch.setattr(runner._receiver._reader, "read", breaking)
    monkeypatch.setattr("app.runtime.receiving.RETRY_SECONDS", 0.01)
    first = harness.bus.publish(broken)
    await harness.bus.publish(bus_message(harness, created(oid(2))))
    await first
    [kept] = await harness.dead_letter_store.list(None, None, None, 10)
    assert (kept.dead_letter.error, kept.dead_letter.attempts) == ("failed", MAX_TRIES)
    assert kept.dead_letter.detail == "RuntimeError: nobody foresaw this"
    assert outcomes(harness, "handled") == 1
