"""
A payment provider that keeps books; it is never killed.

Idempotency is real: a key is remembered with its body and its answer, the same key with another body is an error, and so is a
refund of more than was captured. What no correct caller does is listed in `Provider.errors`. With *remembers_charges* false
each charge call captures money, as at a provider without idempotency keys.
"""

from __future__ import annotations

__all__ = ["Charge", "Provider", "Refund", "Traits"]

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, TypeVar

from attrs import define, field, frozen

from app.gateways.port import (
    Captured,
    ChargeDetails,
    ChargeResult,
    Declined,
    GatewayError,
    GatewayMisconfigured,
    GatewayTimeout,
    Pending,
    Refunded,
    RefundPending,
    RefundRejected,
    RefundResult,
    ResponseMismatch,
)
from modules.values import Money
from tests.simulation.checks.breakers import BreakerWatch
from tests.simulation.provider.weather import Answer, Call, Weather
from tests.simulation.world.scope import Scope

T = TypeVar("T")

LATE_SECONDS = 90.0
"""The longest time after which a call takes effect that was not answered."""


@frozen
class Traits:
    """What kind of provider it is; the shares are those of all charges or refunds."""

    remembers_charges: bool
    limit: int
    soft_declines: float = 0.0
    pending_charges: float = 0.0
    pending_refunds: float = 0.0
    failing_refunds: float = 0.0
    """The share of the pending refunds that fail at last."""


@define(eq=False)
class Refund:
    """A refund; *status* is succeeded, pending or failed."""

    reference: str
    key: str
    amount: int
    status: str


@define(eq=False)
class Charge:
    """A charge of an order; *status* is captured, pending, soft, declined or canceled."""

    reference: str
    order_id: str
    key: str
    money: Money
    status: str
    refunds: list[Refund] = field(factory=list)

    @property
    def refunded(self) -> int:
        """The minor units that went back, or are about to."""
        return sum(each.amount for each in self.refunds if each.status != "failed")


_ENDLESS_SECONDS = 1_000.0

Notify = Callable[[str, Charge, Refund | None], None]
"""Called with the kind of each change that the provider reports by a webhook."""


@define(eq=False)
class Provider:
    """The provider itself; `Provider.gateway` returns the connection of a process to it."""

    seed: str
    traits: Traits
    weather: Weather
    label: Callable[[str], str]
    """Returns the name of an order that is the same in each run."""
    note: Callable[[str], None]
    notify: Notify
    watch: BreakerWatch
    before_charge: Callable[[str], None] = lambda order_id: None
    """Called with the order of each charge call that arrives."""
    charges: dict[str, list[Charge]] = field(factory=lambda: defaultdict(list))
    errors: list[str] = field(factory=list)
    """What no correct caller does."""
    tasks: set[asyncio.Task[None]] = field(factory=set)
    """What the provider still has to do by itself."""
    _answers: dict[str, tuple[Any, Any]] = field(factory=dict)
    """The body and the result of each key; the result is an exception that is repeated, or None while the call is under way."""
    _calls: Counter[tuple[str, str]] = field(factory=Counter)
    _in_flight: Counter[tuple[str, int]] = field(factory=Counter)
    _ordinals: Counter[str] = field(factory=Counter)

    def captured(self, order_id: str) -> list[Charge]:
        """Return the charges of an order that have taken money."""
        return [each for each in self.charges[order_id] if each.status == "captured"]

    def kept(self, order_id: str) -> int:
        """Return how many minor units of an order's payment are not refunded."""
        return sum(each.money.amount - each.refunded for each in self.captured(order_id))

    def calls(self, order_id: str, call: Call) -> int:
        """Return how often a call was made for an order."""
        return self._calls[self.label(order_id), call.value]

    def gateway(self, scope: Scope) -> Gateway:
        """Return the connection of the process *scope*."""
        return Gateway(self, scope)

    async def call(self, scope: Scope, call: Call, order_id: str, key: str, body: Any, effect: Callable[[], Any]) -> Any:
        """Make one call: fail as the weather has it, or answer with what *effect* returns."""
        name, owner = self.label(order_id), (order_id, id(scope))
        number = self._calls[name, call.value]
        self._calls[name, call.value] += 1
        rng = random.Random(f"{self.seed}/{name}/{call.value}/{number}")
        if self._in_flight[owner]:
            self.errors.append(f"{name}: two calls at a time")
        self._in_flight[owner] += 1
        began_in = self.watch.before_call(scope, call)
        try:
            scope.point(f"before {call.value}")
            answer, seconds = self.weather.draw(call, rng)
            if answer in (Answer.LATE, Answer.HANG) and not (self.traits.remembers_charges and call in (Call.CHARGE, Call.REFUND)):
                answer = Answer.TIMEOUT_BEFORE
            # The provider repeats its answer, or works on the call still.
            if answer in (Answer.FAILED_BEFORE, Answer.WRONG_PARAMETER) and key in self._answers:
                answer = Answer.NORMAL
            if answer is Answer.FAILED_AFTER and call is Call.REFUND:  # a gateway looks for the refund before it reports that its key has ended
                answer = Answer.TIMEOUT_AFTER
            await asyncio.sleep(seconds + rng.expovariate(20))
            return await self._answer(scope, call, answer, name, key, body, effect, rng)
        finally:
            self.watch.after_call(scope, call, began_in)
            self._in_flight[owner] -= 1

    async def _answer(
        self, scope: Scope, call: Call, answer: Answer, name: str, key: str, body: Any, effect: Callable[[], Any], rng: random.Random
    ) -> Any:
        scope.point(f"at {call.value}")
        done: Any = None
        try:
            if (error := answer.error_before(rng)) is not None:
                if isinstance(error, GatewayMisconfigured) and answer is Answer.WRONG_KEY and call is Call.REFUND:
                    error.ends_key = False  # a gateway looks for the refund first, and already that is refused
                if key and getattr(error, "has_ended", False):  # the provider repeats its own failure under the key
                    self._answers.setdefault(key, (body, error))
                raise error
            if answer is Answer.LATE:
                self._later(rng.uniform(1.0, LATE_SECONDS), call, name, key, body, effect)
            if answer in (Answer.LATE, Answer.HANG):
                await asyncio.sleep(_ENDLESS_SECONDS)
                raise GatewayTimeout("no answer")
            done = self._once(scope, name, key, body, effect)
            if (error := answer.error_after(rng)) is not None:
                if key and getattr(error, "has_ended", False):
                    self._answers[key] = (body, error)
                raise error
        except (GatewayError, ResponseMismatch) as error:
            self.note(f"provider: {call.value} of {name} under {_short(key)}: {type(error).__name__} {error}")
            raise
        scope.point(f"after {call.value}")
        await asyncio.sleep(rng.expovariate(20))
        self.note(f"provider: {call.value} of {name} under {_short(key)}: {_shown(done)}")
        return done

    def _once(self, scope: Scope | None, name: str, key: str, body: Any, effect: Callable[[], Any]) -> Any:
        if not key:
            return effect()
        known, result = self._answers.get(key, (body, None))
        if known != body:
            self.errors.append(f"{name}: the key {_short(key)} with another body: {known}, then {body}")
            raise GatewayMisconfigured("the key was used with another body", "idempotency_error")
        if key in self._answers:
            if result is None:
                raise GatewayTimeout("a call under this key is under way")
            if isinstance(result, Exception):
                raise result
            return result() if callable(result) else result
        result = effect()
        self._answers[key] = (body, result)
        return result() if callable(result) else result

    def _later(self, seconds: float, call: Call, name: str, key: str, body: Any, effect: Callable[[], Any]) -> None:
        if key in self._answers:
            return
        self._answers[key] = (body, None)

        async def take_effect() -> None:
            await asyncio.sleep(seconds)
            del self._answers[key]
            try:
                done = self._once(None, name, key, body, effect)
            except GatewayError as error:
                done = error
            self.note(f"provider: {call.value} of {name} under {_short(key)} takes effect now: {_shown(done)}")

        self.soon(take_effect())

    @property
    def is_called(self) -> bool:
        """Whether a call is under way."""
        return any(self._in_flight.values())

    def soon(self, work: Any) -> None:
        """Do *work* beside the calls."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, context=Context())  # of no process
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def reference(self, prefix: str, name: str) -> str:
        """Return a new reference that is the same in each run."""
        self._ordinals[prefix + name] += 1
        return f"{prefix}_{name.replace(' ', '')}_{self._ordinals[prefix + name]}"

    def change(self, kind: str, charge: Charge, refund: Refund | None = None) -> None:
        """Send the webhook of a change."""
        self.notify(kind, charge, refund)


@define(eq=False)
class Gateway:
    """Implements `app.gateways.port.Gateway`; its calls are points of *scope*."""

    provider: Provider
    scope: Scope

    name = "provider"

    async def charge(self, key: str, order_id: str, amount: Money, details: ChargeDetails) -> ChargeResult:
        provider = self.provider
        provider.before_charge(order_id)
        name = provider.label(order_id)
        rng = random.Random(f"{provider.seed}/{name}/{_short(key)}/decide")

        def take() -> Any:
            charge = Charge(provider.reference("pi", name), order_id, key, amount, "captured")
            provider.charges[order_id].append(charge)
            traits = provider.traits
            if amount.amount > traits.limit:
                charge.status = "declined"
            elif rng.random() < traits.soft_declines:
                charge.status = "soft"
            elif rng.random() < traits.pending_charges:
                charge.status = "pending"
                provider.soon(self._decide_later(charge, rng.uniform(0.5, 30.0), is_captured=rng.random() < 0.7))
            if charge.status != "pending":
                provider.change("charge", charge)
            return lambda: _result(charge)

        idempotent = key if provider.traits.remembers_charges else ""
        if idempotent:
            body = (order_id, amount, details)
            return await self._call(Call.CHARGE, order_id, idempotent, body, take)  # type: ignore[no-any-return]
        return await self._call(Call.CHARGE, order_id, "", None, lambda: take()())  # type: ignore[no-any-return]

    async def _decide_later(self, charge: Charge, seconds: float, *, is_captured: bool) -> None:
        await asyncio.sleep(seconds)
        if charge.status == "pending":
            charge.status = "captured" if is_captured else "declined"
            self.provider.note(f"provider: the pending charge of {self.provider.label(charge.order_id)} is {charge.status}")
            self.provider.change("charge", charge)

    async def repeats_safely(self, order_id: str) -> bool:
        return self.provider.traits.remembers_charges

    async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        return await self._call(Call.LOOK_UP, order_id, "", None, lambda: self._found(order_id))  # type: ignore[no-any-return]

    async def cancel(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        def cancelled() -> ChargeResult | None:
            for each in self.provider.charges[order_id]:
                if each.status in ("soft", "pending"):
                    each.status = "canceled"
            return self._found(order_id)

        return await self._call(Call.LOOK_UP, order_id, "", None, cancelled)  # type: ignore[no-any-return]

    def _found(self, order_id: str) -> ChargeResult | None:
        found = self.provider.charges[order_id]
        for status in ("captured", "pending", "declined", "soft", "canceled"):
            if matching := [each for each in found if each.status == status]:
                if status == "captured" and len(matching) > 1:
                    raise ResponseMismatch("two_charges", "two charges have taken money", matching[0].reference)
                return _result(matching[0])
        return None

    async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> RefundResult:
        provider, name = self.provider, self.provider.label(order_id)
        rng = random.Random(f"{provider.seed}/{name}/{_short(key)}/decide")

        def give_back() -> Any:
            charge = next((each for each in provider.captured(order_id) if each.reference == reference), None)
            if charge is None:
                provider.errors.append(f"{name}: a refund of {reference}, which has taken no money")
                return RefundRejected("charge_not_found")
            if amount.amount > charge.money.amount - charge.refunded or amount.currency != charge.money.currency:
                provider.errors.append(f"{name}: a refund of {amount} beyond {charge.money}, of which {charge.refunded} went back")
                return RefundRejected("exceeds_left", refunded_total=charge.refunded)
            if provider.weather.lacks_balance:
                return RefundRejected("insufficient_funds", refunded_total=charge.refunded)
            refund = Refund(provider.reference("re", name), key, amount.amount, "succeeded")
            charge.refunds.append(refund)
            if rng.random() < provider.traits.pending_refunds:
                refund.status = "pending"
                fails = rng.random() < provider.traits.failing_refunds
                provider.soon(self._end_refund(charge, refund, rng.uniform(1.0, 40.0), "failed" if fails else "succeeded"))
            provider.change("refund", charge, refund)
            return lambda: _refund_result(charge, refund)

        return await self._call(Call.REFUND, order_id, key, (reference, amount), give_back)  # type: ignore[no-any-return]

    async def _end_refund(self, charge: Charge, refund: Refund, seconds: float, status: str) -> None:
        await asyncio.sleep(seconds)
        refund.status = status
        self.provider.note(f"provider: the pending refund of {self.provider.label(charge.order_id)} has {status}")
        self.provider.change("refund", charge, refund)

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    def _call(self, call: Call, order_id: str, key: str, body: Any, effect: Callable[[], Any]) -> Awaitable[Any]:
        return self.provider.call(self.scope, call, order_id, key, body, effect)


def _result(charge: Charge) -> ChargeResult:
    match charge.status:
        case "captured":
            return Captured(charge.reference, charge.refunded)
        case "pending":
            return Pending(charge.reference)
        case "soft":
            return Declined("try_again_later", is_soft=True)
    return Declined("canceled" if charge.status == "canceled" else "no_money")


def _refund_result(charge: Charge, refund: Refund) -> RefundResult:
    if refund.status == "failed":
        return RefundRejected("refund_failed", refunded_total=charge.refunded, reference=refund.reference)
    return (Refunded if refund.status == "succeeded" else RefundPending)(refund.reference, charge.refunded)


def _short(key: str) -> str:
    """Return *key* without the id of its order."""
    parts = key.split(":")
    return ":".join((parts[0], *parts[2:])) if key else "no key"


def _shown(done: Any) -> str:
    return "nothing found" if done is None else str(done)
