"""
Convert amounts between ISO 4217's minor units and those that Stripe counts in.

For nearly all currencies they are the same. Stripe counts some without hundredths that ISO 4217 has, and some, for
compatibility with its past, with hundredths that ISO 4217 has not: see https://docs.stripe.com/currencies#special-cases.
"""

from __future__ import annotations

__all__ = ["STRIPE_DIGITS", "from_stripe", "to_stripe"]

import re
from collections.abc import Mapping
from typing import Any

from modules.values import MINOR_DIGITS, Money, price_fault

STRIPE_DIGITS: Mapping[str, int] = {**MINOR_DIGITS, "ISK": 2, "UGX": 2, "MGA": 0}
"""How many decimals the unit has that Stripe counts each currency in."""

_CODE = re.compile("[A-Za-z]{3}")


def to_stripe(money: Money) -> int:
    """
    Return *money* in the units that Stripe counts its currency in.

    Raises:
        ValueError: No payment can be made in it: the currency is none, or the amount is finer than a payment can be.
    """
    fault = price_fault(money)
    if fault is not None:
        raise ValueError(fault.detail)
    shift = STRIPE_DIGITS[money.currency] - MINOR_DIGITS[money.currency]
    return _shifted(money.amount, shift)


def from_stripe(amount: Any, currency: Any) -> Money | None:
    """
    Return what Stripe calls *amount* of *currency* in ISO 4217's minor units.

    None if the two are not an amount and a currency, or if minor units cannot express the amount. A currency that is not
    in the table is taken as it is: Stripe may know currencies that this release does not.
    """
    if type(amount) is not int or not isinstance(currency, str) or not _CODE.fullmatch(currency):
        return None
    code = currency.upper()
    shift = STRIPE_DIGITS.get(code, 0) - MINOR_DIGITS.get(code, 0)
    return None if shift > 0 and amount % 10**shift else Money(_shifted(amount, -shift), code)


def _shifted(amount: int, digits: int) -> int:
    """Return *amount* with this many more zeros at its end, or fewer."""
    factor: int = 10 ** abs(digits)
    return amount * factor if digits >= 0 else amount // factor
