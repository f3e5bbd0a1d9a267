"""
Subjects of events: ``<module>.<event>.v<N>``; the version is part of the subject.

A message in the express lane has the same subject with a trailing ``.express``.
"""

from __future__ import annotations

__all__ = ["EXPRESS", "Event", "event", "is_express", "subject_of", "without_lane"]

import re
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import attrs

from bus.errors import ContractError

Event = Any
"""An instance of a class made by `event`."""

T = TypeVar("T")

EXPRESS = ".express"
_SUBJECT = re.compile(r"[a-z][a-z_]*\.[a-z][a-z_]*\.v[1-9][0-9]*")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(attrs.field,))
def event(subject: str) -> Callable[[type[T]], type[T]]:
    """Make a class an event: frozen, keyword-only, published under *subject*."""
    if not _SUBJECT.fullmatch(subject):
        raise ContractError(f"{subject!r} is not a subject: <module>.<event>.v<N>")

    def decorate(cls: type[T]) -> type[T]:
        cls = attrs.frozen(cls, kw_only=True)
        cls.__subject__ = subject  # type: ignore[attr-defined]
        return cls

    return decorate


def subject_of(event: Event) -> str:
    """Return the subject of *event*, which is an event or a class of events, without a lane."""
    subject: str = event.__subject__
    return subject


def is_express(subject: str) -> bool:
    """Return whether *subject* is in the express lane."""
    return subject.endswith(EXPRESS)


def without_lane(subject: str) -> str:
    """Return *subject* without its lane, as the registry lists it."""
    return subject.removesuffix(EXPRESS)
