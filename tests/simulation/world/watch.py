"""What is checked while the system runs, at each commit and at each call of the provider."""

from __future__ import annotations

__all__ = ["Watch"]

from typing import TYPE_CHECKING, Any

from app.gateways.gateway_request import FRESH_SECONDS
from app.telemetry.trace import TraceContext
from modules.inventory.state import Product, Reservation
from modules.module import Decision
from modules.orders.state import Order, Status
from modules.payments.state import Payment, PaymentStatus
from tests.simulation.provider.weather import Answer

if TYPE_CHECKING:
    from tests.simulation.world.world import World

WAIT_SECONDS_MAX = 5.0
THROTTLED_SECONDS_MAX = 120.0
"""How long a charge may wait for its call after the payment was last looked at, while the provider limits the rate or not."""

_FOLLOWS = {
    None: {Status.PROCESSING},
    Status.PROCESSING: {Status.PROCESSING, Status.RESERVED, Status.CONFIRMED, Status.CANCELLED},
    Status.RESERVED: {Status.RESERVED, Status.CONFIRMED, Status.CANCELLED},
    Status.CONFIRMED: {Status.CONFIRMED, Status.CANCELLED},
    Status.CANCELLED: {Status.CANCELLED},
}


class Watch:
    """Sees each committed decision of a process, unless the process is killed before it reports it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._statuses: dict[str, Status] = {}
        self._reasons: dict[str, str] = {}
        self._cancelled_at: dict[str, float] = {}
        self._charged_before: set[str] = set()
        self._looks_again_since = 0.0
        self.final_at: dict[str, float] = {}

    def on_commit(self, module: str, event: Any, decision: Decision, trace: TraceContext) -> None:
        """Check the states of one decision, and write it into the trace."""
        world = self._world
        if decision.states or decision.events:
            emitted = " ".join(type(getattr(each, "event", each)).__name__ for each in decision.events)
            name = world.label(getattr(event, "order_id", getattr(event, "product_id", "")))
            world.note(f"{module}: {type(event).__name__} of {name}{' -> ' + emitted if emitted else ''}")
        for state in decision.states:
            match state:
                case Order():
                    if not world.replicas.are_several:  # the others report in another order than that of their commits
                        self.check_order(state.order_id, state.status, state.reason)
                    if state.waiting_for:
                        world.saw(f"order: waits for {state.waiting_for}")
                case Payment():
                    self._check_payment(state)
                case Product() if not 0 <= state.reserved <= state.on_hand:
                    world.fail(f"I3: the stock of {state.product_id} is {state.on_hand}, of which {state.reserved} are reserved")
                case Reservation():
                    world.saw(f"reservation: {state.status.value}")

    def before_charge(self, order_id: str) -> None:
        """Check that no order is charged that payments knows to be cancelled."""
        world, name = self._world, self._world.label(order_id)
        is_repeat = order_id in self._charged_before
        self._charged_before.add(order_id)
        cancelled_at = self._cancelled_at.get(order_id, world.now)
        since = world.now - cancelled_at
        is_old = is_repeat or cancelled_at < self._looks_again_since
        is_throttled = any(fault.spell is not None and fault.spell.answer is Answer.THROTTLED for fault in world.plan.faults)
        if since > (0.0 if is_old else FRESH_SECONDS) + (THROTTLED_SECONDS_MAX if is_throttled else WAIT_SECONDS_MAX):
            world.fail(f"{name} is charged {since:.1f} s after its cancellation was stored")

    def old_requests_are_rechecked(self) -> None:
        """Note that requests from before now are compared with the payment: the process, or the breaker of charges, begins anew."""
        self._looks_again_since = self._world.now

    def clock_was_set(self, seconds: float) -> None:
        """Note that the clock of a process was set: a request may look younger than it is."""
        self._cancelled_at.clear()

    def check_order(self, order_id: str, status: Status, reason: str | None) -> None:
        """Check the state of an order that was committed; called in the order of the commits."""
        world, name = self._world, self._world.label(order_id)
        before = self._statuses.get(order_id)
        if before is not None and status not in _FOLLOWS[before]:
            world.fail(f"I4: {name} goes from {before.value} to {status.value}")
        self._statuses[order_id] = status
        if status in (Status.CONFIRMED, Status.CANCELLED):
            self.final_at.setdefault(order_id, world.now)
        if status is Status.CANCELLED:
            if self._reasons.setdefault(order_id, str(reason)) != reason:
                world.fail(f"I4: the reason of {name} changes from {self._reasons[order_id]} to {reason}")
            if before is not Status.CANCELLED:
                world.saw(f"order: cancelled, {reason}")
        elif before is not status:
            world.saw(f"order: {status.value}")

    def _check_payment(self, payment: Payment) -> None:
        world, name = self._world, self._world.label(payment.order_id)
        if payment.is_cancelled:
            self._cancelled_at.setdefault(payment.order_id, world.now)
        is_taken = payment.status in (PaymentStatus.CAPTURED, PaymentStatus.REFUNDED)
        if is_taken and not world.bank.provider.captured(payment.order_id):
            world.fail(f"I9: the payment of {name} is {payment.status.value}, and the provider has taken nothing")
        if payment.refunded > sum(each.refunded for each in world.bank.provider.captured(payment.order_id)):
            world.fail(f"I9: of the payment of {name} {payment.refunded} are refunded, more than the provider has refunded")
        world.saw(f"payment: {payment.status.value}{' under review' if payment.needs_review else ''}")
        if payment.refund_status is not None:
            world.saw(f"refund: {payment.refund_status}")
