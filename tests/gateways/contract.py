"""
The contract of every gateway; the test file of an adapter provides a `GatewayCase` fixture.

The gateway's promises hold for a caller that looks a charge up before it charges again, as the payment worker does.
A provider that knows more than charges and refunds under keys (`LedgerContract`) also ends pending refunds and has disputes.
"""

from __future__ import annotations

__all__ = ["GatewayCase", "GatewayContract", "LedgerContract", "Provider", "ProviderFault", "new_order_id"]

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from functools import partial
from typing import Any, Protocol

import pytest
from attrs import field, frozen
from uuid_utils import uuid7

from app.gateways.port import (
    Captured,
    ChargeDetails,
    ChargeResult,
    Declined,
    Gateway,
    GatewayError,
    GatewayMisconfigured,
    GatewayNotReached,
    GatewayThrottled,
    GatewayTimeout,
    Refunded,
    RefundPending,
    RefundRejected,
)
from modules.values import Money


class ProviderFault(Enum):
    """What is wrong with a provider, and the error of the port that each call then raises."""

    AWAY = GatewayNotReached
    FAILING = GatewayTimeout
    BUSY = GatewayThrottled
    REFUSING = GatewayMisconfigured


class Provider(Protocol):
    """What a person, a bank or time does at a provider, for `LedgerContract`."""

    refund_status: Callable[[], str]
    refunds: dict[str, dict[str, Any]]

    def refund_in_dashboard(self, intent_id: str, amount: int) -> dict[str, Any]:
        """Refund a part of a charge without the gateway."""

    def settle_refund(self, refund_id: str, status: str) -> None:
        """End a pending refund, or let one that succeeded fail."""

    def open_dispute(self, intent_id: str, status: str) -> dict[str, Any]:
        """Let the customer dispute a charge."""


@frozen
class GatewayCase:
    """
    A gateway, a charge that it declines, and the faults that its provider can have.

    Each of *faults* causes its fault, and returns the gateway of a provider that has it.
    """

    gateway: Gateway
    declining_amount: int = 100
    declining_method: str | None = None
    faults: Mapping[ProviderFault, Callable[[], Gateway]] = field(factory=dict)
    provider: Provider | None = None


def new_order_id() -> str:
    """Return the id of an order that was placed just now."""
    return str(uuid7())


async def find_or_charge(gateway: Gateway, order_id: str, amount: Money, method: str | None = None) -> ChargeResult:
    """Look the charge up, and charge if there is none."""
    key = f"charge:{order_id}"
    return await gateway.find(key, order_id, amount) or await gateway.charge(key, order_id, amount, ChargeDetails(method))


class GatewayContract:
    """Inherit, and provide the fixture *case*."""

    @pytest.fixture
    def case(self) -> GatewayCase:
        raise NotImplementedError

    async def test_a_charge_is_captured_under_a_reference(self, case: GatewayCase) -> None:
        """Each order has a reference of its own."""
        results = [await find_or_charge(case.gateway, new_order_id(), Money(100, "EUR")) for _ in range(3)]
        assert all(isinstance(result, Captured) for result in results)
        assert len({result.reference for result in results if isinstance(result, Captured)}) == 3

    async def test_charging_the_same_order_again_returns_the_same_charge(self, case: GatewayCase) -> None:
        """The result is the same, however often the charge is requested."""
        order_id, amount = new_order_id(), Money(1250, "EUR")
        first = await find_or_charge(case.gateway, order_id, amount)
        assert isinstance(first, Captured)
        assert [await find_or_charge(case.gateway, order_id, amount) for _ in range(3)] == [first] * 3

    async def test_a_declined_charge_stays_declined(self, case: GatewayCase) -> None:
        """The same order is declined again, and the reason is a code without spaces."""
        order_id, amount = new_order_id(), Money(case.declining_amount, "EUR")
        first = await find_or_charge(case.gateway, order_id, amount, case.declining_method)
        assert isinstance(first, Declined)
        assert first.reason
        assert " " not in first.reason
        assert await find_or_charge(case.gateway, order_id, amount, case.declining_method) == first

    async def test_a_charge_that_was_never_made_is_not_found(self, case: GatewayCase) -> None:
        """There is nothing to cancel either."""
        order_id = new_order_id()
        for look_up in case.gateway.find, case.gateway.cancel:
            assert await look_up(f"charge:{order_id}", order_id, Money(100, "EUR")) is None

    async def test_a_refund_is_made_once(self, case: GatewayCase) -> None:
        """A repeated request returns the same refund."""
        order_id, amount = new_order_id(), Money(700, "EUR")
        charge = await find_or_charge(case.gateway, order_id, amount)
        assert isinstance(charge, Captured)
        key = f"refund:{order_id}"
        refunds = [await case.gateway.refund(key, order_id, charge.reference, amount) for _ in range(3)]
        assert isinstance(refunds[0], Refunded)
        assert refunds[0].reference
        assert refunds == [Refunded(refunds[0].reference, 700)] * 3

    async def test_each_key_makes_a_refund_of_its_own(self, case: GatewayCase) -> None:
        """A charge is refunded in parts, each under its own reference; the totals cover at least the refund itself."""
        order_id = new_order_id()
        charge = await find_or_charge(case.gateway, order_id, Money(1000, "EUR"))
        assert isinstance(charge, Captured)
        parts = [
            await case.gateway.refund(key, order_id, charge.reference, Money(amount, "EUR"))
            for key, amount in ((f"refund:{order_id}", 400), (f"refund:{order_id}:2", 600), (f"refund:{order_id}", 400))
        ]
        assert all(isinstance(part, Refunded) for part in parts)
        first, second, repeated = [part for part in parts if isinstance(part, Refunded)]
        assert first.reference == repeated.reference != second.reference
        assert first.refunded_total == 400
        assert second.refunded_total in (600, 1000)

    async def test_an_amount_of_zero_is_captured_and_refunded(self, case: GatewayCase) -> None:
        """An order may be free of charge; it is paid and refunded like any other, also if it is not looked up first."""
        order_id, amount = new_order_id(), Money(0, "EUR")
        charge = await case.gateway.charge(f"charge:{order_id}", order_id, amount, ChargeDetails())
        assert isinstance(charge, Captured)
        assert await find_or_charge(case.gateway, order_id, amount) == charge
        assert isinstance(await case.gateway.refund(f"refund:{order_id}", order_id, charge.reference, amount), Refunded)

    async def test_each_fault_of_a_provider_is_an_error_of_its_class(self, case: GatewayCase) -> None:
        """
        For every operation; no other exception leaves a gateway, and only a time-out leaves the effect unknown.

        Whatever the operation, a fault of the configuration has the same code, by which it is logged and shown.
        """
        order_id, amount = new_order_id(), Money(500, "EUR")
        charge = await find_or_charge(case.gateway, order_id, amount)
        assert isinstance(charge, Captured)
        assert ProviderFault.AWAY in case.faults
        for fault, begin in case.faults.items():
            gateway, other, codes = begin(), new_order_id(), set()
            calls: tuple[Callable[[], Awaitable[object]], ...] = (
                partial(gateway.charge, f"charge:{other}", other, amount, ChargeDetails("pm_card_visa")),
                partial(gateway.find, f"charge:{other}", other, amount),
                partial(gateway.cancel, f"charge:{other}", other, amount),
                partial(gateway.refund, f"refund:{order_id}", order_id, charge.reference, amount),
            )
            for call in calls:
                with pytest.raises(GatewayError) as caught:
                    await call()
                assert type(caught.value) is fault.value, fault
                codes.add(getattr(caught.value, "code", ""))
            assert len(codes) == 1, codes
            await gateway.close()

    async def test_closing_is_idempotent(self, case: GatewayCase) -> None:
        """A closed gateway can be closed again."""
        await case.gateway.close()
        await case.gateway.close()


class LedgerContract(GatewayContract):
    """The contract of a gateway whose provider keeps a ledger of refunds and disputes; *case* has a *provider*."""

    @pytest.fixture
    def provider(self, case: GatewayCase) -> Provider:
        assert case.provider is not None
        return case.provider

    @pytest.fixture
    async def charge(self, case: GatewayCase) -> tuple[str, str]:
        """The order and the reference of a charge of 10.00."""
        order_id = new_order_id()
        charge = await find_or_charge(case.gateway, order_id, Money(1000, "EUR"))
        assert isinstance(charge, Captured)
        return order_id, charge.reference

    async def test_no_more_is_refunded_than_was_captured(
        self, case: GatewayCase, provider: Provider, charge: tuple[str, str]
    ) -> None:
        """A refund of more than is left is rejected finally, with the total that explains it; the rest can be refunded."""
        order_id, reference = charge
        provider.refund_in_dashboard(reference, 400)
        too_much = await case.gateway.refund("1", order_id, reference, Money(1000, "EUR"))
        assert isinstance(too_much, RefundRejected)
        assert (too_much.is_definite, too_much.refunded_total, too_much.reference) == (True, 400, None)
        assert await case.gateway.refund("1", order_id, reference, Money(1000, "EUR")) == too_much, "the key is used up"
        rest = await case.gateway.refund("2", order_id, reference, Money(600, "EUR"))
        assert isinstance(rest, Refunded)
        assert rest.refunded_total == 1000
        empty = await case.gateway.refund("3", order_id, reference, Money(1, "EUR"))
        assert isinstance(empty, RefundRejected)
        assert empty.refunded_total == 1000

    @pytest.mark.parametrize("outcome", ["succeeded", "failed", "canceled"])
    async def test_a_pending_refund_is_looked_up_under_its_key(
        self, case: GatewayCase, provider: Provider, charge: tuple[str, str], outcome: str
    ) -> None:
        """It counts as refunded until it fails; then the same key gives the failure, and a new key another refund."""
        order_id, reference = charge
        provider.refund_status = lambda: "pending"
        part = Money(300, "EUR")
        first = await case.gateway.refund("1", order_id, reference, part)
        assert isinstance(first, RefundPending)
        assert await case.gateway.refund("1", order_id, reference, part) == first
        assert first.refunded_total == 300
        provider.settle_refund(first.reference, outcome)
        ended = await case.gateway.refund("1", order_id, reference, part)
        if outcome == "succeeded":
            assert ended == Refunded(first.reference, 300)
            return
        assert ended == RefundRejected(f"refund_{outcome}", refunded_total=0, reference=first.reference)
        provider.refund_status = lambda: "succeeded"
        again = await case.gateway.refund("2", order_id, reference, part)
        assert isinstance(again, Refunded)
        assert (again.reference != first.reference, again.refunded_total) == (True, 300)

    async def test_a_refund_that_fails_after_it_succeeded_is_reported(
        self, case: GatewayCase, provider: Provider, charge: tuple[str, str]
    ) -> None:
        """The customer's bank has sent it back."""
        order_id, reference = charge
        made = await case.gateway.refund("1", order_id, reference, Money(1000, "EUR"))
        assert isinstance(made, Refunded)
        provider.settle_refund(made.reference, "failed")
        failed = await case.gateway.refund("1", order_id, reference, Money(1000, "EUR"))
        assert failed == RefundRejected("refund_failed", refunded_total=0, reference=made.reference)

    async def test_a_disputed_charge_is_not_refunded(
        self, case: GatewayCase, provider: Provider, charge: tuple[str, str]
    ) -> None:
        """The customer would get the money twice. An inquiry has taken nothing yet, so the charge can still be refunded."""
        order_id, reference = charge
        provider.open_dispute(reference, "warning_needs_response")
        assert isinstance(await case.gateway.refund("1", order_id, reference, Money(300, "EUR")), Refunded)
        provider.open_dispute(reference, "needs_response")
        rejected = await case.gateway.refund("2", order_id, reference, Money(300, "EUR"))
        assert isinstance(rejected, RefundRejected)
        assert (rejected.reason, rejected.is_definite, rejected.refunded_total) == ("charge_disputed", True, 300)

    async def test_the_refund_of_a_charge_that_does_not_exist_is_rejected(self, case: GatewayCase) -> None:
        """It is not repeated without end."""
        rejected = await case.gateway.refund("1", new_order_id(), "pi_missing", Money(300, "EUR"))
        assert isinstance(rejected, RefundRejected)
        assert rejected.is_definite
