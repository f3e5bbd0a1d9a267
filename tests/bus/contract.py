"""
What every bus promises, once.

An adapter's test file brings a fixture ``stand`` (see `tests.bus.features.Stand`) and a class that inherits
`BusContract`. Times are fractions and multiples of the stand's ``ack_wait``, so that one suite runs on a virtual clock
and against a real server.
"""

from __future__ import annotations

__all__ = ["BusContract"]

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from bus.errors import BusClosed
from bus.ids import caused_id
from bus.port import MAX_TRIES, Delivery, Message, Subscription
from tests.bus.features import Stand

CREATED = "orders.created.v1"
EXPRESS = "orders.created.v1.express"
RESERVED = "inventory.reserved.v1"

_ordinals = itertools.count(1)


def message(
    body: bytes = b"{}", *, subject: str = CREATED, id: str | None = None, key: str = "", headers: Mapping[str, str] | None = None
) -> Message:
    """Return a message; unless told otherwise its id is a new one."""
    return Message(subject, id or f"0190c0de-0000-7000-8000-{next(_ordinals):012d}", body, key, headers or {})


def publish(stand: Stand, count: int, subject: str = CREATED) -> tuple[list[Message], list[asyncio.Future[None]]]:
    """Publish *count* messages, whose bodies are their numbers."""
    messages = [message(str(n).encode(), subject=subject) for n in range(count)]
    return messages, [stand.bus.publish(each) for each in messages]


async def take(stand: Stand, member: Subscription, count: int = 1, within_seconds: float | None = None) -> list[Delivery]:
    """Fetch until there are *count* messages, and fail if they do not come; unanswered, they stay in hand."""
    wait_seconds = stand.patience_seconds if within_seconds is None else within_seconds
    taken: list[Delivery] = []
    while len(taken) < count:
        batch = await stand.run(member.fetch(count - len(taken), wait_seconds))
        assert batch, f"{len(taken)} of {count} messages came"
        taken += batch
    return taken


async def take_one(stand: Stand, member: Subscription, within_seconds: float | None = None) -> Delivery:
    [delivery] = await take(stand, member, 1, within_seconds)
    return delivery


async def nothing_comes(stand: Stand, *members: Subscription, for_seconds: float | None = None) -> None:
    """Fail if any of *members* gets a message in this time, by default long enough for any redelivery."""
    wait_seconds = 2 * stand.ack_wait_seconds if for_seconds is None else for_seconds
    batches = await stand.run(asyncio.gather(*(member.fetch(100, wait_seconds) for member in members)))
    assert [[each.message.body for each in batch] for batch in batches] == [[] for _ in members]


async def fail(stand: Stand, member: Subscription, times: int, *, error: str = "failed", detail: str = "") -> None:
    """Take the only message *times* times, and nak it at once."""
    for _ in range(times):
        delivery = await take_one(stand, member)
        await delivery.nak(0, error=error, detail=detail)


async def ack_all(deliveries: Sequence[Delivery]) -> list[bytes]:
    for delivery in deliveries:
        await delivery.ack()
    return [delivery.message.body for delivery in deliveries]


def bodies(messages: Sequence[Message]) -> list[bytes]:
    return [each.body for each in messages]


class BusContract:
    """The promises of `bus.port`, in the order: carrying, groups, answers, tries, time, closing."""

    # Carrying

    async def test_what_is_published_is_heard(self, stand: Stand) -> None:
        """A message goes to the group that listens to its subject, and acknowledged it does not come back."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        sent, said = publish(stand, 20)
        heard = await ack_all(await take(stand, member, 20))
        assert sorted(heard) == sorted(bodies(sent))
        await stand.run(asyncio.gather(*said))
        await nothing_comes(stand, member)

    @pytest.mark.parametrize("body", [b"", bytes(range(256)), b"\xff" * 1_000_000], ids=["empty", "binary", "1 MB"])
    async def test_a_message_comes_out_as_it_went_in(self, stand: Stand, body: bytes) -> None:
        """Subject, id, key, headers and body are the same to the byte."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        headers = {"ce-id": "e-1", "ce-source": "/orders", "Mixed-Case": "a: b=c%20d;e", "empty": ""}
        sent = message(body, key="order-1", headers=headers)
        stand.bus.publish(sent)
        delivery = await take_one(stand, member)
        assert delivery.message == sent
        assert dict(delivery.message.headers) == headers

    async def test_order(self, stand: Stand) -> None:
        """One member gets messages in the order of publishing where that is promised, and all of them anyway."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        sent, _ = publish(stand, 50)
        heard: list[bytes] = []
        while len(heard) < 50:
            heard += await ack_all(await take(stand, member, min(7, 50 - len(heard))))
        if stand.features.is_ordered:
            assert heard == bodies(sent)
        else:
            assert sorted(heard) == sorted(bodies(sent))

    async def test_subjects_are_separate(self, stand: Stand) -> None:
        """A group hears exactly the subjects it named: not a neighbour's, and not the other lane of its own."""
        orders = await stand.bus.subscribe("orders", [RESERVED])
        inventory = await stand.bus.subscribe("inventory", [CREATED])
        express = await stand.bus.subscribe("inventory-express", [EXPRESS])
        for subject in (CREATED, RESERVED, EXPRESS):
            publish(stand, 3, subject)
        for member, subject in ((orders, RESERVED), (inventory, CREATED), (express, EXPRESS)):
            assert {each.message.subject for each in await take(stand, member, 3)} == {subject}
        await nothing_comes(stand, orders, inventory, express, for_seconds=stand.ack_wait_seconds / 4)

    async def test_one_group_may_hear_several_subjects(self, stand: Stand) -> None:
        """Every subject named is heard."""
        member = await stand.bus.subscribe("payments", [CREATED, RESERVED])
        publish(stand, 2, CREATED)
        publish(stand, 2, RESERVED)
        heard = Counter(each.message.subject for each in await take(stand, member, 4))
        assert heard == {CREATED: 2, RESERVED: 2}

    async def test_a_large_number_of_messages_arrives_exactly(self, stand: Stand) -> None:
        """Nothing is lost and nothing comes twice when everything is acknowledged in time."""
        members = [await stand.bus.subscribe("inventory", [CREATED]) for _ in range(3)]
        sent, said = publish(stand, 5_000)
        heard: list[bytes] = []

        async def work(member: Subscription) -> None:
            while len(heard) < len(sent):
                heard.extend(await ack_all(await member.fetch(100, stand.ack_wait_seconds / 4)))

        await stand.run(asyncio.gather(*(work(member) for member in members)))
        assert Counter(heard) == Counter(bodies(sent))
        await stand.run(asyncio.gather(*said))

    async def test_a_handler_may_publish(self, stand: Stand) -> None:
        """What is said while a message is in hand is heard before that message is settled."""
        inventory = await stand.bus.subscribe("inventory", [CREATED])
        orders = await stand.bus.subscribe("orders", [RESERVED])
        publish(stand, 10)
        for cause in await take(stand, inventory, 10):
            said = stand.bus.publish(message(b"for " + cause.message.body, subject=RESERVED))
            effect = await take_one(stand, orders)
            assert effect.message.body == b"for " + cause.message.body
            await effect.ack()
            await stand.run(said)
            await cause.ack()

    async def test_publish_is_answered_for(self, stand: Stand) -> None:
        """The publisher hears back when every group has settled the message, or once it is stored."""
        first = await stand.bus.subscribe("inventory", [CREATED])
        second = await stand.bus.subscribe("payments", [CREATED])
        said = stand.bus.publish(message())
        if stand.features.publish_waits_for_groups:
            await (await take_one(stand, first)).ack()
            await stand.rest()
            assert not said.done()
            await (await take_one(stand, second)).term("unreadable")
        await stand.run(said)
        if not stand.features.publish_waits_for_groups:
            await take_one(stand, first)
            await take_one(stand, second)

    async def test_what_nobody_hears_is_settled_at_once(self, stand: Stand) -> None:
        """A subject without a group keeps no publisher waiting."""
        await stand.bus.subscribe("inventory", [CREATED])
        await stand.run(stand.bus.publish(message(subject=RESERVED)))

    async def test_a_cancelled_publish_goes_its_way(self, stand: Stand) -> None:
        """Cancelling the future takes nothing back, and hides nothing from who says the same."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        sent = message()
        stand.bus.publish(sent).cancel()
        again = stand.bus.publish(sent)
        await stand.rest()
        delivery = await take_one(stand, member)
        assert delivery.message == sent
        await delivery.ack()
        await stand.run(again)

    async def test_an_id_is_delivered_once_within_the_window(self, stand: Stand) -> None:
        """Two messages with one id are one message, before it is settled and after."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        for _ in range(3):
            stand.bus.publish(message(b"same", id="one-id"))
        await (await take_one(stand, member)).ack()
        await stand.rest()
        await stand.run(stand.bus.publish(message(b"same", id="one-id")))
        await nothing_comes(stand, member, for_seconds=stand.ack_wait_seconds / 4)

    async def test_an_id_is_delivered_again_after_the_window(self, stand: Stand) -> None:
        """The memory for ids has an end."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        stand.bus.publish(message(b"first", id="one-id"))
        await (await take_one(stand, member)).ack()
        await stand.pass_time(stand.dedup_seconds + 2 * stand.tolerance_seconds)
        stand.bus.publish(message(b"second", id="one-id"))
        assert (await take_one(stand, member)).message.body == b"second"

    async def test_a_duplicate_is_answered_with_the_first(self, stand: Stand) -> None:
        """Who says it again hears back when who said it first does."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        first, second, third = (stand.bus.publish(message(id="one-id")) for _ in range(3))
        delivery = await take_one(stand, member)
        await stand.rest()
        assert {first.done(), second.done(), third.done()} == {not stand.features.publish_waits_for_groups}
        await delivery.ack()
        await stand.run(asyncio.gather(first, second, third))

    # Groups

    async def test_every_group_hears_everything(self, stand: Stand) -> None:
        """What one group has acknowledged is still there for the next."""
        members = [await stand.bus.subscribe(name, [CREATED]) for name in ("inventory", "payments", "orders")]
        sent, _ = publish(stand, 10)
        for member in members:
            assert sorted(await ack_all(await take(stand, member, 10))) == bodies(sent)

    async def test_groups_are_independent(self, stand: Stand) -> None:
        """An express group goes on while the bulk group is stuck, and a failure in one is no try of another."""
        bulk = await stand.bus.subscribe("inventory", [CREATED])
        express = await stand.bus.subscribe("inventory-express", [EXPRESS])
        audit = await stand.bus.subscribe("audit", [CREATED])
        bulk.pause()
        publish(stand, 5)
        publish(stand, 5, EXPRESS)
        await ack_all(await take(stand, express, 5))
        for delivery in await take(stand, audit, 5):
            await delivery.nak(0)
        await ack_all(await take(stand, audit, 5))
        bulk.resume()
        assert [each.tries for each in await take(stand, bulk, 5)] == [1] * 5

    async def test_many_may_subscribe_at_once(self, stand: Stand) -> None:
        """Groups founded at the same moment all hear everything."""
        names = [f"group-{n}" for n in range(10)]
        members = await stand.run(asyncio.gather(*(stand.bus.subscribe(name, [CREATED]) for name in names)))
        assert [member.consumer for member in members] == names
        sent, _ = publish(stand, 10)
        for member in members:
            assert sorted(await ack_all(await take(stand, member, 10))) == bodies(sent)

    async def test_members_share_the_work(self, stand: Stand) -> None:
        """Many members of one group, subscribed at once and fetching at once, get each message once between them."""
        members = await stand.run(asyncio.gather(*(stand.bus.subscribe("inventory", [CREATED]) for _ in range(10))))
        sent, _ = publish(stand, 100)
        heard: list[bytes] = []

        async def work(member: Subscription) -> None:
            while len(heard) < len(sent):
                heard.extend(await ack_all(await member.fetch(3, stand.ack_wait_seconds / 4)))

        await stand.run(asyncio.gather(*(work(member) for member in members)))
        assert Counter(heard) == Counter(bodies(sent))
        await nothing_comes(stand, *members)

    async def test_a_group_hears_from_its_founding_on(self, stand: Stand) -> None:
        """What was said before the group was there is not for it, unless the bus keeps what was said."""
        await stand.run(stand.bus.publish(message(b"before")))
        member = await stand.bus.subscribe("inventory", [CREATED])
        stand.bus.publish(message(b"after"))
        heard = await take(stand, member, 2 if stand.features.hears_the_past else 1)
        assert bodies([each.message for each in heard]) == [b"before", b"after"][-len(heard) :]
        await nothing_comes(stand, member, for_seconds=stand.ack_wait_seconds / 4)

    async def test_a_group_outlives_its_members(self, stand: Stand) -> None:
        """What arrives while nobody listens waits for the next member."""
        await (await stand.bus.subscribe("inventory", [CREATED])).close()
        sent, _ = publish(stand, 10)
        await stand.rest()
        member = await stand.bus.subscribe("inventory", [CREATED])
        heard = await take(stand, member, 10)
        assert sorted(each.message.body for each in heard) == bodies(sent)
        assert {each.tries for each in heard} == {1}

    async def test_another_member_goes_on_after_one_has_left(self, stand: Stand) -> None:
        """Closing a member in the midst of the work loses nothing and repeats nothing that was acknowledged."""
        first = await stand.bus.subscribe("inventory", [CREATED])
        sent, _ = publish(stand, 20)
        heard = await ack_all(await take(stand, first, 8))
        await first.close()
        second = await stand.bus.subscribe("inventory", [CREATED])
        heard += await ack_all(await take(stand, second, 12))
        assert Counter(heard) == Counter(bodies(sent))
        await nothing_comes(stand, second)

    async def test_members_that_come_and_go_lose_nothing(self, stand: Stand) -> None:
        """However often members leave with full hands, everything is settled in the end."""
        dice = random.Random(7)
        sent, said = [], []
        founder = await stand.bus.subscribe("inventory", [CREATED])
        await founder.close()
        heard: set[bytes] = set()
        for round in range(MAX_TRIES):
            more, futures = publish(stand, 10)
            sent += [each.id for each in more]
            said += futures
            member = await stand.bus.subscribe("inventory", [CREATED])
            for delivery in await take(stand, member, 10):
                if round == MAX_TRIES - 1 or dice.random() < 0.5:
                    await delivery.ack()
                    heard.add(delivery.message.id.encode())
            await member.close()
        last = await stand.bus.subscribe("inventory", [CREATED])
        left = len(sent) - len(heard)
        heard |= {each.message.id.encode() for each in await take(stand, last, left)} if left else set()
        assert heard == {each.encode() for each in sent}

    async def test_a_member_that_leaves_hands_its_messages_on_at_once(self, stand: Stand) -> None:
        """What was in hand need not wait for ``ack_wait`` to be over."""
        first = await stand.bus.subscribe("inventory", [CREATED])
        second = await stand.bus.subscribe("inventory", [CREATED])
        publish(stand, 3)
        await take(stand, first, 3)
        began = stand.monotonic()
        waiting = asyncio.ensure_future(second.fetch(3, stand.ack_wait_seconds / 2))
        await stand.rest()
        assert not waiting.done()
        await first.close()
        batch = await stand.run(waiting)
        batch += await take(stand, second, 3 - len(batch)) if len(batch) < 3 else []
        assert [each.tries for each in batch] == [2, 2, 2]
        assert stand.monotonic() - began < stand.ack_wait_seconds / 2 + stand.lag_seconds

    async def test_a_group_may_change_its_subjects(self, stand: Stand) -> None:
        """The last call to subscribe says what a group hears from then on."""
        first = await stand.bus.subscribe("inventory", [CREATED])
        second = await stand.bus.subscribe("inventory", [RESERVED])
        stand.bus.publish(message(b"old", subject=CREATED))
        stand.bus.publish(message(b"new", subject=RESERVED))
        assert (await take_one(stand, second)).message.body == b"new"
        await nothing_comes(stand, first, second, for_seconds=stand.ack_wait_seconds / 4)

    @pytest.mark.parametrize("seed", range(3))
    async def test_no_two_members_hold_one_message(self, stand: Stand, seed: int) -> None:
        """Within ``ack_wait`` a message is in one pair of hands, whatever its members do; and all are settled."""
        dice = random.Random(seed)
        members = [await stand.bus.subscribe("inventory", [CREATED]) for _ in range(3)]
        sent, said = publish(stand, 20)
        held: dict[str, tuple[Delivery, float]] = {}
        settled: Counter[str] = Counter()
        step_seconds = stand.ack_wait_seconds / 5

        async def answer(delivery: Delivery) -> None:
            del held[delivery.message.id]
            if dice.random() < 0.4 and delivery.tries < MAX_TRIES:
                await delivery.nak(dice.choice([0, step_seconds, 2 * step_seconds]))
            else:
                await delivery.ack()
                settled[delivery.message.id] += 1

        for _ in range(12 * MAX_TRIES):
            for delivery in await stand.run(dice.choice(members).fetch(dice.randint(1, 8), step_seconds / 2)):
                if delivery.message.id in held:
                    _, taken_at = held[delivery.message.id]
                    passed_seconds = stand.monotonic() - taken_at
                    assert passed_seconds >= stand.ack_wait_seconds - stand.tolerance_seconds
                held[delivery.message.id] = (delivery, stand.monotonic())
            for delivery, taken_at in list(held.values()):
                is_late = stand.monotonic() - taken_at > stand.ack_wait_seconds - 2 * step_seconds
                if delivery.tries == MAX_TRIES or (not is_late and dice.random() < 0.3):
                    await answer(delivery)
            if len(settled) == len(sent):
                break
        assert settled == Counter({each.id: 1 for each in sent})
        assert await stand.letters(0) == []
        await stand.run(asyncio.gather(*said))

    # Answers

    async def test_what_failed_comes_again(self, stand: Stand) -> None:
        """A nak brings the same message once more, and an ack ends it."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        sent = message(b"\x00body", key="k", headers={"a": "b"})
        stand.bus.publish(sent)
        await (await take_one(stand, member)).nak(0)
        again = await take_one(stand, member)
        assert again.message == sent
        await again.ack()
        await nothing_comes(stand, member)

    async def test_work_goes_on_after_errors(self, stand: Stand) -> None:
        """When every message fails twice, every message is settled all the same."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        sent, said = publish(stand, 20)
        tries: Counter[bytes] = Counter()
        for _ in range(3):
            for delivery in await take(stand, member, 20):
                tries[delivery.message.body] += 1
                assert delivery.tries == tries[delivery.message.body]
                await (delivery.ack() if delivery.tries == 3 else delivery.nak(0))
        assert tries == Counter(dict.fromkeys(bodies(sent), 3))
        await stand.run(asyncio.gather(*said))

    async def test_no_answer_means_it_comes_again(self, stand: Stand) -> None:
        """Not before ``ack_wait`` is over, and then soon; meanwhile others are handed out."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        stand.bus.publish(message(b"forgotten"))
        began = stand.monotonic()
        await take_one(stand, member)
        stand.bus.publish(message(b"next"))
        await (await take_one(stand, member)).ack()
        again = await take_one(stand, member, 2 * stand.ack_wait_seconds)
        assert (again.message.body, again.tries) == (b"forgotten", 2)
        late_seconds = stand.monotonic() - began - stand.ack_wait_seconds
        assert -stand.tolerance_seconds <= late_seconds <= stand.late_seconds

    async def test_a_late_ack_is_taken_while_nobody_else_has_it(self, stand: Stand) -> None:
        """Who was too slow has still done the work."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        said = stand.bus.publish(message())
        delivery = await take_one(stand, member)
        await stand.pass_time(1.5 * stand.ack_wait_seconds)
        await delivery.ack()
        await stand.run(said)
        await nothing_comes(stand, member)

    async def test_a_late_ack_after_redelivery_is_harmless(self, stand: Stand) -> None:
        """It settles the message for all; the later holder's own answer has no further effect."""
        slow = await stand.bus.subscribe("inventory", [CREATED])
        quick = await stand.bus.subscribe("inventory", [CREATED])
        said = stand.bus.publish(message())
        first = await take_one(stand, slow)
        second = await take_one(stand, quick, 2 * stand.ack_wait_seconds)
        assert (first.tries, second.tries) == (1, 2)
        await first.ack()
        await stand.run(said)
        await second.nak(0)
        await nothing_comes(stand, slow, quick)
        assert await stand.letters(0) == []

    async def test_a_late_nak_takes_nothing_from_the_next_holder(self, stand: Stand) -> None:
        """It has come again already, which is all that was asked."""
        slow = await stand.bus.subscribe("inventory", [CREATED])
        quick = await stand.bus.subscribe("inventory", [CREATED])
        stand.bus.publish(message())
        first = await take_one(stand, slow)
        second = await take_one(stand, quick, 2 * stand.ack_wait_seconds)
        await first.nak(0)
        await nothing_comes(stand, slow, for_seconds=stand.ack_wait_seconds / 2)
        await second.ack()
        await nothing_comes(stand, slow, quick)

    @pytest.mark.parametrize("answer", ["nak", "term"])
    async def test_an_answer_after_settlement_is_without_effect(self, stand: Stand, answer: str) -> None:
        """When the next holder has acknowledged, nothing the first one says brings the message back."""
        slow = await stand.bus.subscribe("inventory", [CREATED])
        quick = await stand.bus.subscribe("inventory", [CREATED])
        stand.bus.publish(message())
        first = await take_one(stand, slow)
        await (await take_one(stand, quick, 2 * stand.ack_wait_seconds)).ack()
        await first.in_progress()
        await (first.nak(0) if answer == "nak" else first.term("nonsense"))
        await nothing_comes(stand, slow, quick)
        assert await stand.letters(0) == []

    async def test_a_late_ack_ends_a_delay(self, stand: Stand) -> None:
        """What the second holder put off, and the first one has done after all, does not come again."""
        slow = await stand.bus.subscribe("inventory", [CREATED])
        quick = await stand.bus.subscribe("inventory", [CREATED])
        said = stand.bus.publish(message())
        first = await take_one(stand, slow)
        await (await take_one(stand, quick, 2 * stand.ack_wait_seconds)).nak(stand.ack_wait_seconds / 2)
        await first.ack()
        await stand.run(said)
        await nothing_comes(stand, slow, quick)

    async def test_only_the_first_answer_counts(self, stand: Stand) -> None:
        """A second one changes nothing and raises nothing, whichever two they are."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        stand.bus.publish(message(b"acked"))
        acked = await take_one(stand, member)
        await acked.ack()
        await acked.nak(0)
        await acked.term("nonsense")
        await acked.ack()
        await nothing_comes(stand, member)
        assert await stand.letters(0) == []

        stand.bus.publish(message(b"naked"))
        failed = await take_one(stand, member)
        await failed.nak(0)
        await failed.nak(0)
        await failed.term("nonsense")
        await failed.ack()
        again = await take_one(stand, member)
        assert again.tries == 2
        await nothing_comes(stand, member, for_seconds=stand.ack_wait_seconds / 4)
        await again.ack()

        stand.bus.publish(message(b"termed"))
        termed = await take_one(stand, member)
        await termed.term("first")
        await termed.term("second")
        await termed.nak(0)
        await nothing_comes(stand, member)
        assert [letter.error for letter in await stand.letters(1)] == ["first"]

    async def test_a_slow_handler_keeps_its_message(self, stand: Stand) -> None:
        """As long as it says that it is still at it, nobody else gets the message and no try is spent."""
        slow = await stand.bus.subscribe("inventory", [CREATED])
        other = await stand.bus.subscribe("inventory", [CREATED])
        said = stand.bus.publish(message())
        delivery = await take_one(stand, slow)
        for _ in range(2 * MAX_TRIES):
            await nothing_comes(stand, other, for_seconds=stand.ack_wait_seconds / 2)
            await delivery.in_progress()
        await delivery.ack()
        await stand.run(said)
        await nothing_comes(stand, slow, other)
        assert await stand.letters(0) == []

    async def test_in_progress_starts_ack_wait_anew(self, stand: Stand) -> None:
        """Who falls silent afterwards loses the message one whole ``ack_wait`` later."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        stand.bus.publish(message())
        delivery = await take_one(stand, member)
        await stand.pass_time(stand.ack_wait_seconds / 2)
        await delivery.in_progress()
        began = stand.monotonic()
        again = await take_one(stand, member, 2 * stand.ack_wait_seconds)
        assert again.tries == 2
        late_seconds = stand.monotonic() - began - stand.ack_wait_seconds
        assert -stand.tolerance_seconds <= late_seconds <= stand.late_seconds

    async def test_in_progress_holds_up_nobody_else(self, stand: Stand) -> None:
        """A message that was taken later, and forgotten, comes again before one whose time was started anew."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        unit = stand.ack_wait_seconds / 4
        stand.bus.publish(message(b"slow"))
        slow = await take_one(stand, member)
        await stand.pass_time(unit)
        stand.bus.publish(message(b"forgotten"))
        await take_one(stand, member)
        began = stand.monotonic()
        await stand.pass_time(2 * unit)
        await slow.in_progress()
        assert (await take_one(stand, member, 3 * unit)).message.body == b"forgotten"
        late_seconds = stand.monotonic() - began - stand.ack_wait_seconds
        assert -stand.tolerance_seconds <= late_seconds <= stand.late_seconds

    # Tries

    async def test_tries_are_counted_from_one(self, stand: Stand) -> None:
        """Each handing out is a try, whether it ends with a nak, with a member's leaving or with silence."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        stand.bus.publish(message())
        first = await take_one(stand, member)
        await first.nak(0)
        second = await take_one(stand, member)
        third = await take_one(stand, member, 2 * stand.ack_wait_seconds)
        await member.close()
        successor = await stand.bus.subscribe("inventory", [CREATED])
        fourth = await take_one(stand, successor)
        assert [each.tries for each in (first, second, third, fourth)] == [1, 2, 3, 4]

    async def test_the_last_nak_makes_one_dead_letter(self, stand: Stand) -> None:
        """Five failures, one letter, which says who gave up on what, and why the last time."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        sent = message(b"\x00poison", key="order-1", headers={"ce-id": "e-1"})
        said = stand.bus.publish(sent)
        await fail(stand, member, MAX_TRIES - 1, error="early", detail="not the last word")
        assert await stand.letters(0) == []
        last = await take_one(stand, member)
        assert last.tries == MAX_TRIES
        await last.nak(stand.ack_wait_seconds, error="boom", detail="the fifth time")
        [letter] = await stand.letters(1)
        assert letter.id == caused_id(sent.id, "inventory")
        assert (letter.consumer, letter.message) == ("inventory", sent)
        assert (letter.error, letter.detail, letter.attempts) == ("boom", "the fifth time", MAX_TRIES)
        assert letter.first_seen <= letter.last_seen
        await stand.run(said)
        await nothing_comes(stand, member)
        assert len(await stand.letters(1)) == 1

    async def test_five_silences_make_one_dead_letter(self, stand: Stand) -> None:
        """Also when nobody fetches after the fifth, and also while whoever listens is paused."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        said = stand.bus.publish(message(b"deadly"))
        tries = [(await take_one(stand, member, 2 * stand.ack_wait_seconds)).tries for _ in range(MAX_TRIES)]
        assert tries == [1, 2, 3, 4, 5]
        member.pause()
        await stand.pass_time(stand.ack_wait_seconds + stand.tolerance_seconds)
        [letter] = await stand.letters(1)
        assert (letter.message.body, letter.error, letter.attempts) == (b"deadly", "no_answer", MAX_TRIES)
        seen_seconds = (letter.last_seen - letter.first_seen).total_seconds()
        late_seconds = seen_seconds - MAX_TRIES * stand.ack_wait_seconds
        assert -stand.tolerance_seconds <= late_seconds <= (MAX_TRIES + 1) * stand.late_seconds
        await stand.run(said)
        member.resume()
        await nothing_comes(stand, member)
        assert len(await stand.letters(1)) == 1

    async def test_term_makes_a_dead_letter_at_once(self, stand: Stand) -> None:
        """Whatever tries are left."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        sent = message(b"not json")
        said = stand.bus.publish(sent)
        await (await take_one(stand, member)).term("unreadable", "line 1 column 1")
        [letter] = await stand.letters(1)
        assert (letter.consumer, letter.message) == ("inventory", sent)
        assert (letter.error, letter.detail, letter.attempts) == ("unreadable", "line 1 column 1", 1)
        await stand.run(said)
        await nothing_comes(stand, member)
        assert len(await stand.letters(1)) == 1

    async def test_poison_blocks_nobody(self, stand: Stand) -> None:
        """Messages that always fail take nothing from their neighbours."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        poison = [message(b"poison") for _ in range(3)]
        for number in range(30):
            stand.bus.publish(message(b"good %d" % number))
            if number % 10 == 0:
                stand.bus.publish(poison[number // 10])
        good: list[bytes] = []
        while batch := await stand.run(member.fetch(4, stand.ack_wait_seconds / 2)):
            for delivery in batch:
                if delivery.message.body == b"poison":
                    await delivery.nak(0, error="boom")
                else:
                    await delivery.ack()
                    good.append(delivery.message.body)
        assert Counter(good) == Counter(b"good %d" % number for number in range(30))
        letters = await stand.letters(3)
        assert sorted(letter.message.id for letter in letters) == [each.id for each in poison]

    async def test_each_group_gives_up_for_itself(self, stand: Stand) -> None:
        """One group's dead letter is another group's work; two that give up make two letters."""
        first = await stand.bus.subscribe("inventory", [CREATED])
        second = await stand.bus.subscribe("payments", [CREATED])
        third = await stand.bus.subscribe("orders", [CREATED])
        sent = message()
        stand.bus.publish(sent)
        await (await take_one(stand, first)).term("a")
        await (await take_one(stand, second)).term("b")
        await (await take_one(stand, third)).ack()
        letters = {letter.consumer: letter for letter in await stand.letters(2)}
        assert {consumer: letter.error for consumer, letter in letters.items()} == {"inventory": "a", "payments": "b"}
        assert len({letter.id for letter in letters.values()}) == 2

    async def test_a_letter_that_cannot_be_laid_down_is_kept(self, stand: Stand) -> None:
        """The bus asks again until the letter is kept, once; no publisher hears back before, no neighbour waits."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        stand.break_letters(3)
        said = stand.bus.publish(message(b"poison"))
        await (await take_one(stand, member)).term("unreadable", "what was wrong")
        await stand.rest()
        assert await stand.letters(0) == []
        assert said.done() is not stand.features.publish_waits_for_groups
        stand.bus.publish(message(b"good"))
        good = await take_one(stand, member)
        assert good.message.body == b"good"
        await good.ack()
        [letter] = await stand.letters(1)
        assert (letter.message.body, letter.error, letter.detail) == (b"poison", "unreadable", "what was wrong")
        await stand.run(said)
        await nothing_comes(stand, member)
        assert len(await stand.letters(1)) == 1

    # Time

    @pytest.mark.parametrize("share", [0.25, 1.5])
    async def test_the_delay_of_a_nak_is_kept(self, stand: Stand, share: float) -> None:
        """Not before, and then soon; be it shorter or longer than ``ack_wait``."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        stand.bus.publish(message())
        delivery = await take_one(stand, member)
        delay_seconds = share * stand.ack_wait_seconds
        began = stand.monotonic()
        await delivery.nak(delay_seconds)
        again = await take_one(stand, member, 2 * delay_seconds)
        late_seconds = stand.monotonic() - began - delay_seconds
        assert again.tries == 2
        assert -stand.tolerance_seconds <= late_seconds <= stand.late_seconds

    async def test_shorter_delays_end_first(self, stand: Stand) -> None:
        """A message with a long delay holds up none with a short one."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        publish(stand, 3)
        unit = stand.ack_wait_seconds / 4
        for delivery in await take(stand, member, 3):
            await delivery.nak({b"0": 3, b"1": 1, b"2": 2}[delivery.message.body] * unit)
        heard = []
        for _ in range(3):
            heard += await ack_all([await take_one(stand, member, 4 * unit)])
        assert heard == [b"1", b"2", b"0"]

    async def test_fetch_never_waits_for_a_second_message(self, stand: Stand) -> None:
        """What is there comes at once, be it less than the limit; and never more than the limit."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        began = stand.monotonic()
        waiting = asyncio.ensure_future(member.fetch(10, stand.ack_wait_seconds))
        await stand.rest()
        stand.bus.publish(message(b"alone"))
        assert [each.message.body for each in await stand.run(waiting)] == [b"alone"]
        assert stand.monotonic() - began < stand.ack_wait_seconds / 2 + stand.lag_seconds
        publish(stand, 5)
        await stand.rest()
        assert len(await stand.run(member.fetch(3, stand.ack_wait_seconds))) == 3
        assert stand.monotonic() - began < stand.ack_wait_seconds / 2 + stand.lag_seconds

    async def test_fetch_returns_empty_when_the_time_is_over(self, stand: Stand) -> None:
        """Neither sooner nor much later; and at once when it may not wait."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        wait_seconds = stand.ack_wait_seconds / 2
        began = stand.monotonic()
        assert await stand.run(member.fetch(10, wait_seconds)) == []
        late_seconds = stand.monotonic() - began - wait_seconds
        assert -stand.tolerance_seconds <= late_seconds <= stand.late_seconds
        began = stand.monotonic()
        assert await stand.run(member.fetch(10, 0)) == []
        assert stand.monotonic() - began <= stand.late_seconds

    async def test_pause_hands_out_nothing_and_spends_nothing(self, stand: Stand) -> None:
        """However long it lasts: afterwards everything is there, with every try."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        states = [member.is_paused]
        member.pause()
        states.append(member.is_paused)
        publish(stand, 3)
        await nothing_comes(stand, member, for_seconds=(MAX_TRIES + 1) * stand.ack_wait_seconds)
        member.resume()
        states.append(member.is_paused)
        assert states == [False, True, False]
        assert [each.tries for each in await take(stand, member, 3)] == [1, 1, 1]
        assert await stand.letters(0) == []

    async def test_what_is_in_hand_stays_in_hand_during_a_pause(self, stand: Stand) -> None:
        """A pause takes nothing away: the answer counts as ever."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        said = stand.bus.publish(message())
        delivery = await take_one(stand, member)
        member.pause()
        await delivery.ack()
        await stand.run(said)
        member.resume()
        await nothing_comes(stand, member)

    async def test_pause_holds_for_a_fetch_that_waits_already(self, stand: Stand) -> None:
        """What arrives after the pause is not handed to who asked before it; others get it."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        other = await stand.bus.subscribe("inventory", [CREATED])
        waiting = asyncio.gather(*(member.fetch(1, stand.ack_wait_seconds) for _ in range(2)))
        await stand.rest()
        member.pause()
        stand.bus.publish(message())
        await stand.rest()
        await (await take_one(stand, other)).ack()
        assert await stand.run(waiting) == [[], []]

    async def test_who_pauses_in_the_very_moment_passes_the_call_on(self, stand: Stand) -> None:
        """A message that woke a member which no longer wants it is not kept from one that waits."""
        first = await stand.bus.subscribe("inventory", [CREATED])
        second = await stand.bus.subscribe("inventory", [CREATED])
        paused = asyncio.ensure_future(first.fetch(1, 2 * stand.ack_wait_seconds))
        await stand.rest()
        other = asyncio.ensure_future(second.fetch(1, 2 * stand.ack_wait_seconds))
        await stand.rest()
        began = stand.monotonic()
        stand.bus.publish(message(b"for whoever wants it"))
        first.pause()
        assert [each.message.body for each in await stand.run(other)] == [b"for whoever wants it"]
        assert stand.monotonic() - began <= stand.ack_wait_seconds + stand.late_seconds
        assert await stand.run(paused) == []

    async def test_resume_wakes_a_waiting_fetch(self, stand: Stand) -> None:
        """Nobody has to wait for the rest of the time."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        member.pause()
        publish(stand, 3)
        began = stand.monotonic()
        waiting = asyncio.ensure_future(member.fetch(3, stand.ack_wait_seconds))
        await stand.rest()
        assert not waiting.done()
        member.resume()
        assert await stand.run(waiting)
        assert stand.monotonic() - began < stand.ack_wait_seconds / 2 + stand.lag_seconds

    async def test_a_cancelled_fetch_loses_nothing(self, stand: Stand) -> None:
        """Neither what comes later, nor what arrives in the very moment."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        idle = asyncio.ensure_future(member.fetch(1, stand.ack_wait_seconds))
        await stand.rest()
        idle.cancel()
        stand.bus.publish(message(b"later"))
        await (await take_one(stand, member)).ack()
        woken = asyncio.ensure_future(member.fetch(1, stand.ack_wait_seconds))
        await stand.rest()
        stand.bus.publish(message(b"in the very moment"))
        woken.cancel()
        again = await take_one(stand, member, 2 * stand.ack_wait_seconds)
        assert again.message.body == b"in the very moment"
        await stand.rest()
        assert woken.cancelled()

    async def test_a_cancelled_fetch_passes_its_call_on(self, stand: Stand) -> None:
        """When the one who was woken is cancelled, the next one who waits gets the message."""
        first = await stand.bus.subscribe("inventory", [CREATED])
        second = await stand.bus.subscribe("inventory", [CREATED])
        woken = asyncio.ensure_future(first.fetch(1, 3 * stand.ack_wait_seconds))
        await stand.rest()
        other = asyncio.ensure_future(second.fetch(1, 3 * stand.ack_wait_seconds))
        await stand.rest()
        stand.bus.publish(message(b"for whoever is left"))
        woken.cancel()
        began = stand.monotonic()
        assert [each.message.body for each in await stand.run(other)] == [b"for whoever is left"]
        assert stand.monotonic() - began <= stand.ack_wait_seconds + stand.late_seconds

    # Closing

    async def test_closing_the_bus_ends_every_fetch(self, stand: Stand) -> None:
        """Who waits gets an empty list at once, and so does who asks afterwards."""
        members = [await stand.bus.subscribe(name, [CREATED]) for name in ("inventory", "inventory", "orders")]
        began = stand.monotonic()
        waiting = asyncio.gather(*(member.fetch(1, stand.ack_wait_seconds) for member in members))
        await stand.rest()
        await stand.run(stand.bus.close())
        assert await stand.run(waiting) == [[], [], []]
        assert await stand.run(members[0].fetch(1, stand.ack_wait_seconds)) == []
        assert stand.monotonic() - began < stand.ack_wait_seconds / 2 + stand.lag_seconds

    async def test_closing_a_member_ends_its_fetch(self, stand: Stand) -> None:
        """Its own, and nobody else's."""
        leaving = await stand.bus.subscribe("inventory", [CREATED])
        staying = await stand.bus.subscribe("inventory", [CREATED])
        first = asyncio.ensure_future(leaving.fetch(1, stand.ack_wait_seconds))
        second = asyncio.ensure_future(staying.fetch(1, stand.ack_wait_seconds))
        await stand.rest()
        began = stand.monotonic()
        await leaving.close()
        assert await stand.run(first) == []
        assert await stand.run(leaving.fetch(1, stand.ack_wait_seconds)) == []
        assert stand.monotonic() - began < stand.ack_wait_seconds / 2 + stand.lag_seconds
        stand.bus.publish(message(b"for who stays"))
        assert [each.message.body for each in await stand.run(second)] == [b"for who stays"]

    async def test_closing_is_idempotent(self, stand: Stand) -> None:
        """Member and bus may be closed again and again, at once and in any order."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        assert stand.bus.is_connected
        await stand.run(asyncio.gather(*(member.close() for _ in range(5))))
        await stand.run(asyncio.gather(*(stand.bus.close() for _ in range(5))))
        await stand.run(stand.bus.close())
        await member.close()
        assert not stand.bus.is_connected

    async def test_closing_amid_the_work_is_safe(self, stand: Stand) -> None:
        """Members at work while several close the bus at once: all come to an end, and none raises."""
        members = [await stand.bus.subscribe("inventory", [CREATED]) for _ in range(5)]
        publish(stand, 200)
        heard: list[bytes] = []

        async def work(member: Subscription) -> None:
            while batch := await member.fetch(2, stand.ack_wait_seconds):
                await asyncio.sleep(0)
                heard.extend(await ack_all(batch))

        working = asyncio.gather(*(work(member) for member in members))
        for _ in range(3):
            await asyncio.sleep(0)
        began = stand.monotonic()
        await stand.run(asyncio.gather(*(stand.bus.close() for _ in range(5))))
        await stand.run(working)
        assert stand.monotonic() - began < stand.ack_wait_seconds / 2 + stand.lag_seconds
        assert len(heard) == len(set(heard))

    async def test_closing_lets_the_work_in_hand_be_settled(self, stand: Stand) -> None:
        """Close waits for answers, takes them, and ends with the last one."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        _, said = publish(stand, 3)
        acked, termed, silent = await take(stand, member, 3)
        began = stand.monotonic()
        closing = asyncio.ensure_future(stand.bus.close(stand.ack_wait_seconds / 2))
        await stand.rest()
        await acked.ack()
        await termed.term("nonsense")
        await stand.rest()
        assert not closing.done()
        await silent.ack()
        await stand.run(closing)
        assert stand.monotonic() - began < stand.ack_wait_seconds / 4 + stand.lag_seconds
        assert await stand.run(asyncio.gather(*said)) == [None, None, None]
        assert len(await stand.letters(1)) == 1

    async def test_closing_is_bounded(self, stand: Stand) -> None:
        """Handlers that are stuck hold it up for the grace and no longer."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        publish(stand, 3)
        await take(stand, member, 3)
        grace_seconds = stand.ack_wait_seconds / 2
        began = stand.monotonic()
        await stand.run(asyncio.gather(stand.bus.close(grace_seconds), stand.bus.close(grace_seconds)))
        late_seconds = stand.monotonic() - began - grace_seconds
        assert -stand.tolerance_seconds <= late_seconds <= stand.late_seconds

    async def test_closing_is_bounded_when_letters_cannot_be_laid_down(self, stand: Stand) -> None:
        """A store that is away holds it up for the grace and no longer."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        stand.break_letters(1_000_000)
        stand.bus.publish(message())
        await (await take_one(stand, member)).term("nonsense")
        grace_seconds = stand.ack_wait_seconds / 2
        began = stand.monotonic()
        await stand.run(stand.bus.close(grace_seconds))
        assert stand.monotonic() - began <= grace_seconds + stand.late_seconds

    async def test_answers_after_the_end_raise_nothing(self, stand: Stand) -> None:
        """A handler that finishes after its bus is gone need not know."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        publish(stand, 5)
        acked, failed, delayed, termed, busy = await take(stand, member, 5)
        await stand.run(stand.bus.close(0))
        await acked.ack()
        await failed.nak(0)
        await delayed.nak(stand.ack_wait_seconds)
        await termed.term("nonsense")
        await busy.in_progress()
        await stand.pass_time(2 * stand.ack_wait_seconds)
        assert await stand.letters(0) == []

    async def test_publishing_to_a_bus_that_closes_is_refused(self, stand: Stand) -> None:
        """Through the future, from the moment it starts to close."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        stand.bus.publish(message())
        delivery = await take_one(stand, member)
        closing = asyncio.ensure_future(stand.bus.close(stand.ack_wait_seconds))
        await stand.rest()
        assert not closing.done()
        began = stand.monotonic()
        with pytest.raises(BusClosed):
            await stand.run(stand.bus.publish(message()))
        assert stand.monotonic() - began < stand.ack_wait_seconds / 2 + stand.lag_seconds
        await delivery.ack()
        await stand.run(closing)
        with pytest.raises(BusClosed):
            await stand.run(stand.bus.publish(message()))
        with pytest.raises(BusClosed):
            await stand.run(stand.bus.subscribe("orders", [CREATED]))

    async def test_what_is_unsettled_at_the_end(self, stand: Stand) -> None:
        """The next bus delivers it, or the publisher hears that it was not settled; it is never just gone."""
        member = await stand.bus.subscribe("inventory", [CREATED])
        sent, said = publish(stand, 3)
        twins = [stand.bus.publish(each) for each in sent]
        await (await take_one(stand, member)).ack()
        await stand.rest()
        bus = await stand.restart()
        ends = await stand.run(asyncio.gather(*said, *twins, return_exceptions=True))
        member = await stand.run(bus.subscribe("inventory", [CREATED]))
        if stand.features.publish_waits_for_groups:
            assert sum(end is None for end in ends[:3]) == 1
            assert sum(isinstance(end, BusClosed) for end in ends[:3]) == 2
            assert [type(end) for end in ends[:3]] == [type(end) for end in ends[3:]]
        else:
            assert ends == [None] * 6
        if stand.features.survives_restart:
            assert len(await take(stand, member, 2, 2 * stand.ack_wait_seconds)) == 2
        else:
            await nothing_comes(stand, member)
