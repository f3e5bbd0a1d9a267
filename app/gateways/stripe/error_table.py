"""
What each of Stripe's errors means for a charge, as a table. Pure, and without the SDK.

Only what concerns the customer's payment method declines a charge. A fault of the account, the key, a permission or a
parameter holds the order and is reported to the operator, and so is every code that is not in the table: a new code must never
cost a customer the order. See https://docs.stripe.com/error-codes and https://docs.stripe.com/declines/codes.
"""

from __future__ import annotations

__all__ = [
    "DECLINES",
    "FINAL_DECLINE_CODES",
    "MODE_DECLINE_CODES",
    "SOFT_DECLINES",
    "SOFT_DECLINE_CODES",
    "THROTTLES",
    "ErrorClass",
    "StripeFault",
    "error_class_of",
]

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

_FINAL_DECLINE_CODES = """
authentication_not_handled authentication_required call_issuer card_not_supported card_velocity_exceeded
currency_not_supported do_not_honor do_not_try_again duplicate_transaction expired_card fraudulent generic_decline
highest_risk_level incorrect_address incorrect_cvc incorrect_number incorrect_pin incorrect_zip insufficient_funds
invalid_account invalid_amount invalid_cvc invalid_expiry_month invalid_expiry_year invalid_number invalid_pin
live_mode_test_card lost_card merchant_blacklist new_account_information_available no_action_taken not_permitted
offline_pin_required online_or_offline_pin_required pickup_card pin_try_exceeded previously_declined_do_not_retry
restricted_card revocation_of_all_authorizations revocation_of_authorization security_violation service_not_allowed
stolen_card stop_payment_order testmode_decline transaction_not_allowed withdrawal_count_limit_exceeded
"""
FINAL_DECLINE_CODES = frozenset(_FINAL_DECLINE_CODES.split())
"""The other decline codes that Stripe documents. A code that is in no table is final, too, and logged."""

MODE_DECLINE_CODES = frozenset(["test_mode_live_card"])
"""The decline codes of a real card under a test key: the shop would decline every customer."""

KNOWN_DECLINE_CODES = SOFT_DECLINE_CODES | FINAL_DECLINE_CODES | MODE_DECLINE_CODES

FINAL_ADVICE = ("confirm_card_data", "do_not_try_again")
"""The advice codes after which the card networks charge a fee for another attempt with the same data."""

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


_OF_METHOD = re.compile(r"Payment ?Method\b.*\b(was previously used|is attached to a customer)\b", re.IGNORECASE)
"""
Stripe's message, which comes without a code, where a payment method is used up or belongs to a customer who is not named.

Without a customer a payment method can be used once, even if the card was declined then.
"""


@frozen
class StripeFault:
    """
    The members of an error response that count (https://docs.stripe.com/api/errors).

    *is_of_another_mode* is true if an object exists, but not in the mode of the key (test or live). *is_of_method* is
    true if only the message shows that the payment method cannot be used.
    """

    status: int | None
    type: str | None = None
    code: str | None = None
    decline_code: str | None = None
    advice_code: str | None = None
    param: str | None = None
    request_id: str | None = None
    is_of_another_mode: bool = False
    is_of_method: bool = False

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
            advice_code=_code(members.get("advice_code")),
            param=_code(members.get("param")),
            request_id=_code(request_id),
            is_of_another_mode=bool(_OF_ANOTHER_MODE.search(str(members.get("message")))),
            is_of_method=bool(_OF_METHOD.search(str(members.get("message")))),
        )

    @property
    def is_unknown_decline(self) -> bool:
        """True if it has a decline code that is in no table."""
        return self.decline_code is not None and self.decline_code not in KNOWN_DECLINE_CODES

    @property
    def reason(self) -> str:
        """The most exact of its codes."""
        if self.is_of_method and self.code is None:
            return "payment_method_unusable"
        return self.decline_code or self.code or self.type or f"status_{self.status}"


def error_class_of(fault: StripeFault) -> ErrorClass:
    """Return what *fault* means for a charge: the first row that fits."""
    status, code = fault.status or 0, fault.code
    is_soft = fault.decline_code in SOFT_DECLINE_CODES or code in SOFT_DECLINES
    rows: tuple[tuple[bool, ErrorClass], ...] = (
        (status == 429 or code in THROTTLES, ErrorClass.THROTTLED),
        (status == 409 or code == "idempotency_key_in_use", ErrorClass.IN_PROGRESS),
        (fault.type == "idempotency_error", ErrorClass.OTHER_REQUEST),
        (status in (401, 403), ErrorClass.MISCONFIGURED),
        (not 400 <= status < 500 or fault.type == "api_error", ErrorClass.UNKNOWN),
        (fault.is_of_another_mode or fault.decline_code in MODE_DECLINE_CODES, ErrorClass.MISCONFIGURED),
        (is_soft and fault.advice_code not in FINAL_ADVICE, ErrorClass.DECLINED_SOFTLY),
        (is_soft, ErrorClass.DECLINED),
        (fault.type == "card_error" or code in DECLINES or fault.is_of_method, ErrorClass.DECLINED),
        (code in (None, "resource_missing") and fault.param in _PAYMENT_METHOD_PARAMS, ErrorClass.DECLINED),
    )
    return next((error_class for holds, error_class in rows if holds), ErrorClass.MISCONFIGURED)


def _code(value: Any) -> str | None:
    """Return *value* if it is a code that may be shown; it never holds a text of Stripe, which may quote a secret."""
    return value if isinstance(value, str) and re.fullmatch(rf"[A-Za-z0-9_.\[\]-]{{1,{CODE_MAX}}}", value) else None
