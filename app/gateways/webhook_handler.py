"""
Handle Stripe's webhooks: submit each to payments once, and dead-letter those that contradict our payments.

A charge that was not made for one of our orders is counted and ignored: other software uses the same account, or another
installation of this program. Where charges carry the name of their installation, an unknown order of this installation is no such case.
"""

from __future__ import annotations

__all__ = ["CONSUMER", "StripeWebhookHandler"]

import time
from collections.abc import Callable
from functools import partial

from loguru import logger

from app.gateways.breakers.circuit_breaker import BreakerOpen
from app.gateways.breakers.operations import Operation
from app.gateways.port import ChargeLedger, GatewayNotReached, ResponseMismatch
from app.gateways.stripe.webhook_event import (
    InvalidSignature,
    Notice,
    OldSignature,
    StripeEvent,
    check_signature,
    parse_event,
)
from app.runtime.runner import ModuleRunner
from app.telemetry.metrics import Metrics
from app.telemetry.trace import TraceContext
from bus.ids import derived_id, time_of_id
from bus.port import Clock, DeadLetter, DeadLetters, Message
from modules.module import DecisionOutcome
from modules.payments.events import NoticeRejected
from modules.routes import Rejection, Response

CONSUMER = "payments-webhooks"
"""The consumer name of the dead letters that hold rejected webhooks."""

NOT_OURS = "unknown_intent"
"""The mismatch of a charge that names none of our orders: another shop uses the same account."""

UNKNOWN_ORDER = "unknown_order"
"""The mismatch of a charge that names an order which payments does not have."""

LOOK_UP_SECONDS = 20.0
REPORT_SECONDS = 3_600.0
"""What concerns all webhooks is logged no more often than this."""


class StripeWebhookHandler:
    """
    The handler behind the webhook route; see `app.web.endpoints.stripe_webhook.WebhookService`.

    *wall_seconds* is the machine's wall clock. The application's own clock does not advance while the machine is
    suspended, but Stripe's does.
    """

    def __init__(
        self,
        runner: ModuleRunner,
        secrets: str,
        ledger: ChargeLedger | None,
        look_up: Operation,
        dead_letters: DeadLetters,
        clock: Clock,
        metrics: Metrics,
        wall_seconds: Callable[[], float] = time.time,
    ) -> None:
        self._runner = runner
        self._secrets = tuple(filter(None, (part.strip() for part in secrets.split(","))))
        self._ledger = ledger
        self._look_up = look_up
        self._dead_letters = dead_letters
        self._clock = clock
        self._messages_handled = metrics.messages_handled
        self._wall_seconds = wall_seconds
        self._logged_at: dict[str, float] = {}

    @property
    def is_configured(self) -> bool:
        """False if there is no secret to check signatures with."""
        return bool(self._secrets)

    async def handle(self, body: bytes, signature: str | None, trace: TraceContext) -> str:
        """
        Process a webhook; return its outcome (``handled``, ``repeated``, ``ignored``, ``put_aside``) once that is stored.

        Raises:
            InvalidSignature: It was not sent by Stripe.
            ValueError: It is not an event.
            TemporarilyUnavailable: The database is out of reach.
            GatewayError: Its order could not be looked up.
        """
        self._check_signature(body, signature)
        event = parse_event(body)
        if not event.is_handled:
            return self._count("ignored", event)
        if event.needs_order:
            event = await self._with_order(event)
        mismatch = event.mismatch
        if event.notice is not None:
            is_repeated, mismatch = await self._submit(event, event.notice, trace)
            if is_repeated:
                return self._count("repeated", event)
            if mismatch == UNKNOWN_ORDER and not self._is_of_this_installation(event, event.notice.order_id):
                mismatch = NOT_OURS
        if mismatch == NOT_OURS:
            return self._count("ignored", event)
        if mismatch is None:
            return self._count("handled", event)
        await self._dead_letter(event, mismatch, body, trace)
        return self._count("put_aside", event)

    def _check_signature(self, body: bytes, signature: str | None) -> None:
        """
        Check the signature with each secret: each endpoint that is configured at Stripe has one of its own.

        Raises:
            InvalidSignature: None of them fits.
        """
        errors = []
        for secret in self._secrets:
            try:
                check_signature(body, signature, secret, self._wall_seconds())
            except InvalidSignature as error:
                errors.append(error)
            else:
                return
        found = next((error for error in errors if isinstance(error, OldSignature)), errors[-1])
        if signature is not None and self._is_first("signature"):
            logger.warning(
                "refusing webhooks: STRIPE_WEBHOOK_SECRET lacks the secret of an endpoint, or the clock is wrong", detail=str(found)
            )
        raise found

    async def _with_order(self, event: StripeEvent) -> StripeEvent:
        """
        Return *event* with the order that the metadata of its charge name.

        Raises:
            GatewayError: The charge could not be looked up.
        """
        if self._ledger is None:
            return event.for_owner(None)
        assert event.reference is not None
        try:
            owner = await self._look_up.call(partial(self._ledger.owner_of, event.reference), LOOK_UP_SECONDS)
        except BreakerOpen as error:
            raise GatewayNotReached("look-ups are suspended", error.retry_after_seconds) from None
        except ResponseMismatch as mismatch:
            return event.with_mismatch(mismatch.reason)
        return event.for_owner(owner)

    def _is_of_this_installation(self, event: StripeEvent, order_id: str) -> bool:
        """Return whether *event* is about an order of this installation that payments should have; log it once if it is not."""
        ours = None if self._ledger is None else self._ledger.installation
        if time_of_id(order_id) is None:  # no id that this program gives
            return False
        if ours is not None and event.installation == ours:
            return True
        if self._is_first("installation"):
            logger.warning(
                "ignoring webhooks about orders that this installation does not have: another one uses the same account",
                order_id=order_id, installation=event.installation, type=event.type,
            )  # fmt: skip
        return False

    def _is_first(self, what: str) -> bool:
        """Return whether *what* was not logged within the last hour; it counts as logged from now on."""
        now = self._clock.monotonic()
        if (logged_at := self._logged_at.get(what)) is not None and now < logged_at + REPORT_SECONDS:
            return False
        self._logged_at[what] = now
        return True

    async def _submit(self, event: StripeEvent, notice: Notice, trace: TraceContext) -> tuple[bool, str | None]:
        """Submit *notice* to payments; return whether it is a duplicate, and the code of the mismatch if it was rejected."""
        reply = await self._runner.submit(
            notice,
            # Derived from the order's id, so that it begins with the same time: they are purged together.
            id=derived_id(notice.order_id, f"stripe:{event.id}"),
            trace=trace,
            respond=_respond,
            is_new=False,
        )
        return reply.is_replay, reply.response.code if isinstance(reply.response, Rejection) else None

    async def _dead_letter(self, event: StripeEvent, mismatch: str, body: bytes, trace: TraceContext) -> None:
        order_id = event.notice.order_id if event.notice is not None else ""
        headers = {"ce-id": event.id, "ce-correlationid": trace.correlation_id, "traceparent": trace.traceparent}
        message = Message(f"stripe.{event.type}", event.id, body, order_id, headers)
        reference = event.reference or "an unknown object"
        detail = f"Stripe reports {event.type} for {reference}, which contradicts our data: {mismatch}"
        await self._dead_letters.add(DeadLetter.of(message, CONSUMER, mismatch, detail, 1, None, self._clock.now()))

    def _count(self, outcome: str, event: StripeEvent) -> str:
        self._messages_handled.labels("payments", f"stripe.{event.type if event.is_handled else 'other'}", outcome).inc()
        return outcome


def _respond(outcome: DecisionOutcome) -> Response | Rejection:
    """
    Reject a notice that payments rejected.

    The inbox does not keep the id of a rejected submission. So the webhook is processed again when Stripe repeats it,
    in case this process ends before the dead letter is stored.
    """
    for event in outcome.events:
        if isinstance(event, NoticeRejected):
            return Rejection(409, event.reason, "The notice contradicts our data.")
    return Response(200, None)
