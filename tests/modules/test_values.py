"""Values that all modules share: what they promise, and which prices a payment can be made in."""

from __future__ import annotations

import copy

import pytest

from modules.orders.events import OrderConfirmed
from modules.values import CHARGE_STEPS, MINOR_DIGITS, Line, Money, PriceFault, price_fault


@pytest.mark.parametrize("currency", sorted(MINOR_DIGITS))
def test_every_currency_of_the_table_takes_a_price(currency: str) -> None:
    """Nothing, and one step; every finer amount is refused."""
    step = CHARGE_STEPS.get(currency, 1)
    assert price_fault(Money(0, currency)) is None
    assert price_fault(Money(step, currency)) is None
    for amount in range(1, step):
        fault = price_fault(Money(amount, currency))
        assert fault is not None
        assert fault.member == "amount"


@pytest.mark.parametrize("currency", ["X" * 3, "XTS", "XAU", "XAG", "XDR", "CLF", "CHE", "USN", "UYW", "HRK", "ABC", "eur"])
def test_a_code_that_stands_for_no_money_is_refused(currency: str) -> None:
    """Metals, accounting units, funds, withdrawn codes and codes that never existed."""
    fault = price_fault(Money(100, currency))
    assert fault is not None
    assert fault.member == "currency"
    assert currency in fault.detail


def test_the_currencies_without_and_with_three_decimals_are_those_of_iso_4217() -> None:
    """All others have two."""
    by_digits = {digits: {code for code, found in MINOR_DIGITS.items() if found == digits} for digits in (0, 2, 3)}
    assert by_digits[0] == {
        *("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF")
    }
    assert by_digits[3] == {"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"}
    assert len(MINOR_DIGITS) == sum(len(codes) for codes in by_digits.values())
    assert price_fault(Money(1005, "KWD")) == PriceFault("amount", "An amount in KWD must be a multiple of 10 minor units.")


def test_the_type_checker_keeps_values_and_events_from_changing() -> None:
    """They can be shared and are keys of dicts; where the checker does not object, the ignored error is one of its own."""
    price = Money(100, "EUR")
    assert {price: 1}[Money(amount=100, currency="EUR")] == 1
    price.amount = 200  # type: ignore[misc]
    confirmed = OrderConfirmed(order_id="o-1", customer_id="c-1", items=(Line("SKU-1", 2),), total=price)
    assert len({confirmed, copy.copy(confirmed)}) == 1
    confirmed.order_id = "o-2"  # type: ignore[misc]
