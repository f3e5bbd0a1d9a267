"""
The gateway for Stripe, over Stripe's SDK: PaymentIntents that are created and confirmed in one call, and refunds.

The idempotency key of a charge belongs to its order. So does the metadata entry ``order_id``, by which a charge whose
response got lost is found in Stripe's list. Stripe's list reflects every write at once; its search does not.
"""

from __future__ import annotations

__all__ = ["StripeGateway"]

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from math import ceil
from typing import Any

import stripe
from aiohttp import ClientTimeout
from loguru import logger

from app.gateways.port import (
    Captured,
    ChargeDetails,
    ChargeOwner,
    ChargeRecord,
    ChargeResult,
    Declined,
    GatewayMisconfigured,
    GatewayNotReached,
    GatewayTimeout,
    Pending,
    Refunded,
    RefundRejected,
    RefundResult,
)
from app.gateways.stripe.charge_lookup import ChargeLookup
from app.gateways.stripe.charge_params import charge_params, details_of, stripe_amount
from app.gateways.stripe.error_table import ErrorClass, StripeFault, error_class_of
from app.gateways.stripe.http_session import (
    CALL_SECONDS,
    CONNECT_SECONDS,
    READ_SECONDS,
    StripeRefusal,
    StripeSession,
    classify_errors,
    misconfigured,
)
from app.gateways.stripe.intent_list import IntentList
from app.gateways.stripe.payment_intent import (
    PaymentIntent,
    charge_metadata,
    charge_result,
    names_order,
    owner_named_in,
)
from app.gateways.stripe.refund import key_of, refund_result, refunded_total
from bus.ids import time_of_id
from modules.values import Money

REFUNDS_MAX = 100
"""How many refunds of a charge are read; Stripe returns no more at once."""

KEY_SECONDS = 23 * 3600
"""Stripe remembers an idempotency key for 24 hours at least (https://docs.stripe.com/api/idempotent_requests)."""

SKEW_SECONDS = 300
"""How far Stripe's clock and ours may differ."""

TEST_KEY = "sk_test_"
TEST_PAYMENT_METHOD = "pm_card_visa"
"""What an order without a payment method is paid with in Stripe's test mode; in live mode it is declined."""

_OPEN_STATUSES = ("requires_action", "requires_confirmation")
_CANCELLABLE_STATUSES = (*_OPEN_STATUSES, "requires_payment_method")
"""
The statuses in which a PaymentIntent is cancelled when its charge is no longer wanted. One that was declined is among them,
because it could be confirmed again with another card.
"""


class StripeGateway:
    """Charge and refund through Stripe; see `app.gateways.port.Gateway` for what is promised."""

    name = "stripe"

    def __init__(self, api_key: str, api_base: str, calls_max: int = 100, installation: str | None = None) -> None:
        # The SDK logs too much of each call, at DEBUG even the content of responses.
        logging.getLogger("stripe").setLevel(logging.WARNING)
        stripe.enable_telemetry = False
        self.installation = installation
        self._session = StripeSession(calls_max)
        timeout = ClientTimeout(total=CALL_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        self._client = stripe.StripeClient(
            api_key,
            base_addresses={"api": api_base},
            http_client=stripe.AIOHTTPClient(timeout=timeout, session=self._session),
            max_network_retries=0,
        )
        self._default_payment_method = TEST_PAYMENT_METHOD if api_key.startswith(TEST_KEY) else None
        self._intents = IntentList(self._get_intents)
        self._charge_lookup = ChargeLookup(self._intents.unread)
        self._takes_details = True
        self._proof_lock = asyncio.Lock()
        self._unknown_codes: set[str] = set()

    async def charge(self, key: str, order_id: str, amount: Money, details: ChargeDetails) -> ChargeResult:
        """Create a PaymentIntent and confirm it, in one call."""
        if amount.amount == 0:
            return Captured(f"free_{order_id}")
        payment_method = details.payment_method or self._default_payment_method
        if payment_method is None:
            return Declined("payment_method_missing")
        metadata = charge_metadata(order_id, key, self.installation)
        params = charge_params(amount, payment_method, details.customer, metadata)
        try:
            created = await self._create(params, key, details)
        except StripeRefusal as refusal:
            if refusal.fault.status == 404 and refusal.fault.code is None and not self._session.remembers_keys:
                return Declined("resource_missing")  # a compatible server does not name what is missing
            self._report_unknown(refusal.fault)
            return _declined(refusal.fault)
        intent = PaymentIntent.of(_to_json(created))
        try:
            return await self._present_result(intent, order_id, amount)
        except GatewayNotReached:  # that a later call had no effect is no evidence about the charge
            return Pending(intent.id)

    async def _present_result(self, intent: PaymentIntent, order_id: str, amount: Money) -> ChargeResult:
        """Return the present result of *intent*, the response to a charge; cancel it if it waits for the customer."""
        if intent.status != "succeeded" and (present := await self._retrieve(intent.id)) is not None:
            intent = PaymentIntent.of(present)  # the response may be an old one, repeated for the same key
        intent.check(order_id, amount)
        if intent.status in _OPEN_STATUSES:
            return await self._cancel(intent, order_id, amount)
        return charge_result([intent]) or Pending(intent.id)

    async def _create(self, params: Any, key: str, details: ChargeDetails) -> Any:
        """Create a PaymentIntent with description and address, or without them at a server that does not take them."""
        create = self._client.v1.payment_intents.create_async
        if self._takes_details:
            try:
                return await classify_errors(create(params | details_of(params, details), {"idempotency_key": key}))
            except StripeRefusal as refusal:
                if refusal.fault.status != 400 or refusal.fault.code is not None or self._session.remembers_keys:
                    raise
                self._takes_details = False
        return await classify_errors(create(params, {"idempotency_key": f"{key}:plain"}))

    def _report_unknown(self, fault: StripeFault) -> None:
        """Log once that a card was declined with a code that is in no table; such a decline is final."""
        if fault.is_unknown_decline and fault.reason not in self._unknown_codes:
            self._unknown_codes.add(fault.reason)
            logger.warning(
                "the payment provider declines with a code that this release does not know; it is taken as final",
                code=fault.reason, request_id=fault.request_id,
            )  # fmt: skip

    async def repeats_safely(self, order_id: str) -> bool:
        """Return True while Stripe remembers every key of the order, if the server has shown that it is Stripe."""
        placed_at = time_of_id(order_id)
        if placed_at is None or time.time() - placed_at.timestamp() > KEY_SECONDS:
            return False
        async with self._proof_lock:  # after a crash, many orders ask at the same time
            if not self._session.remembers_keys:  # any response shows it
                await self._get_intents({"limit": 1})
        return self._session.remembers_keys

    async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Look for PaymentIntents that name the order in Stripe's list."""
        return await self._look_up(order_id, amount, cancels_open=False)

    async def cancel(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Do the same as `find`, and cancel a PaymentIntent that waits for a confirmation."""
        return await self._look_up(order_id, amount, cancels_open=True)

    async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> RefundResult:
        """Look for a refund of the PaymentIntent *reference* under *key*, and create one if there is none."""
        if amount.amount == 0:
            return Refunded(reference, 0)
        total = None
        metadata = charge_metadata(order_id, key, self.installation)
        params: Any = {"payment_intent": reference, "amount": stripe_amount(amount), "metadata": metadata}
        try:
            rows = await self._refunds_of(reference)
            total = refunded_total(rows)
            if (made := _under_key(rows, key)) is not None:
                return refund_result(made, amount, total)
            try:
                call = self._client.v1.refunds.create_async(params, {"idempotency_key": key})
                created = _to_json(await classify_errors(call))
            except GatewayTimeout as error:
                if not error.has_ended:
                    raise
                rows = await self._refunds_of(reference)  # the key is free for another refund only if this one was not made
                if (made := _under_key(rows, key)) is None:
                    raise
                return refund_result(made, amount, refunded_total(rows))
        except StripeRefusal as refusal:
            return RefundRejected(refusal.fault.reason, refunded_total=total)
        return refund_result(created, amount, total + amount.amount)

    async def _refunds_of(self, reference: str) -> list[dict[str, Any]]:
        """Return the refunds of the PaymentIntent *reference*; an error ends no key, because it does not concern the refund."""
        call = self._client.v1.refunds.list_async({"payment_intent": reference, "limit": REFUNDS_MAX})
        try:
            return _rows(_to_json(await classify_errors(call)))
        except GatewayTimeout as error:
            raise GatewayTimeout(str(error), error.retry_after_seconds) from None
        except GatewayMisconfigured as error:
            error.ends_key = False
            raise

    async def records(self, since: datetime, until: datetime) -> AsyncIterator[ChargeRecord]:
        """Yield the PaymentIntents that were created from *since* until *until*."""
        async for row in self._intents.period(int(since.timestamp()), ceil(until.timestamp())):
            record = PaymentIntent.of(row).record()
            if since <= record.created_at < until:
                yield record

    async def owner_of(self, id: str) -> ChargeOwner | None:
        """Return what the PaymentIntent *id* was made for, or that of the charge *id*."""
        if not id.startswith("pi_"):
            charge = await self._retrieve_charge(id)
            intent = charge.get("payment_intent")
            if not isinstance(intent, str):  # it was made by hand, or by other software
                return None
            if names_order(charge):  # a charge has a copy of the metadata of its PaymentIntent
                return owner_named_in(charge, intent)
            id = intent
        row = await self._retrieve(id)
        return None if row is None else PaymentIntent.of(row).owner

    async def close(self) -> None:
        """Cancel look-ups and close all connections."""
        await self._charge_lookup.close()
        await self._session.close()

    async def _look_up(self, order_id: str, amount: Money, *, cancels_open: bool) -> ChargeResult | None:
        if amount.amount == 0:
            return Captured(f"free_{order_id}")
        intents = [PaymentIntent.of(row) for row in await self._intents_of(order_id)]
        for intent in intents:
            intent.check(order_id, amount)
        result = charge_result(intents)
        if result is None or (cancels_open and isinstance(result, Declined)):
            for intent in intents:
                if intent.status == "requires_action" or (cancels_open and intent.status in _CANCELLABLE_STATUSES):
                    became = await self._cancel(intent, order_id, amount)
                    result = result if isinstance(result, Declined) and isinstance(became, Declined) else became
        return result

    async def _intents_of(self, order_id: str) -> list[Mapping[str, Any]]:
        """Return all PaymentIntents that name the order, those that an earlier scan has read included."""
        rows = {row.get("id"): row for row in await self._charge_lookup.find(order_id, _earliest_charge(order_id))}
        for id in self._intents.ids(order_id):
            if id not in rows and (row := await self._retrieve(id)) is not None:
                rows[id] = row
        return list(rows.values())

    async def _cancel(self, intent: PaymentIntent, order_id: str, amount: Money) -> ChargeResult:
        """Cancel *intent*, which waits for the customer, who is no longer present; return what became of it."""
        try:
            response = await classify_errors(self._client.v1.payment_intents.cancel_async(intent.id))
        except StripeRefusal:
            return Pending(intent.id)  # its status has changed meanwhile; the next look-up finds the new one
        cancelled = PaymentIntent.of(_to_json(response))
        cancelled.check(order_id, amount)
        if cancelled.status == "canceled":
            return Declined("authentication_required" if intent.status == "requires_action" else "canceled")
        return charge_result([cancelled]) or Pending(intent.id)

    async def _retrieve(self, reference: str) -> Mapping[str, Any] | None:
        """Return the present state of a PaymentIntent; None if there is none."""
        try:
            return _to_json(await classify_errors(self._client.v1.payment_intents.retrieve_async(reference)))
        except StripeRefusal:
            return None

    async def _retrieve_charge(self, id: str) -> Mapping[str, Any]:
        """Return the present state of a charge; nothing if there is none."""
        try:
            return _to_json(await classify_errors(self._client.v1.charges.retrieve_async(id)))
        except StripeRefusal:
            return {}

    async def _get_intents(self, params: Mapping[str, Any]) -> Any:
        # A raw request: converting the list to the SDK's objects takes three times as long as reading it.
        response = await classify_errors(self._client.raw_request_async("get", "/v1/payment_intents", **params))
        return response.data


def _to_json(response: Any) -> dict[str, Any]:
    """Return an object of the SDK as the JSON that it was made from."""
    if not isinstance(response, stripe.StripeObject):
        raise GatewayTimeout("malformed response: not an object")
    value: dict[str, Any] = response.to_dict()
    return value


def _rows(page: Any) -> list[dict[str, Any]]:
    rows = page.get("data") if isinstance(page, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise GatewayTimeout("malformed response: not a list")
    return rows


def _under_key(refunds: Iterable[Mapping[str, Any]], key: str) -> Mapping[str, Any] | None:
    """Return the one of *refunds* that was made under *key*, or None."""
    return next((refund for refund in refunds if key_of(refund) == key), None)


def _declined(fault: StripeFault) -> Declined:
    """
    Return the decline that *fault* means.

    Raises:
        GatewayMisconfigured: It means none, because it does not concern the customer's payment method.
    """
    error_class = error_class_of(fault)
    if error_class not in (ErrorClass.DECLINED, ErrorClass.DECLINED_SOFTLY):
        raise misconfigured(fault)
    return Declined(fault.reason, is_soft=error_class is ErrorClass.DECLINED_SOFTLY)


def _earliest_charge(order_id: str) -> int:
    """Return the earliest time at which the order's charge may have been made, in seconds since 1970."""
    placed_at = time_of_id(order_id)
    return 0 if placed_at is None else int(placed_at.timestamp()) - SKEW_SECONDS
