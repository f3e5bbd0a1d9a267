"""The port to a payment provider, as the payment worker calls it."""

from __future__ import annotations

__all__ = [
    "Captured",
    "ChargeDetails",
    "ChargeLedger",
    "ChargeOwner",
    "ChargeRecord",
    "ChargeResult",
    "Declined",
    "Gateway",
    "GatewayError",
    "GatewayMisconfigured",
    "GatewayNotReached",
    "GatewayThrottled",
    "GatewayTimeout",
    "Pending",
    "RefundPending",
    "RefundRejected",
    "RefundResult",
    "Refunded",
    "ResponseMismatch",
]

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Protocol, Self, runtime_checkable

from attrs import frozen

from modules.values import Address, Money


@frozen
class Captured:
    """
    The provider has taken the money; *reference* is the provider's id of the charge.

    *refunded_total* is how many minor units of it the provider has refunded since, pending refunds included.
    """

    reference: str
    refunded_total: int = 0


@frozen
class Declined:
    """
    The provider has declined the charge; *reason* is a code.

    With *is_soft* the same charge may succeed later (``processing_error``, ``try_again_later``); otherwise the decline is
    final. Either is about the customer's payment method: a fault of the account, of the key or of a parameter is
    `GatewayMisconfigured`.
    """

    reason: str
    is_soft: bool = False


@frozen
class Pending:
    """The provider has accepted the charge and has not decided it yet: look it up again later. This is no failure."""

    reference: str


ChargeResult = Captured | Declined | Pending


@frozen
class Refunded:
    """
    The refund has succeeded; *reference* is the provider's id of it.

    *refunded_total* is how many minor units of the charge the provider has refunded altogether, as far as it is known: this
    refund, earlier ones, and those made in its dashboard, pending ones included. It is at least the amount of this refund.
    """

    reference: str
    refunded_total: int


@frozen
class RefundPending:
    """The provider has accepted the refund, which may still succeed or fail; see `Refunded` for the attributes."""

    reference: str
    refunded_total: int


@frozen
class RefundRejected:
    """
    The provider works and does not make the refund; *reason* is a code.

    With *is_definite* the failure is final for this key: the provider repeats it under the same key, and the next attempt
    needs a new one. *reference* is set if a refund exists that has failed. *refunded_total* as in `Refunded`, or None
    if the response does not contain it; it explains a refund of more than is left.
    """

    reason: str
    is_definite: bool = True
    refunded_total: int | None = None
    reference: str | None = None


RefundResult = Refunded | RefundPending | RefundRejected


@frozen
class ChargeDetails:
    """
    What is sent with a charge in addition to its amount.

    *customer* is the provider's id of the customer who owns the payment method (a saved card works only with it). The
    address is the order's; without one the customer collects the order at the counter.
    """

    payment_method: str | None = None
    customer: str | None = None
    shipping_address: Address | None = None


class GatewayError(Exception):
    """
    The call has no usable response.

    *retry_after_seconds* is how long the provider asked to wait before the next call, or None.
    """

    def __init__(self, detail: str, retry_after_seconds: float | None = None) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(detail)

    def copy(self) -> Self:
        """Return the same error as another exception: one that is shared collects the traceback of every waiter."""
        made = type(self).__new__(type(self), *self.args)
        made.__dict__.update(self.__dict__)
        return made


class GatewayNotReached(GatewayError):
    """The call certainly had no effect: it did not reach the provider, or the provider refused to process it."""


class GatewayThrottled(GatewayNotReached):
    """The provider limits the rate of calls (429): the call had no effect, and the next ones should be slower."""


class GatewayMisconfigured(GatewayNotReached):
    """
    The provider does not accept our key, a permission, the account or a parameter; the call certainly had no effect.

    The customer did not cause it, so no charge is declined for it: the orders wait as in an outage until the fault is fixed.
    *code* and *param* are the provider's names of the fault, *request_id* its id of the call, which its support needs.
    With *ends_key* the key of the call is used up: the provider may repeat the fault under the same key after it was fixed.
    It is false if the fault is that of a look-up, after which a call under the key may follow.
    """

    def __init__(self, detail: str, code: str, param: str | None = None, request_id: str | None = None) -> None:
        self.code = code
        self.param = param
        self.request_id = request_id
        self.ends_key = True
        super().__init__(detail)


class GatewayTimeout(GatewayError):
    """
    The call may have reached the provider, so its effect is unknown: look it up before the next call.

    With *has_ended* the provider has responded with an error and works on the call no longer: a look-up that then finds
    nothing proves that there was no effect, and the next call needs a new key, because the provider repeats the error
    under the old one. Otherwise the call may still be under way, and the next call must use the same key.
    """

    def __init__(self, detail: str, retry_after_seconds: float | None = None, *, has_ended: bool = False) -> None:
        self.has_ended = has_ended
        super().__init__(detail, retry_after_seconds)


class ResponseMismatch(Exception):
    """
    The provider's response contradicts the request; it must not be acted on before a person has reviewed it.

    *reason* is a stable code (``wrong_amount``, ``wrong_currency``, ``wrong_order``, ``wrong_id``, ``wrong_key``,
    ``two_charges``, ``nonsense``), *reference* the provider's id of the object in its response, if there is one.
    """

    def __init__(self, reason: str, detail: str, reference: str | None = None) -> None:
        self.reason = reason
        self.reference = reference
        super().__init__(detail)


@frozen
class ChargeRecord:
    """
    One charge in the provider's own list: its order, its amount, and whether it was captured and refunded.

    *refunded_amount* includes pending refunds. *dispute* is ``open``, ``won`` or ``lost``, or None if the charge was never
    disputed; it is ``open`` where the list shows only that there is a dispute.
    """

    reference: str
    order_id: str | None
    amount: Money
    is_captured: bool
    refunded_amount: int
    created_at: datetime
    dispute: str | None = None


@frozen
class ChargeOwner:
    """
    What a charge was made for, according to its metadata: the order, and the installation of this program that has the order.

    *reference* is the provider's id by which the payment knows the charge. Either of the others is None if none is named.
    """

    reference: str
    order_id: str | None
    installation: str | None = None


class Gateway(Protocol):
    """
    Charge and refund through a payment provider.

    A *key* identifies the intent while its outcome is unknown: a second call with the same key has no second effect. After
    a definite failure the caller uses a new key. Amounts are in minor units. Each call may raise `GatewayNotReached` (or
    its subclasses `GatewayThrottled` and `GatewayMisconfigured`), `GatewayTimeout` or `ResponseMismatch`. Before a method
    returns, it has compared the response with the request: amount, currency, order.
    """

    @property
    def name(self) -> str:
        """The provider's name in metrics and logs."""

    async def charge(self, key: str, order_id: str, amount: Money, details: ChargeDetails) -> ChargeResult:
        """
        Charge *amount* for the order, once. If an earlier call is possible and `repeats_safely` is false, the caller must
        call `find` first.

        A soft decline that `find` has returned does not count as one: the charge is made again, under a new key.
        """

    async def repeats_safely(self, order_id: str) -> bool:
        """
        Return whether repeating the charge of the order under its key certainly does not charge twice.

        Then no look-up is needed before a call that may be a repetition; a look-up may take far longer than the call.
        """

    async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Return the result of the order's charge, whatever its key; None if there is no such charge."""

    async def cancel(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """
        Return the same as `find`, after cancelling a charge that is still open, so that it can take no money.

        A charge that was declined softly counts as open, because it can be confirmed again.
        """

    async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> RefundResult:
        """
        Refund *amount* of the charge *reference*, once for each key.

        If there is a refund under *key* already, the result is that refund's present state.
        """

    async def close(self) -> None:
        """Close all connections. Idempotent."""


@runtime_checkable
class ChargeLedger(Protocol):
    """A provider that keeps a list of all its charges; the simulated provider keeps none."""

    @property
    def installation(self) -> str | None:
        """The name of this installation, which each of its charges carries; None if it has none."""

    def records(self, since: datetime, until: datetime) -> AsyncIterator[ChargeRecord]:
        """
        Yield the charges created from *since* until *until*, declined ones included, in no promised order.

        Only this period is requested from the provider.
        """

    async def owner_of(self, id: str) -> ChargeOwner | None:
        """Return what the charge was made for that the provider knows as *id*; None if there is no such charge."""
