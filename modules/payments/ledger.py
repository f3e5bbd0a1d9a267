"""
The ledger of a payment: its refunds and disputes, each a line with the provider's reference.

Most payments have none: one capture and nothing else. The lines grow from three sources, which report the same refund in
any order, more than once and late: the results of the payment worker, the provider's notice about one refund, and its
notice of how much of the charge was refunded altogether. So each function here joins what is reported with what is known. A
status only moves forward, a total only grows, and joining the same thing again changes nothing.
"""

from __future__ import annotations

__all__ = [
    "Dispute",
    "DisputeStatus",
    "Ledger",
    "Refund",
    "RefundStatus",
    "Settlement",
    "next_key_number",
    "own_refund",
    "with_dispute",
    "with_line",
    "with_new_refund",
    "with_refund",
    "with_refund_failed",
    "with_refund_tried",
]

from collections.abc import Callable
from enum import StrEnum

from attrs import evolve, frozen


class RefundStatus(StrEnum):
    """
    The status of a refund.

    It is REQUESTED until the provider has answered, and FAILED finally: a further attempt has its own line.
    """

    REQUESTED = "requested"
    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class DisputeStatus(StrEnum):
    """The status of a dispute; WON and LOST are from the shop's side."""

    OPEN = "open"
    WON = "won"
    LOST = "lost"


_REFUND_STEPS = tuple(RefundStatus)
_DISPUTE_STEPS = tuple(DisputeStatus)


@frozen(kw_only=True)
class Refund:
    """
    One refund of *amount* minor units, requested or first reported *at* (RFC 3339).

    *id* names what requested it: an id that orders gave, or ``cancel`` for the cancellation of the order. *key_number* is
    the number of its idempotency key. Both are None for a refund that was made at the provider. *tries* counts the calls.
    """

    amount: int
    status: RefundStatus
    at: str
    id: str | None = None
    key_number: int | None = None
    reference: str | None = None
    reason: str | None = None
    tries: int = 0


@frozen(kw_only=True)
class Dispute:
    """One dispute about *amount* minor units, first reported *at* (RFC 3339)."""

    reference: str
    amount: int
    status: DisputeStatus
    at: str


@frozen(kw_only=True)
class Settlement:
    """
    How a person closed the case of a payment: the *outcome*, why, and when (RFC 3339).

    With *keeps_rest* the rest of the money is kept although the order is cancelled.
    """

    outcome: str
    reason: str
    at: str
    keeps_rest: bool = False


@frozen(kw_only=True)
class Ledger:
    """
    What a payment knows beside its capture.

    *refunded_total* is the highest total that the provider has reported; it may include refunds that have no line.
    *soft_declines* counts the declines after which the same charge may succeed; with *is_given_up* it is not tried again.
    """

    refunds: tuple[Refund, ...] = ()
    disputes: tuple[Dispute, ...] = ()
    refunded_total: int = 0
    soft_declines: int = 0
    is_given_up: bool = False
    settled: Settlement | None = None

    @property
    def keeps_rest(self) -> bool:
        """True if a person decided that what is left of the payment of a cancelled order is kept."""
        return self.settled is not None and self.settled.keeps_rest

    @property
    def refunded(self) -> int:
        """The minor units of all refunds that have succeeded, those included that are only in the total."""
        return self._sum(RefundStatus.SUCCEEDED) + self.without_line

    @property
    def pending(self) -> int:
        """The minor units of all refunds that may still succeed."""
        return self._sum(RefundStatus.REQUESTED) + self._sum(RefundStatus.PENDING)

    @property
    def without_line(self) -> int:
        """The part of the total that no line explains: refunds made at the provider, without a notice of their own."""
        known = sum(
            refund.amount
            for refund in self.refunds
            if refund.reference is not None or refund.status is not RefundStatus.FAILED
        )
        return max(0, self.refunded_total - known)

    def _sum(self, status: RefundStatus) -> int:
        return sum(refund.amount for refund in self.refunds if refund.status is status)

    @property
    def dispute(self) -> DisputeStatus | None:
        """The most serious status of all disputes: an open one before a lost one before one that was won."""
        found = {dispute.status for dispute in self.disputes}
        return next((each for each in (DisputeStatus.OPEN, DisputeStatus.LOST, DisputeStatus.WON) if each in found), None)


def own_refund(ledger: Ledger, key_number: int) -> Refund | None:
    """Return the refund that was requested under *key_number*."""
    return next((refund for refund in ledger.refunds if refund.key_number == key_number), None)


def next_key_number(ledger: Ledger) -> int:
    """Return the number of the idempotency key for another refund."""
    return 1 + max((refund.key_number or 0 for refund in ledger.refunds), default=0)


def with_new_refund(ledger: Ledger, id: str, amount: int, at: str) -> tuple[Ledger, Refund]:
    """Return *ledger* with another requested refund, and that refund."""
    refund = Refund(id=id, amount=amount, status=RefundStatus.REQUESTED, at=at, key_number=next_key_number(ledger))
    return with_line(ledger, refund), refund


def with_line(ledger: Ledger, refund: Refund) -> Ledger:
    """Return *ledger* with *refund* as another line; what is only in the total, of which it is no part, gets a line first."""
    unnamed = ledger.without_line
    earlier = (Refund(amount=unnamed, status=RefundStatus.SUCCEEDED, at=refund.at),) if unnamed else ()
    return evolve(ledger, refunds=(*ledger.refunds, *earlier, refund))


def with_refund(ledger: Ledger, reported: Refund) -> Ledger:
    """
    Return *ledger* joined with *reported*, a refund that exists at the provider under its reference.

    It belongs to the line with its reference, else to the line of its key if that has no reference yet; otherwise it was
    made at the provider, and lines without a reference may stand for it. A line that was made before its key was known
    merges with the line of the key.
    """
    known = next((each for each in ledger.refunds if each.reference == reported.reference), None)
    own = None if reported.key_number is None else own_refund(ledger, reported.key_number)
    if own is not None and own.reference not in (None, reported.reference):
        own, reported = None, evolve(reported, key_number=None)  # another refund under the same key: not ours
    joined = reported if known is None else _later(known, reported)
    line = own or known
    if line is None:
        return evolve(ledger, refunds=(*_without_unnamed(ledger.refunds, joined.amount), joined))
    status = joined.status if line.reference is None else _later(line, joined).status
    reason = None if status is RefundStatus.SUCCEEDED else joined.reason or line.reason
    merged = evolve(line, amount=reported.amount, status=status, reference=reported.reference, reason=reason)
    kept = (each for each in ledger.refunds if each is not known or known is line)
    return evolve(ledger, refunds=tuple(merged if each is line else each for each in kept))


def with_refund_tried(ledger: Ledger, key_number: int, calls: int, reason: str | None) -> Ledger:
    """Return *ledger* after *calls* for the refund under *key_number*, which may still succeed."""
    return _with_own(ledger, key_number, lambda refund: evolve(refund, tries=refund.tries + calls, reason=reason))


def with_refund_failed(ledger: Ledger, key_number: int, reason: str) -> Ledger:
    """Return *ledger* after the provider has refused to make the refund under *key_number*, unless it exists there."""
    return _with_own(
        ledger,
        key_number,
        lambda refund: evolve(refund, status=RefundStatus.FAILED, reason=reason) if refund.reference is None else refund,
    )


def with_dispute(ledger: Ledger, reported: Dispute) -> Ledger:
    """Return *ledger* joined with *reported*."""
    known = next((each for each in ledger.disputes if each.reference == reported.reference), None)
    if known is None:
        return evolve(ledger, disputes=(*ledger.disputes, reported))
    status = max(known.status, reported.status, key=_DISPUTE_STEPS.index)
    joined = evolve(known, status=status, amount=max(known.amount, reported.amount))
    return evolve(ledger, disputes=tuple(joined if each is known else each for each in ledger.disputes))


def _with_own(ledger: Ledger, key_number: int, change: Callable[[Refund], Refund]) -> Ledger:
    return evolve(
        ledger,
        refunds=tuple(change(refund) if refund.key_number == key_number else refund for refund in ledger.refunds),
    )


def _without_unnamed(refunds: tuple[Refund, ...], amount: int) -> list[Refund]:
    """Return *refunds* with up to *amount* less in the lines that stand for refunds without a name."""
    kept = []
    for refund in refunds:
        if refund.reference is None and refund.key_number is None:
            taken = min(amount, refund.amount)
            amount -= taken
            refund = evolve(refund, amount=refund.amount - taken)
            if not refund.amount:
                continue
        kept.append(refund)
    return kept


def _later(one: Refund, other: Refund) -> Refund:
    return max(one, other, key=lambda refund: _REFUND_STEPS.index(refund.status))
