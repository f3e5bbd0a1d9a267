"""Compare the states that follow from a history with those of the live database, member by member."""

from __future__ import annotations

__all__ = ["compare_states"]

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import attrs
from attrs import frozen
from sqlalchemy import Connection

from app.runtime.replay.comparison import shown
from app.runtime.replay.report import Report, StateDifference
from app.runtime.replay.states import ReplayStore
from app.storage.module_store import ModuleStore
from app.storage.state_rows import Row, StateMapper

PAGE = 500
"""Rows that are read at once."""

_NEVER = datetime.max.replace(tzinfo=UTC)

_END = "\U0010ffff"
"""No key begins with it."""


@frozen
class _Stored:
    """A state under *key*, as it is stored."""

    key: str
    row: Row | None
    """None if the state is archived."""
    state: Callable[[], Any]


def compare_states(
    live: ModuleStore, snapshot: Connection, again: ReplayStore, connection: Connection, report: Report
) -> None:
    """
    Compare the states of one module: those of *live* in *snapshot*, archived ones included, with those of *again*.

    With a baseline only those are compared that were decided about since.
    """
    module = live.module.name
    is_same_form = live.database.dialect.name == again.database.dialect.name
    for cls, mapper in live.mappers.items():
        kind = cls.__name__.lower()
        unknown = again.begun_before[cls]
        before = len(unknown)
        examples: list[str] = []
        kept_from = _kept_from(live, snapshot, cls)
        for one, other in _paired(_live(live, snapshot, cls), _rows(again.mappers[cls], connection)):
            key = (one or other).key  # type: ignore[union-attr]
            if other is None:
                assert one is not None
                if again.baseline is not None:
                    continue
                if again.is_unknown(connection, (cls, key)):
                    before += key not in unknown
                    if len(examples) < report.limit:
                        examples.append(key)
                    continue
                detail = "is in the database and does not follow from the history"
                report.add_state(StateDifference(module, kind, key, {}, detail))
            elif one is None and other.key < kept_from and live.module.archivable[cls](other.state(), _NEVER):
                report.deleted[module, kind] += 1
            elif one is None:
                detail = "follows from the history and is not in the database"
                report.add_state(StateDifference(module, kind, key, {}, detail))
            else:
                report.states[module, kind] += 1
                if one.row is None or not is_same_form or one.row != other.row:
                    _compare(module, kind, one, other, mapper, report)
        if before:
            report.before[module, kind] = before
            report.before_examples[module, kind] = examples


def _kept_from(live: ModuleStore, snapshot: Connection, cls: type) -> str:
    """
    Return the key from which on *live* has every state of *cls*; an empty one if it has all of them, or has archived none.

    An operator deletes old orders from the archive, by a range of their ids.
    """
    if cls not in live.archive.kinds:
        return ""
    first = next(_archived(live, snapshot, cls), None)
    return "" if first is None else first.key


def _compare(module: str, kind: str, one: _Stored, other: _Stored, mapper: StateMapper, report: Report) -> None:
    was, now = one.state(), other.state()
    if was == now:
        return
    names = sorted(attrs.fields_dict(mapper.cls), key=lambda name: name not in ("status", "reason"))
    members = {name: (getattr(was, name), getattr(now, name)) for name in names}
    members = {name: values for name, values in members.items() if values[0] != values[1]}
    report.add_state(StateDifference(module, kind, one.key, members, shown(members)))


def _paired(one: Iterator[_Stored], other: Iterator[_Stored]) -> Iterator[tuple[_Stored | None, _Stored | None]]:
    """Yield the states of both, which come in the order of their keys, in pairs with one key; None where one has no such state."""
    left, right = next(one, None), next(other, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left.key < right.key):
            yield left, None
            left = next(one, None)
        elif left is None or right.key < left.key:
            yield None, right
            right = next(other, None)
        else:
            yield left, right
            left, right = next(one, None), next(other, None)


def _live(store: ModuleStore, connection: Connection, cls: type) -> Iterator[_Stored]:
    """Yield the states of *cls*, archived ones included; a row counts before a copy in the archive."""
    archived = _archived(store, connection, cls) if cls in store.archive.kinds else iter(())
    for row, copy in _paired(_rows(store.mappers[cls], connection), archived):
        found = row or copy
        assert found is not None
        yield found


def _rows(mapper: StateMapper, connection: Connection) -> Iterator[_Stored]:
    after: str | None = ""
    while after is not None:
        rows = mapper.rows_between(connection, after, _END, PAGE)
        for row in rows:
            yield _Stored(row[0], row, lambda row=row: mapper.state(row))  # type: ignore[misc]
        after = rows[-1][0] if len(rows) == PAGE else None


def _archived(store: ModuleStore, connection: Connection, cls: type) -> Iterator[_Stored]:
    key_of, after = store.mappers[cls].key_of, ""
    while states := store.archive.page(connection, cls, after, PAGE):
        for state in states:
            yield _Stored(key_of(state), None, lambda state=state: state)  # type: ignore[misc]
        after = key_of(states[-1])
