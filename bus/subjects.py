"""
What events are called: ``<module>.<event>.v<N>``; the version is part of the name.

Express traffic travels under the same name with a trailing ``.express``.
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
    """Make a class an event: frozen, keyword-only, travelling under *subject*."""
    if not _SUBJECT.fullmatch(subject):
        raise ContractError(f"{subject!r} is not a subject: <module>.<event>.v<N>")

    def decorate(cls: type[T]) -> type[T]:
        cls = attrs.frozen(cls, kw_only=True)
        cls.__subject__ = subject  # type: ignore[attr-defined]
        return cls

    return decorate


def subject_of(event: Event) -> str:
    """Return the subject that an event, or a class of events, travels under."""
    subject: str = event.__subject__
    return subject


def is_express(subject: str) -> bool:
    """Tell whether a message under *subject* goes by the express lane."""
    return subject.endswith(EXPRESS)


def without_lane(subject: str) -> str:
    """Return *subject* without its lane: the name its contract is filed under."""
    return subject.removesuffix(EXPRESS)
