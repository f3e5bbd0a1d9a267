"""The worker at the gateway: whatever the provider does, every order ends and the books balance."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
from attrs import define, field
from loguru import logger

from app.gateways.circuit_breaker import BreakerState, CircuitBreaker
from app.gateways.gateway_calls import CALLS_MAX, GatewayCalls
from app.gateways.gateway_request import ChargeAttempt, GatewayRequest, result_id
from app.gateways.payment_worker import CONSUMER, PaymentWorker
from app.gateways.port import (
    Captured,
    ChargeResult,
    Declined,
    Gateway,
    GatewayNotReached,
    GatewayRejected,
    GatewayTimeout,
    Pending,
    ResponseMismatch,
)
from app.gateways.simulated import SimulatedGateway
from app.messaging.consumers import subscriptions
from app.telemetry.metrics import Metrics
from bus.contracts.event_reader import EventReader
from bus.port import Message
from bus.replay_subjects import replay_subject
from modules import payments
from modules.orders.events import CancelRequested
from modules.orders.state import Order, Status
from modules.payments.events import (
    ChargeDeclined,
    ChargeFailed,
    ChargeMismatch,
    ChargeRequested,
    ChargeSucceeded,
    RefundFailed,
    RefundSucceeded,
)
from modules.payments.state import Payment, PaymentStatus
from modules.values import Money
from tests.runtime.harness import (
    CONTEXT,
    NO_CONTENT,
    Harness,
    HurriedClock,
    bus_message,
    harness_at,
    oid,
    product,
    submitted,
    until,
)


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
    is_at_it: bool = False
    contradicts: Callable[[str], bool] = lambda call: False
    refuses_refunds: bool = False

    async def charge(self, key: str, order_id: str, amount: Money, payment_method: str | None) -> ChargeResult:
        answer: ChargeResult = Captured(f"ref-{order_id}")
        if self._goes("charge", key):
            if self.declines:
                answer = Declined("no_funds")
            else:
                self.money.setdefault(key, amount.amount)
        self._says()
        self._checked("charge")
        return Pending(f"ref-{order_id}") if self.is_at_it else answer

    async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        self._goes("find", key)
        self._says()
        self._checked("find")
        if self.is_at_it:
            return Pending(f"ref-{order_id}")
        return Captured(f"ref-{order_id}") if key in self.money else None

    async def cancel(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        return await self.find(key, order_id, amount)

    async def close(self) -> None:
        self.calls.append(("close", ""))

    async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> str:
        if self._goes("refund", key) and not self.refuses_refunds:
            self.back.setdefault(key, amount.amount)
        self._says()
        if self.refuses_refunds:
            raise GatewayRejected("card_closed")
        return f"back-{reference}"

    def _checked(self, call: str) -> None:
        if self.contradicts(call):
            raise ResponseMismatch("wrong_amount", "twice as much", "ref-wrong")

    def _goes(self, call: str, key: str) -> bool:
        self.calls.append((call, key))
        self._now = "away" if self.is_out() else self.plan.pop(0) if self.plan else "fine"
        return self._now != "away"

    def _says(self) -> None:
        if self._now == "away":
            raise GatewayNotReached("nobody there")
        if self._now == "silent":
            raise GatewayTimeout("no answer")

    _now: str = field(default="fine", init=False)


@asynccontextmanager
async def running(
    path: Path,
    gateway: Gateway,
    breaker: CircuitBreaker | None = None,
    retry_seconds: float = 0.01,
    hears_also: Sequence[str] = (),
) -> AsyncIterator[tuple[Harness, CircuitBreaker]]:
    """Let the whole house run around *gateway*, with stock on the shelf and with retries that wait a moment only."""
    clock = HurriedClock()
    async with harness_at(path, clock) as harness:
        await harness.submit("inventory", product(1_000_000))
        # Many failures in a row are what some of these tests want; where the breaker is not the point, it stays closed.
        breaker = breaker or CircuitBreaker(clock.monotonic, calls_min=10**9)
        worker = PaymentWorker(
            harness.runners["payments"], gateway, breaker, harness.contracts, clock, harness.metrics, rng=random.Random(1)
        )
        worker._calls._spread = lambda seconds: retry_seconds  # type: ignore[method-assign]
        harness.runners["payments"].add_listener(worker.delays.on_commit)
        for name in harness.runners:
            await harness.consume(name)
            harness.run(harness.relays[name].run())
        subjects = [*subscriptions([payments.module()], harness.contracts)[CONSUMER], *hears_also]
        harness.run(worker.consume(await harness.bus.subscribe(CONSUMER, subjects)))
        yield harness, breaker
        await worker.drain(5)
        await worker.close()


@pytest.fixture(autouse=True)
def relays_look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry that is due is found at once."""
    monkeypatch.setattr("app.messaging.outbox_relay.SCAN_SECONDS", 0.01)


async def place(harness: Harness, count: int) -> list[str]:
    """Place *count* orders; return their ids."""
    ids = [oid(n) for n in range(count)]
    runner = harness.runners["orders"]
    await asyncio.gather(*(runner.submit(submitted(id), id=id, trace=CONTEXT, respond=NO_CONTENT) for id in ids))
    return ids


async def order(harness: Harness, id: str) -> Order:
    found = await harness.runners["orders"].get(Order, id)
    assert isinstance(found, Order)
    return found


async def payment(harness: Harness, id: str) -> Payment | None:
    return await harness.runners["payments"].get(Payment, id)


async def cancel(harness: Harness, id: str) -> None:
    told = CancelRequested(order_id=id, why=None)
    await harness.runners["orders"].submit(told, id=f"cancel-{id}", trace=CONTEXT, respond=NO_CONTENT)


async def ended(harness: Harness, ids: list[str]) -> list[Order]:
    """Return the orders once all of them are over."""

    async def are_over() -> list[Order] | None:
        found = [await order(harness, id) for id in ids]
        return found if all(each.is_final for each in found) else None

    found: list[Order] = await until(are_over)
    return found


REQUEST_ID = "0199fe00-0000-8000-8000-000000000001"


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (ChargeSucceeded(order_id="o", reference="r", calls=1), "0199fe00-0000-86e8-9a27-3f9453d45784"),
        (ChargeDeclined(order_id="o", reason="x", calls=1), "0199fe00-0000-8e98-8fbb-40df6521de41"),
        (ChargeFailed(order_id="o", is_unknown=True, retry_seconds=1, calls=1), "0199fe00-0000-8ead-b917-f4e4ecc5abfa"),
        (ChargeFailed(order_id="o", is_unknown=False, retry_seconds=1, calls=0), "0199fe00-0000-8bba-b8e5-fd7797a7b3ac"),
        (ChargeMismatch(order_id="o", reason="x", reference=None, calls=1), "0199fe00-0000-8078-b8a7-f13998faffcc"),
        (RefundSucceeded(order_id="o", reference="r"), "0199fe00-0000-8937-8521-fe554281525a"),
        (RefundFailed(order_id="o", retry_seconds=1), "0199fe00-0000-8b62-a579-dbe404f59936"),
    ],
)
def test_the_id_of_a_result_is_the_same_as_in_older_versions(result: Any, expected: str) -> None:
    """A result that a worker of an older version has submitted is recognised as a duplicate during an upgrade."""
    assert result_id(REQUEST_ID, CONSUMER, result) == expected


async def test_in_any_weather_every_order_settles(path: Path) -> None:
    """With every third call failing, before or after it had its effect, all are confirmed and paid once."""
    gateway = SimulatedGateway(HurriedClock(), failure_rate=0.35, rng=random.Random(3))
    async with running(path, gateway) as (harness, _):
        ids = await place(harness, 60)
        for each in await ended(harness, ids):
            assert each.status is Status.CONFIRMED, each
            paid = await payment(harness, each.order_id)
            assert paid is not None
            assert paid.status is PaymentStatus.CAPTURED
            assert paid.reference is not None
        assert await harness.rows("SELECT count(*) FROM payments_dead_letter") == [(0,)]


def hold_back(harness: Harness, is_back: asyncio.Event) -> None:
    """Let what is told to payments wait until *is_back*, as for a database that is away."""
    runner = harness.runners["payments"]
    tell = runner.submit

    async def late(event: Any, **how: Any) -> Any:
        await is_back.wait()
        return await tell(event, **how)

    runner.submit = late  # type: ignore[method-assign]


async def test_an_answer_that_waits_for_our_database_holds_up_no_call(path: Path) -> None:
    """The provider's line is what is short, and it is free again."""
    gateway, is_back = Books(), asyncio.Event()
    async with running(path, gateway) as (harness, _):
        hold_back(harness, is_back)
        ids = await place(harness, 2 * CALLS_MAX)
        await until(lambda: len(gateway.calls) == len(ids))
        is_back.set()
        assert {each.status for each in await ended(harness, ids)} == {Status.CONFIRMED}


async def test_no_more_is_in_hand_than_may_wait_for_our_database(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond that stays in the bus, until there is room."""
    monkeypatch.setattr("app.gateways.payment_worker.LANE_IN_HAND_MAX", 7)
    gateway, is_back = Books(), asyncio.Event()
    async with running(path, gateway) as (harness, _):
        hold_back(harness, is_back)
        ids = await place(harness, 30)
        await until(lambda: harness.relays["payments"].pending == len(ids))  # all are asked for, and with the bus
        await until(lambda: len(gateway.calls) >= 7)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(gateway.calls) == 7
        is_back.set()
        assert {each.status for each in await ended(harness, ids)} == {Status.CONFIRMED}


async def test_over_the_limit_is_declined_and_let_go(path: Path) -> None:
    """A decline is an answer: nothing is tried again, the order is cancelled, the stock goes back."""
    gateway = SimulatedGateway(HurriedClock(), decline_over=50)
    async with running(path, gateway) as (harness, breaker):
        [each] = await ended(harness, await place(harness, 1))
        assert (each.status, each.reason) == (Status.CANCELLED, "payment_declined")
        await until(lambda: _is_free(harness))
        assert breaker.state is BreakerState.CLOSED
        paid = await payment(harness, each.order_id)
        assert paid is not None
        assert (paid.status, paid.calls) == (PaymentStatus.DECLINED, 1)


async def test_the_unknown_is_looked_up_under_the_same_key(path: Path) -> None:
    """The charge arrived, its answer did not: we look, and charge no second time."""
    gateway = Books(plan=["silent"])
    async with running(path, gateway) as (harness, _):
        [each] = await ended(harness, await place(harness, 1))
        assert each.status is Status.CONFIRMED
        key = f"charge:{each.order_id}"
        assert gateway.calls == [("charge", key), ("find", key)]
        assert gateway.money == {key: 100}


async def test_what_did_not_arrive_is_asked_again_under_the_same_key(path: Path) -> None:
    """After a look, to be sure."""
    gateway = Books(plan=["away", "away", "fine", "away"])
    async with running(path, gateway) as (harness, _):
        [each] = await ended(harness, await place(harness, 1))
        assert each.status is Status.CONFIRMED
        key = f"charge:{each.order_id}"
        assert [call for call, _ in gateway.calls] == ["charge", "find", "find", "charge", "find", "charge"]
        assert {used for _, used in gateway.calls} == {key}


async def test_a_refund_is_asked_for_until_it_is_answered(path: Path) -> None:
    """Cancelled after confirmed: the money goes back once, whatever the line is like."""
    gateway = Books()
    async with running(path, gateway) as (harness, _):
        [each] = await ended(harness, await place(harness, 1))
        gateway.plan = ["away", "silent", "silent", "fine"]
        await cancel(harness, each.order_id)
        await until(lambda: _is_refunded(harness, each.order_id))
        assert gateway.back == {f"refund:{each.order_id}": 100}
        await until(lambda: _is_free(harness))
        await until(lambda: _has_heard_of_its_refund(harness, each.order_id))


async def test_while_the_breaker_is_open_nobody_calls(path: Path) -> None:
    """Orders wait, and say for what; no try is spent; when the provider is back all are paid."""
    is_out = True
    gateway = Books(is_out=lambda: is_out)
    clock = HurriedClock()
    breaker = CircuitBreaker(clock.monotonic, window=4, calls_min=2, open_seconds=10**6)
    async with running(path, gateway, breaker) as (harness, _):
        [first, second] = await place(harness, 2)
        await until(lambda: breaker.state is BreakerState.OPEN)
        calls = len(gateway.calls)
        runner = harness.runners["orders"]
        await runner.submit(submitted(oid(9)), id=oid(9), trace=CONTEXT, respond=NO_CONTENT)
        for id in (first, second, oid(9)):
            await until(partial(_waits_for_payment, harness, id))

        sql = "SELECT count(*) FROM payments_outbox WHERE subject = 'payments.charge_requested.v1'"
        [(asked,)] = await harness.rows(sql)
        for _ in range(50):  # looks of the relay, and alarms of those who wait
            await asyncio.sleep(0.01)
        assert await harness.rows(sql) == [(asked,)], "it goes round in circles while the breaker is open"
        assert len(gateway.calls) == calls
        found = await payment(harness, oid(9))
        assert found is not None
        assert (found.status, found.attempts, found.calls) == (PaymentStatus.PENDING, 1, 0)
        assert await harness.rows("SELECT count(*) FROM payments_dead_letter") == [(0,)]
        is_out = False
        breaker._open_until = 0.0
        for each in await ended(harness, [first, second, oid(9)]):
            assert each.status is Status.CONFIRMED
            assert each.waiting_for is None
        assert len(gateway.money) == 3


async def test_cancelled_while_the_answer_was_out_the_money_goes_back(path: Path) -> None:
    """The attempt was on its way when we withdrew it, took the money, and said nothing: it is found and refunded."""
    entered, may_answer = asyncio.Event(), asyncio.Event()

    @define
    class Slow(Books):
        async def charge(self, key: str, order_id: str, amount: Money, payment_method: str | None) -> ChargeResult:
            is_second = len([call for call, _ in self.calls if call == "charge"]) == 1
            if is_second:
                entered.set()
                await may_answer.wait()
            return await Books.charge(self, key, order_id, amount, payment_method)

    gateway = Slow(plan=["away", "fine", "silent"])
    async with running(path, gateway) as (harness, _):
        [id] = await place(harness, 1)
        await entered.wait()
        await cancel(harness, id)

        async def is_given_up() -> bool:
            found = await payment(harness, id)
            return found is not None and found.is_cancelled

        await until(is_given_up)
        may_answer.set()
        await until(lambda: _is_refunded(harness, id))
        assert gateway.money == {f"charge:{id}": 100}
        assert gateway.back == {f"refund:{id}": 100}


async def test_a_call_repeated_after_a_crash_looks_first_and_takes_no_money_for_a_cancelled_order(path: Path) -> None:
    """Killed after its "away" was recorded, the worker hears the request again: somebody may have called, so it looks."""
    gateway = Books(plan=["away"])
    async with running(path, gateway, retry_seconds=3600) as (harness, _):
        [id] = await place(harness, 1)
        await until(lambda: _waits_for_payment(harness, id))
        await cancel(harness, id)

        async def is_given_up() -> bool:
            found = await payment(harness, id)
            return found is not None and found.status is PaymentStatus.DECLINED

        await until(is_given_up)
        sql = "SELECT event_id, body FROM payments_outbox WHERE subject = 'payments.charge_requested.v1' AND sent_at IS NOT NULL"
        [(event_id, body)] = await until(lambda: harness.rows(sql))
        original = bus_message(harness, ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=1, is_wanted=True), id=event_id)
        assert original.body == body
        await harness.bus.publish(Message(original.subject, "after the crash", body, id, original.headers))
        assert [call for call, _ in gateway.calls] == ["charge", "find"]
        assert gateway.money == {}


async def test_behind_the_pause_a_cancelled_order_is_never_charged(path: Path) -> None:
    """Cancelled while its request waited for the breaker: the request looks at our own books before it goes out."""
    is_out = True
    gateway = Books(is_out=lambda: is_out)
    breaker = CircuitBreaker(HurriedClock().monotonic, window=4, calls_min=2, open_seconds=10**6)
    async with running(path, gateway, breaker) as (harness, _):
        await place(harness, 2)
        await until(lambda: breaker.state is BreakerState.OPEN)
        runner = harness.runners["orders"]
        await runner.submit(submitted(oid(9)), id=oid(9), trace=CONTEXT, respond=NO_CONTENT)
        await until(lambda: _waits_for_payment(harness, oid(9)))
        await cancel(harness, oid(9))
        await until(lambda: _is_given_up(harness, oid(9)))
        is_out = False
        breaker._open_until = 0.0
        await ended(harness, [oid(0), oid(1)])

        async def is_declined() -> bool:
            found = await payment(harness, oid(9))
            return found is not None and found.status is PaymentStatus.DECLINED

        await until(is_declined)
        assert sorted(gateway.money) == [f"charge:{oid(0)}", f"charge:{oid(1)}"]
        assert gateway.back == {}


async def test_what_is_in_hand_when_the_breaker_opens_spends_no_try(path: Path) -> None:
    """Fifty requests are out or waiting; while it is open none is given back, and then one of them is the probe."""
    is_out = True
    gateway = Books(is_out=lambda: is_out)
    breaker = CircuitBreaker(HurriedClock().monotonic, window=20, calls_min=10, open_seconds=10**6)
    async with running(path, gateway, breaker) as (harness, _):
        ids = await place(harness, 50)
        await until(lambda: breaker.state is BreakerState.OPEN)
        for id in ids:
            await until(partial(_waits_for_payment, harness, id))
        calls = len(gateway.calls)
        assert calls < 50
        for _ in range(30):
            await asyncio.sleep(0.01)
        assert len(gateway.calls) == calls
        tries = [copy.tries for group in harness.bus._groups.values() for copy in group.ready]
        assert max(tries, default=0) <= 1
        is_out = False
        breaker._open_until = 0.0
        assert {each.status for each in await ended(harness, ids)} == {Status.CONFIRMED}
        assert len(gateway.money) == 50
        assert await harness.rows("SELECT count(*) FROM payments_dead_letter") == [(0,)]


async def test_closing_while_the_breaker_is_open_puts_what_is_in_hand_into_the_outbox(path: Path) -> None:
    """It is there at the next start, with its tries unspent and not counted as an attempt."""
    gateway = Books(plan=["away"] * 100)
    breaker = CircuitBreaker(HurriedClock().monotonic, window=4, calls_min=2, open_seconds=10**6)
    async with running(path, gateway, breaker) as (harness, _):
        await place(harness, 30)
        await until(lambda: breaker.state is BreakerState.OPEN)
        for n in range(30):
            await until(partial(_waits_for_payment, harness, oid(n)))
    async with harness_at(path) as harness:
        sql = "SELECT count(*) FROM payments_payment WHERE status = 'pending' AND calls = 0 AND attempts = 1"
        [(untouched,)] = await harness.rows(sql)
        assert untouched >= 10
        sql = "SELECT count(DISTINCT key) FROM payments_outbox WHERE sent_at IS NULL AND subject LIKE 'payments.charge%'"
        assert await harness.rows(sql) == [(30,)], "a request is nowhere"


async def test_a_garbled_answer_is_put_aside_and_settled_by_the_second_look(path: Path) -> None:
    """The order says so; the provider's own books are right, and nothing is charged again."""
    gateway = Books(contradicts=lambda call: call == "charge")
    async with running(path, gateway) as (harness, _):
        [each] = await ended(harness, await place(harness, 1))
        assert each.status is Status.CONFIRMED
        assert [entry["event"] for entry in each.timeline][2:] == ["payments.put_aside", "orders.confirmed"]
        assert [call for call, _ in gateway.calls] == ["charge", "find"]
        paid = await payment(harness, each.order_id)
        assert paid is not None
        assert (paid.status, paid.reason) == (PaymentStatus.CAPTURED, None)


async def test_what_contradicts_twice_waits_for_a_person(path: Path) -> None:
    """It is unknown, with the reason; looked at twice and never charged again; cancelled, it is looked at once more."""
    gateway = Books(contradicts=lambda call: True)
    async with running(path, gateway) as (harness, _):
        [id] = await place(harness, 1)

        async def is_left_alone() -> bool:
            found = await payment(harness, id)
            return found is not None and found.needs_review and not found.is_waiting

        await until(is_left_alone)
        found = await payment(harness, id)
        assert found is not None
        assert (found.status, found.reason, found.reference) == (PaymentStatus.UNKNOWN, "wrong_amount", "ref-wrong")
        await until(lambda: _waits_for_payment(harness, id))
        for _ in range(30):
            await asyncio.sleep(0.01)
        assert [call for call, _ in gateway.calls] == ["charge", "find"]
        gateway.contradicts = lambda call: False
        await cancel(harness, id)
        await until(lambda: _is_refunded(harness, id))
        assert [call for call, _ in gateway.calls] == ["charge", "find", "find", "refund"]


async def test_what_the_provider_is_still_at_is_no_failure(path: Path) -> None:
    """It is asked again until it knows, and the breaker counts it for well."""
    gateway = Books(is_at_it=True)
    breaker = CircuitBreaker(HurriedClock().monotonic, window=4, calls_min=2)
    async with running(path, gateway, breaker) as (harness, _):
        [id] = await place(harness, 1)
        await until(lambda: len(gateway.calls) > 5)
        assert breaker.state is BreakerState.CLOSED
        found = await payment(harness, id)
        assert found is not None
        assert found.status is PaymentStatus.UNKNOWN
        gateway.is_at_it = False
        await ended(harness, [id])
        assert gateway.money == {f"charge:{id}": 100}


async def test_a_refund_that_is_refused_is_seen_and_asked_for_again(path: Path) -> None:
    """The payment says that its money has not gone back; when the provider does it after all, that is forgotten."""
    gateway = Books(refuses_refunds=True)
    async with running(path, gateway) as (harness, breaker):
        [each] = await ended(harness, await place(harness, 1))
        await cancel(harness, each.order_id)

        async def says_so() -> bool:
            found = await payment(harness, each.order_id)
            return found is not None and found.reason == "refund_refused: card_closed"

        await until(says_so)
        assert breaker.state is BreakerState.CLOSED
        gateway.refuses_refunds = False
        await until(lambda: _is_refunded(harness, each.order_id))
        found = await payment(harness, each.order_id)
        assert found is not None
        assert found.reason is None
        assert gateway.back == {f"refund:{each.order_id}": 100}


async def test_what_is_old_or_of_an_earlier_start_is_looked_up_first(path: Path) -> None:
    """Somebody may have called for it: a provider that knows no repeated key would charge it twice."""
    gateway = Books()
    async with running(path, gateway) as (harness, _):
        [id] = await place(harness, 1)
        await ended(harness, [id])
        request = ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=1, is_wanted=True)
        fresh, old = bus_message(harness, request), bus_message(harness, request)
        old = attrs.evolve(old, headers={**old.headers, "ce-time": "2026-01-01T00:00:00Z"})
        for message, call in (fresh, "charge"), (old, "find"):
            gateway.calls.clear()
            await harness.bus.publish(message)
            assert gateway.calls == [(call, f"charge:{id}")]


@pytest.mark.parametrize("trouble", ["away", "silent"])
@pytest.mark.parametrize("is_wanted", [True, False])
@pytest.mark.parametrize("is_repeat", [True, False])
async def test_a_look_that_fails_leaves_open_what_a_killed_worker_did(trouble: str, is_wanted: bool, is_repeat: bool) -> None:
    """Whoever heard the request before us may have charged; an order that is cancelled now is not let go on that."""
    clock = HurriedClock()
    calls = GatewayCalls(Books(plan=[trouble]), CircuitBreaker(clock.monotonic), Metrics(), random.Random(1))
    request = ChargeRequested(order_id=oid(1), amount=Money(100, "EUR"), attempt=1, is_wanted=is_wanted)
    received = GatewayRequest(
        request, "e-1", CONTEXT, is_express=False, is_first_call=False, needs_recheck=False, may_be_repeat=is_repeat
    )
    answer = await calls.charge(ChargeAttempt(received))
    assert (type(answer), answer.is_unknown, answer.calls) == (ChargeFailed, is_repeat, 0)


async def test_what_waited_long_is_compared_with_our_own_books(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They say that nobody has called: it is charged without a look. They say that somebody has: it is looked up."""
    monkeypatch.setattr("app.gateways.payment_worker.FRESH_SECONDS", -1.0)  # everything has waited long
    gateway = Books()
    async with running(path, gateway) as (harness, _):
        [id] = await place(harness, 1)
        await ended(harness, [id])
        assert gateway.calls == [("charge", f"charge:{id}")]
        await harness.bus.publish(
            bus_message(harness, ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=1, is_wanted=True))
        )
        assert gateway.calls == [("charge", f"charge:{id}"), ("find", f"charge:{id}")]


async def test_a_copy_of_an_attempt_that_brought_its_answer_asks_nothing(path: Path) -> None:
    """Beside the attempt that follows, it would find no charge either, and make a second one."""
    gateway = Books(plan=["away"])
    async with running(path, gateway, retry_seconds=3600) as (harness, _):
        [id] = await place(harness, 1)
        await until(lambda: _waits_for_payment(harness, id))
        gateway.calls.clear()
        for attempt, calls in (1, []), (2, ["find", "charge"]):
            request = ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=attempt, is_wanted=True)
            await harness.bus.publish(attrs.evolve(bus_message(harness, request), id=f"copy-{attempt}"))
            assert [call for call, _ in gateway.calls] == calls
        assert await harness.dead_letter_store.list(None, None, None, 10) == []


async def test_for_one_order_one_thing_is_asked_at_a_time(path: Path) -> None:
    """Two requests that come at once: the second asks when the first has told what it was answered."""
    is_free, at_it = asyncio.Event(), []

    class Slow(Books):
        async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
            at_it.append(order_id)
            await is_free.wait()
            found = await super().find(key, order_id, amount)
            at_it.remove(order_id)
            return found

    async with running(path, Slow()) as (harness, _):
        ids = await place(harness, 2)
        await ended(harness, ids)
        requests = [
            bus_message(harness, ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=2, is_wanted=True)) for id in ids
        ]
        copies = [attrs.evolve(each, id=f"{each.id}-{n}") for each in requests for n in range(3)]
        published = [harness.bus.publish(each) for each in copies]
        await until(lambda: len(at_it) >= 2)
        for _ in range(100):
            await asyncio.sleep(0)
        assert sorted(at_it) == sorted(ids)
        is_free.set()
        await asyncio.gather(*published)
        assert at_it == []


async def _is_given_up(harness: Harness, id: str) -> bool:
    found = await payment(harness, id)
    return found is not None and found.is_cancelled


async def test_a_replayed_charge_is_made(path: Path) -> None:
    """The worker understands what was replayed to it, and its metrics know it by the original subject."""
    gateway = Books()
    async with running(path, gateway) as (harness, _):
        [id] = await place(harness, 1)
        await ended(harness, [id])
        charge = bus_message(harness, ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=1, is_wanted=True))
        subject = replay_subject(CONSUMER, charge.subject)
        await harness.bus.publish(Message(subject, "fresh", charge.body, id, charge.headers))
        assert [key for _, key in gateway.calls] == [f"charge:{id}"] * 2
        assert gateway.money == {f"charge:{id}": 100}
        rendered = harness.metrics.render().decode()
        assert 'subject="payments.charge_requested.v1",outcome="handled"} 2' in rendered
        assert ".replay." not in rendered
        assert await harness.dead_letter_store.list(None, None, None, 10) == []


def told(log: list[str], message: str) -> list[str]:
    """Return the lines of *log* about the worker that begin with *message*."""
    return [line for line in log if line.startswith(message) and f"'consumer': '{CONSUMER}'" in line]


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What is logged from WARNING on, a line each."""
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING", format="{message} {extra}")
    yield lines
    logger.remove(sink)


def outcomes(harness: Harness, subject: str = "payments.charge_requested.v1") -> dict[str, int]:
    """Return what became of messages to payments on *subject*, as the metrics say."""
    found = harness.metrics.messages_handled.items()
    return {outcome: int(tally.value) for (module, at, outcome), tally in found if (module, at) == ("payments", subject)}


async def test_what_makes_no_sense_is_put_aside_counted_and_logged(path: Path, log: list[str]) -> None:
    """As by every consumer; its neighbours go on."""
    async with running(path, Books()) as (harness, _):
        await harness.bus.publish(Message("payments.charge_requested.v1", "m-1", b"{", "k", {"ce-correlationid": "c-1"}))
        await harness.bus.publish(Message("payments.charge_requested.v1", "m-2", b"{}", "k"))
        [each] = await ended(harness, await place(harness, 1))
        assert each.status is Status.CONFIRMED
        assert outcomes(harness) == {"put_aside": 2, "handled": 1}
        first, second = told(log, "message put aside")
        assert "'error': 'unreadable'" in first
        assert "'correlation_id': 'c-1'" in first
        assert "'error': 'invalid'" in second
        assert [kept.dead_letter.error for kept in await harness.dead_letter_store.list(CONSUMER, None, None, 9, error="invalid")] == ["invalid"]


async def test_a_version_that_is_also_said_in_a_known_one_is_ignored_and_counted(path: Path, log: list[str]) -> None:
    """It asks nothing, and it is no dead letter: the other says the same."""
    gateway, newer = Books(), "payments.charge_requested.v2"
    async with running(path, gateway, hears_also=[newer]) as (harness, _):
        request = bus_message(harness, ChargeRequested(order_id=oid(1), amount=Money(100, "EUR"), attempt=1, is_wanted=True))
        headers = {**request.headers, "ce-versions": "v1,v2"}
        await harness.bus.publish(attrs.evolve(request, subject=newer, headers=headers))
        assert outcomes(harness, newer) == {"ignored": 1}
        assert gateway.calls == []
        assert told(log, "message") == []
        assert await harness.dead_letter_store.list(None, None, None, 10) == []


async def test_what_was_told_before_counts_as_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a lower version of it as superseded, once it has given way as often as it does."""
    async with running(path, Books()) as (harness, _):
        [id] = await place(harness, 1)
        await ended(harness, [id])
        [(event_id,)] = await harness.rows("SELECT event_id FROM payments_outbox WHERE subject = 'payments.charge_requested.v1'")
        request = ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=1, is_wanted=True)
        copy = bus_message(harness, request, id=event_id)
        await harness.bus.publish(attrs.evolve(copy, id="copy-1"))
        assert outcomes(harness) == {"handled": 1, "repeated": 1}
        monkeypatch.setattr(EventReader, "has_newer", lambda self, subject, versions: versions == "v1,v2")
        lower = attrs.evolve(copy, id="copy-2", headers={**copy.headers, "ce-versions": "v1,v2"})
        await harness.bus.publish(lower)
        assert outcomes(harness) == {"handled": 1, "repeated": 1, "superseded": 1}


async def _is_free(harness: Harness) -> bool:
    return await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(1_000_000, 0)]


async def _is_refunded(harness: Harness, id: str) -> bool:
    found = await payment(harness, id)
    return found is not None and found.status is PaymentStatus.REFUNDED


async def _has_heard_of_its_refund(harness: Harness, id: str) -> bool:
    return "payments.refunded" in [entry["event"] for entry in (await order(harness, id)).timeline]


async def _waits_for_payment(harness: Harness, id: str) -> bool:
    found = await harness.runners["orders"].get(Order, id)
    return found is not None and found.status is Status.RESERVED and found.waiting_for == "payment"
