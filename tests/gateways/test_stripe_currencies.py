"""Amounts sent to Stripe and received from it: exactly what was asked for is taken, in every currency."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gateways.stripe.currencies import STRIPE_DIGITS, from_stripe, to_stripe
from modules.values import MINOR_DIGITS, Money, price_fault

MONEY = st.builds(Money, st.integers(0, 10**12), st.sampled_from(sorted(MINOR_DIGITS)))


@pytest.mark.parametrize(
    ("money", "stripe_amount"),
    [
        (Money(1250, "EUR"), 1250),
        (Money(500, "JPY"), 500),
        (Money(500, "ISK"), 50_000),
        (Money(500, "UGX"), 50_000),
        (Money(50_000, "MGA"), 500),
        (Money(5_120, "KWD"), 5_120),
        (Money(700, "HUF"), 700),
        (Money(700, "TWD"), 700),
    ],
)
def test_stripe_is_asked_for_what_its_documentation_says(money: Money, stripe_amount: int) -> None:
    """It counts ISK and UGX with hundredths and MGA without, and wants a 0 at the end of three decimals."""
    assert to_stripe(money) == stripe_amount
    assert from_stripe(stripe_amount, money.currency.lower()) == money


@given(MONEY)
def test_what_goes_to_stripe_comes_back_unchanged(money: Money) -> None:
    """The value in whole units is the same on both sides."""
    if price_fault(money) is not None:
        with pytest.raises(ValueError, match=money.currency):
            to_stripe(money)
        return
    amount = to_stripe(money)
    assert amount * 10 ** MINOR_DIGITS[money.currency] == money.amount * 10 ** STRIPE_DIGITS[money.currency]
    assert from_stripe(amount, money.currency.lower()) == money


@pytest.mark.parametrize("wrong", [(1.0, "eur"), (True, "eur"), ("1", "eur"), (1, None), (1, "euro"), (50_050, "isk")])
def test_what_is_no_amount_is_none(wrong: tuple[object, object]) -> None:
    """Half a króna cannot be expressed either."""
    assert from_stripe(*wrong) is None


def test_an_unknown_currency_is_taken_as_it_is() -> None:
    """It is compared with what was asked for, and is another currency in any case."""
    assert from_stripe(123, "xyz") == Money(123, "XYZ")
