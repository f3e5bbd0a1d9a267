"""Value objects that all modules share."""

from __future__ import annotations

__all__ = [
    "CHARGE_STEPS",
    "MINOR_DIGITS",
    "UNCONDITIONAL",
    "Address",
    "Line",
    "Money",
    "Precondition",
    "PriceFault",
    "decimal_text",
    "price_fault",
    "rfc3339",
    "value",
]

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import TypeVar, dataclass_transform

import attrs
from attrs import frozen

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(attrs.field,))
def value(cls: type[T]) -> type[T]:
    """
    Make *cls* the class of a value that never changes.

    The type checker enforces that, and not the class, which would take twice as long to make: an order makes some forty.
    """
    return attrs.define(cls, unsafe_hash=True)


@value
class Money:
    """An *amount* in minor units (cents, where the currency has cents) of *currency*, an ISO 4217 code."""

    amount: int
    currency: str


_TWO_DIGITS = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP CVE
CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR
KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB
PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY
TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG
"""
_NO_DIGITS = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF"
_THREE_DIGITS = "BHD IQD JOD KWD LYD OMR TND"

MINOR_DIGITS: Mapping[str, int] = {
    **dict.fromkeys(_NO_DIGITS.split(), 0),
    **dict.fromkeys(_TWO_DIGITS.split(), 2),
    **dict.fromkeys(_THREE_DIGITS.split(), 3),
}
"""
How many decimals the minor unit of each currency has (ISO 4217, list one).

Codes that stand for no means of payment are left out: precious metals, accounting units such as XDR, fund codes such as
CLF, and the codes for tests and for no currency.
"""

CHARGE_STEPS: Mapping[str, int] = {**dict.fromkeys(_THREE_DIGITS.split(), 10), "MGA": 100}
"""
Amounts of these currencies must be multiples of this many minor units, because no card payment can be finer.

Card payments round currencies with three decimals to two. The ariary (MGA) has no hundredths, although ISO 4217 counts
two decimals.
"""


@frozen
class PriceFault:
    """Why a price cannot be charged: the wrong *member* of the price, and a sentence about it."""

    member: str
    detail: str


def decimal_text(amount: int, currency: str) -> str:
    """Return *amount*, in minor units of *currency*, in its usual unit: 1250 of EUR is ``12.50`` (ISO 4217)."""
    digits = MINOR_DIGITS.get(currency, 0)
    whole, part = divmod(abs(amount), 10**digits)
    return f"{'-' if amount < 0 else ''}{whole}{f'.{part:0{digits}d}' if digits else ''}"


def price_fault(price: Money) -> PriceFault | None:
    """Return why no payment can be made in *price*; None if one can."""
    if price.currency not in MINOR_DIGITS:
        return PriceFault("currency", f"{price.currency} is not a currency that payments are made in (ISO 4217).")
    step = CHARGE_STEPS.get(price.currency, 1)
    if price.amount % step:
        return PriceFault("amount", f"An amount in {price.currency} must be a multiple of {step} minor units.")
    return None


@value
class Line:
    """A quantity of one product."""

    product_id: str
    quantity: int


@frozen
class Address:
    """A postal address; *country* is an ISO 3166-1 alpha-2 code."""

    line1: str
    city: str
    postal_code: str
    country: str
    name: str | None = None
    line2: str | None = None


@frozen
class Precondition:
    """
    The preconditions of a request (RFC 9110, section 13.1): the entity tags of each header, None where it is absent.

    The tag ``*`` stands for any resource that exists.
    """

    if_match: tuple[str, ...] | None = None
    if_none_match: tuple[str, ...] | None = None

    def holds(self, etag: str | None) -> bool:
        """Return whether it holds for a resource with the strong tag *etag*; None means that there is no resource."""
        if self.if_match is not None and not (etag is not None and {"*", etag} & {*self.if_match}):
            return False
        if self.if_none_match is None or etag is None:
            return True
        return not {"*", etag, f"W/{etag}"} & {*self.if_none_match}


UNCONDITIONAL = Precondition()
"""Always holds, whether there is a resource or not."""


@lru_cache(4096)
def rfc3339(moment: datetime) -> str:
    """Return *moment*, which is in UTC, in RFC 3339 format with microseconds and a Z."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
