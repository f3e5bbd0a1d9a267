"""The dead-letter store: one dead letter for each event and consumer, stored durably, replayed with one effect."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from attrs import evolve

from app.gateways.webhook_handler import CONSUMER as WEBHOOKS
from app.messaging.cloudevents import event_id_and_trace, to_message
from app.messaging.dead_letters import DeadLetterStore, NotReplayable, StoredDeadLetter, groups
from app.messaging.dead_letters.dead_letter_table import REPLAY_MAX
from app.messaging.dead_letters.groups import OTHERS, pattern_of
from app.messaging.dead_letters.rows import changed_pointers
from app.storage.audit import Audit
from bus.contracts.versions import VERSIONS
from bus.errors import Invalid, Unreadable
from bus.ids import derived_id
from bus.port import MAX_TRIES, DeadLetter, Message
from modules.inventory.state import Product
from modules.orders.events import OrderConfirmed, OrderCreated
from modules.values import Line, Money
from tests.runtime.harness import Harness, HurriedClock, bus_message, harness_at, oid, product, until


def confirmed(n: int) -> OrderConfirmed:
    """Return an event that cannot be decided: no stock was reserved for this order."""
    return OrderConfirmed(order_id=oid(n), customer_id="c-1", items=(Line("A", 1),), total=Money(100, "EUR"))


def created(n: int) -> OrderCreated:
    return OrderCreated(order_id=oid(n), customer_id="c-1", items=(Line("A", 1),), version="v2", shipping_address=None)


def dead_letter_about(message: Message, consumer: str) -> DeadLetter:
    """Return a dead letter of *consumer* about *message*."""
    now = datetime.now(UTC)
    return DeadLetter(derived_id(message.id, consumer), consumer, message, "no_answer", "", 5, now, now)


async def stored_dead_letters(dead_letter_store: DeadLetterStore) -> list[StoredDeadLetter]:
    return list(await dead_letter_store.list(None, None, None, 100))


async def stock(harness: Harness) -> Any:
    product = await harness.runners["inventory"].get(Product, "A")
    assert product is not None
    return product


async def test_five_failures_make_one_dead_letter(path: Path) -> None:
    """It names the consumer and the reason; the next message is delivered nevertheless."""
    async with harness_at(path, HurriedClock()) as harness:
        await harness.submit("inventory", product())
        _without_delays(harness)
        await harness.consume("inventory")
        poison = bus_message(harness, confirmed(1), key=oid(1))
        publishing = harness.bus.publish(poison)
        await harness.bus.publish(bus_message(harness, created(2), key=oid(2)))
        assert (await stock(harness)).reserved == 1
        await publishing
        [stored] = await stored_dead_letters(harness.dead_letter_store)
        assert (stored.dead_letter.consumer, stored.dead_letter.error, stored.dead_letter.attempts) == ("inventory", "failed", MAX_TRIES)
        assert stored.dead_letter.detail == "Unexpected: OrderConfirmed while there is no reservation"
        assert stored.dead_letter.message == poison
        assert stored.replays == 0
        assert stored.dead_letter.first_seen <= stored.dead_letter.last_seen


async def test_an_unreadable_message_becomes_a_dead_letter_at_once(harness: Harness) -> None:
    """It spends one try, because no further try can help."""
    await harness.consume("inventory")
    for n, body in enumerate((b"{", b"{}", b"\xff\xfe")):
        await harness.bus.publish(Message("orders.created.v1", f"m-{n}", body))
    found = await stored_dead_letters(harness.dead_letter_store)
    assert sorted(stored.dead_letter.error for stored in found) == ["invalid", "unreadable", "unreadable"]
    assert {stored.dead_letter.attempts for stored in found} == {1}


async def test_dead_letters_survive_a_restart(path: Path) -> None:
    """They are on disk, to the last byte."""
    async with harness_at(path) as harness:
        await harness.consume("inventory")
        await harness.bus.publish(Message("orders.created.v1", "m-1", b"\x00\xff", "k", {"ce-id": "e-1", "x": "ü"}))
        before = await stored_dead_letters(harness.dead_letter_store)
        assert len(before) == 1
    async with harness_at(path) as harness:
        assert await stored_dead_letters(harness.dead_letter_store) == before


async def test_a_replay_has_one_effect_and_keeps_the_event_id(path: Path) -> None:
    """Replayed twice, under new message ids that no deduplication drops, the event is decided once."""
    async with harness_at(path, HurriedClock()) as harness:
        await harness.submit("inventory", product())
        _without_delays(harness)
        await harness.consume("inventory")
        await harness.bus.publish(bus_message(harness, confirmed(1), id=oid(7), key=oid(1)))
        [stored] = await stored_dead_letters(harness.dead_letter_store)
        await harness.bus.publish(bus_message(harness, created(1), key=oid(1)))
        assert (await stock(harness)).reserved == 1
        assert await harness.dead_letter_store.replay(stored.dead_letter.id)
        assert await harness.dead_letter_store.replay(stored.dead_letter.id)
        outbox_messages = await harness.rows("SELECT id, event_id FROM inventory_outbox WHERE subject LIKE '%.orders.%'")
        assert {event_id for _, event_id in outbox_messages} == {oid(7)}
        assert len({id for id, _ in outbox_messages} | {oid(7)}) == 3
        harness.run(harness.relays["inventory"].run())
        await until(lambda: _all_sent(harness))
        assert ((await stock(harness)).on_hand, (await stock(harness)).reserved) == (9, 0)
        [stored] = await stored_dead_letters(harness.dead_letter_store)
        assert stored.replays == 2


async def test_a_replay_goes_only_to_the_consumer_that_gave_up(path: Path) -> None:
    """Payments consumes the same subject and gets nothing; dead letters and metrics use the original subject."""
    async with harness_at(path, HurriedClock()) as harness:
        await harness.consume("inventory")
        await harness.consume("payments")
        await harness.bus.publish(Message("orders.cancelled.v1", "m-1", b"{}", "k", {"ce-id": "e-1"}))
        [ours] = await harness.dead_letter_store.list("inventory", None, None, 10)
        [theirs] = await harness.dead_letter_store.list("payments", None, None, 10)
        assert await harness.dead_letter_store.replay(ours.dead_letter.id)
        [(subject,)] = await harness.rows("SELECT subject FROM inventory_outbox")
        assert subject == "inventory.replay.inventory.orders.cancelled.v1"
        assert await harness.rows("SELECT count(*) FROM payments_outbox") == [(0,)]
        harness.run(harness.relays["inventory"].run())

        async def is_given_up_again() -> bool:
            [again] = await harness.dead_letter_store.list("inventory", None, None, 10)
            return again.dead_letter.attempts == 2

        await until(is_given_up_again)
        assert len(await harness.dead_letter_store.list("inventory", "orders.cancelled.v1", None, 10)) == 1
        assert await harness.dead_letter_store.list("payments", None, None, 10) == [theirs]
        rendered = harness.metrics.render().decode()
        assert ".replay." not in rendered
        assert 'dead_letters_total{consumer="inventory",subject="orders.cancelled.v1"} 2' in rendered
        assert 'messages_published_total{subject="orders.cancelled.v1"} 1' in rendered


async def test_a_replay_keeps_its_lane(path: Path) -> None:
    """An express event goes to the consumer of the express lane again."""
    async with harness_at(path) as harness:
        unroutable = Message("orders.created.v1.express", "m-1", b"{", "k")
        await harness.dead_letter_store.add(dead_letter_about(unroutable, "inventory-express"))
        assert await harness.dead_letter_store.replay_many(None, None, None, False) == (1, 1)
        [(subject,)] = await harness.rows("SELECT subject FROM inventory_outbox")
        assert subject == "inventory.replay.inventory-express.orders.created.v1.express"


async def test_a_replayed_unroutable_message_goes_to_every_consumer(path: Path) -> None:
    """It is published under its own subject, because a consumer may know it now."""
    async with harness_at(path) as harness:
        await harness.dead_letter_store.add(dead_letter_about(Message("orders.created.v99", "m-1", b"{}"), "orders-strays"))
        [stored] = await stored_dead_letters(harness.dead_letter_store)
        assert await harness.dead_letter_store.replay(stored.dead_letter.id)
        assert await harness.rows("SELECT subject, event_id FROM orders_outbox") == [("orders.created.v99", "m-1")]


async def test_a_dead_letter_about_a_replay_has_the_original_subject(path: Path) -> None:
    """The recovery reads messages with the subject that they have in the stream."""
    async with harness_at(path) as harness:
        replayed = Message("payments.replay.payments-gateway.payments.charge_requested.v1", "m-2", b"{}")
        await harness.dead_letter_store.add(dead_letter_about(replayed, "payments-gateway"))
        [stored] = await stored_dead_letters(harness.dead_letter_store)
        assert stored.dead_letter.message.subject == "payments.charge_requested.v1"
        assert await harness.dead_letter_store.replay(stored.dead_letter.id)
        assert await harness.rows("SELECT subject FROM payments_outbox") == [(replayed.subject,)]


@pytest.mark.parametrize("consumer", ["inventory", "orders-outbox", "orders-strays"])
async def test_a_replay_has_what_its_event_had(path: Path, consumer: str) -> None:
    """
    Time, key, trace and cause; only the message id is new, and the subject that of the one consumer.

    The versions are named again where each version is published again by itself: a consumer that reads one lets another go.
    """
    async with harness_at(path) as harness:
        event = bus_message(harness, created(1), key=oid(1))
        headers = {**event.headers, "ce-time": "2026-01-01T11:59:58.123456+00:00", "ce-causationid": "cause", VERSIONS: "v1,v2"}
        event = evolve(event, headers=headers)
        await harness.dead_letter_store.add(dead_letter_about(event, consumer))
        assert await harness.dead_letter_store.replay_many(None, None, None, False) == (1, 1)
        store = harness.stores["inventory" if consumer == "inventory" else "orders"]
        [row] = await harness.database.read(lambda c: store.fetch_due(c, harness.clock.now(), 9, timedelta(0)))
        again = to_message(row)
        assert (again.body, again.key) == (event.body, event.key)
        assert again.id != event.id
        named = dict(headers) if consumer == "orders-outbox" else {name: each for name, each in headers.items() if name != VERSIONS}
        assert dict(again.headers) == named


@pytest.mark.parametrize(
    ("named", "stored"),
    [
        ("2026-01-01T14:00:00+02:00", "2026-01-01T12:00:00.000000+00:00"), ("2026-01-01T12:00:00Z", "2026-01-01T12:00:00.000000+00:00"),
        ("2026-01-01T12:00:00.5", "2026-01-01T12:00:00.500000+00:00"), ("9999-12-31T23:59:59-14:00", None), ("yesterday", None),
    ],
)  # fmt: skip
async def test_the_time_of_a_replayed_event_is_stored_in_utc(path: Path, named: str, stored: str | None) -> None:
    """Another system may name it in its own zone, and the rows of the outbox are compared as texts; what is no time is the time of the replay."""
    async with harness_at(path) as harness:
        event = bus_message(harness, created(1), key=oid(1))
        await harness.dead_letter_store.add(dead_letter_about(evolve(event, headers={**event.headers, "ce-time": named}), "inventory"))
        before = harness.clock.now().isoformat(timespec="microseconds")
        assert await harness.dead_letter_store.replay_many(None, None, None, False) == (1, 1)
        [(occurred_at,)] = await harness.rows("SELECT occurred_at FROM inventory_outbox")
        assert occurred_at == stored if stored is not None else occurred_at >= before


async def test_more_dead_letters_than_one_transaction_takes_are_replayed_once_each(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay changes nothing by which they are selected, so each part goes on after the one before."""
    for name in "store", "dead_letter_table":
        monkeypatch.setattr(f"app.messaging.dead_letters.{name}.REPLAY_MAX", 3)
    async with harness_at(path) as harness:
        store, count = harness.dead_letter_store, 8
        for n in range(count):
            await store.add(dead_letter_about(Message("orders.created.v1", f"m-{n}", b"{", "k"), "inventory"))
        assert await store.replay_many("inventory", None, None, False) == (count, count)
        assert await harness.rows("SELECT count(*), count(DISTINCT event_id) FROM inventory_outbox") == [(count, count)]
        assert await harness.rows("SELECT DISTINCT replays FROM inventory_dead_letter") == [(1,)]


async def test_pages_of_dead_letters_of_several_modules_are_one_list(path: Path) -> None:
    """In the order of the ids, whichever module each belongs to."""
    async with harness_at(path) as harness:
        store = harness.dead_letter_store
        for n, consumer in enumerate(["payments", "inventory", "orders"] * 5):
            await store.add(dead_letter_about(Message("orders.cancelled.v1", f"m-{n}", b"{}", "k"), consumer))
        ids = [each.dead_letter.id for each in await store.list(None, None, None, 99)]
        assert ids == sorted(ids)
        assert len(ids) == 15
        found: list[str] = []
        while page := await store.list(None, None, found[-1] if found else None, 4):
            found += [each.dead_letter.id for each in page]
        assert found == ids


async def test_a_replay_that_fails_again_updates_the_dead_letter(path: Path) -> None:
    """There is no second dead letter; the attempts of the first one increase."""
    async with harness_at(path, HurriedClock()) as harness:
        _without_delays(harness)
        await harness.consume("inventory")
        await harness.bus.publish(bus_message(harness, confirmed(1), key=oid(1)))
        [first] = await stored_dead_letters(harness.dead_letter_store)
        assert await harness.dead_letter_store.replay(first.dead_letter.id)
        harness.run(harness.relays["inventory"].run())
        await until(lambda: _all_sent(harness))
        [again] = await stored_dead_letters(harness.dead_letter_store)
        assert again.dead_letter.id == first.dead_letter.id
        assert again.dead_letter.attempts == 2 * MAX_TRIES
        assert again.dead_letter.first_seen == first.dead_letter.first_seen
        assert again.dead_letter.last_seen > first.dead_letter.last_seen
        assert again.dead_letter.message.id != first.dead_letter.message.id
        assert event_id_and_trace(again.dead_letter.message)[0] == event_id_and_trace(first.dead_letter.message)[0]


async def test_a_dead_letter_that_is_stored_twice_is_one(path: Path) -> None:
    """The bus stores it again when it does not know whether the first time succeeded."""
    async with harness_at(path) as harness:
        await harness.consume("inventory")
        await harness.bus.publish(Message("orders.created.v1", "m-1", b"{"))
        [stored] = await stored_dead_letters(harness.dead_letter_store)
        await harness.dead_letter_store.add(stored.dead_letter)
        assert await stored_dead_letters(harness.dead_letter_store) == [stored]
        counted = 'dead_letters_total{consumer="inventory",subject="orders.created.v1"} 1'
        assert counted in harness.metrics.render().decode()


async def test_a_dead_letter_of_a_consumer_without_subscription_is_not_replayed(harness: Harness) -> None:
    """It is replayed neither by its id nor by a filter; a mismatched webhook needs a person."""
    await harness.dead_letter_store.add(dead_letter_about(Message("stripe.charge.refunded", "evt_1", b"{}", ""), WEBHOOKS))
    await harness.dead_letter_store.add(dead_letter_about(bus_message(harness, created(1)), "inventory"))
    webhook = next(stored for stored in await stored_dead_letters(harness.dead_letter_store) if stored.dead_letter.consumer == WEBHOOKS)
    for dry_run in True, False:
        with pytest.raises(NotReplayable, match="payments-webhooks subscribes to nothing"):
            await harness.dead_letter_store.replay(webhook.dead_letter.id, dry_run)
    assert await harness.dead_letter_store.replay_many(None, None, None, False) == (1, 1)
    assert await harness.dead_letter_store.replay_many(WEBHOOKS, None, None, False) == (0, 0)
    assert {stored.dead_letter.consumer: stored.replays for stored in await stored_dead_letters(harness.dead_letter_store)} == {WEBHOOKS: 0, "inventory": 1}
    assert await harness.outbox("payments") == []


async def test_many_dead_letters_are_replayed_by_a_filter(path: Path) -> None:
    """A dry run counts and publishes nothing; discarding one leaves the others."""
    async with harness_at(path) as harness:
        await harness.consume("inventory")
        await harness.consume("payments")
        for n in range(3):
            await harness.bus.publish(Message("orders.created.v1", f"m-{n}", b"{"))
        await harness.bus.publish(Message("orders.cancelled.v1", "m-9", b"{}"))
        dead_letter_store = harness.dead_letter_store
        assert await dead_letter_store.replay_many("inventory", None, None, True) == (4, 0)
        assert await harness.rows("SELECT count(*) FROM inventory_outbox") == [(0,)]
        assert await dead_letter_store.replay_many("inventory", "orders.created.v1", "unreadable", False) == (3, 3)
        assert await harness.rows("SELECT count(*) FROM inventory_outbox") == [(3,)]
        assert await dead_letter_store.replay_many("unknown", None, None, False) == (0, 0)
        assert len(await dead_letter_store.list("payments", None, None, 10)) == 1
        assert len(await dead_letter_store.list(None, "orders.cancelled.v1", None, 10)) == 2
        found = await stored_dead_letters(dead_letter_store)
        assert len(found) == 5
        assert await dead_letter_store.discard(found[0].dead_letter.id)
        assert not await dead_letter_store.discard(found[0].dead_letter.id)
        assert not await dead_letter_store.replay(found[0].dead_letter.id)
        assert await dead_letter_store.get(found[0].dead_letter.id) is None
        assert [stored.dead_letter.id for stored in await stored_dead_letters(dead_letter_store)] == [stored.dead_letter.id for stored in found[1:]]


async def test_an_edited_replay_is_handled_and_the_dead_letter_keeps_both_bodies(path: Path) -> None:
    """The event keeps its id, so a copy of it has no second effect."""
    async with harness_at(path, HurriedClock()) as harness:
        await harness.submit("inventory", product())
        _without_delays(harness)
        await harness.consume("inventory")
        good = bus_message(harness, created(1), key=oid(1))
        bad = evolve(good, body=good.body.replace(b'"quantity":1', b'"quantity":"1"'))
        await harness.bus.publish(bad)
        [stored] = await stored_dead_letters(harness.dead_letter_store)
        assert (stored.dead_letter.error, stored.edited_body) == ("invalid", None)
        store, id = harness.dead_letter_store, str(stored.dead_letter.id)
        with pytest.raises(Invalid):
            await store.replay(id, body=bad.body)
        with pytest.raises(Unreadable):
            await store.replay(id, body=b"{")
        assert await store.replay(id, dry_run=True, body=good.body)
        assert await store.get(id) == stored
        assert await store.replay(id, body=good.body, audit=Audit("anna", "replayDeadLetter", id, "c-1"))
        [(audited,)] = await harness.rows("SELECT after FROM inventory_audit")
        assert (orjson.loads(audited)["edited"], len(orjson.loads(audited)["sha256"])) == ("/items/0/quantity", 64)
        harness.run(harness.relays["inventory"].run())
        await until(lambda: _all_sent(harness))
        assert (await stock(harness)).reserved == 1
        edited = await store.get(id)
        assert edited is not None
        assert (edited.dead_letter.message.body, edited.edited_body, edited.replays) == (bad.body, good.body, 1)
        await harness.bus.publish(good)
        assert (await stock(harness)).reserved == 1


async def test_dead_letters_are_discarded_by_a_filter(path: Path) -> None:
    """Each of them is audited; a dry run only counts."""
    async with harness_at(path) as harness:
        store, audit = harness.dead_letter_store, Audit("anna", "discardDeadLetters", "", "c-1")
        for n in range(REPLAY_MAX + 2):
            await store.add(dead_letter_about(Message("orders.created.v1", f"m-{n}", b"{", "k"), "inventory"))
        await store.add(dead_letter_about(Message("stripe.charge.refunded", "evt_1", b"{}", ""), WEBHOOKS))
        assert await store.discard_many("inventory", None, None, True) == (REPLAY_MAX + 2, 0)
        assert await store.discard_many("inventory", None, None, False, audit=audit) == (REPLAY_MAX + 2, REPLAY_MAX + 2)
        [left] = await stored_dead_letters(store)
        assert left.dead_letter.consumer == WEBHOOKS
        assert await store.discard_many(None, None, None, False) == (1, 1)
        assert await harness.rows("SELECT count(DISTINCT target), min(actor) FROM inventory_audit") == [(REPLAY_MAX + 2, "anna")]


async def test_dead_letters_of_one_cause_are_one_group(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, times and numbers in their details do not count; rare details beyond the limit are counted together."""
    async with harness_at(path) as harness:
        store = harness.dead_letter_store
        for n in range(5):
            letter = dead_letter_about(Message("orders.created.v1", f"m-{n}", b"{", "k"), "inventory")
            await store.add(evolve(letter, detail=f"order {oid(n)} has {n} items since 2026-11-28T10:00:0{n}.5Z"))
        await store.add(dead_letter_about(Message("orders.created.v1", "m-9", b"{", "k"), "payments"))
        many, one = await store.groups(None, None, None)
        assert (many.consumer, many.count, many.pattern) == ("inventory", 5, "order <id> has <n> items since <time>")
        assert (one.consumer, one.count, one.pattern) == ("payments", 1, "")
        letters = [stored.dead_letter for stored in await store.list("inventory", None, None, 9)]
        assert (many.first_seen, many.last_seen) == (min(each.first_seen for each in letters), max(each.last_seen for each in letters))
        assert many.example in [each.id for each in letters]
        monkeypatch.setattr(groups, "DETAILS_MAX", 2)
        assert [(each.count, each.pattern) for each in await store.groups(None, None, None)] == [(3, OTHERS), (2, many.pattern), (1, "")]


@pytest.mark.parametrize(
    ("stored", "edited", "pointers"),
    [
        (b'{"a": 1, "b": [1, {"c/d": 2}]}', b'{"a": 1, "b": [1, {"c/d": 3}]}', ["/b/1/c~1d"]),
        (b'{"a": 1}', b'{"b": 1}', ["/a", "/b"]),
        (b"[1]", b"[1, 2]", [""]),
        (b"{", b"{}", [""]),
        (b"{}", b"{ }", []),
    ],
)
def test_the_audit_names_the_members_that_an_edit_has_changed(stored: bytes, edited: bytes, pointers: list[str]) -> None:
    """Their values may be customers' data."""
    assert changed_pointers(stored, edited) == pointers


@pytest.mark.parametrize(
    ("detail", "pattern"),
    [
        ("Unexpected: OrderConfirmed while there is no reservation", "Unexpected: OrderConfirmed while there is no reservation"),
        ("orders.created.v1: /items/3/quantity: 0 is less than 1", "orders.created.v1: /items/<n>/quantity: <n> is less than <n>"),
        ("pi_3QmX2eLkdIwHu7ix0Qq7 took 10.5 s", "<id> took <n> s"),
        ("no contract for orders.created.v99", "no contract for orders.created.v99"),
        ("x" * 400, "x" * 299 + "…"),
        (f"{oid(1)} " * 20, "<id> " * 15 + "<id>"),
    ],
)
def test_the_pattern_of_a_detail_leaves_out_what_differs(detail: str, pattern: str) -> None:
    """The versions of events and the words stay."""
    assert pattern_of(detail) == pattern


async def _all_sent(harness: Harness) -> bool:
    return await harness.rows("SELECT count(*) FROM inventory_outbox WHERE sent_at IS NULL AND subject LIKE '%.orders.%'") == [(0,)]


def _without_delays(harness: Harness) -> None:
    """Let no try wait for its delay."""
    for runner in harness.runners.values():
        runner._receiver._rng = _ZeroRandom()  # type: ignore[assignment]


class _ZeroRandom:
    """A random source that always returns 0: a delay multiplied by it ends at once."""

    def uniform(self, low: float, high: float) -> float:
        return 0.0
