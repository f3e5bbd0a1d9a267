"""
What every gateway promises; an adapter's test file is a `Made` fixture.

Whoever may have called before looks first and charges only if nothing is found: that is how the worker calls, and what
is promised is promised for that.
"""

from __future__ import annotations

__all__ = ["GatewayContract", "Made", "oid"]

import itertools

import pytest
from attrs import frozen
from uuid_utils import uuid7

from app.gateways.port import Captured, ChargeResult, Declined, Gateway
from modules.values import Money


@frozen
class Made:
    """A gateway, and how to have it say no."""

    gateway: Gateway
    declining_amount: int = 100
    declining_method: str | None = None


_AMOUNTS = itertools.count(101)


def oid() -> str:
    """Return the id of an order placed just now."""
    return str(uuid7())


async def settled(gateway: Gateway, order_id: str, amount: Money, method: str | None = None) -> ChargeResult:
    """Look, and charge if there is nothing to be found."""
    key = f"charge:{order_id}"
    return await gateway.find(key, order_id, amount) or await gateway.charge(key, order_id, amount, method)


class GatewayContract:
    """Inherit, and provide the fixture *made*."""

    @pytest.fixture
    def made(self) -> Made:
        raise NotImplementedError

    async def test_a_charge_is_captured_under_a_reference(self, made: Made) -> None:
        """One of its own for each order."""
        answers = [await settled(made.gateway, oid(), Money(100, "EUR")) for _ in range(3)]
        assert all(isinstance(answer, Captured) for answer in answers)
        assert len({answer.reference for answer in answers if isinstance(answer, Captured)}) == 3

    async def test_the_same_order_again_is_the_same_charge(self, made: Made) -> None:
        """However often it is asked for."""
        order_id, amount = oid(), Money(1250, "EUR")
        first = await settled(made.gateway, order_id, amount)
        assert isinstance(first, Captured)
        assert [await settled(made.gateway, order_id, amount) for _ in range(3)] == [first] * 3

    async def test_a_refusal_is_an_answer(self, made: Made) -> None:
        """And stays one: the same order is refused again, with a reason in a word."""
        order_id, amount = oid(), Money(made.declining_amount, "EUR")
        first = await settled(made.gateway, order_id, amount, made.declining_method)
        assert isinstance(first, Declined)
        assert first.reason
        assert " " not in first.reason
        assert await settled(made.gateway, order_id, amount, made.declining_method) == first

    async def test_what_was_never_charged_is_not_found(self, made: Made) -> None:
        """And there is nothing to cancel."""
        order_id = oid()
        for look in made.gateway.find, made.gateway.cancel:
            assert await look(f"charge:{order_id}", order_id, Money(100, "EUR")) is None

    async def test_money_goes_back_once(self, made: Made) -> None:
        """Asked for again, it is the same refund."""
        order_id, amount = oid(), Money(700, "EUR")
        taken = await settled(made.gateway, order_id, amount)
        assert isinstance(taken, Captured)
        key = f"refund:{order_id}"
        backs = [await made.gateway.refund(key, order_id, taken.reference, amount) for _ in range(3)]
        assert backs[0]
        assert backs == [backs[0]] * 3

    async def test_nothing_is_charged_for_nothing(self, made: Made) -> None:
        """An order may cost nothing; it is paid for all the same, and its nothing goes back."""
        order_id, amount = oid(), Money(0, "EUR")
        taken = await settled(made.gateway, order_id, amount)
        assert isinstance(taken, Captured)
        assert await made.gateway.refund(f"refund:{order_id}", order_id, taken.reference, amount)

    async def test_closing_twice_is_closing(self, made: Made) -> None:
        """Whoever has hung up may hang up."""
        await made.gateway.close()
        await made.gateway.close()
