"""Compare what one decision emits today with what the history has."""

from __future__ import annotations

__all__ = ["Pair", "Upgrade", "changes_of", "is_same", "pairs", "shown"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from attrs import frozen

from app.runtime.replay.source import events_of, rest_of
from app.runtime.work import OutgoingEvent
from app.storage.archive.history_content import Entry
from app.storage.tables import DUE_NOW
from bus.subjects import subject_of

_SHOWN_MAX = 3
"""Members that one line names."""

_VALUE_MAX = 60
"""Characters of a value that one line shows."""


@frozen
class Pair:
    """One event of a decision, in the history and today."""

    ordinal: int
    recorded: Sequence[Any] | None
    today: OutgoingEvent | None
    detail: str
    """What differs; empty if the two are equal, or if only their due times differ."""
    shift: float = 0.0
    """By how many seconds the due time of today's timer is later than the recorded one."""
    is_event_same: bool = False
    """True if both are the same event, in any version."""


def is_same(entry: Entry, has_changed: bool, emitted: Sequence[OutgoingEvent]) -> bool:
    """Return whether *entry* is what follows today: *emitted*, and whether states have changed."""
    rest = rest_of(entry)
    if not emitted:
        return bool(rest == ([] if has_changed else [0]))
    if len(rest) != 3 or len(rest[2]) != len(emitted):
        return False
    first = emitted[0]
    if rest[0] != first.is_express or _key(rest) != first.key:
        return False
    for event, each in zip(rest[2], emitted, strict=True):
        if event[1] != each.ordinal or event[2] != each.event.__subject__ or event[3] != each.value:
            return False
        if (event[4] if event[0] is None else DUE_NOW) != each.due_at:
            return False
    return True


Upgrade = Callable[[str, Any, type], tuple[str, Any]]
"""``upgrade(subject, data, cls)``: subject and data of an event in the version of *cls*, if it is an older version of that."""


def pairs(entry: Entry, at: str, emitted: Sequence[OutgoingEvent], upgrade: Upgrade) -> Iterator[Pair]:
    """
    Yield each event that *entry*, decided *at* a time, has emitted, or that is *emitted* today, with what differs.

    A version that is published no more is compared as *upgrade* converts it.
    """
    rest = rest_of(entry)
    recorded = {event[1]: event for event in events_of(entry)}
    today = {each.ordinal: each for each in emitted}
    for ordinal in sorted(recorded.keys() | today.keys()):
        event, each = recorded.get(ordinal), today.get(ordinal)
        if event is None or each is None:
            known = event[2] if event is not None else subject_of(each.event) if each is not None else ""
            yield Pair(ordinal, event, each, f"{known} {'does not follow any more' if each is None else 'is new'}")
            continue
        found = []
        subject, data = upgrade(event[2], event[3], type(each.event))
        is_event_same = subject == subject_of(each.event)
        if not is_event_same:
            found.append(f"{event[2]} -> {subject_of(each.event)}")
        else:
            if members := changes_of(data, orjson.loads(orjson.dumps(each.value))):
                found.append(f"{event[2]} differs: {shown(members)}")
            if rest[0] != each.is_express:
                found.append(f"{event[2]} is in the {'express' if each.is_express else 'normal'} lane")
            if _key(rest) != each.key:
                found.append(f"{event[2]} has the key {each.key} instead of {_key(rest)}")
        due, due_today = event[4] if event[0] is None else DUE_NOW, each.due_at
        shift = 0.0 if due == due_today else (_moment(due_today, at) - _moment(due, at)).total_seconds()
        yield Pair(ordinal, event, each, "; ".join(found), shift, is_event_same)


def changes_of(was: Any, now: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return by path, such as ``items.0.quantity``, the members of two JSON values that differ."""
    if was == now:
        return {}
    found: dict[str, tuple[Any, Any]] = {}
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted(was.keys() | now.keys()):
            found |= changes_of(was.get(name), now.get(name), f"{path}.{name}" if path else name)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for n, (one, other) in enumerate(zip(was, now, strict=True)):
            found |= changes_of(one, other, f"{path}.{n}" if path else str(n))
    else:
        found[path] = was, now
    return found


def shown(members: Mapping[str, tuple[Any, Any]]) -> str:
    """Return in a few words which *members* differ, each with both of its values."""
    texts = [f"{name} {_short(was)} -> {_short(now)}" for name, (was, now) in members.items()]
    more = len(texts) - _SHOWN_MAX
    return ", ".join(texts[:_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _key(rest: Sequence[Any]) -> str:
    key = rest[1]
    return str(rest[2][0][3]["order_id"] if key == 0 else key)


def _moment(due_at: str, at: str) -> datetime:
    return datetime.fromisoformat(at if due_at == DUE_NOW else due_at)


def _short(value: Any) -> str:
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= _VALUE_MAX else text[: _VALUE_MAX - 3] + "..."
