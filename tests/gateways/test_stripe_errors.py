"""What Stripe's errors mean: only what concerns the customer's payment method declines, everything else holds the order."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from app.gateways.port import Captured, ChargeDetails, Declined, GatewayMisconfigured, GatewayThrottled
from app.gateways.stripe.error_table import (
    DECLINES,
    FINAL_DECLINE_CODES,
    MODE_DECLINE_CODES,
    SOFT_DECLINE_CODES,
    SOFT_DECLINES,
    THROTTLES,
    ErrorClass,
    StripeFault,
    error_class_of,
)
from app.gateways.stripe.gateway import StripeGateway
from modules.values import Address, Money
from tests.gateways.contract import new_order_id
from tests.gateways.fault import Fault, FaultyStripe
from tests.gateways.local import API_KEY

EUR = Money(1250, "EUR")

_HELD = """
account_country_invalid_address account_error_country_change_requires_additional_steps account_information_mismatch
account_invalid account_token_required_for_v2_account acss_debit_session_incomplete action_blocked
alipay_upgrade_required amount_too_large amount_too_small anomalous_money_movement_request api_key_expired
application_fees_not_allowed approval_required balance_insufficient balance_invalid_parameter bank_account_exists
bitcoin_upgrade_required capability_not_active capture_charge_authorization_expired capture_unauthorized_payment
charge_already_captured charge_already_refunded charge_disputed charge_exceeds_transaction_limit
charge_expired_for_capture charge_invalid_parameter charge_not_refundable clearing_code_unsupported
country_code_invalid country_unsupported coupon_expired customer_max_payment_methods customer_max_subscriptions
customer_session_expired customer_tax_location_invalid dispute_evidence_page_limit_exceeded email_invalid
failed_tax_calculation financial_account_balance_does_not_support_currency financial_account_capability_not_enabled
financial_account_capability_restricted financial_connections_account_inactive
financial_connections_account_pending_account_numbers financial_connections_account_unavailable_account_numbers
financial_connections_consent_locale_invalid financial_connections_consent_locale_unsupported
financial_connections_no_successful_transaction_refresh forwarding_api_inactive forwarding_api_invalid_parameter
forwarding_api_retryable_upstream_error forwarding_api_upstream_connection_error
forwarding_api_upstream_connection_timeout forwarding_api_upstream_error instant_payouts_config_disabled
instant_payouts_currency_disabled instant_payouts_limit_exceeded instant_payouts_unsupported intent_invalid_state
intent_verification_method_missing invalid_canceled_subscription_fields invalid_characters invalid_charge_amount
invalid_tax_location invoice_no_customer_line_items invoice_no_payment_method_types
invoice_no_subscription_line_items invoice_not_editable invoice_on_behalf_of_not_editable
invoice_payment_intent_requires_action invoice_upcoming_none livemode_mismatch not_allowed_on_standard_account
out_of_inventory ownership_declaration_not_allowed parameter_invalid_empty parameter_invalid_integer
parameter_invalid_string_blank parameter_invalid_string_empty parameter_missing parameter_unknown
parameters_exclusive payment_evaluation_on_api_version_not_supported payment_intent_invalid_parameter
payment_intent_unexpected_state payment_method_bank_account_already_verified payment_method_configuration_failures
payment_method_invalid_parameter payment_method_invalid_parameter_testmode payment_method_microdeposit_failed
payment_method_microdeposit_processing_error payment_method_microdeposit_verification_amounts_invalid
payment_method_microdeposit_verification_amounts_mismatch payment_method_microdeposit_verification_attempts_exceeded
payment_method_microdeposit_verification_descriptor_code_mismatch payment_method_microdeposit_verification_timeout
payment_method_unactivated payout_reconciliation_not_ready payouts_limit_exceeded payouts_not_allowed
platform_account_required platform_api_key_expired postal_code_invalid product_inactive
progressive_onboarding_limit_exceeded refund_disputed_payment request_blocked resource_already_exists
resource_missing return_intent_already_processed secret_key_required
service_period_coupon_with_metered_tiered_item_unsupported setup_attempt_failed setup_intent_authentication_failure
setup_intent_invalid_parameter setup_intent_mandate_invalid setup_intent_mobile_wallet_unsupported
setup_intent_setup_attempt_expired setup_intent_unexpected_state shipping_address_invalid
shipping_calculation_failed siret_invalid sku_inactive smart_disputes_not_available state_unsupported
status_transition_invalid storer_capability_missing storer_capability_not_active stripe_tax_inactive
subscription_update_trial_after_billing_cycle_anchor tax_id_invalid tax_id_prohibited taxes_calculation_failed
terminal_location_country_unsupported terminal_reader_busy terminal_reader_hardware_fault
terminal_reader_invalid_location_for_activation terminal_reader_invalid_location_for_payment terminal_reader_offline
terminal_reader_timeout testmode_charges_only tls_version_unsupported transfer_source_balance_parameters_mismatch
transfers_not_allowed url_invalid
"""
HELD = frozenset(_HELD.split())
"""Every code that Stripe publishes and that does not concern the customer's payment method."""

CARD_DECLINES = sorted(SOFT_DECLINE_CODES | FINAL_DECLINE_CODES | MODE_DECLINE_CODES)
"""https://docs.stripe.com/declines/codes"""


def published_codes() -> set[str]:
    """Return the error codes that the SDK of this installation knows."""
    source = inspect.getsource(stripe.PaymentIntent.LastPaymentError)
    listed = source[source.index("code: Optional[") :]
    return set(re.findall(r'"(\w+)"', listed[: listed.index("str,")]))


def invalid(code: str | None, status: int = 400, **changes: str) -> StripeFault:
    return StripeFault(status=status, type="invalid_request_error", code=code, **changes)  # type: ignore[arg-type]


def test_the_table_has_every_code_that_stripe_publishes() -> None:
    """Exactly one row for each. A code that a new SDK brings fails here until its row is decided."""
    rows = [DECLINES, SOFT_DECLINES, THROTTLES, HELD, frozenset({"idempotency_key_in_use"})]
    assert published_codes() == set().union(*rows)
    assert sum(map(len, rows)) == len(set().union(*rows))


@pytest.mark.parametrize("code", sorted(HELD))
def test_a_fault_of_ours_holds_the_order(code: str) -> None:
    """The customer is not to blame, whatever parameter it names."""
    assert error_class_of(invalid(code)) is ErrorClass.MISCONFIGURED
    assert error_class_of(invalid(code, param="amount")) is ErrorClass.MISCONFIGURED


@pytest.mark.parametrize("code", sorted(DECLINES))
def test_what_concerns_the_payment_method_declines(code: str) -> None:
    """Whether Stripe calls it a card error or an invalid request."""
    assert error_class_of(invalid(code)) is ErrorClass.DECLINED
    assert error_class_of(StripeFault(status=402, type="card_error", code=code)) is ErrorClass.DECLINED


@pytest.mark.parametrize("code", CARD_DECLINES)
def test_a_declined_card_is_soft_only_where_the_documentation_says_try_again(code: str) -> None:
    """All others are final; a real card under a test key is a fault of the configuration, as every customer would be declined."""
    fault = StripeFault(status=402, type="card_error", code="card_declined", decline_code=code)
    soft = ("approve_with_id", "issuer_not_available", "processing_error", "reenter_transaction", "try_again_later")
    final = ErrorClass.MISCONFIGURED if code == "test_mode_live_card" else ErrorClass.DECLINED
    assert error_class_of(fault) is (ErrorClass.DECLINED_SOFTLY if code in soft else final)


@pytest.mark.parametrize(
    ("advice", "is_soft"), [(None, True), ("try_again_later", True), ("do_not_try_again", False), ("confirm_card_data", False)]
)
@pytest.mark.parametrize("code", ["card_declined", "processing_error"])
def test_the_advice_of_the_card_network_ends_a_soft_decline(advice: str | None, is_soft: bool, code: str) -> None:
    """Networks charge a fee for attempts that they advise against (https://docs.stripe.com/declines/card)."""
    error = {"type": "card_error", "code": code, "decline_code": "processing_error", "advice_code": advice}
    expected = ErrorClass.DECLINED_SOFTLY if is_soft else ErrorClass.DECLINED
    assert error_class_of(StripeFault.of(402, {"error": error}, None)) is expected


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (StripeFault(429), ErrorClass.THROTTLED),
        *((invalid(code, status), ErrorClass.THROTTLED) for code in sorted(THROTTLES) for status in (400, 409, 429)),
        (StripeFault(409, "card_error", "card_declined"), ErrorClass.IN_PROGRESS),
        (invalid("idempotency_key_in_use"), ErrorClass.IN_PROGRESS),
        (StripeFault(400, "idempotency_error"), ErrorClass.OTHER_REQUEST),
        *((StripeFault(status, "card_error", "card_declined"), ErrorClass.MISCONFIGURED) for status in (401, 403)),
        *((StripeFault(status, "card_error", "card_declined"), ErrorClass.UNKNOWN) for status in (None, 200, 302, 500, 503)),
        *((StripeFault(status, "api_error"), ErrorClass.UNKNOWN) for status in (400, 402, 404)),
        (invalid("resource_missing", 404, param="customer"), ErrorClass.DECLINED),
        (invalid("resource_missing", 404, param="payment_method"), ErrorClass.DECLINED),
        (invalid("resource_missing", 404, param="payment_intent"), ErrorClass.MISCONFIGURED),
        (invalid(None, param="customer"), ErrorClass.DECLINED),
        (invalid("parameter_invalid_empty", param="customer"), ErrorClass.MISCONFIGURED),
        (invalid(None, decline_code="try_again_later", advice_code="do_not_try_again"), ErrorClass.DECLINED),
    ],
    ids=repr,
)
def test_each_row_of_the_table(fault: StripeFault, expected: ErrorClass) -> None:
    """The kind of the whole response counts before its code about the card, and the parameter counts last."""
    assert error_class_of(fault) is expected


@pytest.mark.parametrize("code", ["fraudulent", "lost_card", "stolen_card", "pickup_card", "merchant_blacklist", "highest_risk_level"])
@pytest.mark.parametrize("advice", [None, "try_again_later"])
def test_a_decline_for_fraud_is_final_whatever_the_advice(code: str, advice: str | None) -> None:
    """Another attempt would count against the shop."""
    fault = StripeFault(status=402, type="card_error", code="card_declined", decline_code=code, advice_code=advice)
    assert error_class_of(fault) is ErrorClass.DECLINED


@given(
    status=st.sampled_from([400, 401, 402, 403, 404, 409, 410, 422, 424, 429, 500, 502, 503, 504]),
    type=st.sampled_from([None, "api_error", "card_error", "idempotency_error", "invalid_request_error", "new_type"]),
    code=st.sampled_from([None, "brand_new_code", *sorted(HELD | DECLINES | SOFT_DECLINES | THROTTLES)]),
    decline_code=st.sampled_from([None, "brand_new_decline", *CARD_DECLINES]),
    param=st.sampled_from([None, "amount", "currency", "payment_method", "customer", "shipping[name]"]),
)
def test_nothing_declines_but_the_payment_method(
    status: int, type: str | None, code: str | None, decline_code: str | None, param: str | None
) -> None:
    """A decline has a card error, a decline code that the table knows as soft, a code of a decline, or the customer's parameter."""
    fault = StripeFault(status=status, type=type, code=code, decline_code=decline_code, param=param)
    error_class = error_class_of(fault)
    if error_class in (ErrorClass.DECLINED, ErrorClass.DECLINED_SOFTLY):
        assert status not in (401, 403, 409, 429)
        assert status < 500
        concerns_card = type == "card_error" or decline_code in SOFT_DECLINE_CODES or code in DECLINES | SOFT_DECLINES
        assert concerns_card or param in ("payment_method", "customer")
    if status in (401, 403) and code not in THROTTLES and type != "idempotency_error":
        assert error_class is ErrorClass.MISCONFIGURED
    if status >= 500 and code not in THROTTLES and type != "idempotency_error":
        assert error_class is ErrorClass.UNKNOWN
    if (type, code) == ("invalid_request_error", "brand_new_code") and 400 <= status < 409 and status not in (401, 403):
        assert error_class is ErrorClass.MISCONFIGURED or decline_code in SOFT_DECLINE_CODES


@given(body=st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_a_fault_never_holds_more_than_codes(body: object) -> None:
    """A message of Stripe may quote what was sent."""
    fault = StripeFault.of(400, {"error": body, "message": "sk_live_secret"}, "req 1; sk_live_secret")
    assert "secret" not in repr(fault)


@pytest.fixture
async def gateway(faulty: FaultyStripe) -> AsyncIterator[StripeGateway]:
    gateway = StripeGateway(API_KEY, faulty.url)
    yield gateway
    await gateway.close()


async def charge(gateway: StripeGateway, method: str | None = None, amount: Money = EUR, **details: object) -> object:
    order_id = new_order_id()
    return await gateway.charge(f"charge:{order_id}", order_id, amount, ChargeDetails(method, **details))  # type: ignore[arg-type]


async def fault_of(gateway: StripeGateway, method: str | None = None, amount: Money = EUR) -> tuple[str, str | None]:
    with pytest.raises(GatewayMisconfigured) as caught:
        await charge(gateway, method, amount)
    assert caught.value.request_id is not None
    assert caught.value.request_id.startswith("req_")
    assert API_KEY not in str(caught.value)
    return caught.value.code, caught.value.param


async def test_an_account_that_cannot_charge_declines_no_one(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """The error has a type and no code."""
    faulty.account.can_charge = False
    assert await fault_of(gateway) == ("invalid_request_error", None)


async def test_a_key_that_expired_or_lacks_a_permission_declines_no_one(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """401 and 403."""
    faulty.account.denied.add("payment_intent_write")
    assert await fault_of(gateway) == ("permission_missing", None)
    faulty.account.expired_keys.add(API_KEY)
    assert await fault_of(gateway) == ("api_key_expired", None)


async def test_a_parameter_that_stripe_refuses_declines_no_one(gateway: StripeGateway) -> None:
    """The error names the parameter."""
    assert await fault_of(gateway, amount=Money(1, "EUR")) == ("amount_too_small", "amount")
    assert await fault_of(gateway, amount=Money(10**9, "EUR")) == ("amount_too_large", "amount")
    assert await fault_of(gateway, amount=Money(100, "IRR")) == ("invalid_request_error", "currency")


async def test_a_key_of_the_other_mode_declines_no_one(faulty: FaultyStripe) -> None:
    """Stripe responds that there is no such payment method, and that there is one in the other mode."""
    gateway = StripeGateway("sk_live_x", faulty.url)
    assert await fault_of(gateway, "pm_card_visa") == ("resource_missing", "payment_method")
    await gateway.close()


async def test_a_real_card_under_a_test_key_declines_no_one(gateway: StripeGateway) -> None:
    """After the look-up that follows, the charge may be made again."""
    order_id = new_order_id()
    with pytest.raises(GatewayMisconfigured) as caught:
        await gateway.charge("k", order_id, EUR, ChargeDetails("pm_decline_test_mode_live_card"))
    assert (caught.value.code, caught.value.param) == ("test_mode_live_card", None)
    assert await gateway.find("k", order_id, EUR) == Declined("test_mode_live_card", is_soft=True)


async def test_a_decline_code_that_is_not_in_the_table_is_final_and_logged_once(gateway: StripeGateway) -> None:
    """A known one is not logged."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["extra"]["code"]), level="WARNING")
    for code in "brand_new", "brand_new", "another", "lost_card", "try_again_later":
        declined = await charge(gateway, f"pm_decline_{code}")
        assert declined == Declined(code, is_soft=code == "try_again_later")
    logger.remove(sink)
    assert lines == ["brand_new", "another"]


async def test_an_unknown_payment_method_declines(gateway: StripeGateway) -> None:
    """It is the customer's."""
    assert await charge(gateway, "pm_unknown") == Declined("resource_missing")


@pytest.mark.parametrize("method", ["pm_card_chargeDeclinedProcessingError", "pm_try_again_later", "pm_decline_issuer_not_available"])
async def test_a_soft_decline_is_marked_and_is_cancelled_when_given_up(
    gateway: StripeGateway, faulty: FaultyStripe, method: str
) -> None:
    """The PaymentIntent stays open meanwhile; a look-up returns the same. Given up, it takes no money any more."""
    order_id = new_order_id()
    declined = await gateway.charge("k", order_id, EUR, ChargeDetails(method))
    assert isinstance(declined, Declined)
    assert declined.is_soft
    assert await gateway.find("k", order_id, EUR) == declined
    assert [intent["status"] for intent in faulty.intents.values()] == ["requires_payment_method"]
    assert isinstance(await gateway.cancel("k", order_id, EUR), Declined)
    assert [intent["status"] for intent in faulty.intents.values()] == ["canceled"]


async def test_a_payment_method_that_is_used_up_declines(gateway: StripeGateway) -> None:
    """Without a customer it can be used once, so a soft decline cannot be tried again; Stripe reports this without a code."""
    method, order_id = "pm_1N3T00_decline_try_again_later", new_order_id()
    details = ChargeDetails(method)
    assert await gateway.charge("1", order_id, EUR, details) == Declined("try_again_later", is_soft=True)
    assert await gateway.charge("2", order_id, EUR, details) == Declined("payment_method_unusable")


async def test_a_saved_card_can_be_tried_again(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """It is attached to its customer."""
    method = "pm_1N3T00_decline_try_again_later"
    faulty.account.saved_cards[method] = "cus_1"
    for key in "1", "2":
        assert await charge(gateway, method, customer="cus_1") == Declined("try_again_later", is_soft=True), key


async def test_a_final_decline_after_soft_ones_is_final(gateway: StripeGateway) -> None:
    """The look-up finds both PaymentIntents."""
    order_id = new_order_id()
    for key, method in ("1", "pm_try_again_later"), ("2", "pm_declined"):
        await gateway.charge(key, order_id, EUR, ChargeDetails(method))
    assert await gateway.find("2", order_id, EUR) == Declined("insufficient_funds")


@pytest.mark.parametrize(("fault", "seconds"), [(Fault.RATE_LIMITED, 7), (Fault.RATE_LIMITED_BARE, None)])
async def test_a_429_asks_for_slower_calls(
    gateway: StripeGateway, faulty: FaultyStripe, fault: Fault, seconds: float | None
) -> None:
    """With and without a Retry-After; nothing was charged."""
    faulty.write_fault = lambda: fault
    with pytest.raises(GatewayThrottled) as caught:
        await charge(gateway)
    assert caught.value.retry_after_seconds == seconds
    assert faulty.captured() == {}


async def test_rules_for_exports_and_saved_cards_are_met(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """A description and the address go along, and the customer of a saved card."""
    faulty.account.is_indian = True
    faulty.account.saved_cards["pm_1Saved"] = "cus_1"
    address = Address("Hauptstr. 1", "Berlin", "10115", "DE", name="Erika Mustermann", line2="3. OG")
    captured = await charge(gateway, "pm_1Saved", customer="cus_1", shipping_address=address)
    assert isinstance(captured, Captured)
    intent = faulty.intents[captured.reference]
    assert intent["customer"] == "cus_1"
    assert intent["description"].startswith("Order ")
    assert intent["shipping"]["name"] == "Erika Mustermann"
    assert intent["shipping"]["address"] == {
        "line1": "Hauptstr. 1",
        "line2": "3. OG",
        "city": "Berlin",
        "postal_code": "10115",
        "country": "DE",
        "state": None,
    }
    assert isinstance(await charge(gateway, "pm_1Saved"), Declined)
