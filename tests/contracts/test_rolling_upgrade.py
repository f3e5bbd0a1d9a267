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

from app.messaging.cloudevents import message_of, origin
from app.runtime.runner import GIVE_WAY_MAX, GIVE_WAY_SECONDS, Shell
from app.storage.outbox import Parcel
from bus.contracts.versions import VERSIONS
from bus.ids import caused_id
from bus.port import MAX_TRIES, Message
from modules.inventory.state import Product, Reservation
from tests.clock import VirtualClock
from tests.contracts.releases import NEW, OLD, Release, created
from tests.runtime.stand import CONTEXT, HurriedClock, Stand, oid, said, stand_at, submitted, until
from tests.runtime.stand import product as counted

V1, V2 = "orders.created.v1", "orders.created.v2"
RELEASES = {"old": OLD, "new": NEW}


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand_at(tmp_path / "test.db", HurriedClock()) as stand:
        yield stand


def shell_of(stand: Stand, name: str, release: Release) -> Shell:
    """Return one more process's shell of a module, as *release* has it."""
    module, relay = release.modules[name], stand.relays[name]
    store, clock = stand.stores[name], stand.clock
    return Shell(module, store, release.contracts, relay, clock, stand.metrics, dice=random.Random(1))


async def heard(stand: Stand, release: Release) -> Shell:
    """Let inventory of *release* join its group, and hear what it knows; return its shell."""
    shell = shell_of(stand, "inventory", release)
    subjects = release.contracts.heard_subjects(shell.module.hears)
    stand.run(shell.listen(await stand.bus.subscribe("inventory", subjects)))
    stand.run(shell.run())
    return shell


async def state(stand: Stand, cls: type, key: str) -> Any:
    return await stand.shells["inventory"].get(cls, key)


def outcomes(stand: Stand, outcome: str) -> float:
    """Return how many messages of orders.created, in whatever version, ended so."""
    return sum(
        value
        for line in stand.metrics.render().decode().splitlines()
        if line.startswith("messages_handled_total{") and f'outcome="{outcome}"' in line and "orders.created" in line
        for value in [float(line.rpartition(" ")[2])]
    )


@pytest.mark.parametrize("speaker", RELEASES)
@pytest.mark.parametrize("hearer", RELEASES)
async def test_any_producer_and_any_consumer_understand_each_other(stand: Stand, speaker: str, hearer: str) -> None:
    """Stock is held once for each order, and nothing is put aside."""
    await stand.tell("inventory", counted(10))
    await heard(stand, RELEASES[hearer])
    stand.shells["orders"] = shell_of(stand, "orders", RELEASES[speaker])
    for n in range(3):
        await stand.tell("orders", submitted(oid(n), 2))
    stand.run(stand.relays["orders"].run())
    await until(lambda: stand.relays["orders"].pending == 0)
    assert (await state(stand, Product, "A")).reserved == 6
    assert outcomes(stand, "handled") == 3
    assert outcomes(stand, "superseded") == (3 if (speaker, hearer) == ("new", "new") else 0)
    assert outcomes(stand, "put_aside") == outcomes(stand, "failed") == 0
    assert await stand.office.list(None, None, None, 10) == []


def both(stand: Stand, order_id: str) -> dict[str, Message]:
    """Return the messages of one event in both versions, by subject, as the relay would publish them."""
    event_id = str(uuid7())
    found = {}
    for subject, body, _, mark, versions in NEW.contracts.say(created(order_id)):
        id = event_id if mark is None else caused_id(event_id, mark)
        now = stand.clock.now().isoformat(timespec="microseconds")
        trace, correlation = CONTEXT.traceparent, CONTEXT.correlation_id
        parcel = Parcel(id, event_id, subject, order_id, body, None, correlation, "c", trace, now, now, versions)
        found[subject] = message_of(parcel)
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
    async with stand_at(tmp_path / "test.db", clock) as stand:
        await stand.tell("inventory", counted(10))
        subscription = await stand.bus.subscribe("inventory", [V1, V2])
        messages = both(stand, oid(1))
        published = [stand.bus.publish(messages[subject]) for subject in order]
        hearers = [shell_of(stand, "inventory", RELEASES[name]) for name in (first, second)]
        for turn in range(2 * GIVE_WAY_MAX + 2):
            for delivery in await subscription.fetch(1, 0):
                hearer = hearers[turn % 2]
                await hearer._hear(delivery)
                if len(hearer._room):
                    await hearer.step()
            await clock.advance(GIVE_WAY_SECONDS)
        assert all(future.done() for future in published)
        assert (await state(stand, Product, "A")).reserved == 1
        assert outcomes(stand, "handled") == 1
        assert await stand.office.list(None, None, None, 10) == []


async def test_the_higher_version_is_the_one_that_is_acted_on(tmp_path: Path) -> None:
    """Even if the lower one comes first: it gives way for a moment, and is done with when the other one is."""
    clock = VirtualClock()
    async with stand_at(tmp_path / "test.db", clock) as stand:
        await stand.tell("inventory", counted(10))
        shell = shell_of(stand, "inventory", NEW)
        subscription = await stand.bus.subscribe("inventory", [V1, V2])
        messages = both(stand, oid(1))
        for subject, handled in ((V1, 0), (V2, 1), (V1, 1)):
            if subject == V2 or not handled:
                stand.bus.publish(messages[subject])
            else:
                await clock.advance(GIVE_WAY_SECONDS)
            [delivery] = await subscription.fetch(1, 0)
            assert delivery.message.subject == subject
            await shell._hear(delivery)
            await shell.step()
            assert outcomes(stand, "handled") == handled
        assert f'subject="{V2}",outcome="handled"' in stand.metrics.render().decode().replace("{", ",")
        assert outcomes(stand, "superseded") == 1


async def test_a_promise_that_is_not_kept_costs_two_seconds(tmp_path: Path) -> None:
    """The header names a higher version, and it never comes: the lower one is as good."""
    clock = VirtualClock()
    async with stand_at(tmp_path / "test.db", clock) as stand:
        await stand.tell("inventory", counted(10))
        shell = shell_of(stand, "inventory", NEW)
        subscription = await stand.bus.subscribe("inventory", [V1, V2])
        stand.bus.publish(both(stand, oid(1))[V1])
        for _ in range(GIVE_WAY_MAX):
            [delivery] = await subscription.fetch(1, 0)
            await shell._hear(delivery)
            await shell.step()
            assert await state(stand, Reservation, oid(1)) is None
            await clock.advance(GIVE_WAY_SECONDS)
        [delivery] = await subscription.fetch(1, 0)
        await shell._hear(delivery)
        await shell.step()
        assert await state(stand, Reservation, oid(1)) is not None


async def test_both_versions_survive_a_restart_as_they_were_said(tmp_path: Path) -> None:
    """Under the ids that they had, with the versions that there are; a row of the old release promises nothing."""
    path = tmp_path / "test.db"
    async with stand_at(path) as stand:
        await stand.tell("orders", submitted(oid(1)), id=oid(1))
        stand.shells["orders"] = shell_of(stand, "orders", OLD)
        await stand.tell("orders", submitted(oid(2)), id=oid(2))
    async with stand_at(path) as stand:
        found: list[Message] = []
        subscription = await stand.bus.subscribe("observer", [V1, V2])
        await stand.relays["orders"].step()
        found = [delivery.message for delivery in await subscription.fetch(10, 0)]
        first = {message.subject: message for message in found if message.key == oid(1)}
        [second] = [message for message in found if message.key == oid(2)]
        assert {message.headers[VERSIONS] for message in first.values()} == {"v1,v2"}
        assert origin(first[V1]) == origin(first[V2])
        assert first[V1].id == origin(first[V1])[0] != first[V2].id
        assert {message.headers["ce-type"] for message in first.values()} == {V1, V2}
        assert second.subject == V1
        assert VERSIONS not in second.headers


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        (b'{"order_id":', "unreadable", "orders.created.v1: unexpected end of data"),
        (b'{"order_id": 1}', "invalid", "/order_id: 1 is not of type 'string'"),
        (NEW.contracts.encode(created(oid(1))), "invalid", "/version: 'v1' was expected"),
        (b"[" * 1000 + b"]" * 1000, "unreadable", "orders.created.v1: it is nested too deeply"),
    ],
)
async def test_what_makes_no_sense_is_put_aside_at_once(stand: Stand, body: bytes, error: str, says: str) -> None:
    """With the pointer and the reason; it never spends five tries."""
    await heard(stand, NEW)
    await stand.bus.publish(Message(V1, "m-1", body, "k", {"ce-id": "e-1"}))
    [kept] = await stand.office.list(None, None, None, 10)
    letter = kept.letter
    assert (letter.error, letter.attempts, letter.consumer) == (error, 1, "inventory")
    assert says in letter.detail


async def test_a_version_that_nobody_knows_goes_by_only_if_it_is_said_otherwise(stand: Stand) -> None:
    """orders.created.v99 on its own is put aside; beside a version that we know it is none of our business."""
    shell = shell_of(stand, "inventory", NEW)
    stand.run(shell.listen(await stand.bus.subscribe("inventory", ["orders.created.v99"])))
    message = evolve(said(stand, created(oid(1))), subject="orders.created.v99")
    await stand.bus.publish(evolve(message, id="m-1", headers={**message.headers, VERSIONS: "v2,v99"}))
    assert await stand.office.list(None, None, None, 10) == []
    await stand.bus.publish(evolve(message, id="m-2", headers={**message.headers, VERSIONS: "v98,v99"}))
    [kept] = await stand.office.list(None, None, None, 10)
    assert (kept.letter.error, kept.letter.attempts) == ("unknown_subject", 1)
    assert kept.letter.detail == "no contract for orders.created.v99"


async def test_a_header_that_makes_no_sense_is_nobodys_end(stand: Stand) -> None:
    """A version too long to be a number is no version; who hears the message goes on hearing."""
    await heard(stand, NEW)
    message = evolve(said(stand, created(oid(1))), id="m-1")
    await stand.bus.publish(evolve(message, headers={**message.headers, VERSIONS: f"v2,v{'9' * 5000}"}))
    assert outcomes(stand, "handled") == 1


async def test_what_nobody_foresaw_spends_the_tries_of_one_message(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that breaks is the message's trouble: five tries, then a dead letter; the next one is heard."""
    shell = await heard(stand, NEW)
    read, broken = shell.hears.read, said(stand, created(oid(1)))

    def breaking(subject: str, body: bytes) -> Any:
        if body == broken.body:
            raise RuntimeError("nobody foresaw this")
        return read(subject, body)

    monkeypatch.setattr(shell.hears, "read", breaking)
    monkeypatch.setattr("app.runtime.runner.RETRY_SECONDS", 0.01)
    first = stand.bus.publish(broken)
    await stand.bus.publish(said(stand, created(oid(2))))
    await first
    [kept] = await stand.office.list(None, None, None, 10)
    assert (kept.letter.error, kept.letter.attempts) == ("failed", MAX_TRIES)
    assert kept.letter.detail == "RuntimeError: nobody foresaw this"
    assert outcomes(stand, "handled") == 1
