"""The worker at the gateway: whatever the provider does, every order ends and the books balance."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from attrs import define, field

from app.gateways.breaker import Breaker, BreakerState
from app.gateways.port import Answer, Captured, Gateway, GatewayAway, GatewaySilent, Refused
from app.gateways.simulated import SimulatedGateway
from app.gateways.worker import CONSUMER, GatewayWorker
from app.topology import hears
from bus.port import Message
from bus.replays import replay_subject
from modules import payments
from modules.orders.events import CancelRequested
from modules.orders.state import Order, Status
from modules.payments.events import ChargeRequested
from modules.payments.state import Payment, PaymentStatus
from modules.values import Money
from tests.app.stand import CONTEXT, NOTED, HurriedClock, Stand, oid, product, said, stand_at, submitted, until


@define
class Books:
    """A gateway that keeps books; *plan* says how each further call goes: fine, away or silent."""

    name: str = "books"
    plan: list[str] = field(factory=list)
    calls: list[tuple[str, str]] = field(factory=list)
    money: dict[str, int] = field(factory=dict)
    back: dict[str, int] = field(factory=dict)
    is_out: Callable[[], bool] = lambda: False
    declines: bool = False

    async def charge(self, key: str, order_id: str, amount: Money, payment_method: str | None) -> Answer:
        answer: Answer = Captured(f"ref-{order_id}")
        if self._goes("charge", key):
            if self.declines:
                answer = Refused("no_funds")
            else:
                self.money.setdefault(key, amount.amount)
        self._says()
        return answer

    async def find(self, key: str, order_id: str) -> Answer | None:
        self._goes("find", key)
        self._says()
        return Captured(f"ref-{order_id}") if key in self.money else None

    async def refund(self, key: str, reference: str, amount: Money) -> str:
        if self._goes("refund", key):
            self.back.setdefault(key, amount.amount)
        self._says()
        return f"back-{reference}"

    def _goes(self, call: str, key: str) -> bool:
        self.calls.append((call, key))
        self._now = "away" if self.is_out() else self.plan.pop(0) if self.plan else "fine"
        return self._now != "away"

    def _says(self) -> None:
        if self._now == "away":
            raise GatewayAway("nobody there")
        if self._now == "silent":
            raise GatewaySilent("no answer")

    _now: str = field(default="fine", init=False)


@asynccontextmanager
async def running(
    path: Path, gateway: Gateway, breaker: Breaker | None = None, retry_seconds: float = 0.01
) -> AsyncIterator[tuple[Stand, Breaker]]:
    """Let the whole house run around *gateway*, with stock on the shelf and with retries that wait a moment only."""
    clock = HurriedClock()
    async with stand_at(path, clock) as stand:
        await stand.tell("inventory", product(1_000_000))
        # Many failures in a row are what some of these tests want; where the breaker is not the point, it stays closed.
        breaker = breaker or Breaker(clock.monotonic, calls_min=10**9)
        worker = GatewayWorker(
            stand.shells["payments"], gateway, breaker, stand.contracts, clock, stand.metrics, dice=random.Random(1)
        )
        worker._spread = lambda seconds: retry_seconds  # type: ignore[method-assign]
        for name in stand.shells:
            await stand.listen(name)
            stand.run(stand.relays[name].run())
        stand.run(worker.listen(await stand.bus.subscribe(CONSUMER, hears([payments.module()])[CONSUMER])))
        yield stand, breaker
        await worker.drain(5)


@pytest.fixture(autouse=True)
def relays_look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry that is due is found at once."""
    monkeypatch.setattr("app.relay.LOOK_SECONDS", 0.01)


async def place(stand: Stand, count: int) -> list[str]:
    """Place *count* orders; return their ids."""
    ids = [oid(n) for n in range(count)]
    shell = stand.shells["orders"]
    await asyncio.gather(*(shell.tell(submitted(id), id=id, context=CONTEXT, answer=NOTED) for id in ids))
    return ids


async def order(stand: Stand, id: str) -> Order:
    found = await stand.shells["orders"].get(Order, id)
    assert isinstance(found, Order)
    return found


async def payment(stand: Stand, id: str) -> Payment | None:
    return await stand.shells["payments"].get(Payment, id)


async def cancel(stand: Stand, id: str) -> None:
    told = CancelRequested(order_id=id, why=None)
    await stand.shells["orders"].tell(told, id=f"cancel-{id}", context=CONTEXT, answer=NOTED)


async def ended(stand: Stand, ids: list[str]) -> list[Order]:
    """Return the orders once all of them are over."""

    async def are_over() -> list[Order] | None:
        found = [await order(stand, id) for id in ids]
        return found if all(each.is_over for each in found) else None

    found: list[Order] = await until(are_over)
    return found


async def test_in_any_weather_every_order_settles(path: Path) -> None:
    """With every third call failing, before or after it had its effect, all are confirmed and paid once."""
    gateway = SimulatedGateway(HurriedClock(), failure_rate=0.35, dice=random.Random(3))
    async with running(path, gateway) as (stand, _):
        ids = await place(stand, 60)
        for each in await ended(stand, ids):
            assert each.status is Status.CONFIRMED, each
            paid = await payment(stand, each.order_id)
            assert paid is not None
            assert paid.status is PaymentStatus.CAPTURED
            assert paid.reference is not None
        assert await stand.rows("SELECT count(*) FROM payments_dead_letter") == [(0,)]


async def test_over_the_limit_is_declined_and_let_go(path: Path) -> None:
    """A decline is an answer: nothing is tried again, the order is cancelled, the stock goes back."""
    gateway = SimulatedGateway(HurriedClock(), decline_over=50)
    async with running(path, gateway) as (stand, breaker):
        [each] = await ended(stand, await place(stand, 1))
        assert (each.status, each.reason) == (Status.CANCELLED, "payment_declined")
        await until(lambda: _is_free(stand))
        assert breaker.state is BreakerState.CLOSED
        paid = await payment(stand, each.order_id)
        assert paid is not None
        assert (paid.status, paid.calls) == (PaymentStatus.DECLINED, 1)


async def test_the_unknown_is_looked_up_under_the_same_key(path: Path) -> None:
    """The charge arrived, its answer did not: we look, and charge no second time."""
    gateway = Books(plan=["silent"])
    async with running(path, gateway) as (stand, _):
        [each] = await ended(stand, await place(stand, 1))
        assert each.status is Status.CONFIRMED
        key = f"charge:{each.order_id}"
        assert gateway.calls == [("charge", key), ("find", key)]
        assert gateway.money == {key: 100}


async def test_what_did_not_arrive_is_asked_again_under_the_same_key(path: Path) -> None:
    """After a look, to be sure."""
    gateway = Books(plan=["away", "away", "fine", "away"])
    async with running(path, gateway) as (stand, _):
        [each] = await ended(stand, await place(stand, 1))
        assert each.status is Status.CONFIRMED
        key = f"charge:{each.order_id}"
        assert [call for call, _ in gateway.calls] == ["charge", "find", "find", "charge", "find", "charge"]
        assert {used for _, used in gateway.calls} == {key}


async def test_a_refund_is_asked_for_until_it_is_answered(path: Path) -> None:
    """Cancelled after confirmed: the money goes back once, whatever the line is like."""
    gateway = Books()
    async with running(path, gateway) as (stand, _):
        [each] = await ended(stand, await place(stand, 1))
        gateway.plan = ["away", "silent", "silent", "fine"]
        await cancel(stand, each.order_id)
        await until(lambda: _is_refunded(stand, each.order_id))
        assert gateway.back == {f"refund:{each.order_id}": 100}
        await until(lambda: _is_free(stand))
        await until(lambda: _has_heard_of_its_refund(stand, each.order_id))


async def test_while_the_breaker_is_open_nobody_calls(path: Path) -> None:
    """Orders wait, and say for what; no try is spent; when the provider is back all are paid."""
    is_out = True
    gateway = Books(is_out=lambda: is_out)
    clock = HurriedClock()
    breaker = Breaker(clock.monotonic, window=4, calls_min=2, open_seconds=10**6)
    async with running(path, gateway, breaker) as (stand, _):
        [first, second] = await place(stand, 2)
        await until(lambda: breaker.state is BreakerState.OPEN)
        calls = len(gateway.calls)
        shell = stand.shells["orders"]
        await shell.tell(submitted(oid(9)), id=oid(9), context=CONTEXT, answer=NOTED)
        for id in (first, second, oid(9)):
            await until(lambda id=id: _waits_for_payment(stand, id))

        async def has_tried_often() -> bool:
            asked = await stand.rows(
                f"SELECT count(*) FROM payments_outbox WHERE subject = 'payments.charge_requested.v1' AND key = '{oid(9)}'"
            )
            return bool(asked[0][0] > 6)

        await until(has_tried_often)
        assert len(gateway.calls) == calls
        found = await payment(stand, oid(9))
        assert found is not None
        assert (found.status, found.attempts, found.calls) == (PaymentStatus.PENDING, 1, 0)
        assert await stand.rows("SELECT count(*) FROM payments_dead_letter") == [(0,)]
        is_out = False
        breaker._open_until = 0.0
        for each in await ended(stand, [first, second, oid(9)]):
            assert each.status is Status.CONFIRMED
            assert each.waiting_for is None
        assert len(gateway.money) == 3


async def test_cancelled_while_the_answer_was_out_the_money_goes_back(path: Path) -> None:
    """The attempt was on its way when we withdrew it, took the money, and said nothing: it is found and refunded."""
    entered, may_answer = asyncio.Event(), asyncio.Event()

    @define
    class Slow(Books):
        async def charge(self, key: str, order_id: str, amount: Money, payment_method: str | None) -> Answer:
            is_second = len([call for call, _ in self.calls if call == "charge"]) == 1
            if is_second:
                entered.set()
                await may_answer.wait()
            return await Books.charge(self, key, order_id, amount, payment_method)

    gateway = Slow(plan=["away", "fine", "silent"])
    async with running(path, gateway) as (stand, _):
        [id] = await place(stand, 1)
        await entered.wait()
        await cancel(stand, id)

        async def is_given_up() -> bool:
            found = await payment(stand, id)
            return found is not None and found.is_cancelled

        await until(is_given_up)
        may_answer.set()
        await until(lambda: _is_refunded(stand, id))
        assert gateway.money == {f"charge:{id}": 100}
        assert gateway.back == {f"refund:{id}": 100}


async def test_a_call_repeated_after_a_crash_is_heard_though_the_first_was_in_vain(path: Path) -> None:
    """Killed after its "away" was recorded, the worker calls again: that it now took money is news, and goes back."""
    gateway = Books(plan=["away"])
    async with running(path, gateway, retry_seconds=3600) as (stand, _):
        [id] = await place(stand, 1)
        await until(lambda: _waits_for_payment(stand, id))
        await cancel(stand, id)

        async def is_given_up() -> bool:
            found = await payment(stand, id)
            return found is not None and found.status is PaymentStatus.DECLINED

        await until(is_given_up)
        sql = "SELECT event_id, body FROM payments_outbox WHERE subject = 'payments.charge_requested.v1' AND sent_at IS NOT NULL"
        [(event_id, body)] = await until(lambda: stand.rows(sql))
        original = said(stand, ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=1, is_wanted=True), id=event_id)
        assert original.body == body
        await stand.bus.publish(Message(original.subject, "after the crash", body, id, original.headers))
        assert gateway.money == {f"charge:{id}": 100}
        await until(lambda: _is_refunded(stand, id))
        assert gateway.back == {f"refund:{id}": 100}


async def test_a_replayed_charge_is_made(path: Path) -> None:
    """The worker understands what was replayed to it, and its metrics know it by the original subject."""
    gateway = Books()
    async with running(path, gateway) as (stand, _):
        [id] = await place(stand, 1)
        await ended(stand, [id])
        charge = said(stand, ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=1, is_wanted=True))
        subject = replay_subject(CONSUMER, charge.subject)
        await stand.bus.publish(Message(subject, "fresh", charge.body, id, charge.headers))
        assert gateway.calls == [("charge", f"charge:{id}")] * 2
        rendered = stand.metrics.render().decode()
        assert 'subject="payments.charge_requested.v1",outcome="handled"} 2' in rendered
        assert ".replay." not in rendered
        assert await stand.office.list(None, None, None, 10) == []


async def _is_free(stand: Stand) -> bool:
    return await stand.rows("SELECT on_hand, reserved FROM inventory_product") == [(1_000_000, 0)]


async def _is_refunded(stand: Stand, id: str) -> bool:
    found = await payment(stand, id)
    return found is not None and found.status is PaymentStatus.REFUNDED


async def _has_heard_of_its_refund(stand: Stand, id: str) -> bool:
    return "payments.refunded" in [entry["event"] for entry in (await order(stand, id)).timeline]


async def _waits_for_payment(stand: Stand, id: str) -> bool:
    found = await stand.shells["orders"].get(Order, id)
    return found is not None and found.status is Status.RESERVED and found.waiting_for == "payment"
