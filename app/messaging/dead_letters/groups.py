"""Dead letters in groups: those of one cause together, whatever ids and numbers their details name."""

from __future__ import annotations

__all__ = ["DETAILS_MAX", "OTHERS", "DeadLetterGroup", "grouped", "groups_in", "pattern_of"]

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from attrs import evolve, frozen
from sqlalchemy import ColumnElement, Connection, Table, func, select

from app.messaging.dead_letters.rows import aware

PATTERN_MAX = 300
"""Characters of a pattern; more are cut off."""

DETAIL_READ_MAX = 2 * PATTERN_MAX
"""Characters of a detail that are read."""

DETAILS_MAX = 10_000
"""Different details that are read; the dead letters with rarer ones are counted together, as `OTHERS`."""

OTHERS = "other details"

_VARIABLE_PARTS = (
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"\b(?=\w*\d)(?=\w*_)[A-Za-z0-9_]{8,}\b"), "<id>"),  # such as pi_3Qm2..., ch_...
    (re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]\w)"), "<n>"),
)


@frozen(kw_only=True)
class DeadLetterGroup:
    """
    Dead letters of one *consumer*, *subject* and *error* whose details differ only in ids, times and numbers.

    *pattern* is their detail with ``<id>``, ``<time>`` and ``<n>`` in place of these; *example* is the id of one of them.
    """

    consumer: str
    subject: str
    error: str
    pattern: str
    count: int
    first_seen: datetime
    last_seen: datetime
    example: str


def pattern_of(detail: str) -> str:
    """Return *detail* without what differs between two dead letters of one cause."""
    if len(detail) >= DETAIL_READ_MAX:
        detail = detail[:DETAIL_READ_MAX].rpartition(" ")[0] or detail  # an id that is cut off would differ
    for part, name in _VARIABLE_PARTS:
        detail = part.sub(name, detail)
    return detail if len(detail) <= PATTERN_MAX else f"{detail[: PATTERN_MAX - 1]}…"


def grouped(groups: Iterable[DeadLetterGroup]) -> list[DeadLetterGroup]:
    """Join the *groups* that are equal but for their counts and times; return the largest first."""
    joined: dict[tuple[str, str, str, str], DeadLetterGroup] = {}
    for group in groups:
        key = group.consumer, group.subject, group.error, group.pattern
        known = joined.setdefault(key, group)
        if known is not group:
            joined[key] = evolve(
                known,
                count=known.count + group.count,
                first_seen=min(known.first_seen, group.first_seen),
                last_seen=max(known.last_seen, group.last_seen),
            )
    return sorted(joined.values(), key=lambda group: (-group.count, group.consumer, group.subject, group.error, group.pattern))


def groups_in(table: Table, conditions: Sequence[ColumnElement[bool]], connection: Connection) -> list[DeadLetterGroup]:
    """Return the groups of the dead letters in *table* that meet *conditions*, one for each of their details."""
    c = table.c
    detail = func.substr(c.detail, 1, DETAIL_READ_MAX)
    numbers = (func.count(), func.min(c.first_seen), func.max(c.last_seen), func.min(c.id))
    keys = (c.consumer, c.subject, c.error)
    by_detail = select(*keys, detail, *numbers).where(*conditions).group_by(*keys, detail)
    most_frequent = by_detail.order_by(func.count().desc()).limit(DETAILS_MAX)
    groups = [_group(*row) for row in connection.execute(most_frequent)]
    if len(groups) == DETAILS_MAX:
        counted: Counter[tuple[str, str, str]] = Counter()
        for group in groups:
            counted[group.consumer, group.subject, group.error] += group.count
        for consumer, subject, error, count, *rest in connection.execute(select(*keys, *numbers).where(*conditions).group_by(*keys)):
            if others := count - counted[consumer, subject, error]:
                groups.append(_group(consumer, subject, error, OTHERS, others, *rest))
    return groups


def _group(
    consumer: str, subject: str, error: str, detail: str, count: int, first: datetime, last: datetime, example: str
) -> DeadLetterGroup:
    return DeadLetterGroup(
        consumer=consumer, subject=subject, error=error, pattern=pattern_of(detail), count=count,
        first_seen=aware(first), last_seen=aware(last), example=example,
    )  # fmt: skip
