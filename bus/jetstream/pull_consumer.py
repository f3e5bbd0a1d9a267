"""
A pull consumer: one durable on the server as one process uses it.

A request asks the server for as many messages as the waiting fetches want, and the server pushes them to an inbox as
they come. So there are never many messages that have arrived and are not fetched yet. Those there are may wait for
minutes (nothing is fetched while the database is unavailable); their ack deadlines are extended meanwhile, which spends
no try.
"""

from __future__ import annotations

__all__ = ["ConsumerHost", "PullConsumer"]

import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

import nats.errors
from nats.aio.subscription import Subscription

from bus import port
from bus.contracts.versions import VERSIONS, has_readable_sibling
from bus.jetstream.admin.topology import ConsumerPlan
from bus.jetstream.delivery import AckMetadata, Delivery, message_of, parse_ack_subject, parse_headers
from bus.jetstream.nats_client import NatsClient
from bus.port import Clock, DeadLetter

REQUEST_SECONDS = 5.0
"""How long a request lasts. It takes at most as long to turn to a new leader after a request was lost with the old one."""

STANDBY_SECONDS = 15.0
"""
How long a request on standby counts as open without an answer. The server answers at once that no message is left, and
then it is asked again within a fraction of a second; it answers later only while other processes hold as many messages as
the durable allows. A second request would then be kept beside the first one.
"""

_RETRY_SECONDS = 0.1
_LATE_MAX = 1_024
_UNSUBSCRIBED_NAK_SECONDS = 1.0
_NANOSECONDS = 1_000_000_000
_EXPIRED = "408"
_ENOUGH_REQUESTED = "Requests Pending"
_NO_MESSAGES = "404"
_NO_RESPONDERS = "503"
_CONFLICT = "409"
_PASSING = ("Leadership Change", "Server Shutdown", "Batch Completed", "Consumer Deleted")
"""Reasons of the server that end by themselves."""

_log = logging.getLogger(__name__)


class ConsumerHost(Protocol):
    """What a pull consumer needs from its consumer group."""

    clock: Clock
    ack_wait_seconds: float
    max_tries: int
    send: Callable[..., None]
    """Send a body to a subject, optionally with a reply subject."""
    check_idle: Callable[[], None]
    """Let the bus close if nothing is in hand any more."""

    def message_available(self, consumer: PullConsumer) -> None:
        """Let a waiting fetch take what is ready in *consumer*; request more if others wait."""

    def request_more(self, consumer: PullConsumer) -> None:
        """Request from *consumer* what the waiting fetches want."""

    def rebind(self, consumer: PullConsumer, reason: str) -> None:
        """Verify *consumer* on the server once more and subscribe again."""

    def dead_letter(self, dead_letter: DeadLetter, on_stored: Callable[[], None], extend: Callable[[], bool]) -> None:
        """Store *dead_letter*; see `bus.dead_letter_queue.DeadLetterQueue.put`."""


class PullConsumer:
    """One durable consumer, from which the subscriptions of one group fetch."""

    def __init__(self, plan: ConsumerPlan, host: ConsumerHost) -> None:
        self.plan = plan
        self._host = host
        self.now = host.clock.monotonic
        self.ack_wait_seconds = host.ack_wait_seconds
        self.max_tries = host.max_tries
        self.send = host.send
        self._check_idle = host.check_idle
        self._is_ending = False
        """True once the bus closes, and waits until nothing is in hand."""
        self.ready: OrderedDict[int, Delivery] = OrderedDict()
        """What has arrived and is not fetched yet, by stream sequence."""
        self.in_hand: dict[int, Delivery] = {}
        """What is fetched and not settled, or waits to be dead-lettered."""
        self._acked_late: OrderedDict[tuple[int, int], None] = OrderedDict()
        self.outstanding = 0
        """How many messages are requested and have not arrived."""
        self._requests_end_at = 0.0
        self._no_request_before = 0.0
        self.refusal = ""
        """The reason that the server gives for refusing the requests; empty while it does not."""
        self._inbox = ""
        self._inbox_subscription: Subscription | None = None
        self._request_subject = f"$JS.API.CONSUMER.MSG.NEXT.{plan.stream}.{plan.name}"

    # Requests and arrivals

    @property
    def is_bound(self) -> bool:
        """True while this process receives what the durable delivers."""
        return self._inbox_subscription is not None

    async def bind(self, client: NatsClient) -> None:
        """Subscribe on *client* to a new inbox: the server drops the requests that it still has for the old one."""
        await self.unbind()
        self._inbox = client.new_inbox()
        self.outstanding = 0
        self._no_request_before = 0.0
        self._inbox_subscription = await client.subscribe_fast(self._inbox, self._on_message)

    async def unbind(self) -> None:
        """Unsubscribe from the inbox; the server drops the open requests."""
        subscription, self._inbox_subscription = self._inbox_subscription, None
        if subscription is not None:
            with suppress(nats.errors.Error, OSError):  # the connection may be gone, and the subscription with it
                await subscription.unsubscribe()

    def request(self, wanted: int, is_standby: bool = False) -> None:
        """
        Request what is missing for *wanted* messages, unless half of them are requested already.

        On standby, request what waits at the server now and exceeds the requests of other processes.
        """
        now = self.now()
        if self._inbox_subscription is None or now < self._no_request_before:
            return
        if now >= self._requests_end_at:
            self.outstanding = 0
        if self.outstanding * 2 >= wanted:
            return
        count = wanted - self.outstanding
        self.outstanding += count
        if is_standby:
            self._requests_end_at = now + STANDBY_SECONDS
            body = b'{"batch": %d, "no_wait": true}' % count
        else:
            self._requests_end_at = now + REQUEST_SECONDS
            body = b'{"batch": %d, "expires": %d}' % (count, REQUEST_SECONDS * _NANOSECONDS)
        self.send(self._request_subject, body, self._inbox)

    def request_more(self) -> None:
        """Request what the waiting fetches of the group want."""
        self._host.request_more(self)

    def _on_message(self, subject: str, reply: str, head: bytes, body: bytes) -> None:
        now = self.now()
        headers = parse_headers(head)
        metadata = parse_ack_subject(reply)
        if metadata is None:
            self._on_status(headers.get("Status", ""), headers)
            return
        self.outstanding = max(0, self.outstanding - 1)
        self.refusal = ""
        message = message_of(subject, body, headers, metadata)
        overdue_at = now + self.ack_wait_seconds
        delivery = Delivery(
            message, metadata.tries, self, metadata.sequence, metadata.stored_at_ns, reply, overdue_at, now
        )
        self._receive(delivery, metadata)

    def _receive(self, delivery: Delivery, metadata: AckMetadata) -> None:
        earlier = self.in_hand.get(metadata.sequence)
        if earlier is not None and earlier.is_answered:
            earlier.supersede(delivery)  # its dead letter waits to be stored: the message needs no further handling
            return
        if earlier is not None:
            earlier.overdue_at = 0.0  # the server counts it as overdue, so its answers are late from now on
            del self.in_hand[metadata.sequence]
        self.ready.pop(metadata.sequence, None)
        if (metadata.sequence, metadata.stored_at_ns) in self._acked_late:
            delivery.confirm()
            return
        if delivery.message.subject not in self.plan.subjects:
            self._nak_unsubscribed(delivery)
            return
        self.ready[metadata.sequence] = delivery
        self._host.message_available(self)

    def _nak_unsubscribed(self, delivery: Delivery) -> None:
        """
        Return a message on a subject that this version of the group does not subscribe to.

        Another version, which has added the subject to the durable, is to receive it. The server would redeliver it here
        as long as this process requests messages, so the process makes no request for twice the delay of the nak: by
        then its open requests have expired, and that before the message has had its last try.

        If the same event is also published in a version that is subscribed to, the message is acknowledged.
        """
        message = delivery.message
        if has_readable_sibling(message.subject, message.headers.get(VERSIONS, ""), self.plan.subjects):
            delivery.is_answered = True
            delivery.confirm()
        elif delivery.tries < self.max_tries:
            delay_seconds = _UNSUBSCRIBED_NAK_SECONDS * 2.0 ** (delivery.tries - 1)
            self._no_request_before = max(self._no_request_before, self.now() + 2 * delay_seconds)
            delivery.requeue(delay_seconds)
        else:
            delivery.is_answered = True
            self.in_hand[delivery.sequence] = delivery
            detail = f"{self.plan.name} does not subscribe to {delivery.message.subject}"
            self.dead_letter(delivery, "unknown_subject", detail)

    def _on_status(self, status: str, headers: dict[str, str]) -> None:
        """Take note of how a request has ended."""
        description = headers.get("Description", "")
        unused = headers.get("Nats-Pending-Messages", "")
        self.outstanding = max(0, self.outstanding - int(unused)) if unused.isdigit() else 0
        if status == _EXPIRED and description != _ENOUGH_REQUESTED:
            self.refusal = ""
            self._host.message_available(self)
            return
        self._no_request_before = max(self._no_request_before, self.now() + _RETRY_SECONDS)
        if status in (_NO_MESSAGES, _EXPIRED):
            self.refusal = ""
        elif status == _NO_RESPONDERS or "Deleted" in description:
            self._on_lost(description or "no responders")
        elif status == _CONFLICT and not description.startswith(_PASSING):
            if description != self.refusal:
                _log.warning("consumer %s on %s refuses requests: %s", self.plan.name, self.plan.stream, description)
            self.refusal = description or "no reason given"
        else:
            _log.debug("%s on %s: %s %s", self.plan.name, self.plan.stream, status, description)

    def _on_lost(self, reason: str) -> None:
        self.outstanding = 0
        self._requests_end_at = 0.0
        self._host.rebind(self, reason)

    # Deliveries

    def take(self, subscription: port.Subscription, limit: int, now: float) -> list[port.Delivery]:
        """Deliver up to *limit* ready messages to *subscription*, each with nearly the whole ``ack_wait`` left."""
        batch: list[port.Delivery] = []
        ready = self.ready
        fresh_since = now - self.ack_wait_seconds / 8
        while ready and len(batch) < limit:
            sequence, delivery = ready.popitem(last=False)
            if delivery.overdue_at <= now:
                continue  # the server redelivers it, to this process or another
            if delivery.touched_at < fresh_since:
                delivery.extend()
            delivery.subscription = subscription
            self.in_hand[sequence] = delivery
            batch.append(delivery)
        return batch

    def settled(self, delivery: Delivery, *, is_late: bool) -> None:
        """
        Note that *delivery* is acknowledged, and with it every other delivery of the same message.

        If it *is_late*, the server may be redelivering the message; that delivery is acknowledged on arrival.
        """
        sequence = delivery.sequence
        if is_late:
            self._acked_late[sequence, delivery.stored_at_ns] = None
            if len(self._acked_late) > _LATE_MAX:
                self._acked_late.popitem(last=False)
        self.ready.pop(sequence, None)
        current = self.in_hand.pop(sequence, None)
        if current is not None:
            current.is_answered = current.is_settled_elsewhere = True
        if self._is_ending:
            self._check_idle()

    def release(self, delivery: Delivery) -> None:
        """Note that *delivery* is no longer in hand."""
        if self.in_hand.get(delivery.sequence) is delivery:
            del self.in_hand[delivery.sequence]
        if self._is_ending:
            self._check_idle()

    def dead_letter(self, delivery: Delivery, error: str, detail: str) -> None:
        """Make the message of *delivery* a dead letter; it stays in hand until that is stored."""

        def on_stored() -> None:
            delivery.terminate()
            self.release(delivery)

        first_seen = datetime.fromtimestamp(delivery.stored_at_ns / 1e9, UTC)
        now = self._host.clock.now()
        dead_letter = DeadLetter.of(delivery.message, self.plan.name, error, detail, delivery.tries, first_seen, now)
        self._host.dead_letter(dead_letter, on_stored, delivery.extend_if_stale)

    def return_in_flight(self, subscription: port.Subscription | None = None) -> None:
        """
        Return to the server what *subscription* has in hand, or everything, for redelivery at once.

        A last try stays in hand: it cannot be redelivered. Its handler may still answer in time; otherwise the recovery
        finds the message.
        """
        in_hand = self.in_hand.values()
        for delivery in [each for each in in_hand if subscription is None or each.subscription is subscription]:
            if not delivery.is_answered and delivery.tries < self.max_tries:
                delivery.is_answered = True
                del self.in_hand[delivery.sequence]
                if not delivery.is_late():
                    delivery.requeue()

    def return_buffered(self) -> None:
        """Return to the server what has arrived and is not fetched, for redelivery at once: the consumer is to end."""
        self._is_ending = True
        for delivery in self.ready.values():
            if delivery.tries < self.max_tries and not delivery.is_late():
                delivery.requeue()
        self.ready.clear()

    def tick(self, now: float) -> None:
        """Extend the deadlines of what is ready, drop what is overdue, and repeat requests that got no answer."""
        stale_since = now - self.ack_wait_seconds / 3
        for delivery in self.ready.values():
            if delivery.touched_at <= stale_since and delivery.overdue_at > now:
                delivery.extend()
        for delivery in [each for each in self.in_hand.values() if each.overdue_at <= now and not each.is_answered]:
            del self.in_hand[delivery.sequence]
            if delivery.tries >= self.max_tries:
                self.request(1)  # the server notices, and publishes, that a last try is overdue only on the next request
        self.request_more()
