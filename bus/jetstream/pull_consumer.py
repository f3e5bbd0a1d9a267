"""
A durable consumer as one process hears it: what is asked of it, what has come, and who holds what.

We ask for as many messages as somebody waits for, and the server pushes them to our inbox as they come. So there is
never much that has come and is in nobody's hands; what there is may wait there for minutes (nobody fetches while the
database is away), and is kept ours by saying that it is in progress, which spends no try.
"""

from __future__ import annotations

__all__ = ["PullConsumer"]

import logging
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bus.contracts.versions import VERSIONS, has_readable_sibling
from bus.jetstream.admin.topology import ConsumerPlan
from bus.jetstream.delivery import Delivery
from bus.jetstream.wire import AckMetadata, message_of, parse_ack_subject

if TYPE_CHECKING:
    from bus.jetstream.consumer_group import ConsumerGroup, GroupSubscription

REQUEST_SECONDS = 5.0
"""How long a request lasts. So long it takes us at most to turn to a new leader after the old one was lost with it."""

_AGAIN_SECONDS = 0.1
_LATE_MAX = 1_024
_ASIDE_SECONDS = 1.0
_NANOSECONDS = 1_000_000_000
_EXPIRED = "408"
_NO_RESPONDERS = "503"

_log = logging.getLogger(__name__)


class PullConsumer:
    """One durable consumer, asked by the members of one group."""

    def __init__(self, plan: ConsumerPlan, group: ConsumerGroup) -> None:
        self.plan = plan
        self.group = group
        self.now = group.bus.clock.monotonic
        self.ack_wait_seconds = group.bus.ack_wait_seconds
        self.max_tries = group.bus.max_tries
        self.send = group.bus.send
        self.ready: OrderedDict[int, Delivery] = OrderedDict()
        self.held: dict[int, Delivery] = {}
        self._late: OrderedDict[tuple[int, int], None] = OrderedDict()
        self.outstanding = 0
        self._asked_until = 0.0
        self._ask_again_at = 0.0
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{plan.stream}.{plan.name}"

    # Listening

    async def bind(self, client: Client) -> None:
        """Listen on *client*, on a fresh inbox: requests that the server still has for the old one end with it."""
        await self.unbind()
        self._inbox = client.new_inbox()
        self.outstanding = 0
        self._ask_again_at = 0.0
        self._subscription = await client.subscribe(
            self._inbox, cb=self._came, pending_msgs_limit=-1, pending_bytes_limit=-1
        )

    async def unbind(self) -> None:
        """Listen no more; the server drops our requests."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with suppress(nats.errors.Error, OSError):  # the connection may be gone, and the subscription with it
                await subscription.unsubscribe()

    def ask(self, wanted: int) -> None:
        """See to it that about *wanted* messages are asked for; a few less will do if some are under way."""
        now = self.now()
        if self._subscription is None or now < self._ask_again_at:
            return
        if now >= self._asked_until:
            self.outstanding = 0
        if self.outstanding * 2 >= wanted:
            return
        count = wanted - self.outstanding
        self.outstanding += count
        self._asked_until = now + REQUEST_SECONDS
        self.send(self._next, b'{"batch": %d, "expires": %d}' % (count, REQUEST_SECONDS * _NANOSECONDS), self._inbox)

    async def _came(self, msg: Msg) -> None:
        now = self.now()
        mark = parse_ack_subject(msg.reply)
        if mark is None:
            self._told((msg.headers or {}).get("Status", ""), msg.headers or {})
            return
        self.outstanding = max(0, self.outstanding - 1)
        message = message_of(msg.subject, msg.data, msg.headers, mark)
        delivery = Delivery(
            message, mark.tries, self, mark.sequence, mark.said_at_ns, msg.reply, now + self.ack_wait_seconds, now
        )
        self._take_in(delivery, mark)

    def _take_in(self, delivery: Delivery, mark: AckMetadata) -> None:
        before = self.held.get(mark.sequence)
        if before is not None and before.is_answered:
            before.come_again(delivery)  # its letter is being written: nobody else needs to look at it
            return
        if before is not None:
            before.overdue_at = 0.0  # the server thinks that its holder is lost
            del self.held[mark.sequence]
        self.ready.pop(mark.sequence, None)
        if (mark.sequence, mark.said_at_ns) in self._late:
            delivery.confirm()
            return
        if delivery.message.subject not in self.plan.subjects:
            self._step_aside(delivery)
            return
        self.ready[mark.sequence] = delivery
        self.group.arrived(self)

    def _step_aside(self, delivery: Delivery) -> None:
        """
        Leave a message that we do not hear to whoever has made the durable hear it: another version of us.

        The server would hand it to us again, because we have asked before. So we stop asking for a while, which is
        longer than what we have asked for lasts before the tries are over.

        What is said in a version that we hear as well is done with, as far as we are concerned.
        """
        message = delivery.message
        if has_readable_sibling(message.subject, message.headers.get(VERSIONS, ""), self.plan.subjects):
            delivery.is_answered = True
            delivery.confirm()
        elif delivery.tries < self.max_tries:
            delay_seconds = _ASIDE_SECONDS * 2.0 ** (delivery.tries - 1)
            self._ask_again_at = max(self._ask_again_at, self.now() + 2 * delay_seconds)
            delivery.put_back(delay_seconds)
        else:
            delivery.is_answered = True
            self.held[delivery.sequence] = delivery
            self.give_up(delivery, "unknown_subject", f"{self.plan.name} does not hear {delivery.message.subject}")

    def _told(self, status: str, headers: dict[str, str]) -> None:
        """Take note of what the server says about a request."""
        said = headers.get("Description", "")
        left = headers.get("Nats-Pending-Messages", "")
        self.outstanding = max(0, self.outstanding - int(left)) if left.isdigit() else 0
        if status == _EXPIRED:
            self.group.arrived(self)
            return
        self._ask_again_at = max(self._ask_again_at, self.now() + _AGAIN_SECONDS)
        if status == _NO_RESPONDERS or "Deleted" in said:
            self._lost(said or "nobody answers")
        else:
            _log.debug("%s on %s: %s %s", self.plan.name, self.plan.stream, status, said)

    def _lost(self, said: str) -> None:
        self.outstanding = 0
        self._asked_until = 0.0
        self.group.bus.rebind(self, said)

    # Handing out

    def take(self, member: GroupSubscription, limit: int, now: float) -> list[Delivery]:
        """Hand up to *limit* of what is there to *member*, each with its whole time before it."""
        batch: list[Delivery] = []
        ready = self.ready
        fresh = now - self.ack_wait_seconds / 8
        while ready and len(batch) < limit:
            sequence, delivery = ready.popitem(last=False)
            if delivery.overdue_at <= now:
                continue  # it comes again, to us or to others
            if delivery.touched_at < fresh:
                delivery.keep()
            delivery.member = member
            self.held[sequence] = delivery
            batch.append(delivery)
        return batch

    def settled(self, delivery: Delivery, *, is_late: bool) -> None:
        """Note that *delivery* is done; if it has come again meanwhile, or is on its way to, that copy is, too."""
        sequence = delivery.sequence
        if is_late:
            self._late[sequence, delivery.said_at_ns] = None
            if len(self._late) > _LATE_MAX:
                self._late.popitem(last=False)
        self.ready.pop(sequence, None)
        holder = self.held.pop(sequence, None)
        if holder is not None:
            holder.is_answered = holder.is_void = True
        self.group.bus.look_whether_idle()

    def let_go(self, delivery: Delivery) -> None:
        """Note that *delivery* is no longer in hand."""
        if self.held.get(delivery.sequence) is delivery:
            del self.held[delivery.sequence]
        self.group.bus.look_whether_idle()

    def give_up(self, delivery: Delivery, error: str, detail: str) -> None:
        """Make *delivery* a dead letter; until that is laid down it stays ours."""
        self.group.bus.give_up(delivery, error, detail)

    def hand_back(self, member: GroupSubscription | None = None) -> None:
        """
        Hand on at once what *member* has in hand, or everything.

        A last try cannot be handed on: whoever has it may still answer, and otherwise the patrol finds it.
        """
        for delivery in [each for each in self.held.values() if member is None or each.member is member]:
            if not delivery.is_answered and delivery.tries < self.max_tries:
                delivery.is_answered = True
                del self.held[delivery.sequence]
                delivery.put_back()

    def empty(self) -> None:
        """Hand back what has come and is in nobody's hands."""
        for delivery in self.ready.values():
            if delivery.tries < self.max_tries:
                delivery.put_back()
        self.ready.clear()

    def tick(self, now: float) -> None:
        """Keep what is ours, forget whoever has lost theirs, and ask again whoever has not answered."""
        stale = now - self.ack_wait_seconds / 3
        for delivery in self.ready.values():
            if delivery.touched_at <= stale and delivery.overdue_at > now:
                delivery.keep()
        for delivery in [each for each in self.held.values() if each.overdue_at <= now and not each.is_answered]:
            del self.held[delivery.sequence]
            if delivery.tries >= self.max_tries:
                self.ask(1)  # the server notices that a last try is over, and says so, only when somebody asks
        if now >= self._asked_until:
            self.outstanding = 0
        self.group.ask(self)
