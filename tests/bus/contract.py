"""
The contract suite: what every bus adapter promises.

An adapter's test file provides a fixture ``harness`` (see `tests.bus.features.Harness`), whose parameter, if it has one,
is a dict of the harness's arguments, and a class that inherits `BusContract`; or two files have a half each. Times are
fractions and multiples of the harness's ``ack_wait``, so that one suite runs on a virtual clock and against a real
server.
"""

from __future__ import annotations

__all__ = ["BusContract", "DeliveryContract", "TriesContract"]

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from bus.errors import BusClosed
from bus.ids import derived_id
from bus.port import MAX_TRIES, WAITS, Delivery, Message, Subscription
from tests.bus.features import Harness

CREATED = "orders.created.v1"
EXPRESS = "orders.created.v1.express"
RESERVED = "inventory.reserved.v1"

unhurried = pytest.mark.parametrize("harness", [{"ack_wait_seconds": 20.0}], ids=["long ack_wait"], indirect=True)
"""For a test of what happens at once: it must not happen because ``ack_wait`` is over, however slow the machine is."""

_ordinals = itertools.count(1)


def message(
    body: bytes = b"{}", *, subject: str = CREATED, id: str | None = None, key: str = "", headers: Mapping[str, str] | None = None
) -> Message:
    """Return a message; without *id* it has a new one."""
    return Message(subject, id or f"0190c0de-0000-7000-8000-{next(_ordinals):012d}", body, key, headers or {})


def publish(harness: Harness, count: int, subject: str = CREATED) -> tuple[list[Message], list[asyncio.Future[None]]]:
    """Publish *count* messages, whose bodies are their numbers; return them and their futures."""
    messages = [message(str(n).encode(), subject=subject) for n in range(count)]
    return messages, [harness.bus.publish(each) for each in messages]


async def take(harness: Harness, member: Subscription, count: int = 1, within_seconds: float | None = None) -> list[Delivery]:
    """Fetch until there are *count* messages, and fail if they do not arrive; they stay unanswered."""
    wait_seconds = harness.patience_seconds if within_seconds is None else within_seconds
    taken: list[Delivery] = []
    while len(taken) < count:
        batch = await harness.run(member.fetch(count - len(taken), wait_seconds))
        assert batch, f"{len(taken)} of {count} messages came"
        taken += batch
    return taken


async def take_one(harness: Harness, member: Subscription, within_seconds: float | None = None) -> Delivery:
    [delivery] = await take(harness, member, 1, within_seconds)
    return delivery


async def expect_nothing(harness: Harness, *members: Subscription, for_seconds: float | None = None) -> None:
    """Fail if one of *members* gets a message in this time, by default long enough for any redelivery."""
    wait_seconds = 2 * harness.ack_wait_seconds if for_seconds is None else for_seconds
    batches = await harness.run(asyncio.gather(*(member.fetch(100, wait_seconds) for member in members)))
    assert [[each.message.body for each in batch] for batch in batches] == [[] for _ in members]


async def nak(harness: Harness, member: Subscription, times: int, *, error: str = "failed", detail: str = "") -> None:
    """Take the only message *times* times, and nak it at once."""
    for _ in range(times):
        delivery = await take_one(harness, member)
        await delivery.nak(0, error=error, detail=detail)


async def ack_all(deliveries: Sequence[Delivery]) -> list[bytes]:
    for delivery in deliveries:
        await delivery.ack()
    return [delivery.message.body for delivery in deliveries]


def bodies(messages: Sequence[Message]) -> list[bytes]:
    return [each.body for each in messages]


class DeliveryContract:
    """The promises of `bus.port` about publishing, groups and acknowledgement."""

    # Publishing

    async def test_a_published_message_is_delivered(self, harness: Harness) -> None:
        """
        A message is delivered to the group that subscribes to its subject; once acknowledged, it is not redelivered.
        """
        member = await harness.bus.subscribe("inventory", [CREATED])
        sent, published = publish(harness, 20)
        received = await ack_all(await take(harness, member, 20))
        assert sorted(received) == sorted(bodies(sent))
        await harness.run(asyncio.gather(*published))
        await expect_nothing(harness, member)

    @pytest.mark.parametrize("body", [b"", bytes(range(256)), b"\xff" * 1_000_000], ids=["empty", "binary", "1 MB"])
    async def test_a_message_is_delivered_unchanged(self, harness: Harness, body: bytes) -> None:
        """Subject, id, key, headers and body are the same to the byte."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        headers = {"ce-id": "e-1", "ce-source": "/orders", "Mixed-Case": "a: b=c%20d;e", "empty": ""}
        sent = message(body, key="order-1", headers=headers)
        harness.bus.publish(sent)
        delivery = await take_one(harness, member)
        assert delivery.message == sent
        assert dict(delivery.message.headers) == headers

    async def test_a_single_member_receives_messages_in_order(self, harness: Harness) -> None:
        """
        One member receives messages in the order of publishing where that is promised, and all of them in any case.
        """
        member = await harness.bus.subscribe("inventory", [CREATED])
        sent, _ = publish(harness, 50)
        received: list[bytes] = []
        while len(received) < 50:
            received += await ack_all(await take(harness, member, min(7, 50 - len(received))))
        if harness.features.is_ordered:
            assert received == bodies(sent)
        else:
            assert sorted(received) == sorted(bodies(sent))

    async def test_a_group_receives_only_its_subjects(self, harness: Harness) -> None:
        """
        A group receives exactly the subjects it has named: no similar subject, and not the express lane of its own.
        """
        orders = await harness.bus.subscribe("orders", [RESERVED])
        inventory = await harness.bus.subscribe("inventory", [CREATED])
        express = await harness.bus.subscribe("inventory-express", [EXPRESS])
        for subject in (CREATED, RESERVED, EXPRESS):
            publish(harness, 3, subject)
        for member, subject in ((orders, RESERVED), (inventory, CREATED), (express, EXPRESS)):
            assert {each.message.subject for each in await take(harness, member, 3)} == {subject}
        await expect_nothing(harness, orders, inventory, express, for_seconds=harness.ack_wait_seconds / 4)

    async def test_a_group_may_subscribe_to_several_subjects(self, harness: Harness) -> None:
        """A group receives every subject that it has named."""
        member = await harness.bus.subscribe("payments", [CREATED, RESERVED])
        publish(harness, 2, CREATED)
        publish(harness, 2, RESERVED)
        received = Counter(each.message.subject for each in await take(harness, member, 4))
        assert received == {CREATED: 2, RESERVED: 2}

    async def test_five_thousand_messages_arrive_exactly_once(self, harness: Harness) -> None:
        """No message is lost and none is redelivered when all are acknowledged in time."""
        members = [await harness.bus.subscribe("inventory", [CREATED]) for _ in range(3)]
        sent, published = publish(harness, 5_000)
        received: list[bytes] = []

        async def work(member: Subscription) -> None:
            while len(received) < len(sent):
                received.extend(await ack_all(await member.fetch(100, harness.ack_wait_seconds / 4)))

        await harness.run(asyncio.gather(*(work(member) for member in members)))
        assert Counter(received) == Counter(bodies(sent))
        await harness.run(asyncio.gather(*published))

    async def test_a_handler_may_publish(self, harness: Harness) -> None:
        """A message that a handler publishes is delivered before the message in hand is settled."""
        inventory = await harness.bus.subscribe("inventory", [CREATED])
        orders = await harness.bus.subscribe("orders", [RESERVED])
        publish(harness, 10)
        for cause in await take(harness, inventory, 10):
            published = harness.bus.publish(message(b"for " + cause.message.body, subject=RESERVED))
            effect = await take_one(harness, orders)
            assert effect.message.body == b"for " + cause.message.body
            await effect.ack()
            await harness.run(published)
            await cause.ack()

    async def test_a_publish_ends_when_its_promise_is_kept(self, harness: Harness) -> None:
        """The future of a publish is done when every group has settled the message, or once it is stored."""
        first = await harness.bus.subscribe("inventory", [CREATED])
        second = await harness.bus.subscribe("payments", [CREATED])
        published = harness.bus.publish(message())
        if harness.features.publish_waits_for_groups:
            await (await take_one(harness, first)).ack()
            await harness.rest()
            assert not published.done()
            await (await take_one(harness, second)).term("unreadable")
        await harness.run(published)
        if not harness.features.publish_waits_for_groups:
            await take_one(harness, first)
            await take_one(harness, second)

    async def test_a_message_without_a_group_is_settled_at_once(self, harness: Harness) -> None:
        """A publish to a subject without a group does not wait."""
        await harness.bus.subscribe("inventory", [CREATED])
        await harness.run(harness.bus.publish(message(subject=RESERVED)))

    async def test_a_cancelled_publish_is_delivered(self, harness: Harness) -> None:
        """Cancelling the future does not withdraw the message, and does not affect a second publish of the same id."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        sent = message()
        harness.bus.publish(sent).cancel()
        again = harness.bus.publish(sent)
        await harness.rest()
        delivery = await take_one(harness, member)
        assert delivery.message == sent
        await delivery.ack()
        await harness.run(again)

    async def test_an_id_is_delivered_once_within_the_deduplication_window(self, harness: Harness) -> None:
        """Messages with the same id are one message, before it is settled and after."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        for _ in range(3):
            harness.bus.publish(message(b"same", id="one-id"))
        await (await take_one(harness, member)).ack()
        await harness.rest()
        await harness.run(harness.bus.publish(message(b"same", id="one-id")))
        await expect_nothing(harness, member, for_seconds=harness.ack_wait_seconds / 4)

    async def test_an_id_is_delivered_again_after_the_deduplication_window(self, harness: Harness) -> None:
        """The bus forgets an id after the deduplication window."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        harness.bus.publish(message(b"first", id="one-id"))
        await (await take_one(harness, member)).ack()
        await harness.pass_time(harness.dedup_seconds + 2 * harness.tolerance_seconds)
        harness.bus.publish(message(b"second", id="one-id"))
        assert (await take_one(harness, member)).message.body == b"second"

    async def test_the_publish_of_a_duplicate_ends_with_the_first(self, harness: Harness) -> None:
        """The future of a duplicate is done when that of the first message is."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        first, second, third = (harness.bus.publish(message(id="one-id")) for _ in range(3))
        delivery = await take_one(harness, member)
        await harness.rest()
        assert {first.done(), second.done(), third.done()} == {not harness.features.publish_waits_for_groups}
        await delivery.ack()
        await harness.run(asyncio.gather(first, second, third))

    # Groups

    async def test_every_group_receives_every_message(self, harness: Harness) -> None:
        """A message that one group has acknowledged is still delivered to the next."""
        members = [await harness.bus.subscribe(name, [CREATED]) for name in ("inventory", "payments", "orders")]
        sent, _ = publish(harness, 10)
        for member in members:
            assert sorted(await ack_all(await take(harness, member, 10))) == bodies(sent)

    async def test_groups_are_independent(self, harness: Harness) -> None:
        """An express group goes on while the bulk group is paused, and a nak in one group spends no try of another."""
        bulk = await harness.bus.subscribe("inventory", [CREATED])
        express = await harness.bus.subscribe("inventory-express", [EXPRESS])
        audit = await harness.bus.subscribe("audit", [CREATED])
        bulk.pause()
        publish(harness, 5)
        publish(harness, 5, EXPRESS)
        await ack_all(await take(harness, express, 5))
        for delivery in await take(harness, audit, 5):
            await delivery.nak(0)
        await ack_all(await take(harness, audit, 5))
        bulk.resume()
        assert [each.tries for each in await take(harness, bulk, 5)] == [1] * 5

    async def test_groups_that_are_created_at_once_receive_every_message(self, harness: Harness) -> None:
        """Ten concurrent calls of subscribe create ten groups, and each receives every message."""
        names = [f"group-{n}" for n in range(10)]
        members = await harness.run(asyncio.gather(*(harness.bus.subscribe(name, [CREATED]) for name in names)))
        assert [member.consumer for member in members] == names
        sent, _ = publish(harness, 10)
        for member in members:
            assert sorted(await ack_all(await take(harness, member, 10))) == bodies(sent)

    async def test_members_of_a_group_share_its_messages(self, harness: Harness) -> None:
        """Ten members that subscribe and fetch concurrently receive each message once between them."""
        members = await harness.run(asyncio.gather(*(harness.bus.subscribe("inventory", [CREATED]) for _ in range(10))))
        sent, _ = publish(harness, 100)
        received: list[bytes] = []

        async def work(member: Subscription) -> None:
            while len(received) < len(sent):
                received.extend(await ack_all(await member.fetch(3, harness.ack_wait_seconds / 4)))

        await harness.run(asyncio.gather(*(work(member) for member in members)))
        assert Counter(received) == Counter(bodies(sent))
        await expect_nothing(harness, *members)

    async def test_a_group_receives_messages_from_its_creation_on(self, harness: Harness) -> None:
        """
        A message that was published before the group was created is not delivered to it, unless the bus stores
        messages.
        """
        await harness.run(harness.bus.publish(message(b"before")))
        member = await harness.bus.subscribe("inventory", [CREATED])
        harness.bus.publish(message(b"after"))
        received = await take(harness, member, 2 if harness.features.delivers_earlier_messages else 1)
        assert bodies([each.message for each in received]) == [b"before", b"after"][-len(received) :]
        await expect_nothing(harness, member, for_seconds=harness.ack_wait_seconds / 4)

    async def test_a_group_remains_without_members(self, harness: Harness) -> None:
        """A message that is published while the group has no member waits for the next member."""
        await (await harness.bus.subscribe("inventory", [CREATED])).close()
        sent, _ = publish(harness, 10)
        await harness.rest()
        member = await harness.bus.subscribe("inventory", [CREATED])
        received = await take(harness, member, 10)
        assert sorted(each.message.body for each in received) == bodies(sent)
        assert {each.tries for each in received} == {1}

    async def test_a_new_member_continues_after_one_has_closed(self, harness: Harness) -> None:
        """When a member closes, no message is lost and no acknowledged message is redelivered."""
        first = await harness.bus.subscribe("inventory", [CREATED])
        sent, _ = publish(harness, 20)
        received = await ack_all(await take(harness, first, 8))
        await first.close()
        second = await harness.bus.subscribe("inventory", [CREATED])
        received += await ack_all(await take(harness, second, 12))
        assert Counter(received) == Counter(bodies(sent))
        await expect_nothing(harness, second)

    async def test_members_that_close_with_messages_in_hand_lose_nothing(self, harness: Harness) -> None:
        """However often members close with unanswered messages, every message is settled in the end."""
        rng = random.Random(7)
        sent, published = [], []
        first = await harness.bus.subscribe("inventory", [CREATED])
        await first.close()
        received: set[bytes] = set()
        for round in range(MAX_TRIES):
            more, futures = publish(harness, 10)
            sent += [each.id for each in more]
            published += futures
            member = await harness.bus.subscribe("inventory", [CREATED])
            for delivery in await take(harness, member, 10):
                if round == MAX_TRIES - 1 or rng.random() < 0.5:
                    await delivery.ack()
                    received.add(delivery.message.id.encode())
            await member.close()
        last = await harness.bus.subscribe("inventory", [CREATED])
        left = len(sent) - len(received)
        received |= {each.message.id.encode() for each in await take(harness, last, left)} if left else set()
        assert received == {each.encode() for each in sent}

    @unhurried
    async def test_a_member_that_closes_returns_its_messages_at_once(self, harness: Harness) -> None:
        """What it had in hand is redelivered to another member before ``ack_wait`` is over."""
        first = await harness.bus.subscribe("inventory", [CREATED])
        second = await harness.bus.subscribe("inventory", [CREATED])
        publish(harness, 3)
        await take(harness, first, 3)
        began = harness.monotonic()
        waiting = asyncio.ensure_future(second.fetch(3, harness.ack_wait_seconds / 2))
        await harness.rest()
        assert not waiting.done()
        await first.close()
        batch = await harness.run(waiting)
        batch += await take(harness, second, 3 - len(batch)) if len(batch) < 3 else []
        assert [each.tries for each in batch] == [2, 2, 2]
        assert harness.monotonic() - began < harness.ack_wait_seconds / 2 + harness.lag_seconds

    async def test_a_group_may_change_its_subjects(self, harness: Harness) -> None:
        """The last call of subscribe decides which subjects a group receives from then on."""
        first = await harness.bus.subscribe("inventory", [CREATED])
        second = await harness.bus.subscribe("inventory", [RESERVED])
        harness.bus.publish(message(b"old", subject=CREATED))
        harness.bus.publish(message(b"new", subject=RESERVED))
        assert (await take_one(harness, second)).message.body == b"new"
        await expect_nothing(harness, first, second, for_seconds=harness.ack_wait_seconds / 4)

    @pytest.mark.parametrize("seed", range(3))
    async def test_no_two_members_hold_one_message(self, harness: Harness, seed: int) -> None:
        """Within ``ack_wait`` a message is in hand at one member only, whatever the members do; and all are settled."""
        rng = random.Random(seed)
        members = [await harness.bus.subscribe("inventory", [CREATED]) for _ in range(3)]
        sent, published = publish(harness, 20)
        held: dict[str, tuple[Delivery, float]] = {}
        settled: Counter[str] = Counter()
        step_seconds = harness.ack_wait_seconds / 5

        async def answer(delivery: Delivery) -> None:
            del held[delivery.message.id]
            if rng.random() < 0.4 and delivery.tries < MAX_TRIES:
                await delivery.nak(rng.choice([0, step_seconds, 2 * step_seconds]))
            else:
                await delivery.ack()
                settled[delivery.message.id] += 1

        for _ in range(12 * MAX_TRIES):
            for delivery in await harness.run(rng.choice(members).fetch(rng.randint(1, 8), step_seconds / 2)):
                if delivery.message.id in held:
                    _, taken_at = held[delivery.message.id]
                    passed_seconds = harness.monotonic() - taken_at
                    assert passed_seconds >= harness.ack_wait_seconds - harness.tolerance_seconds
                held[delivery.message.id] = (delivery, harness.monotonic())
            for delivery, taken_at in list(held.values()):
                is_late = harness.monotonic() - taken_at > harness.ack_wait_seconds - 2 * step_seconds
                if delivery.tries == MAX_TRIES or (not is_late and rng.random() < 0.3):
                    await answer(delivery)
            if len(settled) == len(sent):
                break
        assert settled == Counter({each.id: 1 for each in sent})
        assert await harness.dead_letters(0) == []
        await harness.run(asyncio.gather(*published))

    # Acknowledgement

    async def test_a_nak_redelivers_the_message(self, harness: Harness) -> None:
        """A nak redelivers the same message, and an ack ends it."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        sent = message(b"\x00body", key="k", headers={"a": "b"})
        harness.bus.publish(sent)
        await (await take_one(harness, member)).nak(0)
        again = await take_one(harness, member)
        assert again.message == sent
        await again.ack()
        await expect_nothing(harness, member)

    async def test_messages_are_settled_after_failures(self, harness: Harness) -> None:
        """When every message fails twice, every message is still settled."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        sent, published = publish(harness, 20)
        tries: Counter[bytes] = Counter()
        for _ in range(3):
            for delivery in await take(harness, member, 20):
                tries[delivery.message.body] += 1
                assert delivery.tries == tries[delivery.message.body]
                await (delivery.ack() if delivery.tries == 3 else delivery.nak(0))
        assert tries == Counter(dict.fromkeys(bodies(sent), 3))
        await harness.run(asyncio.gather(*published))

    async def test_a_message_without_an_answer_is_redelivered(self, harness: Harness) -> None:
        """It is redelivered soon after ``ack_wait``, and not before; other messages are delivered meanwhile."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        harness.bus.publish(message(b"forgotten"))
        began = harness.monotonic()
        await take_one(harness, member)
        harness.bus.publish(message(b"next"))
        await (await take_one(harness, member)).ack()
        again = await take_one(harness, member, 2 * harness.ack_wait_seconds)
        assert (again.message.body, again.tries) == (b"forgotten", 2)
        late_seconds = harness.monotonic() - began - harness.ack_wait_seconds
        assert -harness.tolerance_seconds <= late_seconds <= harness.late_seconds

    async def test_a_late_ack_counts_while_no_other_member_holds_the_message(self, harness: Harness) -> None:
        """An ack after ``ack_wait`` settles the message if it has not been redelivered."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        published = harness.bus.publish(message())
        delivery = await take_one(harness, member)
        await harness.pass_time(1.5 * harness.ack_wait_seconds)
        await delivery.ack()
        await harness.run(published)
        await expect_nothing(harness, member)

    async def test_a_late_ack_after_redelivery_settles_the_message(self, harness: Harness) -> None:
        """It settles the message for the whole group; the answer to the later delivery has no further effect."""
        slow = await harness.bus.subscribe("inventory", [CREATED])
        quick = await harness.bus.subscribe("inventory", [CREATED])
        published = harness.bus.publish(message())
        first = await take_one(harness, slow)
        second = await take_one(harness, quick, 2 * harness.ack_wait_seconds)
        assert (first.tries, second.tries) == (1, 2)
        await first.ack()
        await harness.run(published)
        await second.nak(0)
        await expect_nothing(harness, slow, quick)
        assert await harness.dead_letters(0) == []

    async def test_a_late_nak_does_not_affect_the_next_delivery(self, harness: Harness) -> None:
        """The message has been redelivered already, which is all that a nak asks for."""
        slow = await harness.bus.subscribe("inventory", [CREATED])
        quick = await harness.bus.subscribe("inventory", [CREATED])
        harness.bus.publish(message())
        first = await take_one(harness, slow)
        second = await take_one(harness, quick, 2 * harness.ack_wait_seconds)
        await first.nak(0)
        await expect_nothing(harness, slow, for_seconds=harness.ack_wait_seconds / 2)
        await second.ack()
        await expect_nothing(harness, slow, quick)

    @pytest.mark.parametrize("answer", ["nak", "term"])
    async def test_a_late_nak_or_term_after_settlement_has_no_effect(self, harness: Harness, answer: str) -> None:
        """Once a later delivery is acknowledged, no answer to the first one brings the message back."""
        slow = await harness.bus.subscribe("inventory", [CREATED])
        quick = await harness.bus.subscribe("inventory", [CREATED])
        harness.bus.publish(message())
        first = await take_one(harness, slow)
        await (await take_one(harness, quick, 2 * harness.ack_wait_seconds)).ack()
        await first.in_progress()
        await (first.nak(0) if answer == "nak" else first.term("nonsense"))
        await expect_nothing(harness, slow, quick)
        assert await harness.dead_letters(0) == []

    async def test_a_late_ack_ends_a_delay(self, harness: Harness) -> None:
        """A message that the second delivery has delayed, and the first one acknowledges late, is not redelivered."""
        slow = await harness.bus.subscribe("inventory", [CREATED])
        quick = await harness.bus.subscribe("inventory", [CREATED])
        published = harness.bus.publish(message())
        first = await take_one(harness, slow)
        await (await take_one(harness, quick, 2 * harness.ack_wait_seconds)).nak(harness.ack_wait_seconds / 2)
        await first.ack()
        await harness.run(published)
        await expect_nothing(harness, slow, quick)

    async def test_only_the_first_answer_to_a_delivery_counts(self, harness: Harness) -> None:
        """A second answer changes nothing and raises nothing, whichever two they are."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        harness.bus.publish(message(b"acked"))
        acked = await take_one(harness, member)
        await acked.ack()
        await acked.nak(0)
        await acked.term("nonsense")
        await acked.ack()
        await expect_nothing(harness, member)
        assert await harness.dead_letters(0) == []

        harness.bus.publish(message(b"nacked"))
        failed = await take_one(harness, member)
        await failed.nak(0)
        await failed.nak(0)
        await failed.term("nonsense")
        await failed.ack()
        again = await take_one(harness, member)
        assert again.tries == 2
        await expect_nothing(harness, member, for_seconds=harness.ack_wait_seconds / 4)
        await again.ack()

        harness.bus.publish(message(b"termed"))
        termed = await take_one(harness, member)
        await termed.term("first")
        await termed.term("second")
        await termed.nak(0)
        await expect_nothing(harness, member)
        assert [dead_letter.error for dead_letter in await harness.dead_letters(1)] == ["first"]

    async def test_in_progress_keeps_the_message_of_a_slow_handler(self, harness: Harness) -> None:
        """As long as the handler reports progress, no other member gets the message and no try is spent."""
        slow = await harness.bus.subscribe("inventory", [CREATED])
        other = await harness.bus.subscribe("inventory", [CREATED])
        published = harness.bus.publish(message())
        delivery = await take_one(harness, slow)
        for _ in range(2 * MAX_TRIES):
            await expect_nothing(harness, other, for_seconds=harness.ack_wait_seconds / 2)
            await delivery.in_progress()
        await delivery.ack()
        await harness.run(published)
        await expect_nothing(harness, slow, other)
        assert await harness.dead_letters(0) == []

    async def test_in_progress_starts_ack_wait_anew(self, harness: Harness) -> None:
        """Without a further answer the message is redelivered one whole ``ack_wait`` later."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        harness.bus.publish(message())
        delivery = await take_one(harness, member)
        await harness.pass_time(harness.ack_wait_seconds / 2)
        await delivery.in_progress()
        began = harness.monotonic()
        again = await take_one(harness, member, 2 * harness.ack_wait_seconds)
        assert again.tries == 2
        late_seconds = harness.monotonic() - began - harness.ack_wait_seconds
        assert -harness.tolerance_seconds <= late_seconds <= harness.late_seconds

    async def test_in_progress_does_not_delay_other_redeliveries(self, harness: Harness) -> None:
        """
        A message that was delivered later and not answered is redelivered before one whose ``ack_wait`` was started
        again.
        """
        member = await harness.bus.subscribe("inventory", [CREATED])
        unit = harness.ack_wait_seconds / 4
        harness.bus.publish(message(b"slow"))
        slow = await take_one(harness, member)
        await harness.pass_time(unit)
        harness.bus.publish(message(b"forgotten"))
        await take_one(harness, member)
        began = harness.monotonic()
        await harness.pass_time(2 * unit)
        await slow.in_progress()
        assert (await take_one(harness, member, 3 * unit)).message.body == b"forgotten"
        late_seconds = harness.monotonic() - began - harness.ack_wait_seconds
        assert -harness.tolerance_seconds <= late_seconds <= harness.late_seconds


class TriesContract:
    """The promises of `bus.port` about tries, time and closing."""

    # Tries

    async def test_tries_are_counted_from_one(self, harness: Harness) -> None:
        """Each delivery is a try, whether it ends with a nak, with the end of its member or without an answer."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        harness.bus.publish(message())
        first = await take_one(harness, member)
        await first.nak(0)
        second = await take_one(harness, member)
        third = await take_one(harness, member, 2 * harness.ack_wait_seconds)
        await member.close()
        successor = await harness.bus.subscribe("inventory", [CREATED])
        fourth = await take_one(harness, successor)
        assert [each.tries for each in (first, second, third, fourth)] == [1, 2, 3, 4]

    async def test_the_nak_of_the_last_try_makes_one_dead_letter(self, harness: Harness) -> None:
        """Five failures make one dead letter, which names the consumer, the message and the last error."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        sent = message(b"\x00poison", key="order-1", headers={"ce-id": "e-1"})
        published = harness.bus.publish(sent)
        await nak(harness, member, MAX_TRIES - 1, error="early", detail="not the last word")
        assert await harness.dead_letters(0) == []
        last = await take_one(harness, member)
        assert last.tries == MAX_TRIES
        await last.nak(harness.ack_wait_seconds, error="boom", detail="the fifth time")
        [dead_letter] = await harness.dead_letters(1)
        assert dead_letter.id == derived_id(sent.id, "inventory")
        assert (dead_letter.consumer, dead_letter.message) == ("inventory", sent)
        assert (dead_letter.error, dead_letter.detail, dead_letter.attempts) == ("boom", "the fifth time", MAX_TRIES)
        assert dead_letter.first_seen <= dead_letter.last_seen
        await harness.run(published)
        await expect_nothing(harness, member)
        assert len(await harness.dead_letters(1)) == 1

    async def test_five_deliveries_without_an_answer_make_one_dead_letter(self, harness: Harness) -> None:
        """Also when there is no fetch after the fifth, and while the member is paused."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        published = harness.bus.publish(message(b"unanswered"))
        tries = [(await take_one(harness, member, 2 * harness.ack_wait_seconds)).tries for _ in range(MAX_TRIES)]
        assert tries == [1, 2, 3, 4, 5]
        member.pause()
        await harness.pass_time(harness.ack_wait_seconds + harness.tolerance_seconds)
        [dead_letter] = await harness.dead_letters(1)
        assert (dead_letter.message.body, dead_letter.error, dead_letter.attempts) == (b"unanswered", "no_answer", MAX_TRIES)
        seen_seconds = (dead_letter.last_seen - dead_letter.first_seen).total_seconds()
        late_seconds = seen_seconds - MAX_TRIES * harness.ack_wait_seconds
        assert -harness.tolerance_seconds <= late_seconds <= (MAX_TRIES + 1) * harness.late_seconds
        await harness.run(published)
        member.resume()
        await expect_nothing(harness, member)
        assert len(await harness.dead_letters(1)) == 1

    async def test_a_term_makes_a_dead_letter_at_once(self, harness: Harness) -> None:
        """It does so whatever tries are left."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        sent = message(b"not json")
        published = harness.bus.publish(sent)
        await (await take_one(harness, member)).term("unreadable", "line 1 column 1")
        [dead_letter] = await harness.dead_letters(1)
        assert (dead_letter.consumer, dead_letter.message) == ("inventory", sent)
        assert (dead_letter.error, dead_letter.detail, dead_letter.attempts) == ("unreadable", "line 1 column 1", 1)
        await harness.run(published)
        await expect_nothing(harness, member)
        assert len(await harness.dead_letters(1)) == 1

    async def test_what_waits_for_a_dead_letter_is_stored_in_order(self, harness: Harness) -> None:
        """
        Each message of a key that is put aside at its first delivery becomes a dead letter with its key, in the order of
        publishing: a store can keep their order. None is delivered again.
        """
        member = await harness.bus.subscribe("inventory", [CREATED])
        sent = [message(b"%d" % n, key="order-1", headers={"ce-id": f"e-{n}"}) for n in range(12)]
        published = [harness.bus.publish(each) for each in sent]
        deliveries = await take(harness, member, 12)
        first, *others = sorted(deliveries, key=lambda delivery: int(delivery.message.body))
        await first.term("unreadable")
        [stored] = await harness.dead_letters(1)
        for delivery in others:
            await delivery.term(WAITS, f"waits for the dead letter {stored.id}")
        dead_letters = await harness.dead_letters(12)
        assert sorted(dead_letters, key=lambda letter: letter.first_seen) == sorted(dead_letters, key=lambda letter: int(letter.message.body))
        assert [letter.error for letter in dead_letters].count(WAITS) == 11
        assert {(letter.message.key, letter.attempts) for letter in dead_letters} == {("order-1", 1)}
        await harness.run(asyncio.gather(*published))
        await expect_nothing(harness, member)

    async def test_what_need_not_wait_any_longer_is_settled(self, harness: Harness) -> None:
        """A store need not keep what waits: the message is settled once it has taken it over, and a replay has another id."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        published = harness.bus.publish(sent := message(b"late", key="order-1"))
        await (await take_one(harness, member)).term(WAITS, "")
        await harness.run(published)
        await harness.dead_letters(1)
        harness.bus.publish(message(b"late", key="order-1", headers=sent.headers))
        again = await take_one(harness, member)
        assert (again.message.key, again.tries) == ("order-1", 1)
        await again.ack()
        await expect_nothing(harness, member)

    async def test_messages_that_always_fail_delay_no_others(self, harness: Harness) -> None:
        """Messages that always fail do not affect their neighbours."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        poison = [message(b"poison") for _ in range(3)]
        for number in range(30):
            harness.bus.publish(message(b"good %d" % number))
            if number % 10 == 0:
                harness.bus.publish(poison[number // 10])
        good: list[bytes] = []
        while batch := await harness.run(member.fetch(4, harness.ack_wait_seconds / 2)):
            for delivery in batch:
                if delivery.message.body == b"poison":
                    await delivery.nak(0, error="boom")
                else:
                    await delivery.ack()
                    good.append(delivery.message.body)
        assert Counter(good) == Counter(b"good %d" % number for number in range(30))
        dead_letters = await harness.dead_letters(3)
        assert sorted(dead_letter.message.id for dead_letter in dead_letters) == [each.id for each in poison]

    async def test_each_group_dead_letters_for_itself(self, harness: Harness) -> None:
        """A message that one group dead-letters is still delivered to others; two groups make two dead letters."""
        first = await harness.bus.subscribe("inventory", [CREATED])
        second = await harness.bus.subscribe("payments", [CREATED])
        third = await harness.bus.subscribe("orders", [CREATED])
        sent = message()
        harness.bus.publish(sent)
        await (await take_one(harness, first)).term("a")
        await (await take_one(harness, second)).term("b")
        await (await take_one(harness, third)).ack()
        dead_letters = {dead_letter.consumer: dead_letter for dead_letter in await harness.dead_letters(2)}
        assert {consumer: dead_letter.error for consumer, dead_letter in dead_letters.items()} == {"inventory": "a", "payments": "b"}
        assert len({dead_letter.id for dead_letter in dead_letters.values()}) == 2

    async def test_a_dead_letter_that_cannot_be_stored_is_retried(self, harness: Harness) -> None:
        """
        The bus retries until the dead letter is stored, once; the publish does not end before, and other messages do
        not wait.
        """
        member = await harness.bus.subscribe("inventory", [CREATED])
        harness.fail_dead_letters(2)
        published = harness.bus.publish(message(b"poison"))
        await (await take_one(harness, member)).term("unreadable", "what was wrong")
        await harness.rest()
        assert await harness.dead_letters(0) == []
        assert published.done() is not harness.features.publish_waits_for_groups
        harness.bus.publish(message(b"good"))
        good = await take_one(harness, member)
        assert good.message.body == b"good"
        await good.ack()
        [dead_letter] = await harness.dead_letters(1)
        assert (dead_letter.message.body, dead_letter.error, dead_letter.detail) == (b"poison", "unreadable", "what was wrong")
        await harness.run(published)
        await expect_nothing(harness, member)
        assert len(await harness.dead_letters(1)) == 1

    # Time

    @pytest.mark.parametrize("share", [0.25, 1.5])
    async def test_the_delay_of_a_nak_is_kept(self, harness: Harness, share: float) -> None:
        """
        The message is redelivered soon after the delay, and not before, be it shorter or longer than ``ack_wait``.
        """
        member = await harness.bus.subscribe("inventory", [CREATED])
        harness.bus.publish(message())
        delivery = await take_one(harness, member)
        delay_seconds = share * harness.ack_wait_seconds
        began = harness.monotonic()
        await delivery.nak(delay_seconds)
        again = await take_one(harness, member, 2 * delay_seconds)
        late_seconds = harness.monotonic() - began - delay_seconds
        assert again.tries == 2
        assert -harness.tolerance_seconds <= late_seconds <= harness.late_seconds

    async def test_shorter_delays_end_first(self, harness: Harness) -> None:
        """A message with a long delay does not hold up one with a short delay."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        publish(harness, 3)
        unit = harness.ack_wait_seconds / 4
        for delivery in await take(harness, member, 3):
            await delivery.nak({b"0": 3, b"1": 1, b"2": 2}[delivery.message.body] * unit)
        received = []
        for _ in range(3):
            received += await ack_all([await take_one(harness, member, 4 * unit)])
        assert received == [b"1", b"2", b"0"]

    @unhurried
    async def test_fetch_never_waits_for_a_second_message(self, harness: Harness) -> None:
        """It returns at once what is ready, even if that is less than the limit; and never more than the limit."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        began = harness.monotonic()
        waiting = asyncio.ensure_future(member.fetch(10, harness.ack_wait_seconds))
        await harness.rest()
        harness.bus.publish(message(b"alone"))
        assert [each.message.body for each in await harness.run(waiting)] == [b"alone"]
        assert harness.monotonic() - began < harness.ack_wait_seconds / 2 + harness.lag_seconds
        publish(harness, 5)
        await harness.rest()
        assert len(await harness.run(member.fetch(3, harness.ack_wait_seconds))) == 3
        assert harness.monotonic() - began < harness.ack_wait_seconds / 2 + harness.lag_seconds

    async def test_a_member_on_standby_receives_what_no_other_member_fetches(self, harness: Harness) -> None:
        """It may receive it later, and never misses it; and it leaves the standby with its next fetch."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        publish(harness, 20)
        taken: list[Delivery] = []
        while len(taken) < 20:
            taken += (batch := await harness.run(member.fetch(8, harness.patience_seconds, True)))
            assert batch
        await ack_all(taken)
        publish(harness, 1)
        await take_one(harness, member)

    async def test_fetch_returns_an_empty_list_at_its_deadline(self, harness: Harness) -> None:
        """It returns neither before the deadline nor much later; and at once when it may not wait."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        wait_seconds = harness.ack_wait_seconds / 2
        began = harness.monotonic()
        assert await harness.run(member.fetch(10, wait_seconds)) == []
        late_seconds = harness.monotonic() - began - wait_seconds
        assert -harness.tolerance_seconds <= late_seconds <= harness.late_seconds
        began = harness.monotonic()
        assert await harness.run(member.fetch(10, 0)) == []
        assert harness.monotonic() - began <= harness.late_seconds

    async def test_a_paused_member_receives_nothing_and_spends_no_try(self, harness: Harness) -> None:
        """However long the pause lasts: afterwards every message is delivered, with all of its tries."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        states = [member.is_paused]
        member.pause()
        states.append(member.is_paused)
        publish(harness, 3)
        await expect_nothing(harness, member, for_seconds=(MAX_TRIES + 1) * harness.ack_wait_seconds)
        member.resume()
        states.append(member.is_paused)
        assert states == [False, True, False]
        assert [each.tries for each in await take(harness, member, 3)] == [1, 1, 1]
        assert await harness.dead_letters(0) == []

    async def test_a_message_in_hand_stays_in_hand_during_a_pause(self, harness: Harness) -> None:
        """An ack during the pause counts as usual."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        published = harness.bus.publish(message())
        delivery = await take_one(harness, member)
        member.pause()
        await delivery.ack()
        await harness.run(published)
        member.resume()
        await expect_nothing(harness, member)

    async def test_a_pause_applies_to_a_fetch_that_already_waits(self, harness: Harness) -> None:
        """
        A message that is published after the pause is not delivered to a fetch that has begun before it; another member
        gets it.
        """
        member = await harness.bus.subscribe("inventory", [CREATED])
        other = await harness.bus.subscribe("inventory", [CREATED])
        waiting = asyncio.gather(*(member.fetch(1, harness.ack_wait_seconds) for _ in range(2)))
        await harness.rest()
        member.pause()
        harness.bus.publish(message())
        await harness.rest()
        await (await take_one(harness, other)).ack()
        assert await harness.run(waiting) == [[], []]

    async def test_a_member_that_pauses_when_woken_wakes_the_next(self, harness: Harness) -> None:
        """A message whose waiting fetch is paused at the same moment is delivered to another waiting fetch."""
        first = await harness.bus.subscribe("inventory", [CREATED])
        second = await harness.bus.subscribe("inventory", [CREATED])
        paused = asyncio.ensure_future(first.fetch(1, 2 * harness.ack_wait_seconds))
        await harness.rest()
        other = asyncio.ensure_future(second.fetch(1, 2 * harness.ack_wait_seconds))
        await harness.rest()
        began = harness.monotonic()
        harness.bus.publish(message(b"for the other"))
        first.pause()
        assert [each.message.body for each in await harness.run(other)] == [b"for the other"]
        assert harness.monotonic() - began <= harness.ack_wait_seconds + harness.late_seconds
        assert await harness.run(paused) == []

    @unhurried
    async def test_resume_wakes_a_waiting_fetch(self, harness: Harness) -> None:
        """A fetch that waits during a pause returns with messages soon after resume."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        member.pause()
        publish(harness, 3)
        began = harness.monotonic()
        waiting = asyncio.ensure_future(member.fetch(3, harness.ack_wait_seconds))
        await harness.rest()
        assert not waiting.done()
        member.resume()
        assert await harness.run(waiting)
        assert harness.monotonic() - began < harness.ack_wait_seconds / 2 + harness.lag_seconds

    async def test_a_cancelled_fetch_loses_no_message(self, harness: Harness) -> None:
        """Neither a later message is lost nor one that is published at the moment of the cancellation."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        idle = asyncio.ensure_future(member.fetch(1, harness.ack_wait_seconds))
        await harness.rest()
        idle.cancel()
        harness.bus.publish(message(b"later"))
        await (await take_one(harness, member)).ack()
        woken = asyncio.ensure_future(member.fetch(1, harness.ack_wait_seconds))
        await harness.rest()
        harness.bus.publish(message(b"at the same moment"))
        woken.cancel()
        again = await take_one(harness, member, 2 * harness.ack_wait_seconds)
        assert again.message.body == b"at the same moment"
        await harness.rest()
        assert woken.cancelled()

    async def test_a_cancelled_fetch_wakes_the_next(self, harness: Harness) -> None:
        """When the fetch that was woken is cancelled, the next waiting fetch gets the message."""
        first = await harness.bus.subscribe("inventory", [CREATED])
        second = await harness.bus.subscribe("inventory", [CREATED])
        woken = asyncio.ensure_future(first.fetch(1, 3 * harness.ack_wait_seconds))
        await harness.rest()
        other = asyncio.ensure_future(second.fetch(1, 3 * harness.ack_wait_seconds))
        await harness.rest()
        harness.bus.publish(message(b"for the other"))
        woken.cancel()
        began = harness.monotonic()
        assert [each.message.body for each in await harness.run(other)] == [b"for the other"]
        assert harness.monotonic() - began <= harness.ack_wait_seconds + harness.late_seconds

    # Closing

    @unhurried
    async def test_closing_the_bus_ends_every_fetch(self, harness: Harness) -> None:
        """A waiting fetch returns an empty list at once, and so does a later one."""
        members = [await harness.bus.subscribe(name, [CREATED]) for name in ("inventory", "inventory", "orders")]
        began = harness.monotonic()
        waiting = asyncio.gather(*(member.fetch(1, harness.ack_wait_seconds) for member in members))
        await harness.rest()
        await harness.run(harness.bus.close())
        assert await harness.run(waiting) == [[], [], []]
        assert await harness.run(members[0].fetch(1, harness.ack_wait_seconds)) == []
        assert harness.monotonic() - began < harness.ack_wait_seconds / 2 + harness.lag_seconds

    @unhurried
    async def test_closing_a_member_ends_its_fetch(self, harness: Harness) -> None:
        """Only the fetch of this member ends; another member continues to wait."""
        leaving = await harness.bus.subscribe("inventory", [CREATED])
        staying = await harness.bus.subscribe("inventory", [CREATED])
        first = asyncio.ensure_future(leaving.fetch(1, harness.ack_wait_seconds))
        second = asyncio.ensure_future(staying.fetch(1, harness.ack_wait_seconds))
        await harness.rest()
        began = harness.monotonic()
        await leaving.close()
        assert await harness.run(first) == []
        assert await harness.run(leaving.fetch(1, harness.ack_wait_seconds)) == []
        assert harness.monotonic() - began < harness.ack_wait_seconds / 2 + harness.lag_seconds
        harness.bus.publish(message(b"for the other"))
        assert [each.message.body for each in await harness.run(second)] == [b"for the other"]

    async def test_closing_is_idempotent(self, harness: Harness) -> None:
        """Member and bus may be closed repeatedly, concurrently and in any order."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        assert harness.bus.is_connected
        await harness.run(asyncio.gather(*(member.close() for _ in range(5))))
        await harness.run(asyncio.gather(*(harness.bus.close() for _ in range(5))))
        await harness.run(harness.bus.close())
        await member.close()
        assert not harness.bus.is_connected

    @unhurried
    async def test_closing_during_work_is_safe(self, harness: Harness) -> None:
        """When the bus is closed several times while members work, all of them end and none raises."""
        members = [await harness.bus.subscribe("inventory", [CREATED]) for _ in range(5)]
        publish(harness, 200)
        received: list[bytes] = []

        async def work(member: Subscription) -> None:
            while batch := await member.fetch(2, harness.ack_wait_seconds):
                await asyncio.sleep(0)
                received.extend(await ack_all(batch))

        working = asyncio.gather(*(work(member) for member in members))
        for _ in range(3):
            await asyncio.sleep(0)
        began = harness.monotonic()
        await harness.run(asyncio.gather(*(harness.bus.close() for _ in range(5))))
        await harness.run(working)
        assert harness.monotonic() - began < harness.ack_wait_seconds / 2 + harness.lag_seconds
        assert len(received) == len(set(received))

    @unhurried
    async def test_closing_waits_for_messages_in_hand(self, harness: Harness) -> None:
        """Close waits for answers, accepts them, and ends with the last one."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        _, published = publish(harness, 3)
        acked, termed, silent = await take(harness, member, 3)
        began = harness.monotonic()
        closing = asyncio.ensure_future(harness.bus.close(harness.ack_wait_seconds / 2))
        await harness.rest()
        assert not harness.bus.is_connected
        await acked.ack()
        await termed.term("nonsense")
        await harness.rest()
        assert not closing.done()
        await silent.ack()
        await harness.run(closing)
        assert harness.monotonic() - began < harness.ack_wait_seconds / 4 + harness.lag_seconds
        assert await harness.run(asyncio.gather(*published)) == [None, None, None]
        assert len(await harness.dead_letters(1)) == 1

    @unhurried
    async def test_closing_waits_for_the_dead_letter_of_the_last_answer(self, harness: Harness) -> None:
        """The message is settled only with that: it would be redelivered, or lost with a bus that keeps nothing."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        published = harness.bus.publish(message())
        delivery = await take_one(harness, member)
        closing = asyncio.ensure_future(harness.bus.close(harness.ack_wait_seconds / 2))
        await harness.rest()
        await delivery.term("nonsense")
        await harness.run(closing)
        await harness.run(published)
        assert len(await harness.dead_letters(1)) == 1

    async def test_closing_is_bounded(self, harness: Harness) -> None:
        """Handlers that never answer delay the close for the grace period and no longer."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        publish(harness, 3)
        await take(harness, member, 3)
        grace_seconds = harness.ack_wait_seconds / 2
        began = harness.monotonic()
        await harness.run(asyncio.gather(harness.bus.close(grace_seconds), harness.bus.close(grace_seconds)))
        late_seconds = harness.monotonic() - began - grace_seconds
        assert -harness.tolerance_seconds <= late_seconds <= harness.late_seconds

    async def test_closing_is_bounded_when_dead_letters_cannot_be_stored(self, harness: Harness) -> None:
        """An unavailable store delays the close for the grace period and no longer."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        harness.fail_dead_letters(1_000_000)
        harness.bus.publish(message())
        await (await take_one(harness, member)).term("nonsense")
        grace_seconds = harness.ack_wait_seconds / 2
        began = harness.monotonic()
        await harness.run(harness.bus.close(grace_seconds))
        assert harness.monotonic() - began <= grace_seconds + harness.late_seconds

    async def test_answers_after_the_close_raise_nothing(self, harness: Harness) -> None:
        """A handler that finishes after the bus is closed gets no error."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        publish(harness, 5)
        acked, failed, delayed, termed, busy = await take(harness, member, 5)
        await harness.run(harness.bus.close(0))
        await acked.ack()
        await failed.nak(0)
        await delayed.nak(harness.ack_wait_seconds)
        await termed.term("nonsense")
        await busy.in_progress()
        await harness.pass_time(2 * harness.ack_wait_seconds)
        assert await harness.dead_letters(0) == []

    @unhurried
    async def test_a_publish_to_a_closing_bus_is_rejected(self, harness: Harness) -> None:
        """The future raises `BusClosed`, from the moment the bus starts to close."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        harness.bus.publish(message())
        delivery = await take_one(harness, member)
        closing = asyncio.ensure_future(harness.bus.close(harness.ack_wait_seconds))
        await harness.rest()
        assert not closing.done()
        began = harness.monotonic()
        with pytest.raises(BusClosed):
            await harness.run(harness.bus.publish(message()))
        assert harness.monotonic() - began < harness.ack_wait_seconds / 2 + harness.lag_seconds
        await delivery.ack()
        await harness.run(closing)
        with pytest.raises(BusClosed):
            await harness.run(harness.bus.publish(message()))
        with pytest.raises(BusClosed):
            await harness.run(harness.bus.subscribe("orders", [CREATED]))

    async def test_an_unsettled_message_is_never_lost_silently(self, harness: Harness) -> None:
        """The next bus delivers it, or its publish ends with `BusClosed`."""
        member = await harness.bus.subscribe("inventory", [CREATED])
        sent, published = publish(harness, 3)
        duplicates = [harness.bus.publish(each) for each in sent]
        await (await take_one(harness, member)).ack()
        await harness.rest()
        bus = await harness.restart()
        ends = await harness.run(asyncio.gather(*published, *duplicates, return_exceptions=True))
        member = await harness.run(bus.subscribe("inventory", [CREATED]))
        if harness.features.publish_waits_for_groups:
            assert sum(end is None for end in ends[:3]) == 1
            assert sum(isinstance(end, BusClosed) for end in ends[:3]) == 2
            assert [type(end) for end in ends[:3]] == [type(end) for end in ends[3:]]
        else:
            assert ends == [None] * 6
        if harness.features.survives_restart:
            assert len(await take(harness, member, 2, 2 * harness.ack_wait_seconds)) == 2
        else:
            await expect_nothing(harness, member)


class BusContract(DeliveryContract, TriesContract):
    """All promises of `bus.port`."""
