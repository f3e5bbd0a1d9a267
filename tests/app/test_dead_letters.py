"""What no try could deliver: one letter, kept, and sent again with one effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.dead_letters import DeadLetterOffice
from app.headers import origin
from app.web.dead_letters import KeptLetter
from bus.port import MAX_TRIES, Message
from modules.inventory.state import Product
from modules.orders.events import OrderConfirmed, OrderCreated
from modules.values import Line, Money
from tests.app.stand import HurriedClock, Stand, oid, product, said, stand_at, until


def confirmed(n: int) -> OrderConfirmed:
    """Return news that makes no sense: nothing was ever held for it."""
    return OrderConfirmed(order_id=oid(n), customer_id="c-1", items=(Line("A", 1),), total=Money(100, "EUR"))


def created(n: int) -> OrderCreated:
    return OrderCreated(order_id=oid(n), customer_id="c-1", items=(Line("A", 1),), version="v2", shipping_address=None)


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
