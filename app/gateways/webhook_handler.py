"""What becomes of a webhook of Stripe's: payments is told, once; what does not fit is put aside for a person."""

from __future__ import annotations

__all__ = ["CONSUMER", "Webhooks"]

import time
from collections.abc import Callable

from app.gateways.port import Ledger
from app.gateways.stripe.webhook_event import StripeEvent, check_signature, read
from app.runtime.runner import Shell
from app.runtime.service import Context
from app.telemetry.metrics import Metrics
from bus.ids import caused_id
from bus.port import Clock, DeadLetter, DeadLetters, Message
from modules.module import Outcome
from modules.payments.events import NotBelieved
from modules.route import Answer, Refusal

CONSUMER = "payments-webhooks"
"""Under this name dead letters hold what could not be believed."""


class Webhooks:
    """
    The desk for webhooks; see `app.web.endpoints.stripe_webhook.WebhookDesk`.

    *wall_seconds* is the machine's own clock: the house's stands still while the machine is suspended, Stripe's does not.
    """

    def __init__(
        self,
        shell: Shell,
        secret: str | None,
        ledger: Ledger | None,
        letters: DeadLetters,
        clock: Clock,
        metrics: Metrics,
        wall_seconds: Callable[[], float] = time.time,
    ) -> None:
        self._shell = shell
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

    async def take(self, body: bytes, signature: str | None, context: Context) -> str:
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
        if not event.is_heard:
            return self._over("ignored", event)
        if event.said is None and event.doubt is None:
            assert event.reference is not None
            event = event.for_order(None if self._ledger is None else await self._ledger.order_of(event.reference))
        doubt = event.doubt
        if event.said is not None:
            # The id begins as the order's does: what belongs together lies together, and is purged together.
            told = await self._shell.tell(
                event.said,
                id=caused_id(event.said.order_id, f"stripe:{event.id}"),
                context=context,
                answer=_answer,
                is_new=False,
            )
            if told.is_replay:
                return self._over("repeated", event)
            doubt = told.answer.code if isinstance(told.answer, Refusal) else None
        if doubt is None:
            return self._over("handled", event)
        await self._put_aside(event, doubt, body, context)
        return self._over("put_aside", event)

    async def _put_aside(self, event: StripeEvent, doubt: str, body: bytes, context: Context) -> None:
        now = self._clock.now()
        order_id = event.said.order_id if event.said is not None else ""
        headers = {"ce-id": event.id, "ce-correlationid": context.correlation_id, "traceparent": context.traceparent}
        await self._letters.add(
            DeadLetter(
                id=caused_id(event.id, CONSUMER),
                consumer=CONSUMER,
                message=Message(f"stripe.{event.type}", event.id, body, order_id, headers),
                error=doubt,
                detail=f"Stripe says {event.type} of {event.reference or 'nothing we know'}, which does not fit: {doubt}",
                attempts=1,
                first_seen=now,
                last_seen=now,
            )
        )

    def _over(self, outcome: str, event: StripeEvent) -> str:
        self._handled.labels("payments", f"stripe.{event.type if event.is_heard else 'other'}", outcome).inc()
        return outcome


def _answer(outcome: Outcome) -> Answer | Refusal:
    """Refuse what is not believed: then the inbox does not keep it, and it may come again if it is not put aside now."""
    for event in outcome.events:
        if isinstance(event, NotBelieved):
            return Refusal(409, event.reason, "What it says does not fit.")
    return Answer(200, None)
