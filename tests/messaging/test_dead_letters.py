"""What no try could deliver: one letter, kept, and sent again with one effect."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.gateways.webhook_handler import CONSUMER as WEBHOOKS
from app.messaging.cloudevents import origin
from app.messaging.dead_letters import DeadLetterOffice
from app.web.endpoints.dead_letters import KeptLetter, NotReplayable
from bus.ids import caused_id
from bus.port import MAX_TRIES, DeadLetter, Message
from modules.inventory.state import Product
from modules.orders.events import OrderConfirmed, OrderCreated
from modules.values import Line, Money
from tests.runtime.stand import HurriedClock, Stand, oid, product, said, stand_at, until


def confirmed(n: int) -> OrderConfirmed:
    """Return news that makes no sense: nothing was ever held for it."""
    return OrderConfirmed(order_id=oid(n), customer_id="c-1", items=(Line("A", 1),), total=Money(100, "EUR"))


def created(n: int) -> OrderCreated:
    return OrderCreated(order_id=oid(n), customer_id="c-1", items=(Line("A", 1),), version="v2", shipping_address=None)


def letter_about(message: Message, consumer: str) -> DeadLetter:
    """Return a letter of *consumer* about *message*."""
    now = datetime.now(UTC)
    return DeadLetter(caused_id(message.id, consumer), consumer, message, "no_answer", "", 5, now, now)


async def letters(office: DeadLetterOffice) -> list[KeptLetter]:
    return list(await office.list(None, None, None, 100))


async def stock(stand: Stand) -> Any:
    product = await stand.shells["inventory"].get(Product, "A")
    assert product is not None
    return product


async def test_five_failures_make_one_letter(path: Path) -> None:
    """It says who gave up on what, and why; the message behind it is delivered all the same."""
    async with stand_at(path, HurriedClock()) as stand:
        await stand.tell("inventory", product())
        _hurry(stand)
        await stand.listen("inventory")
        poison = said(stand, confirmed(1), key=oid(1))
        buried = stand.bus.publish(poison)
        await stand.bus.publish(said(stand, created(2), key=oid(2)))
        assert (await stock(stand)).reserved == 1
        await buried
        [kept] = await letters(stand.office)
        assert (kept.letter.consumer, kept.letter.error, kept.letter.attempts) == ("inventory", "failed", MAX_TRIES)
        assert kept.letter.detail == "Unexpected: OrderConfirmed while never met"
        assert kept.letter.message == poison
        assert kept.replays == 0
        assert kept.letter.first_seen <= kept.letter.last_seen


async def test_what_is_unreadable_is_put_aside_at_once(stand: Stand) -> None:
    """No try can help it; it costs one."""
    await stand.listen("inventory")
    for n, body in enumerate((b"{", b"{}", b"\xff\xfe")):
        await stand.bus.publish(Message("orders.created.v1", f"m-{n}", body))
    found = await letters(stand.office)
    assert sorted(kept.letter.error for kept in found) == ["invalid", "unreadable", "unreadable"]
    assert {kept.letter.attempts for kept in found} == {1}


async def test_letters_survive_a_restart(path: Path) -> None:
    """On disk, to the last byte."""
    async with stand_at(path) as stand:
        await stand.listen("inventory")
        await stand.bus.publish(Message("orders.created.v1", "m-1", b"\x00\xff", "k", {"ce-id": "e-1", "x": "ü"}))
        before = await letters(stand.office)
        assert len(before) == 1
    async with stand_at(path) as stand:
        assert await letters(stand.office) == before


async def test_a_replay_has_one_effect_and_keeps_the_event_id(path: Path) -> None:
    """Sent again twice, under fresh message ids that no window swallows, it is decided once."""
    async with stand_at(path, HurriedClock()) as stand:
        await stand.tell("inventory", product())
        _hurry(stand)
        await stand.listen("inventory")
        await stand.bus.publish(said(stand, confirmed(1), id=oid(7), key=oid(1)))
        [kept] = await letters(stand.office)
        await stand.bus.publish(said(stand, created(1), key=oid(1)))
        assert (await stock(stand)).reserved == 1
        assert await stand.office.replay(kept.letter.id)
        assert await stand.office.replay(kept.letter.id)
        parcels = await stand.rows("SELECT id, event_id FROM inventory_outbox WHERE subject LIKE '%.orders.%'")
        assert {event_id for _, event_id in parcels} == {oid(7)}
        assert len({id for id, _ in parcels} | {oid(7)}) == 3
        stand.run(stand.relays["inventory"].run())
        await until(lambda: _all_sent(stand))
        assert ((await stock(stand)).on_hand, (await stock(stand)).reserved) == (9, 0)
        [kept] = await letters(stand.office)
        assert kept.replays == 2


async def test_a_replay_goes_to_the_consumer_that_gave_up_and_to_nobody_else(path: Path) -> None:
    """Payments hears the same subject and is not told again; letters and metrics go by the original subject."""
    async with stand_at(path, HurriedClock()) as stand:
        await stand.listen("inventory")
        await stand.listen("payments")
        await stand.bus.publish(Message("orders.cancelled.v1", "m-1", b"{}", "k", {"ce-id": "e-1"}))
        [ours] = await stand.office.list("inventory", None, None, 10)
        [theirs] = await stand.office.list("payments", None, None, 10)
        assert await stand.office.replay(ours.letter.id)
        [(subject,)] = await stand.rows("SELECT subject FROM inventory_outbox")
        assert subject == "inventory.replay.inventory.orders.cancelled.v1"
        assert await stand.rows("SELECT count(*) FROM payments_outbox") == [(0,)]
        stand.run(stand.relays["inventory"].run())

        async def is_given_up_again() -> bool:
            [again] = await stand.office.list("inventory", None, None, 10)
            return again.letter.attempts == 2

        await until(is_given_up_again)
        assert len(await stand.office.list("inventory", "orders.cancelled.v1", None, 10)) == 1
        assert await stand.office.list("payments", None, None, 10) == [theirs]
        rendered = stand.metrics.render().decode()
        assert ".replay." not in rendered
        assert 'dead_letters_total{consumer="inventory",subject="orders.cancelled.v1"} 2' in rendered
        assert 'messages_published_total{subject="orders.cancelled.v1"} 1' in rendered


async def test_a_replay_keeps_its_lane(path: Path) -> None:
    """What was express is express again, and goes to the consumer of that lane."""
    async with stand_at(path) as stand:
        stray = Message("orders.created.v1.express", "m-1", b"{", "k")
        await stand.office.add(letter_about(stray, "inventory-express"))
        assert await stand.office.replay_many(None, None, None, False) == (1, 1)
        [(subject,)] = await stand.rows("SELECT subject FROM inventory_outbox")
        assert subject == "inventory.replay.inventory-express.orders.created.v1.express"


async def test_what_was_nobodys_is_said_again_to_all(path: Path) -> None:
    """A stray goes under its own subject: by now somebody may know it."""
    async with stand_at(path) as stand:
        await stand.office.add(letter_about(Message("orders.created.v99", "m-1", b"{}"), "orders-strays"))
        [kept] = await letters(stand.office)
        assert await stand.office.replay(kept.letter.id)
        assert await stand.rows("SELECT subject, event_id FROM orders_outbox") == [("orders.created.v99", "m-1")]


async def test_a_letter_about_a_replay_is_kept_under_the_original_subject(path: Path) -> None:
    """A patrol finds messages as they lie in the stream."""
    async with stand_at(path) as stand:
        replayed = Message("payments.replay.payments-gateway.payments.charge_requested.v1", "m-2", b"{}")
        await stand.office.add(letter_about(replayed, "payments-gateway"))
        [kept] = await letters(stand.office)
        assert kept.letter.message.subject == "payments.charge_requested.v1"
        assert await stand.office.replay(kept.letter.id)
        assert await stand.rows("SELECT subject FROM payments_outbox") == [(replayed.subject,)]


async def test_a_replay_that_fails_again_brings_the_letter_up_to_date(path: Path) -> None:
    """No second letter: the first one counts on."""
    async with stand_at(path, HurriedClock()) as stand:
        _hurry(stand)
        await stand.listen("inventory")
        await stand.bus.publish(said(stand, confirmed(1), key=oid(1)))
        [first] = await letters(stand.office)
        assert await stand.office.replay(first.letter.id)
        stand.run(stand.relays["inventory"].run())
        await until(lambda: _all_sent(stand))
        [again] = await letters(stand.office)
        assert again.letter.id == first.letter.id
        assert again.letter.attempts == 2 * MAX_TRIES
        assert again.letter.first_seen == first.letter.first_seen
        assert again.letter.last_seen > first.letter.last_seen
        assert again.letter.message.id != first.letter.message.id
        assert origin(again.letter.message)[0] == origin(first.letter.message)[0]


async def test_the_same_letter_laid_down_twice_is_one(path: Path) -> None:
    """The bus asks again when it does not know whether a letter was kept."""
    async with stand_at(path) as stand:
        await stand.listen("inventory")
        await stand.bus.publish(Message("orders.created.v1", "m-1", b"{"))
        [kept] = await letters(stand.office)
        await stand.office.add(kept.letter)
        assert await letters(stand.office) == [kept]
        counted = 'dead_letters_total{consumer="inventory",subject="orders.created.v1"} 1'
        assert counted in stand.metrics.render().decode()


async def test_a_letter_that_nobody_hears_is_not_replayed(stand: Stand) -> None:
    """Neither by name nor with many; a webhook that does not fit is for a person."""
    await stand.office.add(letter_about(Message("stripe.charge.refunded", "evt_1", b"{}", ""), WEBHOOKS))
    await stand.office.add(letter_about(said(stand, created(1)), "inventory"))
    webhook = next(kept for kept in await letters(stand.office) if kept.letter.consumer == WEBHOOKS)
    for dry_run in True, False:
        with pytest.raises(NotReplayable, match="payments-webhooks hears nothing"):
            await stand.office.replay(webhook.letter.id, dry_run)
    assert await stand.office.replay_many(None, None, None, False) == (1, 1)
    assert await stand.office.replay_many(WEBHOOKS, None, None, False) == (0, 0)
    assert {kept.letter.consumer: kept.replays for kept in await letters(stand.office)} == {WEBHOOKS: 0, "inventory": 1}
    assert await stand.outbox("payments") == []


async def test_many_are_replayed_by_what_they_have_in_common(path: Path) -> None:
    """A dry run counts and sends nothing; discarding one leaves the others."""
    async with stand_at(path) as stand:
        await stand.listen("inventory")
        await stand.listen("payments")
        for n in range(3):
            await stand.bus.publish(Message("orders.created.v1", f"m-{n}", b"{"))
        await stand.bus.publish(Message("orders.cancelled.v1", "m-9", b"{}"))
        office = stand.office
        assert await office.replay_many("inventory", None, None, True) == (4, 0)
        assert await stand.rows("SELECT count(*) FROM inventory_outbox") == [(0,)]
        assert await office.replay_many("inventory", "orders.created.v1", "unreadable", False) == (3, 3)
        assert await stand.rows("SELECT count(*) FROM inventory_outbox") == [(3,)]
        assert await office.replay_many("nobody", None, None, False) == (0, 0)
        assert len(await office.list("payments", None, None, 10)) == 1
        assert len(await office.list(None, "orders.cancelled.v1", None, 10)) == 2
        found = await letters(office)
        assert len(found) == 5
        assert await office.discard(found[0].letter.id)
        assert not await office.discard(found[0].letter.id)
        assert not await office.replay(found[0].letter.id)
        assert await office.get(found[0].letter.id) is None
        assert [kept.letter.id for kept in await letters(office)] == [kept.letter.id for kept in found[1:]]


async def _all_sent(stand: Stand) -> bool:
    return await stand.rows("SELECT count(*) FROM inventory_outbox WHERE sent_at IS NULL AND subject LIKE '%.orders.%'") == [(0,)]


def _hurry(stand: Stand) -> None:
    """Let no try wait for its delay."""
    for shell in stand.shells.values():
        shell._dice = _NoDice()  # type: ignore[assignment]


class _NoDice:
    """Dice that always show nothing: a delay multiplied by it is over at once."""

    def uniform(self, low: float, high: float) -> float:
        return 0.0
