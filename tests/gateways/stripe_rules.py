"""The rules of Stripe's documentation for keys, permissions, parameters, currencies and test cards. No server, no ledger."""

from __future__ import annotations

__all__ = [
    "Account",
    "Decline",
    "Refusal",
    "check_amount",
    "check_parameters",
    "check_refund",
    "decline_of",
    "is_dispute_final",
]

from collections.abc import Mapping
from typing import Any

from attrs import define, field, frozen

_CODES = """
aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd bwp byn bzd cad cdf chf clp cny
cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gnf gtq gyd hkd hnl htg huf idr ils inr isk jmd
jod jpy kes kgs khr kmf krw kwd kyd kzt lak lbp lkr lrd lsl mad mdl mga mkd mmk mnt mop mur mvr mwk mxn myr mzn nad
ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg qar ron rsd rub rwf sar sbd scr sek sgd shp sle sos srd std szl
thb tjs tnd top try ttd twd tzs uah ugx usd uyu uzs vnd vuv wst xaf xcd xcg xof xpf yer zar zmw
"""
CURRENCIES = frozenset(_CODES.split())
"""https://docs.stripe.com/currencies#presentment-currencies"""

_WITHOUT_FRACTIONS = frozenset({"isk", "ugx"})
"""Counted with two decimals, which must be 00."""

_THREE_DECIMALS = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
_MINIMUM = {
    "usd": 50, "aed": 200, "aud": 50, "bgn": 100, "brl": 50, "cad": 50, "chf": 50, "czk": 1500, "dkk": 250, "eur": 50,
    "gbp": 30, "hkd": 400, "huf": 17_500, "inr": 50, "jpy": 50, "mxn": 1000, "myr": 200, "nok": 300, "nzd": 50,
    "pln": 200, "ron": 200, "sek": 300, "sgd": 50, "thb": 1000,
}
"""https://docs.stripe.com/currencies#minimum-and-maximum-charge-amounts"""

KEY_LENGTH_MAX = 255
METADATA_MAX = 50
METADATA_NAME_MAX = 40
METADATA_VALUE_MAX = 500
"""https://docs.stripe.com/api/metadata"""
AMOUNT_MAX = 99_999_999

INTENT_PARAMETERS = frozenset({"amount", "confirm", "currency", "customer", "description", "off_session", "payment_method"})
INTENT_GROUPS = ("metadata[", "payment_method_types[", "shipping[", "expand[")
REFUND_PARAMETERS = frozenset({"amount", "charge", "payment_intent", "reason"})
REFUND_GROUPS = ("metadata[", "expand[")


@frozen
class Refusal(Exception):
    """Answer with an error; *is_saved* is false if the endpoint had not begun to execute, so that the key stays free."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    is_saved: bool = False


@frozen
class Decline:
    """A declined card: the error's code and decline code."""

    code: str
    decline_code: str | None = None
    advice_code: str | None = None


_DECLINES = {
    "pm_declined": Decline("card_declined", "insufficient_funds", "try_again_later"),
    "pm_card_chargeCustomerFail": Decline("card_declined", "generic_decline", "try_again_later"),
    "pm_card_chargeDeclined": Decline("card_declined", "generic_decline", "try_again_later"),
    "pm_card_visa_chargeDeclined": Decline("card_declined", "generic_decline", "try_again_later"),
    "pm_card_chargeDeclinedExpiredCard": Decline("expired_card"),
    "pm_card_chargeDeclinedFraudulent": Decline("card_declined", "fraudulent", "do_not_try_again"),
    "pm_card_chargeDeclinedIncorrectCvc": Decline("incorrect_cvc"),
    "pm_card_chargeDeclinedInsufficientFunds": Decline("card_declined", "insufficient_funds", "try_again_later"),
    "pm_card_chargeDeclinedProcessingError": Decline("processing_error", None, "try_again_later"),
    "pm_card_visa_chargeDeclinedLostCard": Decline("card_declined", "lost_card", "do_not_try_again"),
    "pm_card_visa_chargeDeclinedStolenCard": Decline("card_declined", "stolen_card", "do_not_try_again"),
    "pm_try_again_later": Decline("card_declined", "try_again_later", "try_again_later"),
}


def decline_of(payment_method: str) -> Decline | None:
    """Return how a charge of *payment_method* is declined; None if it is not. ``..._decline_<code>`` has that decline code."""
    _, declines, code = payment_method.partition("_decline_")
    if declines:
        return Decline("card_declined", code)
    return _DECLINES.get(payment_method)


@define
class Account:
    """The account: what it may do, who its saved cards belong to, and the money on it."""

    can_charge: bool = True
    is_indian: bool = False
    """Export rules: each charge needs a description and the customer's name and address."""
    balance: int | None = None
    """How much there is for refunds; None is enough for all."""
    lack_of_balance_code: str = "insufficient_funds"
    expired_keys: set[str] = field(factory=set)
    denied: set[str] = field(factory=set)
    """The permissions that a restricted key lacks: ``payment_intent_write``, ``payment_intent_read``, ``refund_write``."""
    saved_cards: dict[str, str] = field(factory=dict)
    """The customer that each saved payment method is attached to."""
    used: set[str] = field(factory=set)
    """The payment methods that were used without a customer, whether or not the charge succeeded."""

    def authorize(self, key: str | None, permission: str) -> None:
        """
        Check the key of a call that needs *permission*.

        Raises:
            Refusal: 401, or 403 if only the permission is missing.
        """
        if not key:
            raise Refusal(401, "You did not provide an API key. You need to provide your API key in the Authorization header.")
        shown = f"{key[:8]}{'*' * 12}{key[-4:]}"
        if not key.startswith(("sk_test_", "sk_live_", "rk_test_", "rk_live_")):
            raise Refusal(401, f"Invalid API Key provided: {shown}")
        if key in self.expired_keys:
            raise Refusal(401, f"Expired API Key provided: {shown}", code="api_key_expired")
        if permission in self.denied:
            message = (
                f"The provided key '{shown}' does not have the required permissions for this endpoint on account"
                f" 'acct_1Pgaft'. Having the 'rak_{permission}' permission would allow this request to continue."
            )
            raise Refusal(403, message)

    def check_method(self, payment_method: str, customer: str | None, *, is_live: bool) -> None:
        """
        Check that *payment_method* exists and belongs to *customer*.

        Raises:
            Refusal: 400.
        """
        owner = self.saved_cards.get(payment_method)
        if not payment_method.startswith("pm_") or payment_method.startswith("pm_unknown"):
            message = f"No such PaymentMethod: '{payment_method}'"
            raise Refusal(400, message, code="resource_missing", param="payment_method")
        if is_live and payment_method.startswith("pm_card_"):
            message = (
                f"No such PaymentMethod: '{payment_method}'; a similar object exists in test mode, but a live mode key was"
                " used to make this request."
            )
            raise Refusal(400, message, code="resource_missing", param="payment_method")
        if customer is not None and customer not in self.saved_cards.values():
            raise Refusal(400, f"No such customer: '{customer}'", code="resource_missing", param="customer")
        if owner is not None and customer is None:
            message = (
                "The payment method you provided is attached to a customer so for security purposes you must provide the"
                " customer in the request."
            )
            raise Refusal(400, message, param="payment_method")
        if owner != customer:
            message = f"The customer does not have a payment method with the ID {payment_method}."
            raise Refusal(400, message, code="resource_missing", param="payment_method")

    def use_once(self, payment_method: str) -> None:
        """
        Use up a payment method with an id as Stripe gives it; the names of its test cards stand for a new one each time.

        Raises:
            Refusal: 400, without a code: it is attached to no customer, and was used before.
        """
        if payment_method.startswith("pm_1") and payment_method not in self.saved_cards:
            if payment_method in self.used:
                message = (
                    "The provided PaymentMethod was previously used with a PaymentIntent without Customer attachment, shared"
                    " with a connected account without Customer attachment, or was detached from a Customer. It may not be"
                    " used again. To use a PaymentMethod multiple times, you must attach it to a Customer first."
                )
                raise Refusal(400, message, is_saved=True)
            self.used.add(payment_method)

    def check_charge(self, form: Mapping[str, str]) -> None:
        """
        Check what depends on the account.

        Raises:
            Refusal: 400, under the idempotency key from now on.
        """
        if not self.can_charge:
            message = (
                "Your account cannot currently make live charges. If you are a sole proprietor or have other questions about"
                " activating your account, please contact us."
            )
            raise Refusal(400, message, is_saved=True)
        if self.is_indian:
            needed = ("description", "shipping[name]", "shipping[address][line1]", "shipping[address][country]")
            if not all(form.get(name) for name in needed):
                message = (
                    "As per Indian regulations, export transactions require a description and a customer name and address."
                    " More info here: https://stripe.com/docs/india-exports"
                )
                raise Refusal(400, message, is_saved=True)


def is_dispute_final(dispute: Mapping[str, Any]) -> bool:
    """Return whether the money of a dispute was withdrawn, so that its charge cannot be refunded."""
    return not str(dispute["status"]).startswith("warning_") and dispute["status"] not in ("won", "prevented")


def check_refund(form: Mapping[str, str]) -> None:
    """
    Check the parameters of a refund beyond their names.

    Raises:
        Refusal: 400.
    """
    if ("charge" in form) == ("payment_intent" in form):
        raise Refusal(400, "Pass exactly one of payment_intent and charge.", code="parameters_exclusive", param="payment_intent")
    amount = form.get("amount", "")
    if not amount.isdecimal() or int(amount) < 1:
        raise Refusal(400, f"Invalid positive integer: {amount}", code="parameter_invalid_integer", param="amount")
    if form.get("reason", "duplicate") not in ("duplicate", "fraudulent", "requested_by_customer"):
        raise Refusal(400, "Invalid reason", param="reason")


def check_parameters(form: Mapping[str, str], known: frozenset[str], groups: tuple[str, ...]) -> None:
    """
    Check the names of the parameters, and the limits of metadata.

    Raises:
        Refusal: 400 for one that the endpoint does not have.
    """
    metadata = {name[9:-1]: value for name, value in form.items() if name.startswith("metadata[")}
    is_long = any(len(name) > METADATA_NAME_MAX or len(value) > METADATA_VALUE_MAX for name, value in metadata.items())
    if len(metadata) > METADATA_MAX or is_long:
        raise Refusal(400, "Metadata have too many keys, or one that is too long.", param="metadata")
    if any(name.startswith("shipping[") for name in form) and not (form.get("shipping[name]") and form.get("shipping[address][line1]")):
        raise Refusal(400, "Missing required param: shipping[name].", code="parameter_missing", param="shipping[name]")
    for name in form:
        if name not in known and not name.startswith(groups):
            message = f"Received unknown parameter: {name.partition('[')[0]}"
            raise Refusal(400, message, code="parameter_unknown", param=name.partition("[")[0])


def check_amount(amount: str | None, currency: str | None) -> int:
    """
    Return the amount of a charge.

    Raises:
        Refusal: 400; no charge can be made of it.
    """
    if amount is None or currency is None:
        name = "amount" if amount is None else "currency"
        raise Refusal(400, f"Missing required param: {name}.", code="parameter_missing", param=name)
    if currency not in CURRENCIES:
        known = ", ".join(sorted(CURRENCIES))
        raise Refusal(400, f"Invalid currency: {currency}. Stripe currently supports these currencies: {known}", param="currency")
    if not amount.isdecimal() or int(amount) < 1:
        message = "This value must be greater than or equal to 1." if amount.isdecimal() else f"Invalid integer: {amount}"
        raise Refusal(400, message, code="parameter_invalid_integer", param="amount")
    number = int(amount)
    if number > AMOUNT_MAX:
        message = "Amount must be no more than $999,999.99"
        raise Refusal(400, message, code="amount_too_large", param="amount")
    if number < _MINIMUM.get(currency, 1):
        message = f"Amount must be at least {_MINIMUM[currency]} {currency}"
        raise Refusal(400, message, code="amount_too_small", param="amount")
    if (currency in _WITHOUT_FRACTIONS and number % 100) or (currency in _THREE_DECIMALS and number % 10):
        raise Refusal(400, f"Invalid amount. Amounts in {currency} must end in zeros.", param="amount")
    return number
