"""Whoever waits to be decided about, and what became of him."""

from __future__ import annotations

__all__ = ["Answering", "Seat", "Superseded", "Verdict"]

import asyncio
from collections.abc import Callable
from typing import Any

from attrs import define

from app.door import Context, Told
from bus.port import Delivery
from modules.module import Decision, Outcome
from modules.route import Answer, Refusal

Answering = Callable[[Outcome], Answer | Refusal]


class Superseded(Exception):
    """It is too early to act on a lower version: the higher one has not come yet."""


@define(eq=False)
class Seat:
    """An event that waits to be decided, and whoever waits for that: a *future*, or a *delivery* of the bus."""

    event: Any
    id: str
    context: Context
    express: bool
    inbox_id: str | None
    fingerprint: str | None = None
    answer: Answering | None = None
    future: asyncio.Future[Told] | None = None
    delivery: Delivery | None = None
    said_at: str | None = None
    lower: tuple[Delivery, ...] = ()
    """Lower versions of the same event, which came while this one sat."""
    is_born: bool = False
    """True for what was said in the very transaction that hears it: nobody can have heard it before."""
    gives_way: bool = False
    """True for a lower version of what is to come in a higher one that we understand, too: that one is the better."""


@define(eq=False)
class Verdict:
    """What became of a seat. Without a decision and an error: it was heard before."""

    decision: Decision | None = None
    told: Told | None = None
    error: Exception | None = None
