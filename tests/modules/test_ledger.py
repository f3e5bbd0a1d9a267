"""The ledger of a payment: whatever the provider reports, in any order, twice and late, captured - refunded = kept >= 0."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from attrs import define, evolve, field
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from modules.inventory.events import StockReserved
from modules.module import CancelTimer, Scheduled
from modules.orders.decide import decide as decide_order
from modules.orders.events import OrderCancelled, OrderRefundRequested
from modules.orders.state import Order
from modules.orders.state import Status as OrderStatus
from modules.payments.decide import decide
from modules.payments.events import (
    ChargeNotified,
    ChargeRequested,
    ChargeSucceeded,
    DisputeReported,
    NoticeRejected,
    PaymentRefunded,
    PaymentRefundFailed,
    RefundFailed,
    RefundNotified,
    RefundProcessing,
    RefundReported,
    RefundRequested,
    RefundSucceeded,
    SettleRequested,
)
from modules.payments.ledger import DisputeStatus, Refund, RefundStatus
from modules.payments.refunds import LOOK_UP_SECONDS, OPEN_MAX, RETRY_SECONDS
from modules.payments.state import Payment, PaymentStatus
from modules.values import Line, Money, rfc3339
from tests.examples import examples
from tests.modules.saga import NOW, check_shown

ORDER_ID = str(UUID(int=1))
AMOUNT = 1000
EUR = Money(AMOUNT, "EUR")
RESERVED = StockReserved(order_id="o", lines=(), total=EUR, payment_method=None)
CHARGED = ChargeSucceeded(order_id="o", reference="pi", calls=1)
CANCELLED = OrderCancelled(order_id="o", customer_id="c", items=(), reason="requested")
ANSWERS = ("succeeded", "succeeded", "pending", "rejected", "lost", "not made")
STEPS_MAX = 200


@define
class Provider:
    """A provider's refunds and disputes of one charge, and the messages that are on their way from it."""

    reports_each_refund: bool
    refunds: dict[str, Refund] = field(factory=dict)
    saved: dict[int, str] = field(factory=dict)
    """By key: the id of the refund, or "" after a rejection."""
    sent: list[Any] = field(factory=list)
    has_failed: bool = False
    """True once a refund has failed, so that less may be refunded than before."""

    @property
    def total(self) -> int:
        return sum(each.amount for each in self.refunds.values() if each.status is not RefundStatus.FAILED)

    @property
    def succeeded(self) -> int:
        return sum(each.amount for each in self.refunds.values() if each.status is RefundStatus.SUCCEEDED)

    def make(self, amount: int, status: RefundStatus, key_number: int | None) -> str:
        id = f"re_{len(self.refunds)}"
        self.refunds[id] = Refund(amount=amount, status=status, at="", key_number=key_number)
        self.report(id)
        return id

    def report(self, id: str) -> None:
        """Send the notices about the refund *id*, as it is now."""
        refund = self.refunds[id]
        if self.reports_each_refund:
            reported = RefundReported(
                order_id="o", reference="pi", refund_reference=id, amount=Money(refund.amount, "EUR"),
                status=refund.status.value, key_number=refund.key_number,
            )  # fmt: skip
            self.sent.append(reported)
        self.sent.append(RefundNotified(order_id="o", reference="pi", amount=EUR, refunded_amount=self.total))

    def handle(self, request: RefundRequested, answer: str) -> Any:
        """Handle *request* as the payment worker does, and return the result that it would submit."""
        key, amount = request.key_number, request.amount.amount
        failed = RefundFailed(order_id="o", retry_seconds=1, key_number=key)
        if answer == "not made":
            return failed
        if key not in self.saved:
            if answer == "rejected" or amount > AMOUNT - self.total:
                self.saved[key] = ""
            else:
                status = RefundStatus.PENDING if answer == "pending" else RefundStatus.SUCCEEDED
                self.saved[key] = self.make(amount, status, key)
        if answer == "lost":
            return failed
        id = self.saved[key]
        if not id:
            return evolve(failed, is_definite=True, reason="no_balance", refunded_total=self.total)
        match self.refunds[id].status:
            case RefundStatus.FAILED:
                return evolve(failed, is_definite=True, reason="bank", reference=id, refunded_total=self.total)
            case RefundStatus.PENDING:
                return RefundProcessing(order_id="o", reference=id, key_number=key, refunded_total=self.total)
        return RefundSucceeded(order_id="o", reference=id, key_number=key, refunded_total=self.total)


@define
class History:
    """A payment, the messages on their way to it, and the requests on their way to the worker."""

    provider: Provider
    payment: Payment | None = None
    inbox: list[Any] = field(factory=list)
    requests: list[RefundRequested] = field(factory=list)
    published: list[Any] = field(factory=list)

    def deliver(self, event: Any) -> None:
        decision = decide((self.payment,), event, NOW)
        refunded = 0 if self.payment is None else self.payment.refunded
        note(f"{event} -> {decision.events}")
        [self.payment] = decision.states or (self.payment,)
        for each in decision.events:
            assert not isinstance(each, NoticeRejected), each
            if isinstance(each, CancelTimer):
                continue  # what was cancelled is carried out nevertheless: the request may have been under way
            found = each.event if isinstance(each, Scheduled) else each
            if isinstance(found, RefundRequested):
                self.requests.append(found)
            elif not isinstance(found, ChargeRequested):
                self.published.append(found)
        self.check()
        assert self.payment is not None
        if not self.provider.has_failed:
            assert self.payment.refunded >= refunded

    def check(self) -> None:
        payment = self.payment
        assert payment is not None
        assert payment.captured - payment.refunded == payment.kept >= 0
        assert 0 <= payment.pending <= payment.kept
        assert payment.reason is not None or not payment.is_open_case, "the list of cases would not find it"
        assert payment.refundable == payment.kept - payment.pending >= 0
        assert (payment.status is PaymentStatus.REFUNDED) == (payment.captured > 0 and payment.kept == 0)
        assert self.provider.total <= AMOUNT
        check_shown(evolve(payment, order_id=ORDER_ID))


def run(data: st.DataObject, *, reports_each_refund: bool, may_fail: bool, may_dispute: bool) -> History:
    """Run one payment through any history; return it once nothing is on its way any more."""
    provider = Provider(reports_each_refund)
    history = History(provider)
    history.deliver(RESERVED)
    history.inbox += [CHARGED, ChargeNotified(order_id="o", reference="pi", amount=EUR)]
    orders_events = st.sampled_from([CANCELLED, 400, 600, 1000])
    for n, drawn in enumerate(data.draw(st.lists(orders_events, max_size=3))):
        amount = Money(drawn, "EUR") if isinstance(drawn, int) else None
        ask = None if amount is None else OrderRefundRequested(order_id="o", refund_id=f"r{n}", amount=amount, reason="x")
        history.inbox.append(ask or CANCELLED)
    failures_left, repeats, actions = 5, 8, 4
    for _ in range(STEPS_MAX):
        history.inbox += provider.sent
        provider.sent.clear()
        choices = ["deliver"] * bool(history.inbox) + ["call"] * bool(history.requests) + ["act"] * bool(actions)
        choice = data.draw(st.sampled_from(choices)) if choices else "settle"
        if choice == "deliver":
            index = data.draw(st.integers(0, len(history.inbox) - 1))
            is_kept = repeats > 0 and data.draw(st.booleans())
            repeats -= is_kept
            history.deliver(history.inbox[index] if is_kept else history.inbox.pop(index))
        elif choice == "call":
            index = data.draw(st.integers(0, len(history.requests) - 1))
            is_kept = repeats > 0 and data.draw(st.booleans())
            repeats -= is_kept
            request = history.requests[index] if is_kept else history.requests.pop(index)
            answers = ANSWERS if may_fail else ("succeeded", "lost", "not made")
            answer = data.draw(st.sampled_from(answers)) if failures_left else "succeeded"
            failures_left -= bool(failures_left)
            if not failures_left:
                finish(provider)
            history.inbox.append(provider.handle(request, answer))
        elif choice == "act":
            actions -= 1
            act(data, provider, may_fail=may_fail, may_dispute=may_dispute)
        elif not finish(provider):
            return history
    raise AssertionError("the history does not end")


def act(data: st.DataObject, provider: Provider, *, may_fail: bool, may_dispute: bool) -> None:
    """Do something at the provider: refund in its dashboard, end a pending refund, or dispute the charge."""
    what = data.draw(st.sampled_from(["dashboard", "end"] + ["dispute"] * may_dispute))
    if what == "dashboard" and provider.total < AMOUNT:
        provider.make(data.draw(st.sampled_from([AMOUNT - provider.total, 1])), RefundStatus.SUCCEEDED, None)
    elif what == "end" and provider.refunds and may_fail:
        id = data.draw(st.sampled_from(sorted(provider.refunds)))
        if provider.refunds[id].status is not RefundStatus.FAILED:
            status = data.draw(st.sampled_from([RefundStatus.SUCCEEDED, RefundStatus.FAILED]))
            provider.refunds[id] = evolve(provider.refunds[id], status=status)
            provider.has_failed |= status is RefundStatus.FAILED
            provider.report(id)
    elif what == "dispute":
        for found in data.draw(st.permutations(["open", data.draw(st.sampled_from(["open", "won", "lost"]))])):
            disputed = DisputeReported(order_id="o", reference="pi", dispute_reference="dp", amount=EUR, status=found)
            provider.sent.append(disputed)


def finish(provider: Provider) -> bool:
    """Let all pending refunds succeed; return whether there was one."""
    pending = [id for id, refund in provider.refunds.items() if refund.status is RefundStatus.PENDING]
    for id in pending:
        provider.refunds[id] = evolve(provider.refunds[id], status=RefundStatus.SUCCEEDED)
        provider.report(id)
    return bool(pending)


PATIENT = settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def order_after(published: list[Any]) -> Order:
    """Return the order of the payment after the events about refunds in *published*."""
    found = [each for each in published if isinstance(each, PaymentRefunded | PaymentRefundFailed)]
    asked = tuple(
        {"refund_id": id, "amount": 0, "status": "pending", "at": rfc3339(NOW)} for id in dict.fromkeys(each.refund_id for each in found) if id
    )
    order = Order(
        order_id="o", customer_id="c", status=OrderStatus.CONFIRMED, items=(Line("A", 1),), total_amount=AMOUNT, currency="EUR",
        is_express=False, refunds=asked, is_paid=True, created_at=NOW, updated_at=NOW, timeline=(),
    )  # fmt: skip
    for event in found:
        [order] = decide_order((order,), event, NOW, timeout=timedelta(minutes=15)).states or (order,)
        check_shown(evolve(order, order_id=ORDER_ID))
    return order


def check_books(history: History) -> None:
    """Our ledger agrees with the provider's and with the order, and a cancelled order got everything back."""
    payment = history.payment
    assert payment is not None
    assert order_after(history.published).refunded == payment.refunded
    assert payment.captured == AMOUNT
    assert payment.refunded == history.provider.succeeded
    assert payment.pending == 0
    if payment.is_cancelled:
        assert payment.kept == 0, "the rest of a cancelled order was not refunded"
        assert not payment.is_open_case
        assert payment.refund_status == "succeeded"


@PATIENT
@given(data=st.data())
def test_the_books_balance_after_every_notice_in_any_order(data: st.DataObject) -> None:
    """Refunds succeed, stay pending, fail before or after they succeeded, and are made at the provider meanwhile."""
    check_books(run(data, reports_each_refund=True, may_fail=True, may_dispute=False))


@PATIENT
@given(data=st.data())
@pytest.mark.slow
def test_totals_alone_tell_of_the_refunds_made_at_the_provider(data: st.DataObject) -> None:
    """A webhook of an older kind has the total and no lines."""
    check_books(run(data, reports_each_refund=False, may_fail=False, may_dispute=False))


@PATIENT
@given(data=st.data())
def test_the_books_balance_for_a_disputed_charge_and_nothing_goes_on_for_ever(data: st.DataObject) -> None:
    """A cancelled order is refunded, or is a case for a person; a dispute never goes back to open."""
    history = run(data, reports_each_refund=True, may_fail=True, may_dispute=True)
    payment = history.payment
    assert payment is not None
    assert order_after(history.published).refunded == payment.refunded
    if payment.is_cancelled:
        assert payment.is_open_case is (payment.kept > 0)
        assert payment.dispute is not None or not payment.is_open_case
    if payment.is_open_case:
        outcome, kept = data.draw(st.sampled_from(["captured", "refunded"])), payment.kept
        history.deliver(SettleRequested(order_id="o", outcome=outcome, why="x"))
        settled = history.payment
        assert settled is not None
        assert (settled.kept, settled.is_open_case) == (kept if outcome == "captured" else 0, False)
        assert order_after(history.published).refunded == settled.refunded


# Single cases


def after(*events: Any) -> tuple[Payment, list[Any]]:
    """Return the payment after *events*, and what the last one led to."""
    payment: Payment | None = None
    emitted: list[Any] = []
    for event in events:
        decision = decide((payment,), event, NOW)
        [payment] = decision.states or (payment,)
        emitted = list(decision.events)
    assert payment is not None
    return payment, emitted


def reported(amount: int, status: str = "succeeded", id: str = "re_x", key_number: int | None = None) -> RefundReported:
    return RefundReported(
        order_id="o", reference="pi", refund_reference=id, amount=Money(amount, "EUR"), status=status, key_number=key_number
    )


ASKED_IN_DOLLARS = OrderRefundRequested(order_id="o", refund_id="a", amount=Money(100, "USD"), reason="damaged")


def ask(id: str, amount: int) -> OrderRefundRequested:
    """Return the request of a refund that a person wants."""
    return OrderRefundRequested(order_id="o", refund_id=id, amount=Money(amount, "EUR"), reason="damaged")


def refund_requests(emitted: list[Any]) -> list[tuple[int, int]]:
    """Return the amount and the key number of each refund that is requested at once or later."""
    found = [each.event if isinstance(each, Scheduled) else each for each in emitted]
    return [(each.amount.amount, each.key_number) for each in found if isinstance(each, RefundRequested)]


def test_a_cancelled_order_gets_the_rest_of_a_partial_refund() -> None:
    """10.00 paid, 4.00 refunded in the provider's dashboard: 6.00 is refunded, whatever kind of notice reported the 4.00."""
    total = RefundNotified(order_id="o", reference="pi", amount=EUR, refunded_amount=400)
    for notice in reported(400), total:
        payment, emitted = after(RESERVED, CHARGED, notice)
        assert (payment.status, payment.refunded, payment.kept) == (PaymentStatus.CAPTURED, 400, 600)
        assert [type(each) for each in emitted] == [PaymentRefunded]
        _, emitted = after(RESERVED, CHARGED, notice, CANCELLED)
        assert refund_requests(emitted) == [(600, 1)]
    found = evolve(CHARGED, refunded_total=400)
    assert refund_requests(after(RESERVED, CANCELLED, found)[1]) == [(600, 1)], "the look-up reported the 4.00"


@pytest.mark.parametrize("made_elsewhere", [1000, 700, 400, 0])
def test_a_refund_that_returns_after_its_amount_was_reported_as_part_of_others_leaves_the_order_right(made_elsewhere: int) -> None:
    """The order never got the whole refund under its id: the notices of another refund, or of the total, came first."""
    asked = OrderRefundRequested(order_id="o", refund_id="r0", amount=Money(400, "EUR"), reason="x")
    earlier = reported(made_elsewhere) if made_elsewhere else RefundNotified(order_id="o", reference="pi", amount=EUR, refunded_amount=400)
    succeeded = RefundSucceeded(order_id="o", reference="re_0", key_number=1, refunded_total=400)
    payment: Payment | None = None
    published: list[Any] = []
    for event in RESERVED, CHARGED, asked, earlier, succeeded, reported(400, "failed", "re_0", 1):
        decision = decide((payment,), event, NOW)
        [payment] = decision.states or (payment,)
        published += decision.events
    assert payment is not None
    assert order_after(published).refunded == payment.refunded == made_elsewhere


def test_a_rejection_that_contains_the_total_leads_to_a_refund_of_the_rest() -> None:
    """The notice of the partial refund got lost; the provider cannot refund more than is left."""
    too_much = RefundFailed(order_id="o", retry_seconds=1, reason="amount_too_large", is_definite=True, refunded_total=400)
    payment, emitted = after(RESERVED, CHARGED, CANCELLED, too_much)
    assert (payment.refunded, payment.kept) == (400, 600)
    assert refund_requests(emitted) == [(600, 2)]


def test_a_pending_refund_is_not_booked_before_it_has_succeeded() -> None:
    """It is looked up under the same key; a failure is reported, and requested again under a new key."""
    processing = RefundProcessing(order_id="o", reference="re_1", key_number=1, refunded_total=AMOUNT)
    payment, emitted = after(RESERVED, CHARGED, CANCELLED, processing)
    assert (payment.status, payment.refund_status, payment.reason) == (PaymentStatus.CAPTURED, "pending", "refund_pending")
    assert (payment.refunded, payment.pending) == (0, AMOUNT)
    assert emitted == [Scheduled(emitted[0].event, NOW + timedelta(minutes=1), "refund:o:1")]
    assert refund_requests(emitted) == [(AMOUNT, 1)]
    payment, emitted = after(RESERVED, CHARGED, CANCELLED, processing, reported(AMOUNT, "failed", "re_1"))
    assert (payment.refund_status, payment.kept) == ("pending", AMOUNT)
    assert CancelTimer("refund:o:1") in emitted
    assert [each.is_final for each in emitted if isinstance(each, PaymentRefundFailed)] == [False]
    assert refund_requests(emitted) == [(AMOUNT, 2)]


@pytest.mark.parametrize("seconds", [1, 400])
def test_a_pending_refund_is_looked_up_again_after_a_look_up_is_refused(seconds: float) -> None:
    """The refund exists: a refusal without its reference neither ends it nor makes another one, and the next look-up finds its end."""
    processing = RefundProcessing(order_id="o", reference="re_1", key_number=1, refunded_total=AMOUNT)
    refused = RefundFailed(order_id="o", retry_seconds=seconds, reason="refund_refused: resource_missing", is_definite=True)
    payment, emitted = after(RESERVED, CHARGED, CANCELLED, processing, refused)
    [look_up] = emitted
    assert look_up.due_at == NOW + timedelta(seconds=max(seconds, 300)), "the second interval, or what the provider asked for"
    assert refund_requests(emitted) == [(AMOUNT, 1)]
    assert (payment.refund_status, payment.pending, payment.reason) == ("pending", AMOUNT, refused.reason)
    succeeded = RefundSucceeded(order_id="o", reference="re_1", key_number=1, refunded_total=AMOUNT)
    ended, _ = after(RESERVED, CHARGED, CANCELLED, processing, refused, succeeded)
    assert (ended.status, ended.refunded) == (PaymentStatus.REFUNDED, AMOUNT)
    failed = evolve(refused, reference="re_1")
    for known in ([processing, refused, failed], [processing, refused, failed, refused]):
        ended, emitted = after(RESERVED, CHARGED, CANCELLED, *known)
        assert (ended.kept, [key for _, key in refund_requests(emitted)]) == (AMOUNT, [2] if known[-1] is failed else [])


def test_a_refund_that_fails_after_it_succeeded_is_made_again() -> None:
    """The customer's bank sent it back: the payment is captured again, until the next refund succeeds."""
    succeeded = RefundSucceeded(order_id="o", reference="re_1")
    payment, _ = after(RESERVED, CHARGED, CANCELLED, succeeded)
    assert payment.status is PaymentStatus.REFUNDED
    payment, emitted = after(RESERVED, CHARGED, CANCELLED, succeeded, reported(AMOUNT, "failed", "re_1"))
    assert (payment.status, payment.kept) == (PaymentStatus.CAPTURED, AMOUNT)
    assert refund_requests(emitted) == [(AMOUNT, 2)]


@pytest.mark.parametrize(
    ("statuses", "expected"), [("won open", "open"), ("lost open", "open"), ("won lost", "lost"), ("lost won", "lost"), ("won won", "won")]
)
def test_of_several_disputes_the_most_serious_one_counts(statuses: str, expected: str) -> None:
    """A charge may be disputed in parts, each with an end of its own."""
    disputes = [
        DisputeReported(order_id="o", reference="pi", dispute_reference=f"dp_{n}", amount=Money(100, "EUR"), status=status)
        for n, status in enumerate(statuses.split())
    ]
    payment, _ = after(RESERVED, CHARGED, *disputes)
    assert payment.dispute == expected


def test_a_new_refund_is_no_part_of_a_total_that_was_reported_before() -> None:
    """4.00 went back in the dashboard, known from the total alone; then 3.00 is refunded here: 7.00 altogether."""
    total = RefundNotified(order_id="o", reference="pi", amount=EUR, refunded_amount=400)
    ask = OrderRefundRequested(order_id="o", refund_id="a", amount=Money(300, "EUR"), reason="damaged")
    payment, _ = after(RESERVED, CHARGED, total, ask)
    assert (payment.refunded, payment.pending, payment.refundable) == (400, 300, 300)
    payment, _ = after(RESERVED, CHARGED, total, ask, RefundSucceeded(order_id="o", reference="re_1", refunded_total=700))
    assert (payment.refunded, payment.kept) == (700, 300)


def test_another_refund_under_the_same_key_is_one_of_the_provider() -> None:
    """Its metadata were copied by hand, or the provider had forgotten the key: both count, and ours keeps its reference."""
    ask = OrderRefundRequested(order_id="o", refund_id="a", amount=Money(400, "EUR"), reason="damaged")
    events = RESERVED, CHARGED, ask, RefundSucceeded(order_id="o", reference="re_1")
    payment, _ = after(*events, reported(300, "succeeded", "re_2", 1))
    assert payment.ledger is not None
    lines = [(refund.reference, refund.amount, refund.key_number) for refund in payment.ledger.refunds]
    assert lines == [("re_1", 400, 1), ("re_2", 300, None)]
    assert (payment.refunded, payment.kept) == (700, 300)


def test_a_refund_that_comes_back_says_that_it_had_been_refunded() -> None:
    """So that orders subtracts it; a refund that never succeeded reports it, too."""
    succeeded = RefundSucceeded(order_id="o", reference="re_1")
    processing = RefundProcessing(order_id="o", reference="re_1", key_number=1, refunded_total=AMOUNT)
    for first, has_returned in (succeeded, True), (processing, False):
        _, emitted = after(RESERVED, CHARGED, CANCELLED, first, reported(AMOUNT, "failed", "re_1", 1))
        assert [(each.amount, each.has_returned) for each in emitted if isinstance(each, PaymentRefundFailed)] == [(EUR, has_returned)]
    by_hand = reported(400, "succeeded", "re_2"), reported(400, "failed", "re_2")
    _, emitted = after(RESERVED, CHARGED, *by_hand)
    [failed] = emitted
    assert (failed.amount, failed.has_returned) == (Money(400, "EUR"), True)


def test_a_definite_failure_ends_the_key_and_an_unknown_outcome_keeps_it() -> None:
    """The provider would repeat the failure under the same key, for instance after the balance was topped up."""
    failed = RefundFailed(order_id="o", retry_seconds=3)
    assert refund_requests(after(RESERVED, CHARGED, CANCELLED, failed)[1]) == [(AMOUNT, 1)]
    rejected = evolve(failed, is_definite=True, reason="no_balance")
    payment, emitted = after(RESERVED, CHARGED, CANCELLED, rejected)
    assert refund_requests(emitted) == [(AMOUNT, 2)]
    assert payment.reason == "no_balance"
    assert after(RESERVED, CHARGED, CANCELLED, rejected, rejected)[1] == [], "a duplicate of the result"


@pytest.mark.parametrize(
    ("requested", "amount"), [(CANCELLED, AMOUNT), (ask("a", 400), 400)], ids=["the whole order", "a part that orders requested"]
)
def test_a_refund_that_keeps_failing_is_left_to_a_person_once(requested: Any, amount: int) -> None:
    """After growing delays, of which the last ones are long; the last failure is marked as final."""
    events = [RESERVED, CHARGED, requested]
    delays = []
    for number in range(1, len(RETRY_SECONDS) + 2):
        events.append(RefundFailed(order_id="o", retry_seconds=1, key_number=number, is_definite=True, reason="no_balance"))
        payment, emitted = after(*events)
        delays += [(each.due_at - NOW).total_seconds() for each in emitted if isinstance(each, Scheduled)]
        final = [each.is_final for each in emitted if isinstance(each, PaymentRefundFailed)]
        assert final == [number == len(RETRY_SECONDS) + 1]
        assert refund_requests(emitted) == ([] if final[0] else [(amount, number + 1)])
    assert tuple(delays) == RETRY_SECONDS
    assert (payment.is_open_case, payment.refund_status, payment.reason) == (requested is CANCELLED, "failed", "no_balance")


def test_an_outcome_that_stays_unknown_is_left_to_a_person() -> None:
    """Nothing is looked up forever; the refund may still succeed, so it is not made again under another key."""
    payment, _ = after(RESERVED, CHARGED, CANCELLED)
    failed = RefundFailed(order_id="o", retry_seconds=1)
    decision = decide((payment,), failed, NOW + OPEN_MAX + timedelta(seconds=1))
    [given_up] = decision.states
    assert refund_requests(list(decision.events)) == []
    assert [each.is_final for each in decision.events if isinstance(each, PaymentRefundFailed)] == [True]
    assert (given_up.is_open_case, given_up.refund_status) == (True, "failed")
    found = decide((given_up,), reported(AMOUNT, "succeeded", "re_1", 1), NOW)
    assert (found.states[0].status, found.states[0].is_open_case) == (PaymentStatus.REFUNDED, False)


def test_a_disputed_payment_is_not_refunded_by_itself() -> None:
    """The order is cancelled while the dispute is open or lost: a case for a person, reported once and never retried."""
    for status in DisputeStatus.OPEN, DisputeStatus.LOST:
        disputed = DisputeReported(order_id="o", reference="pi", dispute_reference="dp", amount=EUR, status=status)
        payment, emitted = after(RESERVED, CHARGED, disputed, CANCELLED)
        assert (payment.dispute, payment.is_open_case, payment.reason) == (status, True, "disputed")
        assert [(type(each), each.is_final) for each in emitted] == [(PaymentRefundFailed, True)]
        assert after(RESERVED, CHARGED, disputed, CANCELLED, disputed)[1] == []
    won = evolve(disputed, status="won")
    late = evolve(disputed, status="open")
    for events in (won, late), (late, won):
        payment, emitted = after(RESERVED, CHARGED, *events, CANCELLED)
        assert payment.dispute is DisputeStatus.WON
        assert refund_requests(emitted) == [(AMOUNT, 1)]


def test_orders_asks_for_refunds_in_parts() -> None:
    """Each has a key of its own; more than is left, and what repeats an id, is not requested."""
    assert refund_requests(after(RESERVED, CHARGED, ask("a", 400))[1]) == [(400, 1)]
    assert refund_requests(after(RESERVED, CHARGED, ask("a", 400), ask("b", 600))[1]) == [(600, 2)]
    assert after(RESERVED, CHARGED, ask("a", 400), ask("a", 400))[1] == []
    for events in ([RESERVED, CHARGED, ask("a", 400)], ask("b", 601)), ([RESERVED], ask("b", 1)):
        [failed] = after(*events[0], events[1])[1]
        assert (type(failed), failed.refund_id, failed.is_final) == (PaymentRefundFailed, "b", True)
    payment, emitted = after(RESERVED, CHARGED, ask("a", 400), RefundSucceeded(order_id="o", reference="re_1"))
    part = PaymentRefunded(
        order_id="o", amount=Money(400, "EUR"), reference="re_1", kept=Money(600, "EUR"), refund_id="a"
    )
    assert (payment.status, payment.refund_status, emitted) == (PaymentStatus.CAPTURED, "succeeded", [part])


def test_a_refund_that_a_release_without_ledgers_requested_is_booked() -> None:
    """Its payment has no ledger, and its request no key number."""
    payment, _ = after(RESERVED, CHARGED)
    old = evolve(payment, is_cancelled=True)
    assert not old.is_open_case
    decision = decide((old,), RefundSucceeded(order_id="o", reference="re_1"), NOW)
    assert decision.states[0].status is PaymentStatus.REFUNDED
    assert decision.events == (PaymentRefunded(order_id="o", amount=EUR, reference="re_1"),)
    failed = decide((old,), RefundFailed(order_id="o", retry_seconds=3), NOW)
    assert refund_requests(list(failed.events)) == [(AMOUNT, 1)]
    refunded = evolve(old, status=PaymentStatus.REFUNDED)
    assert (refunded.refunded, refunded.kept, refunded.refund_status) == (AMOUNT, 0, "succeeded")
    assert decide((refunded,), RefundSucceeded(order_id="o", reference="re_1"), NOW).states == ()


def test_a_pending_refund_is_looked_up_at_growing_intervals() -> None:
    """The last one is repeated. Each request has the number of its attempt, and the refund is given up only after thirty days."""
    processing = RefundProcessing(order_id="o", reference="re_1", key_number=1, refunded_total=AMOUNT)
    payment, _ = after(RESERVED, CHARGED, CANCELLED)
    delays, attempts = [], []
    for _ in range(len(LOOK_UP_SECONDS) + 2):
        decision = decide((payment,), processing, NOW)
        [payment], [look_up] = decision.states, decision.events
        delays.append((look_up.due_at - NOW).total_seconds())
        attempts.append(look_up.event.attempt)
    assert delays == [*LOOK_UP_SECONDS, *[LOOK_UP_SECONDS[-1]] * 2]
    assert attempts == [*range(2, len(attempts) + 2)]
    [look_up] = decide((payment,), processing, NOW + OPEN_MAX).events
    assert isinstance(look_up, Scheduled)
    [given_up] = decide((payment,), processing, NOW + OPEN_MAX + timedelta(seconds=1)).events
    assert (type(given_up), given_up.is_final) == (PaymentRefundFailed, True)


def test_a_refund_that_has_succeeded_has_no_reason() -> None:
    """What it waited for before is no failure."""
    processing = RefundProcessing(order_id="o", reference="re_1", key_number=1, refunded_total=AMOUNT)
    for ended in reported(AMOUNT, "succeeded", "re_1"), RefundSucceeded(order_id="o", reference="re_1"):
        payment, _ = after(RESERVED, CHARGED, CANCELLED, processing, ended)
        assert payment.ledger is not None
        assert [(line.status, line.reason) for line in payment.ledger.refunds] == [(RefundStatus.SUCCEEDED, None)]
        assert payment.reason is None


def test_a_refund_that_exists_after_all_is_booked() -> None:
    """Its key counted as ended without a refund, and the notice of the provider knows better; so does one that is late."""
    rejected = RefundFailed(order_id="o", retry_seconds=1, is_definite=True, reason="no_balance")
    made = reported(AMOUNT, "succeeded", "re_1", 1)
    processing = RefundProcessing(order_id="o", reference="re_1", key_number=1, refunded_total=AMOUNT)
    for events in ((rejected, made), (made, processing), (rejected, made, processing), (rejected, reported(AMOUNT, "pending", "re_1", 1), made)):
        payment, _ = after(RESERVED, CHARGED, CANCELLED, *events)
        assert (payment.status, payment.refunded, payment.kept) == (PaymentStatus.REFUNDED, AMOUNT, 0)


def test_a_refund_has_the_amount_that_the_provider_states() -> None:
    """Whichever of its notices comes first."""
    answer = RefundSucceeded(order_id="o", reference="re_1", refunded_total=300)
    for events in ((reported(300, "succeeded", "re_1", 1), answer), (answer, reported(300, "succeeded", "re_1", 1))):
        payment, _ = after(RESERVED, CHARGED, ask("a", 400), *events)
        assert payment.ledger is not None
        assert [(line.id, line.amount, line.reference) for line in payment.ledger.refunds] == [("a", 300, "re_1")]
        assert (payment.refunded, payment.kept) == (300, 700)


def test_a_line_that_was_reported_before_its_key_was_known_is_that_of_the_key() -> None:
    """An older kind of notice has no metadata: there is one line in the end."""
    for status in "pending", "succeeded":
        payment, _ = after(
            RESERVED, CHARGED, ask("a", 400), reported(400, status, "re_1"), RefundSucceeded(order_id="o", reference="re_1", refunded_total=400)
        )
        assert payment.ledger is not None
        lines = [(line.id, line.key_number, line.reference, line.status) for line in payment.ledger.refunds]
        assert lines == [("a", 1, "re_1", RefundStatus.SUCCEEDED)]
        assert (payment.refunded, payment.kept, payment.pending) == (400, 600, 0)


def test_the_total_of_each_answer_counts() -> None:
    """4.00 is refunded here, and 6.00 went back in the dashboard, of which no notice has come."""
    details: dict[str, Any] = {"order_id": "o", "reference": "re_1", "key_number": 1, "refunded_total": AMOUNT}
    for answer, refunded in (RefundSucceeded(**details), AMOUNT), (RefundProcessing(**details), 600):
        payment, _ = after(RESERVED, CHARGED, ask("a", 400), answer)
        assert (payment.refunded, payment.refundable) == (refunded, 0)


def test_what_is_left_of_a_payment_includes_what_is_about_to_be_refunded() -> None:
    """The event of the first refund reports what is kept; the second one is under way."""
    _, emitted = after(RESERVED, CHARGED, ask("a", 400), ask("b", 600), RefundSucceeded(order_id="o", reference="re_1"))
    assert [(each.amount, each.kept) for each in emitted] == [(Money(400, "EUR"), Money(600, "EUR"))]


def test_no_more_is_requested_again_than_is_left() -> None:
    """A refund of 4.00 failed; meanwhile 8.00 of 10.00 went back in the dashboard."""
    failed = RefundFailed(order_id="o", retry_seconds=1, reason="no_balance", is_definite=True, refunded_total=800)
    assert refund_requests(after(RESERVED, CHARGED, ask("a", 400), failed)[1]) == [(200, 2)]
    assert refund_requests(after(RESERVED, CHARGED, ask("a", 400), evolve(failed, refunded_total=AMOUNT))[1]) == []


def test_a_refund_that_has_ended_is_not_requested_again_by_a_late_failure() -> None:
    """It is the answer to an earlier attempt: the key has failed, and another one follows, or it has succeeded."""
    late = RefundFailed(order_id="o", retry_seconds=1)
    rejected = evolve(late, is_definite=True, reason="no_balance")
    for ended in rejected, RefundSucceeded(order_id="o", reference="re_1"):
        payment, _ = after(RESERVED, CHARGED, CANCELLED, ended)
        decision = decide((payment,), late, NOW)
        assert (decision.states, decision.events) == ((), ())


def test_a_refund_in_another_currency_is_not_requested() -> None:
    """Orders refuses it before; an event that contradicts the payment moves no money."""
    [failed] = after(RESERVED, CHARGED, ASKED_IN_DOLLARS)[1]
    assert (type(failed), failed.is_final, failed.reason) == (PaymentRefundFailed, True, "not_captured")


def test_a_case_for_a_person_stays_one_when_the_dispute_is_won() -> None:
    """Whether the rest is refunded is decided once, by the person, and not by the bank of the customer."""
    disputed = DisputeReported(order_id="o", reference="pi", dispute_reference="dp", amount=EUR, status="open")
    payment, emitted = after(RESERVED, CHARGED, disputed, CANCELLED, evolve(disputed, status="won"))
    assert (payment.is_open_case, payment.reason, refund_requests(emitted)) == (True, "disputed", [])


def test_an_order_is_not_refunded_beside_a_refund_of_unknown_outcome() -> None:
    """A person finds out what became of it, also where less than the whole payment is in doubt."""
    payment, _ = after(RESERVED, CHARGED, ask("a", 400))
    later = NOW + OPEN_MAX + timedelta(seconds=1)
    [payment] = decide((payment,), RefundFailed(order_id="o", retry_seconds=1), later).states
    decision = decide((payment,), CANCELLED, later)
    [cancelled] = decision.states
    assert isinstance(cancelled, Payment)
    assert (refund_requests(list(decision.events)), cancelled.is_open_case) == ([], True)


def test_the_amount_of_a_dispute_does_not_shrink() -> None:
    """A notice may be late."""
    disputed = DisputeReported(order_id="o", reference="pi", dispute_reference="dp", amount=EUR, status="open")
    part = evolve(disputed, amount=Money(100, "EUR"))
    for events in (disputed, part), (part, disputed):
        payment, _ = after(RESERVED, CHARGED, *events)
        assert payment.ledger is not None
        assert [each.amount for each in payment.ledger.disputes] == [AMOUNT]


def test_an_order_that_is_free_of_charge_is_refunded_once() -> None:
    """So that it ends as any other: its payment is refunded."""
    free = StockReserved(order_id="o", lines=(), total=Money(0, "EUR"), payment_method=None)
    payment, emitted = after(free, CHARGED, CANCELLED)
    assert refund_requests(emitted) == [(0, 1)]
    made = RefundSucceeded(order_id="o", reference="re_1")
    payment, emitted = after(free, CHARGED, CANCELLED, made)
    assert (payment.status, refund_requests(emitted)) == (PaymentStatus.REFUNDED, [])
    failed = RefundFailed(order_id="o", retry_seconds=1, is_definite=True, reason="x")
    assert after(free, CHARGED, CANCELLED, made, failed)[1] == []


def failures(emitted: list[Any]) -> list[tuple[int, str, bool, bool]]:
    """Return amount and reason of each refund that failed, whether that is final, and whether it had been refunded."""
    found = [each for each in emitted if isinstance(each, PaymentRefundFailed)]
    return [(each.amount.amount, each.reason, each.is_final, each.has_returned) for each in found]


def test_a_failed_refund_is_published_with_its_amount_and_reason() -> None:
    """The provider's reason, or that of the case: a dispute, or an outcome that stays unknown."""
    rejected = RefundFailed(order_id="o", retry_seconds=3, is_definite=True, reason="no_balance")
    assert failures(after(RESERVED, CHARGED, ask("a", 400), rejected)[1]) == [(400, "no_balance", False, False)]
    disputed = DisputeReported(order_id="o", reference="pi", dispute_reference="dp", amount=EUR, status="open")
    assert failures(after(RESERVED, CHARGED, disputed, CANCELLED)[1]) == [(AMOUNT, "disputed", True, False)]
    payment, _ = after(RESERVED, CHARGED, CANCELLED)
    late = NOW + OPEN_MAX + timedelta(seconds=1)
    emitted = decide((payment,), RefundFailed(order_id="o", retry_seconds=1), late).events
    assert failures(list(emitted)) == [(AMOUNT, "no_answer", True, False)]


def test_a_total_that_shrinks_is_published_as_money_that_has_come_back() -> None:
    """No line names the refund, so the event has no reason of its own."""
    succeeded = reported(400, "succeeded", "re_1")
    emitted = after(RESERVED, CHARGED, succeeded, reported(400, "failed", "re_1"))[1]
    assert failures(emitted) == [(400, "refund_failed", True, True)]


def test_a_refund_is_booked_at_the_time_of_its_answer() -> None:
    payment, _ = after(RESERVED, CHARGED, ask("a", 400))
    later = NOW + timedelta(hours=1)
    processing = RefundProcessing(order_id="o", reference="re_1", key_number=1, refunded_total=400)
    for answer in RefundSucceeded(order_id="o", reference="re_1"), processing:
        assert decide((payment,), answer, later).states[0].updated_at == later
