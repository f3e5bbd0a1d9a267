"""The payment worker: whatever the provider does, every order finishes, and its money is taken at most once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from attrs import define, evolve, field
from loguru import logger

from app.gateways.breakers.circuit_breaker import BreakerState, CircuitBreaker, Permit
from app.gateways.breakers.operations import OperationKind, Operations
from app.gateways.delay_notifier import DelayNotifier
from app.gateways.gateway_calls import CALLS_MAX, GatewayCalls
from app.gateways.gateway_request import ChargeAttempt, GatewayRequest
from app.gateways.lane import LANE_IN_HAND_MAX, WAITING_SECONDS_MAX
from app.gateways.order_locks import OrderLocks
from app.gateways.payment_worker import CONSUMER, PaymentWorker
from app.gateways.port import (
    Captured,
    ChargeDetails,
    ChargeResult,
    Declined,
    Gateway,
    GatewayMisconfigured,
    GatewayNotReached,
    GatewayTimeout,
    Pending,
    Refunded,
    RefundRejected,
    RefundResult,
    ResponseMismatch,
)
from app.gateways.simulated import SimulatedGateway
from app.messaging.consumers import subscriptions
from app.messaging.republish import count as count_sent
from app.messaging.republish import republish
from app.runtime.engine import direct_takers
from app.runtime.order_metrics import log_payment_cases
from app.runtime.receiving import EventReader, Received
from app.telemetry.metrics import Metrics
from bus.port import Clock, Message
from bus.subjects import replay_subject, subject_of
from modules import payments
from modules.orders.events import CancelRequested, OrderCancelled
from modules.orders.state import Order, Status
from modules.payments.events import ChargeDeclined, ChargeFailed, ChargeRequested, ChargeSucceeded, RefundRequested
from modules.payments.state import Payment, PaymentStatus
from modules.values import Address, Money, rfc3339
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
from tests.storage.history_contract import published


@define
class FakeGateway:
    """
    A gateway with a ledger; *plan* names how each further call ends: "ok", "not reached", "timeout", "error" or "misconfigured".

    The last two are saved for their key and repeated, as a real provider does: "error" is a status of 500.
    """

    name: str = "fake"
    plan: list[str] = field(factory=list)
    calls: list[tuple[str, str]] = field(factory=list)
    captured: dict[str, int] = field(factory=dict)
    refunded: dict[str, int] = field(factory=dict)
    is_down: Callable[[], bool] = lambda: False
    declines: bool = False
    is_pending: bool = False
    mismatches: Callable[[str], bool] = lambda call: False
    rejects_refunds: bool = False
    saved: dict[str, str] = field(factory=dict)

    async def charge(self, key: str, order_id: str, amount: Money, details: ChargeDetails) -> ChargeResult:
        result: ChargeResult = Captured(f"ref-{order_id}")
        if self._begin("charge", key):
            if self.declines:
                result = Declined("no_funds")
            else:
                self.captured.setdefault(key, amount.amount)
        self._raise_planned()
        self._check_mismatch("charge")
        return Pending(f"ref-{order_id}") if self.is_pending else result

    async def repeats_safely(self, order_id: str) -> bool:
        return False

    async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        self._begin("find", key)
        self._raise_planned()
        self._check_mismatch("find")
        if self.is_pending:
            return Pending(f"ref-{order_id}")
        return Captured(f"ref-{order_id}") if key in self.captured else None

    async def cancel(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        return await self.find(key, order_id, amount)

    async def close(self) -> None:
        self.calls.append(("close", ""))

    async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> RefundResult:
        if self._begin("refund", key) and not self.rejects_refunds:
            self.refunded.setdefault(key, amount.amount)
        self._raise_planned()
        if self.rejects_refunds:
            return RefundRejected("card_closed")
        return Refunded(f"back-{reference}", amount.amount)

    def _check_mismatch(self, call: str) -> None:
        if self.mismatches(call):
            raise ResponseMismatch("wrong_amount", "twice as much", "ref-wrong")

    def _begin(self, call: str, key: str) -> bool:
        self.calls.append((call, key))
        self._behaviour = "not reached" if self.is_down() else self.plan.pop(0) if self.plan else "ok"
        if call != "find" and self._behaviour in ("error", "misconfigured"):
            self.saved[key] = self._behaviour
        if call != "find":
            self._behaviour = self.saved.get(key, self._behaviour)
        return self._behaviour in ("ok", "timeout")

    def _raise_planned(self) -> None:
        if self._behaviour == "not reached":
            raise GatewayNotReached("the connection was refused")
        if self._behaviour == "timeout":
            raise GatewayTimeout("no response")
        if self._behaviour == "error":
            raise GatewayTimeout("status 500", has_ended=True)
        if self._behaviour == "misconfigured":
            raise GatewayMisconfigured("status 403", "more_permissions_required", "amount", "req_1")

    _behaviour: str = field(default="ok", init=False)


def operations_with(breaker: CircuitBreaker, clock: Clock, stoppable: OperationKind = OperationKind.CHARGE) -> Operations:
    """Return operations of which only *stoppable* may stop, with *breaker*."""

    def make_breaker(kind: OperationKind) -> CircuitBreaker:
        return breaker if kind is stoppable else CircuitBreaker(clock.monotonic, calls_min=10**9)

    return Operations.of("fake", clock, make_breaker)


class OpenedLate(CircuitBreaker):
    """Opens when the first call is about to be made, for a request that was received while it was closed."""

    has_opened = False

    def acquire(self) -> Permit:
        if not self.has_opened:
            self.has_opened = True
            self.failed(super().acquire(), 10**6)
        return super().acquire()


@asynccontextmanager
async def running(
    path: Path,
    gateway: Gateway,
    breaker: CircuitBreaker | None = None,
    retry_seconds: float = 0.01,
    more_subjects: Sequence[str] = (),
    takes_directly: bool = False,
    stoppable: OperationKind = OperationKind.CHARGE,
) -> AsyncIterator[tuple[Harness, CircuitBreaker]]:
    """
    Run all modules and a worker for *gateway*, with products in stock and with short retries.

    With *takes_directly* the worker takes requests from the process itself, as it does with a bus in memory. *breaker* is
    that of the operation *stoppable*.
    """
    clock = HurriedClock()
    async with harness_at(path, clock) as harness:
        await harness.submit("inventory", product(1_000_000))
        # Some tests make many calls fail one after the other; unless a test passes a breaker, it must not open.
        breaker = breaker or CircuitBreaker(clock.monotonic, calls_min=10**9)
        operations = operations_with(breaker, clock, stoppable)
        worker = PaymentWorker(
            harness.runners["payments"], gateway, operations, harness.contracts, clock, harness.metrics, rng=random.Random(1),
            takes_directly=takes_directly,
        )
        worker._calls._spread = lambda seconds: retry_seconds  # type: ignore[method-assign]
        harness.runners["payments"].add_listener(worker.delays.on_commit)
        if takes_directly:
            harness.runners["payments"].takers = direct_takers([runner.module for runner in harness.runners.values()], {CONSUMER: worker.take})
        for name in harness.runners:
            await harness.consume(name)
            harness.run(harness.relays[name].run())
        subjects = [*subscriptions([payments.module()], harness.contracts)[CONSUMER], *more_subjects]
        harness.run(worker.consume(await harness.bus.subscribe(CONSUMER, subjects)))
        await until(lambda: worker._subscriptions)  # what is requested before might have been taken by an earlier process
        yield harness, breaker
        await worker.drain(5)
        await worker.close()


@pytest.fixture(autouse=True)
def frequent_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay finds a retry as soon as it is due."""
    monkeypatch.setattr("app.messaging.outbox_relay.SCAN_SECONDS", 0.01)


async def place_orders(harness: Harness, count: int) -> list[str]:
    """Place *count* orders; return their ids."""
    ids = [oid(n) for n in range(count)]
    runner = harness.runners["orders"]
    await asyncio.gather(*(runner.submit(submitted(id), id=id, trace=CONTEXT, respond=NO_CONTENT) for id in ids))
    return ids


async def order_of(harness: Harness, id: str) -> Order:
    found = await harness.runners["orders"].get(Order, id)
    assert isinstance(found, Order)
    return found


async def payment_of(harness: Harness, id: str) -> Payment | None:
    return await harness.runners["payments"].get(Payment, id)


async def cancel_order(harness: Harness, id: str) -> None:
    event = CancelRequested(order_id=id, why=None)
    await harness.runners["orders"].submit(event, id=f"cancel-{id}", trace=CONTEXT, respond=NO_CONTENT)


async def finished_orders(harness: Harness, ids: list[str]) -> list[Order]:
    """Return the orders once all of them are finished."""

    async def all_finished() -> list[Order] | None:
        found = [await order_of(harness, id) for id in ids]
        return found if all(each.is_final for each in found) else None

    found: list[Order] = await until(all_finished)
    return found


async def test_turns_of_one_order_are_taken_one_at_a_time_and_in_order() -> None:
    """Turns of different orders overlap; a turn that fails or is cancelled lets the next one in."""
    locks, log = OrderLocks(), []
    gates = [asyncio.Event() for _ in range(4)]

    async def take_turn(number: int, order_id: str) -> None:
        async with locks.turn(order_id) as is_uncontended:
            log.append((number, is_uncontended))
            await gates[number].wait()
            if number == 0:
                raise LookupError

    tasks = [asyncio.create_task(take_turn(number, order_id)) for number, order_id in enumerate(["a", "a", "b", "a"])]
    await asyncio.sleep(0)
    assert log == [(0, True), (2, True)]
    gates[0].set()
    await until(lambda: log[2:] == [(1, False)])
    tasks[1].cancel()
    await until(lambda: log[3:] == [(3, False)])
    for gate in gates:
        gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [LookupError, asyncio.CancelledError, type(None), type(None)]
    assert locks._last_turns == {}


async def test_a_turn_that_is_cancelled_while_it_waits_lets_no_other_one_in() -> None:
    """The turn before it has not ended."""
    locks, gate, log = OrderLocks(), asyncio.Event(), []

    async def take_turn(number: int) -> None:
        async with locks.turn("a"):
            log.append(number)
            await gate.wait()

    tasks = [asyncio.create_task(take_turn(number)) for number in range(4)]
    await asyncio.sleep(0)
    for cancelled in 1, 2:
        tasks[cancelled].cancel()
        await asyncio.wait([tasks[cancelled]])
    for _ in range(10):
        await asyncio.sleep(0)
    assert log == [0]
    gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert log == [0, 3]
    assert locks._last_turns == {}


@pytest.mark.parametrize("takes_directly", [False, True])
async def test_every_order_is_confirmed_though_every_third_call_fails(path: Path, takes_directly: bool) -> None:
    """The calls fail before or after they had their effect; each order is confirmed and paid once."""
    gateway = SimulatedGateway(HurriedClock(), failure_rate=0.35, rng=random.Random(3))
    async with running(path, gateway, takes_directly=takes_directly) as (harness, _):
        ids = await place_orders(harness, 60)
        for each in await finished_orders(harness, ids):
            assert each.status is Status.CONFIRMED, each
            paid = await payment_of(harness, each.order_id)
            assert paid is not None
            assert paid.status is PaymentStatus.CAPTURED
            assert paid.reference is not None
        assert await harness.rows("SELECT count(*) FROM payments_dead_letter") == [(0,)]


def block_submissions(harness: Harness, is_back: asyncio.Event) -> None:
    """Block what is submitted to payments until *is_back*, as a database does that is out of reach."""
    runner = harness.runners["payments"]
    submit = runner.submit

    async def wait_and_submit(event: Any, **options: Any) -> Any:
        await is_back.wait()
        return await submit(event, **options)

    runner.submit = wait_and_submit  # type: ignore[method-assign]


@pytest.mark.parametrize("takes_directly", [False, True])
async def test_a_result_that_waits_for_the_database_blocks_no_call(path: Path, takes_directly: bool) -> None:
    """Calls are limited; the slot of a call is free as soon as the provider has responded."""
    gateway, is_back = FakeGateway(), asyncio.Event()
    async with running(path, gateway, takes_directly=takes_directly) as (harness, _):
        block_submissions(harness, is_back)
        ids = await place_orders(harness, 2 * CALLS_MAX)
        await until(lambda: len(gateway.calls) == len(ids))
        is_back.set()
        assert {each.status for each in await finished_orders(harness, ids)} == {Status.CONFIRMED}


@pytest.mark.parametrize("takes_directly", [False, True])
async def test_the_results_that_wait_for_the_database_are_limited(
    path: Path, monkeypatch: pytest.MonkeyPatch, takes_directly: bool
) -> None:
    """Further requests wait in the bus, or in the worker, until there is a free slot; one slot is kept for what the bus delivers."""
    monkeypatch.setattr("app.gateways.lane.LANE_IN_HAND_MAX", 7 + takes_directly)
    gateway, is_back = FakeGateway(), asyncio.Event()
    async with running(path, gateway, takes_directly=takes_directly) as (harness, _):
        block_submissions(harness, is_back)
        ids = await place_orders(harness, 30)
        await until(lambda: harness.relays["payments"].pending == len(ids))  # all are requested and published
        await until(lambda: len(gateway.calls) >= 7)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(gateway.calls) == 7
        is_back.set()
        assert {each.status for each in await finished_orders(harness, ids)} == {Status.CONFIRMED}


def published_subjects(harness: Harness) -> list[str]:
    """Return a list to which the subject of each further message on the bus is added."""
    subjects: list[str] = []
    publish = harness.bus.publish

    def note_and_publish(message: Message) -> asyncio.Future[None]:
        subjects.append(message.subject)
        return publish(message)

    harness.bus.publish = note_and_publish  # type: ignore[method-assign]
    return subjects


CHARGE_REQUESTED = subject_of(ChargeRequested)


async def test_a_request_that_is_taken_directly_is_not_published(path: Path) -> None:
    """Its outbox row is marked as sent, and it is counted, as if the bus had carried it."""
    gateway = FakeGateway()
    async with running(path, gateway, takes_directly=True) as (harness, _):
        subjects = published_subjects(harness)
        ids = await place_orders(harness, 3)
        assert {each.status for each in await finished_orders(harness, ids)} == {Status.CONFIRMED}
        assert CHARGE_REQUESTED not in subjects
        assert [call for call, _ in gateway.calls] == ["charge"] * 3

        async def all_sent() -> bool:
            return all(sent_at for subject, sent_at in await harness.outbox("payments") if subject == CHARGE_REQUESTED)

        await until(all_sent)
        assert harness.metrics.messages_published.labels(CHARGE_REQUESTED).value == 3
        assert harness.metrics.messages_handled.labels("payments", CHARGE_REQUESTED, "handled").value == 3


async def test_a_request_that_fails_after_it_was_taken_is_delivered_by_the_bus_and_looked_up_first(path: Path) -> None:
    """The provider was called before the failure, so the delivery is no first call. The order is paid once."""
    gateway = FakeGateway()
    async with running(path, gateway, takes_directly=True) as (harness, _):
        subjects, runner = published_subjects(harness), harness.runners["payments"]
        submit, failures = runner.submit, [ValueError("a bug")]

        async def fail_once(event: Any, **options: Any) -> Any:
            if failures:
                raise failures.pop()
            return await submit(event, **options)

        runner.submit = fail_once  # type: ignore[method-assign]
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        assert each.status is Status.CONFIRMED
        assert subjects.count(CHARGE_REQUESTED) == 1
        assert [call for call, _ in gateway.calls] == ["charge", "find"]


async def test_a_request_that_was_taken_is_charged_once_though_it_is_published_again(path: Path) -> None:
    """
    An operator publishes sent rows again after a stream was lost.

    The broker never had this message and lets it through, so the worker compares it with the stored payment.
    """
    gateway = FakeGateway()
    async with running(path, gateway, takes_directly=True) as (harness, _):
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        store, since = harness.stores["payments"], datetime(2000, 1, 1, tzinfo=UTC)
        await until(lambda: count_sent(store, since))
        await republish(store, harness.bus, harness.clock, since, on_sent=lambda count: None)
        await until(lambda: outcomes(harness).get("repeated") == 1)
        assert [call for call, _ in gateway.calls] == ["charge", "find"]
        assert (await order_of(harness, each.order_id)).status is Status.CONFIRMED


async def test_a_request_that_was_taken_before_the_breaker_opened_waits_in_the_bus(path: Path) -> None:
    """Its outbox row does not count as unsent for as long as the provider is out of reach. No call was made, so none is looked up."""
    gateway, breaker = FakeGateway(), OpenedLate(HurriedClock().monotonic)
    async with running(path, gateway, breaker, takes_directly=True) as (harness, _):
        subjects, ids = published_subjects(harness), await place_orders(harness, 1)
        await until(lambda: _waits_for_payment(harness, ids[0]))
        assert subjects.count(CHARGE_REQUESTED) == 1
        breaker._open_until = 0.0
        [each] = await finished_orders(harness, ids)
        assert each.status is Status.CONFIRMED
        assert [call for call, _ in gateway.calls] == ["charge"]


async def test_requests_behind_an_open_breaker_keep_their_turn_in_the_bus(path: Path) -> None:
    """The worker takes no request directly before those that wait."""
    is_down = True
    gateway = FakeGateway(is_down=lambda: is_down)
    clock = HurriedClock()
    breaker = CircuitBreaker(clock.monotonic, calls_min=1, failure_share=0.1, open_seconds=0.05)
    async with running(path, gateway, breaker, takes_directly=True) as (harness, _):
        subjects = published_subjects(harness)
        runner = harness.runners["orders"]
        await runner.submit(submitted(oid(100)), id=oid(100), trace=CONTEXT, respond=NO_CONTENT)
        await until(lambda: breaker.state is not BreakerState.CLOSED)
        ids = [oid(100), *await place_orders(harness, 5)]
        await until(lambda: subjects.count(CHARGE_REQUESTED) >= 5)
        is_down = False
        assert {each.status for each in await finished_orders(harness, ids)} == {Status.CONFIRMED}


@pytest.mark.parametrize("takes_directly", [False, True])
async def test_a_refund_waits_in_the_outbox_while_its_breaker_is_open(path: Path, takes_directly: bool) -> None:
    """It makes no call, spends no delivery attempt, becomes no dead letter, and stops no charge."""
    clock = HurriedClock()
    breaker = CircuitBreaker(clock.monotonic, open_seconds=10**6)
    breaker.failed(breaker.acquire(), 10**6)
    gateway = FakeGateway()
    async with running(path, gateway, breaker, takes_directly=takes_directly, stoppable=OperationKind.REFUND) as (harness, _):
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        await cancel_order(harness, each.order_id)
        sql = "SELECT count(*) FROM payments_outbox WHERE subject = 'payments.refund_requested.v1'"

        async def was_asked_for_often() -> bool:  # more often than a message is delivered before it is a dead letter
            [(requests,)] = await harness.rows(sql)
            return bool(requests > 10)

        await until(was_asked_for_often)
        assert await harness.rows("SELECT count(*) FROM payments_dead_letter") == [(0,)]
        runner = harness.runners["orders"]
        await runner.submit(submitted(oid(9)), id=oid(9), trace=CONTEXT, respond=NO_CONTENT)
        [charged] = await finished_orders(harness, [oid(9)])
        assert charged.status is Status.CONFIRMED
        assert [call for call, _ in gateway.calls] == ["charge", "charge"]
        breaker._open_until = 0.0
        await until(lambda: _is_refunded(harness, each.order_id))
        assert [call for call, _ in gateway.calls] == ["charge", "charge", "refund"]


async def test_requests_that_wait_for_a_free_call_do_not_go_over_the_bus(path: Path) -> None:
    """Many orders at once are charged from memory: none is published, and no stored payment is compared before its call."""
    gateway, is_back = FakeGateway(), asyncio.Event()
    async with running(path, gateway, takes_directly=True) as (harness, _):
        block_submissions(harness, is_back)
        subjects, ids = published_subjects(harness), await place_orders(harness, 2 * CALLS_MAX)
        await until(lambda: len(gateway.calls) == len(ids))
        is_back.set()
        assert {each.status for each in await finished_orders(harness, ids)} == {Status.CONFIRMED}
        assert CHARGE_REQUESTED not in subjects
        assert [call for call, _ in gateway.calls] == ["charge"] * len(ids)


async def test_requests_that_wait_for_a_free_call_at_a_shutdown_are_left_to_the_bus(path: Path) -> None:
    """No call is made for them; their rows are published or stay in the outbox, and the next process makes each call once."""
    async with harness_at(path, HurriedClock()) as harness:
        breaker = CircuitBreaker(harness.clock.monotonic)
        gateway = FakeGateway()
        worker = PaymentWorker(
            harness.runners["payments"], gateway, operations_with(breaker, harness.clock), harness.contracts, harness.clock,
            harness.metrics, takes_directly=True,
        )  # fmt: skip
        worker._lanes[False].in_hand = LANE_IN_HAND_MAX
        event: Any = SimpleNamespace(is_express=False)
        waiting = [worker.take(event) for _ in range(3)]
        await worker.drain(5)
        assert [taken and taken.result() for taken in waiting] == [False] * 3
        assert worker.take(event) is None
        assert gateway.calls == []
        await worker.close()


async def test_requests_that_wait_for_too_long_are_left_to_the_bus(path: Path) -> None:
    """A slow provider makes no row of the outbox look stuck: the request whose turn it is gets its call, the others are published."""
    async with harness_at(path, HurriedClock()) as harness:
        operations = operations_with(CircuitBreaker(harness.clock.monotonic), harness.clock)
        worker = PaymentWorker(
            harness.runners["payments"], FakeGateway(), operations, harness.contracts, harness.clock, harness.metrics,
            takes_directly=True,
        )  # fmt: skip
        now = harness.clock.monotonic()
        clock: Any = SimpleNamespace(now=harness.clock.now, sleep=harness.clock.sleep, monotonic=lambda: now)
        worker._clock = clock
        started: list[Any] = []

        def note(work: Any, lane: Any, delivery: Any) -> Any:
            work.close()
            started.append(lane)
            return asyncio.get_running_loop().create_future()

        worker._start = note  # type: ignore[method-assign]
        lane = worker._lanes[False]
        lane.in_hand = LANE_IN_HAND_MAX
        event: Any = SimpleNamespace(is_express=False)
        first, *others = [worker.take(event) for _ in range(3)]
        now += WAITING_SECONDS_MAX + 1.0
        lane.in_hand = 0
        worker._free_call_slot(lane, asyncio.current_task())  # type: ignore[arg-type]
        assert len(started) == 1
        assert first
        assert not first.done()
        assert [taken and taken.result() for taken in others] == [False] * 2
        assert worker.take(event) is None
        await worker.close()


async def test_no_request_is_taken_directly_before_one_that_was_left_to_the_bus(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that finds too many others waiting goes over the bus; a later one takes its turn behind it, with calls free again."""
    monkeypatch.setattr("app.gateways.lane.WAITING_MAX", 1)
    async with harness_at(path, HurriedClock()) as harness:
        breaker = CircuitBreaker(harness.clock.monotonic)
        operations = operations_with(breaker, harness.clock)
        worker = PaymentWorker(
            harness.runners["payments"], FakeGateway(), operations, harness.contracts, harness.clock, harness.metrics,
            takes_directly=True,
        )  # fmt: skip
        started: list[Any] = []

        def note(work: Any, lane: Any, delivery: Any) -> Any:
            work.close()
            started.append(lane)
            return asyncio.get_running_loop().create_future()

        worker._start = note  # type: ignore[method-assign]
        event: Any = SimpleNamespace(is_express=False)
        worker.take(event)
        assert len(started) == 1
        lane = worker._lanes[False]
        lane.in_hand = LANE_IN_HAND_MAX
        waits = worker.take(event)
        assert waits is not None
        assert not waits.done()
        assert worker.take(event) is None
        lane.in_hand = 0
        worker._free_call_slot(lane, asyncio.current_task())  # type: ignore[arg-type]
        assert len(started) == 2
        assert worker.take(event) is None
        lane.is_behind = False  # the bus has delivered the first
        worker.take(event)
        assert len(started) == 3
        await worker.close()


async def test_an_order_whose_charge_is_declined_is_cancelled(path: Path) -> None:
    """A decline is final: the charge is not repeated, the order is cancelled, and its stock is released."""
    gateway = SimulatedGateway(HurriedClock(), decline_over=50)
    async with running(path, gateway) as (harness, breaker):
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        assert (each.status, each.reason) == (Status.CANCELLED, "payment_declined")
        await until(lambda: _is_stock_released(harness))
        assert breaker.state is BreakerState.CLOSED
        paid = await payment_of(harness, each.order_id)
        assert paid is not None
        assert (paid.status, paid.calls) == (PaymentStatus.DECLINED, 1)


async def test_a_charge_without_a_response_is_looked_up_under_the_same_key(path: Path) -> None:
    """The charge was made but its response got lost: the worker looks it up and does not charge again."""
    gateway = FakeGateway(plan=["timeout"])
    async with running(path, gateway) as (harness, _):
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        assert each.status is Status.CONFIRMED
        key = f"charge:{each.order_id}"
        assert gateway.calls == [("charge", key), ("find", key)]
        assert gateway.captured == {key: 100}


async def test_a_charge_that_did_not_reach_the_provider_is_repeated_under_the_same_key(path: Path) -> None:
    """Each repetition is preceded by a look-up."""
    gateway = FakeGateway(plan=["not reached", "not reached", "ok", "not reached"])
    async with running(path, gateway) as (harness, _):
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        assert each.status is Status.CONFIRMED
        key = f"charge:{each.order_id}"
        assert [call for call, _ in gateway.calls] == ["charge", "find", "find", "charge", "find", "charge"]
        assert {used for _, used in gateway.calls} == {key}


@pytest.mark.parametrize("failure", ["error", "misconfigured"])
async def test_a_definite_failure_ends_the_key(path: Path, failure: str) -> None:
    """The provider repeats it under the same key; after a look-up that finds nothing, the next attempt has a new number."""
    gateway = FakeGateway(plan=[failure, "ok", failure])
    async with running(path, gateway) as (harness, _):
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        assert each.status is Status.CONFIRMED
        assert each.waiting_for is None
        key = f"charge:{each.order_id}"
        keys = [key, f"{key}:2", f"{key}:3"]
        assert [used for call, used in gateway.calls if call == "charge"] == keys
        assert gateway.captured == {keys[2]: 100}
        assert [call for call, _ in gateway.calls] == ["charge", "find", "charge", "find", "charge"]


async def test_the_customer_and_the_address_of_an_order_go_along_with_its_charge(path: Path) -> None:
    """A saved card needs its customer, and rules for exports need the address; each retry has them, too."""
    seen: list[ChargeDetails] = []

    class Recording(FakeGateway):
        async def charge(self, key: str, order_id: str, amount: Money, details: ChargeDetails) -> ChargeResult:
            seen.append(details)
            return await super().charge(key, order_id, amount, details)

    address = Address(line1="1 Main St", city="London", postal_code="SW1", country="GB", name="Ada")
    order = attrs.evolve(submitted(oid(0)), payment_method="pm_1", payment_customer="cus_1", shipping_address=address)
    async with running(path, Recording(plan=["not reached", "ok", "not reached"])) as (harness, _):
        await harness.runners["orders"].submit(order, id=oid(0), trace=CONTEXT, respond=NO_CONTENT)
        await finished_orders(harness, [oid(0)])
    assert seen == [ChargeDetails("pm_1", "cus_1", address)] * 3


async def test_a_key_is_kept_while_the_outcome_of_its_call_is_unknown(path: Path) -> None:
    """A call without a response may still be under way, and a look-up that fails proves nothing."""
    gateway = FakeGateway(plan=["timeout", "timeout", "not reached", "ok"])
    async with running(path, gateway) as (harness, _):
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        key = f"charge:{each.order_id}"
        assert [call for call, _ in gateway.calls] == ["charge", "find", "find", "find"]
        assert gateway.captured == {key: 100}


async def test_a_fault_of_the_configuration_holds_the_orders_and_declines_none(path: Path) -> None:
    """The key, the account or a permission is to blame and no customer: orders wait as in an outage, and show it."""
    is_faulty = True

    class Restricted(FakeGateway):
        async def charge(self, key: str, order_id: str, amount: Money, details: ChargeDetails) -> ChargeResult:
            if is_faulty:
                self.calls.append(("charge", key))
                raise GatewayMisconfigured("status 400", "account_invalid", request_id="req_1")
            return await super().charge(key, order_id, amount, details)

    async with running(path, Restricted()) as (harness, _):
        ids = await place_orders(harness, 30)
        for id in ids:
            await until(partial(_waits_for_payment, harness, id))
        is_faulty = False
        assert {each.status for each in await finished_orders(harness, ids)} == {Status.CONFIRMED}


async def test_a_refund_is_repeated_until_it_succeeds(path: Path) -> None:
    """The order is cancelled after it was confirmed; its money is refunded once, whichever calls fail."""
    gateway = FakeGateway()
    async with running(path, gateway) as (harness, _):
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        gateway.plan = ["not reached", "timeout", "timeout", "ok"]
        await cancel_order(harness, each.order_id)
        await until(lambda: _is_refunded(harness, each.order_id))
        assert gateway.refunded == {f"refund:{each.order_id}": 100}
        await until(lambda: _is_stock_released(harness))
        await until(lambda: _order_shows_its_refund(harness, each.order_id))


@pytest.mark.parametrize("takes_directly", [False, True])
@pytest.mark.parametrize("is_late", [False, True])
async def test_a_duplicate_of_a_refund_whose_key_has_ended_refunds_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_late: bool, takes_directly: bool
) -> None:
    """A provider need not save a refusal: under the earlier key it would refund beside the key that follows."""
    monkeypatch.setattr("modules.payments.refunds.RETRY_SECONDS", (0.01,))

    class Forgetful(FakeGateway):
        async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> RefundResult:
            self.saved.clear()
            return await super().refund(key, order_id, reference, amount)

    gateway = Forgetful()
    async with running(path, gateway, takes_directly=takes_directly) as (harness, _):
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        id, subject = each.order_id, "payments.refund_requested.v1"
        gateway.plan = ["misconfigured", "ok"]
        await cancel_order(harness, id)
        await until(lambda: _is_refunded(harness, id))
        calls = list(gateway.calls)
        assert calls[1:] == [("refund", f"refund:{id}"), ("refund", f"refund:{id}:2")]
        for event_id, key_number in await harness.rows(
            f"SELECT event_id, row_number() OVER (ORDER BY id) FROM payments_outbox WHERE subject = '{subject}'"
        ):
            request = RefundRequested(
                order_id=id, amount=Money(100, "EUR"), reference=f"ref-{id}", attempt=1, key_number=key_number
            )
            duplicate = bus_message(harness, request, id=event_id)
            if is_late:  # the bus no longer knows the message
                harness.bus._dedup_seconds = 0.0
                duplicate = attrs.evolve(duplicate, headers={**duplicate.headers, "ce-time": "2026-01-01T00:00:00Z"})
            await harness.bus.publish(duplicate if is_late else attrs.evolve(duplicate, id=f"duplicate-{key_number}"))
        assert gateway.calls == calls
        assert gateway.refunded == {f"refund:{id}:2": 100}
        assert outcomes(harness, subject) == {"handled": 2, "repeated": 2}


async def test_a_delay_that_is_reported_again_is_in_the_history_once(path: Path) -> None:
    """The commit of the request, the sweep and the worker that holds it report the same delay, at once or one after the other."""
    clock = HurriedClock()
    breaker = CircuitBreaker(clock.monotonic, open_seconds=10**6)
    breaker.failed(breaker.acquire(), 10**6)
    async with running(path, FakeGateway(), breaker) as (harness, _):
        [id] = await place_orders(harness, 1)
        await until(lambda: _waits_for_payment(harness, id))
        notifier = DelayNotifier(harness.runners["payments"], CONSUMER, breaker, clock)
        for _ in range(2):
            await asyncio.gather(*(notifier.notify(id, CONTEXT, is_express=False) for _ in range(2)))
        delayed = [event.event_id for event in await published(harness) if event.subject == "payments.delayed.v1"]
        assert len(delayed) == 1
        assert await harness.rows("SELECT event_id FROM payments_outbox WHERE subject = 'payments.delayed.v1'") == [(delayed[0],)]
        await notifier.close()


async def test_no_call_is_made_while_the_breaker_is_open(path: Path) -> None:
    """Orders wait and show what for; no delivery attempt is spent; once the provider is back, all are paid."""
    is_down = True
    gateway = FakeGateway(is_down=lambda: is_down)
    clock = HurriedClock()
    breaker = CircuitBreaker(clock.monotonic, window=4, calls_min=2, open_seconds=10**6)
    async with running(path, gateway, breaker) as (harness, _):
        [first, second] = await place_orders(harness, 2)
        await until(lambda: breaker.state is BreakerState.OPEN)
        calls = len(gateway.calls)
        runner = harness.runners["orders"]
        await runner.submit(submitted(oid(9)), id=oid(9), trace=CONTEXT, respond=NO_CONTENT)
        for id in (first, second, oid(9)):
            await until(partial(_waits_for_payment, harness, id))

        sql = "SELECT count(*) FROM payments_outbox WHERE subject = 'payments.charge_requested.v1'"
        [(requested,)] = await harness.rows(sql)
        for _ in range(50):  # time for the scans of the relay and the timers of the waiting calls
            await asyncio.sleep(0.01)
        assert await harness.rows(sql) == [(requested,)], "requests are published again while the breaker is open"
        assert len(gateway.calls) == calls
        found = await payment_of(harness, oid(9))
        assert found is not None
        assert (found.status, found.attempts, found.calls) == (PaymentStatus.PENDING, 1, 0)
        assert await harness.rows("SELECT count(*) FROM payments_dead_letter") == [(0,)]
        is_down = False
        breaker._open_until = 0.0
        for each in await finished_orders(harness, [first, second, oid(9)]):
            assert each.status is Status.CONFIRMED
            assert each.waiting_for is None
        assert len(gateway.captured) == 3


@pytest.mark.slow
async def test_a_charge_that_completes_after_the_cancellation_is_refunded(path: Path) -> None:
    """The call was in flight when the order was cancelled, and its response got lost: a look-up finds the charge."""
    entered, may_answer = asyncio.Event(), asyncio.Event()

    @define
    class Slow(FakeGateway):
        async def charge(self, key: str, order_id: str, amount: Money, details: ChargeDetails) -> ChargeResult:
            is_second = len([call for call, _ in self.calls if call == "charge"]) == 1
            if is_second:
                entered.set()
                await may_answer.wait()
            return await FakeGateway.charge(self, key, order_id, amount, details)

    gateway = Slow(plan=["not reached", "ok", "timeout"])
    async with running(path, gateway) as (harness, _):
        [id] = await place_orders(harness, 1)
        await entered.wait()
        await cancel_order(harness, id)

        async def is_cancelled() -> bool:
            found = await payment_of(harness, id)
            return found is not None and found.is_cancelled

        await until(is_cancelled)
        may_answer.set()
        await until(lambda: _is_refunded(harness, id))
        assert gateway.captured == {f"charge:{id}": 100}
        assert gateway.refunded == {f"refund:{id}": 100}


async def test_a_request_that_is_redelivered_after_a_crash_charges_nothing_for_a_cancelled_order(path: Path) -> None:
    """The worker was killed after it had stored a failed call; on redelivery it looks up whether there was another call."""
    gateway = FakeGateway(plan=["not reached"])
    async with running(path, gateway, retry_seconds=3600) as (harness, _):
        [id] = await place_orders(harness, 1)
        await until(lambda: _waits_for_payment(harness, id))
        await cancel_order(harness, id)

        async def is_cancelled() -> bool:
            found = await payment_of(harness, id)
            return found is not None and found.status is PaymentStatus.DECLINED

        await until(is_cancelled)
        sql = "SELECT event_id, body FROM payments_outbox WHERE subject = 'payments.charge_requested.v1' AND sent_at IS NOT NULL"
        [(event_id, body)] = await until(lambda: harness.rows(sql))
        request = ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=1, is_wanted=True)
        original = bus_message(harness, request, id=event_id)
        assert original.body == body
        await harness.bus.publish(Message(original.subject, "redelivered", body, id, original.headers))
        assert [call for call, _ in gateway.calls] == ["charge", "find"]
        assert gateway.captured == {}


async def test_an_order_that_is_cancelled_while_its_request_waits_for_the_breaker_is_never_charged(path: Path) -> None:
    """The worker compares the request with the stored payment before it calls the provider."""
    is_down = True
    gateway = FakeGateway(is_down=lambda: is_down)
    breaker = CircuitBreaker(HurriedClock().monotonic, window=4, calls_min=2, open_seconds=10**6)
    async with running(path, gateway, breaker) as (harness, _):
        await place_orders(harness, 2)
        await until(lambda: breaker.state is BreakerState.OPEN)
        runner = harness.runners["orders"]
        await runner.submit(submitted(oid(9)), id=oid(9), trace=CONTEXT, respond=NO_CONTENT)
        await until(lambda: _waits_for_payment(harness, oid(9)))
        await cancel_order(harness, oid(9))
        await until(lambda: _is_cancelled(harness, oid(9)))
        is_down = False
        breaker._open_until = 0.0
        await finished_orders(harness, [oid(0), oid(1)])

        async def is_declined() -> bool:
            found = await payment_of(harness, oid(9))
            return found is not None and found.status is PaymentStatus.DECLINED

        await until(is_declined)
        assert sorted(gateway.captured) == [f"charge:{oid(0)}", f"charge:{oid(1)}"]
        assert gateway.refunded == {}


async def test_an_order_that_is_cancelled_while_its_call_waits_for_the_breaker_is_never_charged(path: Path) -> None:
    """The request came just before the breaker opened, so that nothing had to be compared then."""
    gateway, breaker = FakeGateway(), OpenedLate(HurriedClock().monotonic)
    async with running(path, gateway, breaker) as (harness, _):
        [id] = await place_orders(harness, 1)
        await until(lambda: _waits_for_payment(harness, id))
        await cancel_order(harness, id)
        await until(lambda: _is_cancelled(harness, id))
        breaker._open_until = 0.0

        async def is_declined() -> bool:
            found = await payment_of(harness, id)
            return found is not None and found.status is PaymentStatus.DECLINED

        await until(is_declined)
        assert gateway.captured == {}


@pytest.mark.parametrize("has_to_wait", [True, False])
async def test_an_order_that_is_cancelled_while_its_call_waits_for_the_pace_is_never_charged(
    path: Path, monkeypatch: pytest.MonkeyPatch, has_to_wait: bool
) -> None:
    """After a 429 there is one call a second at worst, so a call may wait for long. One that has not waited is not compared again."""
    gateway, clock = FakeGateway(), HurriedClock()
    operations = operations_with(CircuitBreaker(clock.monotonic), clock)
    payment = Payment(order_id=oid(1), status=PaymentStatus.PENDING, updated_at=clock.now(), is_cancelled=not has_to_wait)

    async def stored(order_id: str) -> Payment:
        return payment

    async def sleep(seconds: float) -> None:
        nonlocal payment
        payment = evolve(payment, is_cancelled=True)

    async with harness_at(path, clock) as harness:
        worker = PaymentWorker(harness.runners["payments"], gateway, operations, harness.contracts, clock, harness.metrics)
        monkeypatch.setattr(worker, "_stored", stored)
        if has_to_wait:
            operations.charge.pace.throttled()
            assert operations.charge.pace.reserve() == 0.0  # the turn of another call
        monkeypatch.setattr(clock, "sleep", sleep)
        request = ChargeRequested(order_id=oid(1), amount=Money(100, "EUR"), attempt=1, is_wanted=True)
        received = GatewayRequest(
            request, "e-1", CONTEXT, is_express=False, is_first_call=True, needs_recheck=False, may_be_repeat=False
        )
        result = await worker._charge(ChargeAttempt(received))
    assert len(gateway.captured) == (0 if has_to_wait else 1)
    assert isinstance(result, ChargeSucceeded) is not has_to_wait


async def test_a_request_from_before_the_breaker_closed_is_compared_with_the_stored_payment(path: Path) -> None:
    """It has waited in the bus for some time, however short: its order may be cancelled by now."""
    async with harness_at(path, HurriedClock()) as harness:
        breaker = CircuitBreaker(harness.clock.monotonic)
        worker = PaymentWorker(
            harness.runners["payments"], FakeGateway(), operations_with(breaker, harness.clock), harness.contracts, harness.clock,
            harness.metrics,
        )  # fmt: skip
        requested_at = rfc3339(harness.clock.now())
        event = ChargeRequested(order_id=oid(1), amount=Money(1, "EUR"), attempt=1, is_wanted=True)
        delivery: Any = SimpleNamespace(tries=1, message=SimpleNamespace(id="m"))

        def needs_recheck() -> bool:
            received = Received(delivery, event, "m", CONTEXT, CHARGE_REQUESTED, requested_at, None, is_older=False)
            return worker._request(received, is_uncontended=True).needs_recheck

        found = [needs_recheck()]
        breaker.failed(breaker.acquire(), 10.0)
        found.append(needs_recheck())
        breaker._open_until = 0.0
        breaker.succeeded(breaker.acquire())
        found.append(needs_recheck())
        assert found == [False, True, True]
        await worker.close()


async def test_the_ack_deadline_of_a_request_in_hand_is_extended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the provider takes, the bus does not deliver the request to another worker, and no attempt is spent."""
    extended: list[str] = []

    async def note(deliveries: list[Any], consumer: str) -> None:
        extended.extend(each.message.subject for each in deliveries)

    class Slow(FakeGateway):
        async def charge(self, key: str, order_id: str, amount: Money, details: ChargeDetails) -> ChargeResult:
            await until(lambda: extended)
            return await super().charge(key, order_id, amount, details)

    monkeypatch.setattr("app.gateways.payment_worker.extend_ack_deadlines", note)
    async with running(path, Slow()) as (harness, _):
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        assert (each.status, {*extended}) == (Status.CONFIRMED, {CHARGE_REQUESTED})


async def test_charges_that_wait_for_the_breaker_take_no_place_of_a_refund(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They make no call meanwhile."""
    monkeypatch.setattr("app.gateways.lane.LANE_CALLS_MAX", 2)
    gateway, breaker = FakeGateway(), CircuitBreaker(HurriedClock().monotonic)
    async with running(path, gateway, breaker) as (harness, _):
        await finished_orders(harness, await place_orders(harness, 1))
        breaker.failed(breaker.acquire(), 10**6)
        runner = harness.runners["orders"]
        for n in 7, 8, 9:
            await runner.submit(submitted(oid(n)), id=oid(n), trace=CONTEXT, respond=NO_CONTENT)
            await until(partial(_waits_for_payment, harness, oid(n)))
        await cancel_order(harness, oid(0))
        await until(lambda: gateway.refunded)


async def test_a_request_in_hand_when_the_breaker_opens_spends_no_delivery_attempt(path: Path) -> None:
    """Fifty requests are in flight or waiting; none goes back to the bus, and one of them is the next probe."""
    is_down = True
    gateway = FakeGateway(is_down=lambda: is_down)
    breaker = CircuitBreaker(HurriedClock().monotonic, window=20, calls_min=10, open_seconds=10**6)
    async with running(path, gateway, breaker) as (harness, _):
        ids = await place_orders(harness, 50)
        await until(lambda: breaker.state is BreakerState.OPEN)
        for id in ids:
            await until(partial(_waits_for_payment, harness, id))
        calls = len(gateway.calls)
        assert calls < 50
        for _ in range(30):
            await asyncio.sleep(0.01)
        assert len(gateway.calls) == calls
        tries = [message.tries for group in harness.bus._groups.values() for message in group.ready]
        assert max(tries, default=0) <= 1
        is_down = False
        breaker._open_until = 0.0
        assert {each.status for each in await finished_orders(harness, ids)} == {Status.CONFIRMED}
        assert len(gateway.captured) == 50
        assert await harness.rows("SELECT count(*) FROM payments_dead_letter") == [(0,)]


async def test_shutdown_while_the_breaker_is_open_puts_the_requests_in_hand_into_the_outbox(path: Path) -> None:
    """They are there at the next start; no delivery attempt is spent, and no call is counted."""
    gateway = FakeGateway(plan=["not reached"] * 100)
    breaker = CircuitBreaker(HurriedClock().monotonic, window=4, calls_min=2, open_seconds=10**6)
    async with running(path, gateway, breaker) as (harness, _):
        await place_orders(harness, 30)
        await until(lambda: breaker.state is BreakerState.OPEN)
        for n in range(30):
            await until(partial(_waits_for_payment, harness, oid(n)))
    async with harness_at(path) as harness:
        sql = "SELECT count(*) FROM payments_payment WHERE status = 'pending' AND calls = 0"
        [(never_called,)] = await harness.rows(sql)
        assert never_called >= 10
        sql = "SELECT count(DISTINCT key) FROM payments_outbox WHERE sent_at IS NULL AND subject LIKE 'payments.charge%'"
        assert await harness.rows(sql) == [(30,)], "a request is lost"


@pytest.mark.slow
async def test_a_mismatch_is_resolved_by_the_second_look_up(path: Path) -> None:
    """The order shows the mismatch; the provider's list is right, and nothing is charged again."""
    gateway = FakeGateway(mismatches=lambda call: call == "charge")
    async with running(path, gateway) as (harness, _):
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        assert each.status is Status.CONFIRMED
        assert [entry["event"] for entry in each.timeline][2:] == ["payments.put_aside", "orders.confirmed"]
        assert [call for call, _ in gateway.calls] == ["charge", "find"]
        paid = await payment_of(harness, each.order_id)
        assert paid is not None
        assert (paid.status, paid.reason) == (PaymentStatus.CAPTURED, None)


@pytest.mark.slow
async def test_a_repeated_mismatch_waits_for_a_person(path: Path) -> None:
    """The payment is unknown with the reason, is never charged again, and is looked up once more when the order is cancelled."""
    gateway = FakeGateway(mismatches=lambda call: True)
    async with running(path, gateway) as (harness, _):
        [id] = await place_orders(harness, 1)

        async def is_under_review() -> bool:
            found = await payment_of(harness, id)
            return found is not None and found.needs_review and not found.is_waiting

        await until(is_under_review)
        found = await payment_of(harness, id)
        assert found is not None
        assert (found.status, found.reason, found.reference) == (PaymentStatus.UNKNOWN, "wrong_amount", "ref-wrong")
        await until(lambda: _waits_for_payment(harness, id))
        for _ in range(30):
            await asyncio.sleep(0.01)
        assert [call for call, _ in gateway.calls] == ["charge", "find"]
        gateway.mismatches = lambda call: False
        await cancel_order(harness, id)
        await until(lambda: _is_refunded(harness, id))
        assert [call for call, _ in gateway.calls] == ["charge", "find", "find", "refund"]


async def test_a_pending_charge_is_no_failure(path: Path) -> None:
    """It is looked up until the provider has decided, and the breaker counts the calls as successes."""
    gateway = FakeGateway(is_pending=True)
    breaker = CircuitBreaker(HurriedClock().monotonic, window=4, calls_min=2)
    async with running(path, gateway, breaker) as (harness, _):
        [id] = await place_orders(harness, 1)
        await until(lambda: len(gateway.calls) > 5)
        assert breaker.state is BreakerState.CLOSED
        found = await payment_of(harness, id)
        assert found is not None
        assert found.status is PaymentStatus.UNKNOWN
        gateway.is_pending = False
        await finished_orders(harness, [id])
        assert gateway.captured == {f"charge:{id}": 100}


async def test_a_pending_charge_keeps_the_number_of_its_key(path: Path) -> None:
    """A provider need not save a definite failure: a call under the earlier key would make a second charge."""

    class Remembering(FakeGateway):
        async def repeats_safely(self, order_id: str) -> bool:
            return True

        async def charge(self, key: str, order_id: str, amount: Money, details: ChargeDetails) -> ChargeResult:
            self.saved.clear()
            charged = await super().charge(key, order_id, amount, details)
            return Pending(f"ref-{order_id}") if key.endswith(":2") else charged

    gateway = Remembering(plan=["misconfigured"])
    async with running(path, gateway) as (harness, _):
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        key = f"charge:{each.order_id}"
        assert gateway.calls == [("charge", key), ("find", f"{key}:2"), ("charge", f"{key}:2"), ("find", f"{key}:2")]
        assert gateway.captured == {f"{key}:2": 100}


@pytest.mark.slow
async def test_a_rejected_refund_is_shown_and_repeated(path: Path) -> None:
    """The payment shows that it was not refunded, until the provider refunds it after all, under a new key."""
    gateway = FakeGateway(rejects_refunds=True)
    async with running(path, gateway) as (harness, breaker):
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        await cancel_order(harness, each.order_id)

        async def shows_the_rejection() -> bool:
            found = await payment_of(harness, each.order_id)
            return found is not None and found.reason == "refund_refused: card_closed"

        await until(shows_the_rejection)
        assert breaker.state is BreakerState.CLOSED
        gateway.rejects_refunds = False
        await until(lambda: _is_refunded(harness, each.order_id))
        found = await payment_of(harness, each.order_id)
        assert found is not None
        assert found.reason is None
        [key] = gateway.refunded
        assert key.startswith(f"refund:{each.order_id}:")


async def test_a_refund_that_fails_finally_is_an_error_in_the_log_once(
    path: Path, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each failed attempt is a warning; after the last one nothing more is called."""
    monkeypatch.setattr("modules.payments.refunds.RETRY_SECONDS", (0.01, 0.02))
    gateway = FakeGateway(rejects_refunds=True)
    async with running(path, gateway) as (harness, _):
        harness.runners["payments"].add_listener(log_payment_cases)
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        await cancel_order(harness, each.order_id)

        async def is_left_to_a_person() -> bool:
            found = await payment_of(harness, each.order_id)
            return found is not None and found.is_open_case

        await until(is_left_to_a_person)
        calls = len(gateway.calls)
        assert [key for call, key in gateway.calls if call == "refund"] == [
            f"refund:{each.order_id}", f"refund:{each.order_id}:2", f"refund:{each.order_id}:3"
        ]  # fmt: skip
        for _ in range(30):
            await asyncio.sleep(0.01)
        assert len(gateway.calls) == calls
        assert len([line for line in log if "has to act" in line]) == 1
        assert len([line for line in log if line.startswith("gateway call failed")]) == 3


async def test_a_request_from_before_the_start_is_looked_up_first(path: Path) -> None:
    """An earlier process may have called for it, and a provider that ignores repeated keys would charge twice."""
    gateway = FakeGateway()
    async with running(path, gateway) as (harness, _):
        [id] = await place_orders(harness, 1)
        await finished_orders(harness, [id])
        request = ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=1, is_wanted=True)
        fresh, old = bus_message(harness, request), bus_message(harness, request)
        old = attrs.evolve(old, headers={**old.headers, "ce-time": "2026-01-01T00:00:00Z"})
        for message, call in (fresh, "charge"), (old, "find"):
            gateway.calls.clear()
            await harness.bus.publish(message)
            assert gateway.calls == [(call, f"charge:{id}")]


@pytest.mark.parametrize("failure", ["not reached", "timeout"])
@pytest.mark.parametrize("is_wanted", [True, False])
@pytest.mark.parametrize("is_repeat", [True, False])
async def test_a_failed_look_up_for_a_possible_repeat_leaves_the_charge_unknown(
    failure: str, is_wanted: bool, is_repeat: bool
) -> None:
    """A worker that was killed may have charged; a cancelled order is not settled before that is known."""
    clock = HurriedClock()
    calls = GatewayCalls(
        FakeGateway(plan=[failure]), operations_with(CircuitBreaker(clock.monotonic), clock), Metrics(), random.Random(1)
    )
    request = ChargeRequested(order_id=oid(1), amount=Money(100, "EUR"), attempt=1, is_wanted=is_wanted)
    received = GatewayRequest(
        request, "e-1", CONTEXT, is_express=False, is_first_call=False, needs_recheck=False, may_be_repeat=is_repeat
    )
    result = await calls.charge(ChargeAttempt(received), _recheck_against(None))
    assert (type(result), result.is_unknown, result.calls) == (ChargeFailed, is_repeat, 0)


def _recheck_against(payment: Payment | None) -> Any:
    async def recheck(attempt: ChargeAttempt) -> None:
        attempt.recheck(payment)

    return recheck


@pytest.mark.parametrize("found", [None, Declined("try_again_later", is_soft=True)], ids=["nothing", "a soft decline"])
@pytest.mark.parametrize("attempts", [1, 2])
async def test_a_charge_that_is_not_wanted_any_more_after_its_look_up_is_not_made(attempts: int, found: ChargeResult | None) -> None:
    """A look-up may take minutes: meanwhile the order is cancelled, or the result of the request comes on another way."""

    class Finds(FakeGateway):
        async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
            await super().find(key, order_id, amount)
            return found

    gateway, clock = Finds(), HurriedClock()
    calls = GatewayCalls(gateway, operations_with(CircuitBreaker(clock.monotonic), clock), Metrics(), random.Random(1))
    request = ChargeRequested(order_id=oid(1), amount=Money(100, "EUR"), attempt=1, is_wanted=True)
    received = GatewayRequest(
        request, "e-1", CONTEXT, is_express=False, is_first_call=False, needs_recheck=False, may_be_repeat=True
    )
    payment = Payment(order_id=oid(1), status=PaymentStatus.UNKNOWN, updated_at=clock.now(), attempts=attempts, is_cancelled=attempts == 1)
    result = await calls.charge(ChargeAttempt(received), _recheck_against(payment))
    assert [call for call, _ in gateway.calls] == ["find"]
    assert result is None if attempts == 2 else (type(result), result.is_soft) == (ChargeDeclined, False)


@pytest.mark.parametrize("is_latest", [True, pytest.param(False, marks=pytest.mark.slow)])
async def test_a_request_from_before_a_restart_is_looked_up_although_the_clock_was_set_back(path: Path, is_latest: bool) -> None:
    """
    An earlier process may have charged: the decisions in the history show that the request is from before.

    The latest one may be one of this process already, with a time of its own clock.
    """
    ahead = HurriedClock()
    ahead.adjust(timedelta(seconds=3))
    async with harness_at(path, ahead) as harness:
        await harness.submit("inventory", product(1_000))
        for name in harness.runners:
            await harness.consume(name)
            if name != "payments":
                harness.run(harness.relays[name].run())
        [id] = await place_orders(harness, 1)
        await until(lambda: harness.rows("SELECT 1 FROM payments_outbox WHERE subject = 'payments.charge_requested.v1'"))
    if not is_latest:
        async with harness_at(path, HurriedClock()) as harness:
            await harness.submit("payments", OrderCancelled(order_id=oid(9), customer_id="c-1", items=(), reason="requested"))
    gateway = FakeGateway()
    async with running(path, gateway) as (harness, _):
        await finished_orders(harness, [id])
        assert [call for call, _ in gateway.calls] == ["find", "charge"]


async def test_an_old_request_is_compared_with_the_stored_payment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the payment has no call, it is charged without a look-up; if it has one, it is looked up."""
    monkeypatch.setattr("app.gateways.payment_worker.FRESH_SECONDS", -1.0)  # every request is old
    gateway = FakeGateway()
    async with running(path, gateway) as (harness, _):
        [id] = await place_orders(harness, 1)
        await finished_orders(harness, [id])
        assert gateway.calls == [("charge", f"charge:{id}")]
        await harness.bus.publish(
            bus_message(harness, ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=1, is_wanted=True))
        )
        assert gateway.calls == [("charge", f"charge:{id}"), ("find", f"charge:{id}")]


async def test_a_duplicate_of_an_attempt_that_has_its_result_calls_nothing(path: Path) -> None:
    """Beside the attempt that follows, it would find no charge and make a second one."""
    gateway = FakeGateway(plan=["not reached"])
    async with running(path, gateway, retry_seconds=3600) as (harness, _):
        [id] = await place_orders(harness, 1)
        await until(lambda: _waits_for_payment(harness, id))
        gateway.calls.clear()
        for attempt, calls in (1, []), (2, ["find", "charge"]):
            request = ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=attempt, is_wanted=True)
            await harness.bus.publish(attrs.evolve(bus_message(harness, request), id=f"duplicate-{attempt}"))
            assert [call for call, _ in gateway.calls] == calls
        assert await harness.dead_letter_store.list(None, None, None, 10) == []


async def test_requests_for_one_order_are_processed_one_at_a_time(path: Path) -> None:
    """Of concurrent requests, different ones or one that comes twice, the next calls the provider once a result is stored."""
    may_respond, calling = asyncio.Event(), []

    class Slow(FakeGateway):
        async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
            calling.append(order_id)
            await may_respond.wait()
            found = await super().find(key, order_id, amount)
            calling.remove(order_id)
            return found

    async with running(path, Slow()) as (harness, _):
        ids = await place_orders(harness, 2)
        await finished_orders(harness, ids)
        requests = [
            bus_message(harness, ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=attempt, is_wanted=True))
            for id in ids
            for attempt in (2, 3)
        ]
        duplicates = [attrs.evolve(each, id=f"{each.id}-{n}") for each in requests for n in range(2)]
        published = [harness.bus.publish(each) for each in duplicates]
        await until(lambda: len(calling) >= 2)
        for _ in range(100):
            await asyncio.sleep(0)
        assert sorted(calling) == sorted(ids)
        may_respond.set()
        await asyncio.gather(*published)
        assert calling == []


async def _is_cancelled(harness: Harness, id: str) -> bool:
    found = await payment_of(harness, id)
    return found is not None and found.is_cancelled


async def test_a_replayed_charge_is_made(path: Path) -> None:
    """The worker reads a replayed message, and counts it under its original subject."""
    gateway = FakeGateway()
    async with running(path, gateway) as (harness, _):
        [id] = await place_orders(harness, 1)
        await finished_orders(harness, [id])
        charge = bus_message(harness, ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=1, is_wanted=True))
        subject = replay_subject(CONSUMER, charge.subject)
        await harness.bus.publish(Message(subject, "fresh", charge.body, id, charge.headers))
        assert [key for _, key in gateway.calls] == [f"charge:{id}"] * 2
        assert gateway.captured == {f"charge:{id}": 100}
        rendered = harness.metrics.render().decode()
        assert 'subject="payments.charge_requested.v1",outcome="handled"} 2' in rendered
        assert ".replay." not in rendered
        assert await harness.dead_letter_store.list(None, None, None, 10) == []


def log_lines(log: list[str], message: str) -> list[str]:
    """Return the lines of *log* about the worker that begin with *message*."""
    return [line for line in log if line.startswith(message) and f"'consumer': '{CONSUMER}'" in line]


@pytest.fixture
def log() -> Iterator[list[str]]:
    """The log lines from WARNING on."""
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING", format="{message} {extra}")
    yield lines
    logger.remove(sink)


def outcomes(harness: Harness, subject: str = "payments.charge_requested.v1") -> dict[str, int]:
    """Return the outcomes of the messages to payments on *subject*, from the metrics."""
    found = harness.metrics.messages_handled.items()
    counters = {outcome: counter for (module, counted, outcome), counter in found if (module, counted) == ("payments", subject)}
    return {outcome: int(counter.value) for outcome, counter in counters.items()}


async def test_an_unreadable_message_is_dead_lettered_counted_and_logged(path: Path, log: list[str]) -> None:
    """Every consumer does the same; other messages are processed."""
    async with running(path, FakeGateway()) as (harness, _):
        await harness.bus.publish(Message("payments.charge_requested.v1", "m-1", b"{", "k", {"ce-correlationid": "c-1"}))
        await harness.bus.publish(Message("payments.charge_requested.v1", "m-2", b"{}", "k"))
        [each] = await finished_orders(harness, await place_orders(harness, 1))
        assert each.status is Status.CONFIRMED
        assert outcomes(harness) == {"put_aside": 2, "handled": 1}
        first, second = log_lines(log, "message put aside")
        assert "'error': 'unreadable'" in first
        assert "'correlation_id': 'c-1'" in first
        assert "'error': 'invalid'" in second
        stored = await harness.dead_letter_store.list(CONSUMER, None, None, 9, error="invalid")
        assert [each.dead_letter.error for each in stored] == ["invalid"]


async def test_an_unknown_version_is_ignored_if_a_known_one_is_published_too(path: Path, log: list[str]) -> None:
    """It is counted, causes no call, and becomes no dead letter: the known version has the same content."""
    gateway, newer = FakeGateway(), "payments.charge_requested.v2"
    async with running(path, gateway, more_subjects=[newer]) as (harness, _):
        request = bus_message(harness, ChargeRequested(order_id=oid(1), amount=Money(100, "EUR"), attempt=1, is_wanted=True))
        headers = {**request.headers, "ce-versions": "v1,v2"}
        await harness.bus.publish(attrs.evolve(request, subject=newer, headers=headers))
        assert outcomes(harness, newer) == {"ignored": 1}
        assert gateway.calls == []
        assert log_lines(log, "message") == []
        assert await harness.dead_letter_store.list(None, None, None, 10) == []


@pytest.mark.slow
async def test_a_duplicate_request_counts_as_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older version of it counts as superseded, after it was deferred as often as allowed."""
    async with running(path, FakeGateway()) as (harness, _):
        [id] = await place_orders(harness, 1)
        await finished_orders(harness, [id])
        [(event_id,)] = await harness.rows("SELECT event_id FROM payments_outbox WHERE subject = 'payments.charge_requested.v1'")
        request = ChargeRequested(order_id=id, amount=Money(100, "EUR"), attempt=1, is_wanted=True)
        duplicate = bus_message(harness, request, id=event_id)
        await harness.bus.publish(attrs.evolve(duplicate, id="duplicate-1"))
        assert outcomes(harness) == {"handled": 1, "repeated": 1}
        monkeypatch.setattr(EventReader, "has_newer", lambda self, subject, versions: versions == "v1,v2")
        older = attrs.evolve(duplicate, id="duplicate-2", headers={**duplicate.headers, "ce-versions": "v1,v2"})
        await harness.bus.publish(older)
        assert outcomes(harness) == {"handled": 1, "repeated": 1, "superseded": 1}


async def _is_stock_released(harness: Harness) -> bool:
    return await harness.rows("SELECT on_hand, reserved FROM inventory_product") == [(1_000_000, 0)]


async def _is_refunded(harness: Harness, id: str) -> bool:
    found = await payment_of(harness, id)
    return found is not None and found.status is PaymentStatus.REFUNDED


async def _order_shows_its_refund(harness: Harness, id: str) -> bool:
    return "payments.refunded" in [entry["event"] for entry in (await order_of(harness, id)).timeline]


async def _waits_for_payment(harness: Harness, id: str) -> bool:
    found = await harness.runners["orders"].get(Order, id)
    return found is not None and found.status is Status.RESERVED and found.waiting_for == "payment"
