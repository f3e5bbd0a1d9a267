"""
What each of Stripe's errors means for a charge, as a table. Pure, and without the SDK.

Only what concerns the customer's payment method declines a charge. A fault of the account, the key, a permission or a
parameter holds the order and is reported to the operator, and so is every code that is not in the table: a new code must never
cost a customer the order. See https://docs.stripe.com/error-codes and https://docs.stripe.com/declines/codes.
"""

from __future__ import annotations

__all__ = ["DECLINES", "SOFT_DECLINES", "SOFT_DECLINE_CODES", "THROTTLES", "ErrorClass", "StripeFault", "error_class_of"]

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from attrs import frozen

CODE_MAX = 64


class ErrorClass(StrEnum):
    """What the caller does next."""

    DECLINED = "declined"
    """The customer's payment method does not pay, now or later."""
    DECLINED_SOFTLY = "declined_softly"
    """The same charge may succeed in a while."""
    MISCONFIGURED = "misconfigured"
    """The configuration is wrong, not the payment method: hold the order, and report it to the operator."""
    THROTTLED = "throttled"
    """The call was not processed; the next ones should be slower."""
    IN_PROGRESS = "in_progress"
    """An earlier call under the same key is still under way."""
    OTHER_REQUEST = "other_request"
    """The idempotency key belongs to a call with other parameters."""
    UNKNOWN = "unknown"
    """Stripe failed; the call may have had its effect."""


SOFT_DECLINE_CODES = frozenset(
    ["approve_with_id", "issuer_not_available", "processing_error", "reenter_transaction", "try_again_later"]
)
"""The decline codes for which Stripe's documentation recommends another attempt. All others are final."""

_SOFT_CODES = """
payment_method_not_available payment_method_provider_timeout processing_error three_d_secure_authentication_upstream_error
"""
SOFT_DECLINES = frozenset(_SOFT_CODES.split())
"""The error codes of the same kind."""

_THROTTLE_CODES = "lock_timeout payment_intent_rate_limit_exceeded rate_limit"
THROTTLES = frozenset(_THROTTLE_CODES.split())

_DECLINE_CODES = """
account_closed account_number_invalid authentication_failure authentication_required bank_account_bad_routing_numbers
bank_account_declined bank_account_restricted bank_account_unusable bank_account_unverified
bank_account_verification_failed billing_invalid_mandate card_decline_rate_limit_exceeded card_declined
cardholder_phone_number_required charge_exceeds_source_limit debit_not_authorized expired_card expired_payment_method
incorrect_address incorrect_cvc incorrect_number incorrect_postal_code incorrect_zip
india_recurring_payment_mandate_canceled insufficient_funds invalid_card_type invalid_cvc invalid_expiry_month
invalid_expiry_year invalid_mandate_reference_prefix_format invalid_number invalid_source_usage missing no_account
payment_intent_action_required payment_intent_authentication_failure payment_intent_incompatible_payment_method
payment_intent_konbini_rejected_confirmation_number payment_intent_mandate_invalid payment_intent_payment_attempt_expired
payment_intent_payment_attempt_failed payment_method_bank_account_blocked
payment_method_billing_details_address_missing payment_method_currency_mismatch payment_method_customer_decline
payment_method_provider_decline payment_method_restricted payment_method_unexpected_state payment_method_unsupported_type
refer_to_customer routing_number_invalid sepa_unsupported_account three_d_secure_authentication_not_supported
token_already_used token_card_network_invalid token_in_use
"""
DECLINES = frozenset(_DECLINE_CODES.split())
"""The error codes that concern the customer's payment method, whatever the type of the error."""

_PAYMENT_METHOD_PARAMS = ("customer", "payment_method")
"""The parameters by which the shop names the customer's payment method."""

_OF_ANOTHER_MODE = re.compile(r"similar object exists in (test|live) mode")
"""Stripe's message where the key is of the test mode and the payment method is not, or the reverse."""


@frozen
class StripeFault:
    """
    The members of an error response that count (https://docs.stripe.com/api/errors).

    *is_of_another_mode* is true if an object exists, but not in the mode of the key (test or live).
    """

    status: int | None
    type: str | None = None
    code: str | None = None
    decline_code: str | None = None
    param: str | None = None
    request_id: str | None = None
    is_of_another_mode: bool = False

    @classmethod
    def of(cls, status: int | None, body: Any, request_id: str | None) -> StripeFault:
        """Parse *body*, the JSON of a response; whatever it is, the result has no member that is not a code."""
        error = body.get("error") if isinstance(body, Mapping) else None
        members = error if isinstance(error, Mapping) else {}
        return cls(
            status=status,
            type=_code(members.get("type")),
            code=_code(members.get("code")),
            decline_code=_code(members.get("decline_code")),
            param=_code(members.get("param")),
            request_id=_code(request_id),
            is_of_another_mode=bool(_OF_ANOTHER_MODE.search(str(members.get("message")))),
        )

    @property
    def reason(self) -> str:
        """The most exact of its codes."""
        return self.decline_code or self.code or self.type or f"status_{self.status}"


def error_class_of(fault: StripeFault) -> ErrorClass:
    """Return what *fault* means for a charge: the first row that fits."""
    status, code = fault.status or 0, fault.code
    rows: tuple[tuple[bool, ErrorClass], ...] = (
        (status == 429 or code in THROTTLES, ErrorClass.THROTTLED),
        (status == 409 or code == "idempotency_key_in_use", ErrorClass.IN_PROGRESS),
        (fault.type == "idempotency_error", ErrorClass.OTHER_REQUEST),
        (status in (401, 403), ErrorClass.MISCONFIGURED),
        (not 400 <= status < 500 or fault.type == "api_error", ErrorClass.UNKNOWN),
        (fault.is_of_another_mode, ErrorClass.MISCONFIGURED),
        (fault.decline_code in SOFT_DECLINE_CODES or code in SOFT_DECLINES, ErrorClass.DECLINED_SOFTLY),
        (fault.type == "card_error" or code in DECLINES, ErrorClass.DECLINED),
        (code in (None, "resource_missing") and fault.param in _PAYMENT_METHOD_PARAMS, ErrorClass.DECLINED),
    )
    return next((error_class for holds, error_class in rows if holds), ErrorClass.MISCONFIGURED)


def _code(value: Any) -> str | None:
    """Return *value* if it is a code that may be shown; it never holds a text of Stripe, which may quote a secret."""
    return value if isinstance(value, str) and re.fullmatch(rf"[A-Za-z0-9_.\[\]-]{{1,{CODE_MAX}}}", value) else None
