"""What becomes of a webhook of Stripe's: payments is told, once; what does not fit is put aside for a person."""

from __future__ import annotations

__all__ = ["CONSUMER", "StripeWebhookHandler"]

import time
from collections.abc import Callable

from app.gateways.port import ChargeLedger
from app.gateways.stripe.webhook_event import StripeEvent, check_signature, read
from app.runtime.runner import ModuleRunner
from app.telemetry.metrics import Metrics
from app.telemetry.trace import TraceContext
from bus.ids import derived_id
from bus.port import Clock, DeadLetter, DeadLetters, Message
from modules.module import DecisionOutcome
from modules.payments.events import NoticeRejected
from modules.routes import Rejection, Response

CONSUMER = "payments-webhooks"
"""Under this name dead letters hold what could not be believed."""


class StripeWebhookHandler:
    """
    The desk for webhooks; see `app.web.endpoints.stripe_webhook.WebhookService`.

    *wall_seconds* is the machine's own clock: the house's stands still while the machine is suspended, Stripe's does not.
    """

    def __init__(
        self,
        runner: ModuleRunner,
        secret: str | None,
        ledger: ChargeLedger | None,
        letters: DeadLetters,
        clock: Clock,
        metrics: Metrics,
        wall_seconds: Callable[[], float] = time.time,
    ) -> None:
        self._runner = runner
        self._secret = secret
        self._ledger = ledger
        self._letters = letters
        self._clock = clock
        self._handled = metrics.messages_handled
        self._wall_seconds = wall_seconds

    @property
    def is_configured(self) -> bool:
        """False where there is no secret to check signatures with."""
        return self._secret is not None

    async def handle(self, body: bytes, signature: str | None, context: TraceContext) -> str:
        """
        See a webhook through; return what became of it once that is on disk.

        Raises:
            InvalidSignature: It does not come from Stripe.
            ValueError: It is no event.
            Shed: The database is out of reach.
            GatewayTrouble: Its order could not be looked up.
        """
        assert self._secret is not None
        check_signature(body, signature, self._secret, self._wall_seconds())
        event = read(body)
        if not event.is_handled:
            return self._count("ignored", event)
        if event.notice is None and event.mismatch is None:
            assert event.reference is not None
            event = event.for_order(None if self._ledger is None else await self._ledger.order_of(event.reference))
        doubt = event.mismatch
        if event.notice is not None:
            # The id begins as the order's does: what belongs together lies together, and is purged together.
            told = await self._runner.submit(
                event.notice,
                id=derived_id(event.notice.order_id, f"stripe:{event.id}"),
                trace=context,
                respond=_answer,
                is_new=False,
            )
            if told.is_replay:
                return self._count("repeated", event)
            doubt = told.response.code if isinstance(told.response, Rejection) else None
        if doubt is None:
            return self._count("handled", event)
        await self._put_aside(event, doubt, body, context)
        return self._count("put_aside", event)

    async def _put_aside(self, event: StripeEvent, doubt: str, body: bytes, context: TraceContext) -> None:
        now = self._clock.now()
        order_id = event.notice.order_id if event.notice is not None else ""
        headers = {"ce-id": event.id, "ce-correlationid": context.correlation_id, "traceparent": context.traceparent}
        await self._letters.add(
            DeadLetter(
                id=derived_id(event.id, CONSUMER),
                consumer=CONSUMER,
                message=Message(f"stripe.{event.type}", event.id, body, order_id, headers),
                error=doubt,
                detail=f"Stripe says {event.type} of {event.reference or 'nothing we know'}, which does not fit: {doubt}",
                attempts=1,
                first_seen=now,
                last_seen=now,
            )
        )

    def _count(self, outcome: str, event: StripeEvent) -> str:
        self._handled.labels("payments", f"stripe.{event.type if event.is_handled else 'other'}", outcome).inc()
        return outcome


def _answer(outcome: DecisionOutcome) -> Response | Rejection:
    """Refuse what is not believed: then the inbox does not keep it, and it may come again if it is not put aside now."""
    for event in outcome.events:
        if isinstance(event, NoticeRejected):
            return Rejection(409, event.reason, "What it says does not fit.")
    return Response(200, None)
