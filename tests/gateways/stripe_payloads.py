"""Stripe's objects, whole, with every member that its API reference prints for them."""

from __future__ import annotations

__all__ = ["charge_object", "dispute_object", "error_object", "event_object", "intent_object", "refund_object"]

from typing import Any

API_VERSION = "2026-10-28.endive"
Json = dict[str, Any]

_ADDRESS = {"city": None, "country": None, "line1": None, "line2": None, "postal_code": None, "state": None}
_BILLING = {"address": _ADDRESS, "email": None, "name": None, "phone": None, "tax_id": None}
_CARD = {
    "amount_authorized": None,
    "authorization_code": None,
    "brand": "visa",
    "checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": None},
    "country": "DE",
    "exp_month": 8,
    "exp_year": 2030,
    "extended_authorization": {"status": "disabled"},
    "fingerprint": "mToisGZ01V71BCos",
    "funding": "credit",
    "incremental_authorization": {"status": "unavailable"},
    "installments": None,
    "last4": "4242",
    "mandate": None,
    "multicapture": {"status": "unavailable"},
    "network": "visa",
    "network_token": {"used": False},
    "network_transaction_id": "104557651805572",
    "overcapture": {"status": "unavailable"},
    "regulated_status": "unregulated",
    "three_d_secure": None,
    "wallet": None,
}


def intent_object(id: str, amount: int, currency: str, status: str, created: int, **changes: Any) -> Json:
    """Return a PaymentIntent (https://docs.stripe.com/api/payment_intents/object)."""
    return {
        "id": id,
        "object": "payment_intent",
        "amount": amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": amount if status == "succeeded" else 0,
        "application": None,
        "application_fee_amount": None,
        "automatic_payment_methods": None,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": "automatic_async",
        "client_secret": f"{id}_secret_never_to_be_logged",
        "confirmation_method": "automatic",
        "created": created,
        "currency": currency,
        "customer": None,
        "customer_account": None,
        "description": None,
        "excluded_payment_method_types": None,
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": False,
        "metadata": {},
        "next_action": None,
        "on_behalf_of": None,
        "payment_method": None,
        "payment_method_configuration_details": None,
        "payment_method_options": {"card": {"installments": None, "network": None, "request_three_d_secure": "automatic"}},
        "payment_method_types": ["card"],
        "processing": None,
        "receipt_email": None,
        "review": None,
        "setup_future_usage": None,
        "shipping": None,
        "source": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": status,
        "transfer_data": None,
        "transfer_group": None,
        **changes,
    }


def charge_object(id: str, intent: Json, status: str, **changes: Any) -> Json:
    """Return the Charge of *intent* (https://docs.stripe.com/api/charges/object)."""
    is_paid = status == "succeeded"
    return {
        "id": id,
        "object": "charge",
        "amount": intent["amount"],
        "amount_captured": intent["amount"] if is_paid else 0,
        "amount_refunded": 0,
        "application": None,
        "application_fee": None,
        "application_fee_amount": None,
        "balance_transaction": id.replace("ch_", "txn_") if is_paid else None,
        "billing_details": _BILLING,
        "calculated_statement_descriptor": "FULFILMENT",
        "captured": is_paid,
        "created": intent["created"],
        "currency": intent["currency"],
        "customer": intent["customer"],
        "description": intent["description"],
        "destination": None,
        "dispute": None,
        "disputed": False,
        "failure_balance_transaction": None,
        "failure_code": None,
        "failure_message": None,
        "fraud_details": {},
        "invoice": None,
        "livemode": intent["livemode"],
        "metadata": dict(intent["metadata"]),
        "on_behalf_of": None,
        "order": None,
        "outcome": {
            "advice_code": None,
            "network_advice_code": None,
            "network_decline_code": None,
            "network_status": "approved_by_network" if is_paid else "declined_by_network",
            "reason": None,
            "risk_level": "normal",
            "risk_score": 32,
            "seller_message": "Payment complete." if is_paid else "The bank did not return any further details.",
            "type": "authorized" if is_paid else "issuer_declined",
        },
        "paid": is_paid,
        "payment_intent": intent["id"],
        "payment_method": intent["payment_method"],
        "payment_method_details": {"card": _CARD, "type": "card"},
        "radar_options": {},
        "receipt_email": None,
        "receipt_number": None,
        "receipt_url": f"https://pay.stripe.com/receipts/payment/{id}" if is_paid else None,
        "refunded": False,
        "review": None,
        "shipping": intent["shipping"],
        "source": None,
        "source_transfer": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": status,
        "transfer_data": None,
        "transfer_group": None,
        **changes,
    }


def refund_object(id: str, charge: Json, amount: int, status: str, created: int, **changes: Any) -> Json:
    """Return a Refund of *charge* (https://docs.stripe.com/api/refunds/object)."""
    return {
        "id": id,
        "object": "refund",
        "amount": amount,
        "balance_transaction": id.replace("re_", "txn_re"),
        "charge": charge["id"],
        "created": created,
        "currency": charge["currency"],
        "destination_details": {
            "card": {
                "reference_status": "pending",
                "reference_type": "acquirer_reference_number",
                "type": "refund",
            },
            "type": "card",
        },
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "reason": None,
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": status,
        "transfer_reversal": None,
        **changes,
    }


def dispute_object(id: str, charge: Json, status: str, created: int, **changes: Any) -> Json:
    """Return a Dispute of *charge* (https://docs.stripe.com/api/disputes/object)."""
    evidence = (
        "access_activity_log billing_address cancellation_policy cancellation_policy_disclosure cancellation_rebuttal"
        " customer_communication customer_email_address customer_name customer_purchase_ip customer_signature"
        " duplicate_charge_documentation duplicate_charge_explanation duplicate_charge_id product_description receipt"
        " refund_policy refund_policy_disclosure refund_refusal_explanation service_date service_documentation"
        " shipping_address shipping_carrier shipping_date shipping_documentation shipping_tracking_number"
        " uncategorized_file uncategorized_text"
    )
    return {
        "id": id,
        "object": "dispute",
        "amount": charge["amount"],
        "balance_transaction": None,
        "balance_transactions": [],
        "charge": charge["id"],
        "created": created,
        "currency": charge["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {**dict.fromkeys(evidence.split()), "enhanced_evidence": {}},
        "evidence_details": {
            "due_by": created + 604_800,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
        },
        "is_charge_refundable": False,
        "livemode": charge["livemode"],
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "payment_method_details": {
            "card": {"brand": "visa", "case_type": "chargeback", "network_reason_code": "10.4"},
            "type": "card",
        },
        "reason": "fraudulent",
        "status": status,
        **changes,
    }


def error_object(type: str, message: str, request_id: str, **members: Any) -> Json:
    """Return the body of an error (https://docs.stripe.com/api/errors); members that are None are left out."""
    given = {name: value for name, value in members.items() if value is not None}
    if "code" in given:
        given["doc_url"] = f"https://stripe.com/docs/error-codes/{given['code'].replace('_', '-')}"
    log_url = f"https://dashboard.stripe.com/test/logs/{request_id}"
    return {"error": {**given, "message": message, "request_log_url": log_url, "type": type}}


def event_object(id: str, type: str, value: Json, created: int, **changes: Any) -> Json:
    """Return the Event about *value* that a webhook carries (https://docs.stripe.com/api/events/object)."""
    return {
        "id": id,
        "object": "event",
        "api_version": API_VERSION,
        "created": created,
        "data": {"object": value},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": type,
        **changes,
    }
