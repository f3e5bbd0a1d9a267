"""The parameters of a charge, as Stripe's API takes them. Without the SDK."""

from __future__ import annotations

__all__ = ["charge_params", "details_of", "stripe_amount"]

from collections.abc import Mapping
from typing import Any

from app.gateways.port import ChargeDetails, GatewayMisconfigured
from app.gateways.stripe.currencies import to_stripe
from modules.values import Money


def charge_params(amount: Money, payment_method: str, customer: str | None, metadata: Mapping[str, str]) -> Any:
    """
    Return the parameters of a PaymentIntent that is created and confirmed in one call.

    Raises:
        GatewayMisconfigured: The amount cannot be charged.
    """
    params = {
        "amount": stripe_amount(amount),
        "currency": amount.currency.lower(),
        "confirm": True,
        "payment_method": payment_method,
        # Other types that are enabled in Stripe's dashboard may redirect the customer to another page.
        "payment_method_types": ["card"],
        "metadata": metadata,
    }
    return params if customer is None else {**params, "customer": customer}


def details_of(params: Mapping[str, Any], details: ChargeDetails) -> dict[str, Any]:
    """Return the parameters for the description and the address, which rules for exports require."""
    found: dict[str, Any] = {"description": f"Order {params['metadata']['order_id']}"}
    address = details.shipping_address
    if address is not None:
        lines = {"line1": address.line1, "city": address.city, "postal_code": address.postal_code, "country": address.country}
        if address.line2 is not None:
            lines["line2"] = address.line2
        # Stripe requires a name with an address.
        found["shipping"] = {"name": address.name or address.line1, "address": lines}
    return found


def stripe_amount(amount: Money) -> int:
    """
    Return *amount* in the units that Stripe counts in.

    Raises:
        GatewayMisconfigured: It cannot be charged; it comes from a price that was set before prices were checked.
    """
    try:
        return to_stripe(amount)
    except ValueError as error:
        raise GatewayMisconfigured(str(error), "amount_not_chargeable", "amount") from None
