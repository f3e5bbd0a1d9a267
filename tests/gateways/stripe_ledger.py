"""What Stripe keeps of an account: charges, refunds, disputes, and the events about them. Without its HTTP API."""

from __future__ import annotations

__all__ = ["StripeLedger", "group"]

import asyncio
import hmac
import itertools
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import aiohttp
import orjson
from attrs import define, field

from tests.gateways.stripe_payloads import (
    charge_object,
    dispute_object,
    error_object,
    event_object,
    intent_object,
    refund_object,
)
from tests.gateways.stripe_rules import Account, decline_of

_MONEY_BACK = ("succeeded", "pending", "requires_action")


@define
class StripeLedger:
    """The objects of one account by id, and what changes them. Each change is an event, sent to *webhook_url* if set."""

    account: Account = field(factory=Account)
    wall_seconds: Callable[[], float] = time.time
    webhook_url: str | None = None
    webhook_secret: str = "whsec_test"
    intents: dict[str, dict[str, Any]] = field(factory=dict)
    charges: dict[str, dict[str, Any]] = field(factory=dict)
    refunds: dict[str, dict[str, Any]] = field(factory=dict)
    disputes: dict[str, dict[str, Any]] = field(factory=dict)
    events: list[dict[str, Any]] = field(factory=list)
    ordinals: Any = field(factory=itertools.count, init=False)
    request_ids: Any = field(factory=itertools.count, init=False)
    deliveries: set[asyncio.Task[None]] = field(factory=set, init=False)

    def captured(self) -> dict[str, list[int]]:
        """Return the captured amounts by order."""
        found: dict[str, list[int]] = {}
        for intent in self.intents.values():
            if intent["status"] == "succeeded":
                found.setdefault(intent["metadata"].get("order_id", ""), []).append(intent["amount"])
        return found

    def refunded(self) -> dict[str, list[int]]:
        """Return the amounts by order that were refunded, or are about to be."""
        found: dict[str, list[int]] = {}
        for refund in self.refunds.values():
            if refund["status"] in _MONEY_BACK:
                order_id = self.intents[refund["payment_intent"]]["metadata"]["order_id"]
                found.setdefault(order_id, []).append(refund["amount"])
        return found

    # What happens at Stripe without a call of ours

    def fill(self, count: int, seconds: int = 300, order_id: Callable[[int], str | None] = lambda n: None) -> None:
        """Add *count* captured charges of the last *seconds*, as another process made them."""
        now = int(self.wall_seconds())
        for ordinal in range(count):
            id, order = f"pi_{next(self.ordinals)}", order_id(ordinal)
            metadata = {} if order is None else {"order_id": order, "key": f"charge:{order}"}
            created = now - seconds + ordinal * seconds // count
            self.intents[id] = intent_object(id, 500, "eur", "succeeded", created, metadata=metadata)

    def refund_in_dashboard(self, intent_id: str, amount: int) -> dict[str, Any]:
        """Refund a part of a charge by hand, as a person does in Stripe's dashboard."""
        return self.make_refund(self.intents[intent_id], amount, {}, "succeeded")

    def settle_refund(self, refund_id: str, status: str, reason: str = "lost_or_stolen_card") -> None:
        """Let a refund succeed or fail; the webhooks that follow are sent."""
        refund = self.refunds[refund_id]
        refund["status"] = status
        if status in ("failed", "canceled"):
            charge = self.charges[refund["charge"]]
            charge["amount_refunded"] -= refund["amount"]
            charge["refunded"] = False
        if status == "failed":
            refund |= {"failure_reason": reason, "failure_balance_transaction": f"txn_{refund_id}"}
            self.emit("refund.failed", refund)
        self.emit("charge.refund.updated", refund)
        self.emit("refund.updated", refund)

    def open_dispute(self, intent_id: str, status: str = "needs_response") -> dict[str, Any]:
        """Let the customer dispute a charge; the status ``warning_needs_response`` is an inquiry, which takes no money yet."""
        charge = self.charges[self.intents[intent_id]["latest_charge"]]
        id = f"dp_{next(self.ordinals)}"
        self.disputes[id] = dispute = dispute_object(id, charge, status, int(self.wall_seconds()))
        is_inquiry = status.startswith("warning_")
        dispute["is_charge_refundable"] = is_inquiry
        charge |= {"disputed": True, "dispute": id}
        self.emit("charge.dispute.created", dispute)
        if not is_inquiry:
            self.emit("charge.dispute.funds_withdrawn", dispute)
        return dispute

    def close_dispute(self, dispute_id: str, status: str) -> None:
        """Let the shop win (``won``) or lose (``lost``) a dispute."""
        dispute = self.disputes[dispute_id]
        dispute["status"] = status
        self.emit("charge.dispute.updated", dispute)
        if status == "won":
            self.emit("charge.dispute.funds_reinstated", dispute)
        self.emit("charge.dispute.closed", dispute)

    def emit(self, type: str, value: dict[str, Any]) -> None:
        """Keep an event, and send it to the webhook endpoint if there is one."""
        copy = orjson.loads(orjson.dumps(value))
        event = event_object(f"evt_{next(self.request_ids)}", type, copy, int(self.wall_seconds()))
        self.events.append(event)
        if self.webhook_url is not None:
            task = asyncio.create_task(self._deliver(orjson.dumps(event)))
            self.deliveries.add(task)
            task.add_done_callback(self.deliveries.discard)

    def signature(self, body: bytes) -> str:
        """Return the header Stripe-Signature for *body*."""
        now = int(self.wall_seconds())
        return f"t={now},v1={hmac.new(self.webhook_secret.encode(), b'%d.' % now + body, sha256).hexdigest()}"

    async def _deliver(self, body: bytes) -> None:
        """Send a webhook until it is answered with 2xx; Stripe does so for three days."""
        assert self.webhook_url is not None
        async with aiohttp.ClientSession() as session:
            while True:
                headers = {"Stripe-Signature": self.signature(body), "Content-Type": "application/json; charset=utf-8"}
                try:
                    async with session.post(self.webhook_url, data=body, headers=headers) as response:
                        if response.ok:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.5)

    def make_charge(self, form: dict[str, str], amount: int, method: str, *, is_live: bool) -> tuple[int, dict[str, Any]]:
        """Create a PaymentIntent and confirm it; return the status and the body of the answer."""
        decline = decline_of(method)
        status = {
            "pm_3ds": "requires_action", "pm_card_authenticationRequired": "requires_action",
            "pm_confirm": "requires_confirmation", "pm_slow": "processing",
        }  # fmt: skip
        id = f"pi_{next(self.ordinals)}"
        self.intents[id] = intent = intent_object(
            id,
            amount,
            form["currency"],
            "requires_payment_method" if decline else status.get(method, "succeeded"),
            int(self.wall_seconds()),
            customer=form.get("customer"),
            description=form.get("description"),
            livemode=is_live,
            metadata=group(form, "metadata"),
            payment_method=None if decline else method,
            shipping=_shipping(form),
        )
        self.emit("payment_intent.created", intent)
        if intent["status"] == "requires_action":
            intent["next_action"] = {"type": "use_stripe_sdk", "use_stripe_sdk": {"type": "three_d_secure_redirect"}}
            self.emit("payment_intent.requires_action", intent)
            return 200, intent
        if intent["status"] == "requires_confirmation":
            return 200, intent
        charge_id = f"ch_{id[3:]}"
        statuses = {"succeeded": "succeeded", "processing": "pending"}
        charge = charge_object(charge_id, intent, statuses.get(intent["status"], "failed"))
        self.charges[charge_id] = charge
        intent["latest_charge"] = charge_id
        if decline is None:
            if intent["status"] == "succeeded":
                self.emit("charge.succeeded", charge)
                self.emit("payment_intent.succeeded", intent)
                if method == "pm_card_createDispute":
                    self.open_dispute(id)
            return 200, intent
        charge |= {"failure_code": decline.code, "failure_message": "Your card was declined."}
        charge["outcome"] |= {"reason": decline.decline_code or decline.code, "advice_code": decline.advice_code}
        request_id = f"req_{next(self.request_ids)}"
        error = error_object(
            "card_error",
            "Your card was declined.",
            request_id,
            code=decline.code,
            decline_code=decline.decline_code,
            advice_code=decline.advice_code,
            charge=charge_id,
        )["error"]
        intent["last_payment_error"] = dict(error)
        self.emit("charge.failed", charge)
        self.emit("payment_intent.payment_failed", intent)
        return 402, {"error": error | {"payment_intent": intent}}

    def make_refund(
        self, intent: dict[str, Any], amount: int, metadata: dict[str, str], status: str
    ) -> dict[str, Any]:
        charge = self.charges[intent["latest_charge"]]
        id = f"re_{next(self.ordinals)}"
        self.refunds[id] = refund = refund_object(id, charge, amount, status, int(self.wall_seconds()), metadata=metadata)
        if status != "failed":
            charge["amount_refunded"] += amount
            charge["refunded"] = charge["amount_refunded"] == charge["amount"]
            if self.account.balance is not None:
                self.account.balance -= amount
        self.emit("refund.created", refund)
        self.emit("charge.refunded", charge)
        return refund


def group(form: dict[str, str], name: str) -> dict[str, str]:
    """Return the members of the parameter *name*, which holds others: ``name[member]``."""
    return {key[len(name) + 1 : -1]: value for key, value in form.items() if key.startswith(f"{name}[")}


def _shipping(form: dict[str, str]) -> dict[str, Any] | None:
    given = group(form, "shipping")
    if not given:
        return None
    address = {name: form.get(f"shipping[address][{name}]") for name in ("line1", "line2", "city", "postal_code", "country")}
    return {
        "address": {**address, "state": None},
        "carrier": None,
        "name": given.get("name"),
        "phone": None,
        "tracking_number": None,
    }
