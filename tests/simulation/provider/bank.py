"""The provider of one run, and the webhooks that it sends until each is answered."""

from __future__ import annotations

__all__ = ["Bank"]

import asyncio
import random
from typing import TYPE_CHECKING, Any

from app.gateways.port import GatewayError
from app.storage.errors import TemporarilyUnavailable
from tests.gateways.stripe_payloads import charge_object, error_object, event_object, intent_object, refund_object
from tests.simulation.provider.ledger import Charge, Provider, Refund
from tests.simulation.provider.weather import Weather
from tests.simulation.world.customers import NoAnswer
from tests.simulation.world.loop import START

if TYPE_CHECKING:
    from tests.simulation.world.process import Process
    from tests.simulation.world.world import World

WEBHOOK_SECONDS = 2.0
"""The time between two deliveries of a webhook."""

_STATUSES = {"captured": "succeeded", "declined": "requires_payment_method", "soft": "requires_payment_method"}


class Bank:
    """The provider of *world*, with its weather."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.weather = Weather()
        plan = world.plan
        self.provider = Provider(
            str(plan.seed), plan.traits, self.weather, world.label, world.note, self._send, world.breakers, before_charge=world.watch.before_charge
        )
        self._events = 0

    @property
    def is_idle(self) -> bool:
        """True if nothing more happens at the provider by itself."""
        return not self.provider.tasks and not self.provider.is_called

    def _send(self, kind: str, charge: Charge, refund: Refund | None) -> None:
        """Send the webhooks of a change, each perhaps more than once, in no promised order."""
        if not self._world.plan.has_webhooks:
            return
        for type_, value in _payloads(charge, refund, int(START.timestamp() + self._world.now)):
            self._events += 1
            event = event_object(f"evt_{self._events}", type_, value, int(START.timestamp() + self._world.now))
            rng = random.Random(f"{self._world.plan.seed}/webhook/{charge.reference}/{type_}")
            for _ in range(rng.choice([1, 1, 1, 2])):
                self.provider.soon(self._deliver(event, rng.uniform(0.0, 3.0), self._world.label(charge.order_id)))

    async def _deliver(self, event: Any, seconds: float, name: str) -> None:
        async def call(process: Process) -> str:
            return await process.receive_webhook(event)

        await asyncio.sleep(seconds)
        while True:
            try:
                outcome = await self._world.request("payments", call)
            except (NoAnswer, TemporarilyUnavailable, GatewayError):
                await asyncio.sleep(WEBHOOK_SECONDS)
                continue
            except Exception as error:
                if "the handler of" not in str(error):
                    self._world.fail(f"webhook {event['type']} of {name}: {error!r}")
                await asyncio.sleep(WEBHOOK_SECONDS)
                continue
            self._world.saw(f"webhook: {event['type']} {outcome}")
            self._world.note(f"webhook {event['type']} of {name}: {outcome}")
            return


def _payloads(charge: Charge, refund: Refund | None, now: int) -> list[tuple[str, Any]]:
    """Return the types and the objects of the webhooks about a change of *charge*, or of its *refund*."""
    currency = charge.money.currency.lower()
    metadata = {"order_id": charge.order_id, "key": charge.key}
    intent = intent_object(
        charge.reference, charge.money.amount, currency, _STATUSES.get(charge.status, "processing"), now, metadata=metadata
    )
    made = charge_object(
        charge.reference.replace("pi_", "ch_"), intent, "succeeded" if charge.status == "captured" else "failed",
        amount_refunded=charge.refunded,
    )  # fmt: skip
    if refund is not None:
        keys = {"metadata": {"order_id": charge.order_id, "key": refund.key}}
        failure = {"failure_reason": "lost_or_stolen_card"} if refund.status == "failed" else {}
        value = refund_object(refund.reference, made, refund.amount, refund.status, now, **keys, **failure)
        return [("refund.failed" if failure else "refund.updated", value), ("charge.refunded", made)]
    if charge.status == "captured":
        return [("payment_intent.succeeded", intent)]
    code = "try_again_later" if charge.status == "soft" else "insufficient_funds"
    intent["last_payment_error"] = error_object("card_error", "declined", "req_1", code="card_declined", decline_code=code)["error"]
    return [("payment_intent.payment_failed", intent)]
