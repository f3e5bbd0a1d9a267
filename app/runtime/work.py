"""Whoever waits to be decided about, and what became of him."""

from __future__ import annotations

__all__ = ["Answering", "Seat", "Superseded", "Verdict"]

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import define

from app.runtime.service import Context, Told
from bus.port import Delivery
from modules.module import Decision, Outcome
from modules.route import Answer, Refusal

if TYPE_CHECKING:
    from app.runtime.unit_of_work import Said

Answering = Callable[[Outcome], Answer | Refusal]


class Superseded(Exception):
    """It is too early to act on a lower version: the higher one has not come yet."""


@define(eq=False)
class Seat:
    """An event that waits to be decided, and whoever waits for that: a *future*, or a *delivery* of the bus."""

    event: Any
    _id: str | None
    story: Context
    """Correlation and trace. Whose step of the trace it is says `context`."""
    express: bool
    inbox_id: str | None
    """Under which it may have been heard before; None for what cannot have been."""
    fingerprint: str | None = None
    answer: Answering | None = None
    future: asyncio.Future[Told] | None = None
    delivery: Delivery | None = None
    said_at: str | None = None
    lower: tuple[Delivery, ...] = ()
    """Lower versions of the same event, which came while this one sat."""
    said: Said | None = None
    """What was heard in the very transaction in which it was said; it has no id of its own."""
    fresh: str | None = None
    """An id that was made up for this event: nobody can have kept anything under it."""
    gives_way: bool = False
    """True for a lower version of what is to come in a higher one that we understand, too: that one is the better."""

    @property
    def id(self) -> str:
        """The event's id."""
        if self._id is None:
            assert self.said is not None
            self._id = self.said.id
        return self._id

    @property
    def context(self) -> Context:
        """Who caused it."""
        return self.story if self.said is None else Context(self.story.correlation_id, self.said.traceparent)


@define(eq=False)
class Verdict:
    """What became of a seat. Without a decision and an error: it was heard before."""

    decision: Decision | None = None
    told: Told | None = None
    error: Exception | None = None
