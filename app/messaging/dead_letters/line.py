"""
The lines of a module: the events of one key that wait behind a dead letter, in order (``DEAD_LETTER_ORDER=key``).

A dead letter of the module's own consumer, in either lane, *holds* its key, which is mostly an order. From its commit on,
each event of the key that the bus delivers to the module is stored behind it, as a dead letter with the error `WAITS`
that was not attempted. The dead letters of a key with a *place* are its line; they are sorted by the time when each was
first seen, then by place.

A row of the inbox marks a held key, and has the id of the event whose turn it is. The select that looks up the events of a
batch in the inbox looks up these rows, too. So a held key is recognised in the transaction that would decide, in every
process on the database and after a restart, without a statement of its own.

The transaction that decides about the event whose turn it is also moves the line on: the next event is published to its
consumer again if it waits only, and becomes the one whose turn it is. So one event of a key is under way at a time. A dead
letter that is reached waits for a replay or a discard. The key is free once its line is empty.

Every transaction locks the row of the inbox first. An event that finds its key free when it is to be stored is published
again at once.
"""

from __future__ import annotations

__all__ = ["DeadLetterLine", "Hold", "WaitsForDeadLetter", "hold_id"]

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

import orjson
from attrs import frozen
from sqlalchemy import Connection, delete, func, select, update

from app.messaging.cloudevents import event_id_and_trace
from app.messaging.consumers import EXPRESS_LANE
from app.messaging.dead_letters.rows import outbox_message, stored_dead_letter, stored_text
from app.storage.module_store import ModuleStore
from app.storage.tables import InboxEntry, shared_message_tables
from bus.port import WAITS, DeadLetter

KEY_MAX = 200
"""Characters of a key that can be held; no order's id is as long. A longer key keeps no order."""

_HOLD = "hold:"
_END = "hold;"  # the semicolon follows the colon
_NEVER = "9999-12-31T00:00:00.000000+00:00"
"""When the row of a held key was processed: the inbox deletes its rows by age."""

_ITS_TURN = "waits no longer: it is published again, as its turn has come"


class WaitsForDeadLetter(Exception):
    """An earlier event of the same key is a dead letter of this consumer."""


@frozen
class Hold:
    """Whose turn it is in the line of a key: the id of the event, and that of its dead letter."""

    event_id: str
    dead_letter_id: str

    @property
    def reason(self) -> str:
        """The detail of what waits."""
        return f"waits for the dead letter {self.dead_letter_id}"


def hold_id(key: str) -> str | None:
    """Return the id of the inbox row that holds *key*; None if the key keeps no order."""
    return _HOLD + stored_text(key) if 0 < len(key) <= KEY_MAX else None


class DeadLetterLine:
    """The lines of the module of *store*, all of them in the caller's transaction."""

    def __init__(self, store: ModuleStore) -> None:
        self._store = store
        self._inbox, _, self._table = shared_message_tables(store.module.name)

    def takes(self, dead_letter: DeadLetter) -> bool:
        """Return whether *dead_letter* holds its key: it is the module's own, not a worker's or the outbox's, and has a key."""
        is_own = dead_letter.consumer.removesuffix(EXPRESS_LANE) == self._store.module.name
        return is_own and hold_id(dead_letter.message.key) is not None

    @staticmethod
    def holds(found: Mapping[str, tuple[str | None, str | None]]) -> dict[str, Hold]:
        """Return the holds among the rows of the inbox that were *found*, by the id of the row."""
        return {id: _hold(response) for id, (_, response) in found.items() if response is not None and id.startswith(_HOLD)}

    def first(self, connection: Connection, key: str) -> Hold | None:
        """Return whose turn it is in the line of *key*, and lock the line; None if the key is free."""
        query = select(self._inbox.c.response).where(self._inbox.c.id == hold_id(key)).with_for_update()
        response = connection.execute(query).scalar_one_or_none()
        return None if response is None else _hold(response)

    def join(self, connection: Connection, row: Mapping[str, Any], event_id: str, place: int | None) -> int:
        """Return the place of the dead letter in *row*, which may have one; hold its key if it is free."""
        key = row["message_key"]
        if self.first(connection, key) is None:
            response = orjson.dumps([event_id, row["id"]]).decode()
            entry = InboxEntry(f"{_HOLD}{key}", _NEVER, 1, None, response)
            self._store.save(connection, states={}, inbox_entries=[entry], cancelled_timers=(), outgoing=())
        return self._next_place(connection, key) if place is None else place

    def park(self, connection: Connection, dead_letter: DeadLetter, row: Mapping[str, Any], now: datetime) -> None:
        """Store the event of *dead_letter*, which *row* holds, at the end of its line; publish it again if its key is free."""
        key = row["message_key"]
        hold = self.first(connection, key)
        if hold is None:
            self._publish(connection, dead_letter, dead_letter.message.body, now)
        elif not connection.execute(select(self._table.c.id).where(self._table.c.id == row["id"])).first():
            place = self._next_place(connection, key)
            connection.execute(self._table.insert().values({**row, "detail": hold.reason, "attempts": 0, "place": place}))

    def advance(self, connection: Connection, decided: Iterable[tuple[str, str]], now: datetime) -> None:
        """Move on each line whose turn it was: *decided* holds keys and the ids of their events."""
        table = self._table
        for key, event_id in sorted(set(decided)):
            hold = self.first(connection, key)
            if hold is not None and hold.event_id == event_id:
                connection.execute(delete(table).where(table.c.id == hold.dead_letter_id, table.c.error == WAITS))
                connection.execute(update(table).where(table.c.id == hold.dead_letter_id).values(place=None))
                self._move_on(connection, key, now)

    def lock(self, connection: Connection, keys: Collection[str]) -> dict[str, Hold]:
        """Lock the lines of *keys*, in order; return whose turn it is in each that is held."""
        found = {key: self.first(connection, key) for key in sorted(set(keys))}
        return {key: hold for key, hold in found.items() if hold is not None}

    def leave(self, connection: Connection, holds: Mapping[str, Hold], removed: Collection[str], now: datetime) -> None:
        """Move on each line of *holds*, which are locked, whose first dead letter is among the *removed* ones."""
        for key, hold in holds.items():
            if hold.dead_letter_id in removed:
                self._move_on(connection, key, now)

    def wait(self, connection: Connection, id: str, hold: Hold, body: bytes | None) -> None:
        """Have the dead letter *id* published again, with *body*, when its turn comes after that of *hold*."""
        changes = {"error": WAITS, "detail": hold.reason, "edited_body": body}
        connection.execute(update(self._table).where(self._table.c.id == id).values(changes))

    def is_any_held(self, connection: Connection) -> bool:
        """Return whether any key is held."""
        return connection.execute(self._held()).first() is not None

    def dissolve(self, connection: Connection, now: datetime) -> int:
        """Free all keys, and publish all events again that wait only; return how many did."""
        for (id,) in connection.execute(self._held().order_by(self._inbox.c.id).with_for_update()).all():
            connection.execute(delete(self._inbox).where(self._inbox.c.id == id))
        table, in_line = self._table, self._table.c.place.is_not(None)
        waiting = connection.execute(select(table).where(in_line, table.c.error == WAITS).order_by(*self._order())).all()
        for row in waiting:
            self._release(connection, row, now)
        connection.execute(delete(table).where(in_line, table.c.error == WAITS))
        connection.execute(update(table).where(in_line).values(place=None))
        return len(waiting)

    def _held(self) -> Any:
        id = self._inbox.c.id
        return select(id).where(id >= _HOLD, id < _END)

    def _order(self) -> tuple[Any, ...]:
        return self._table.c.first_seen, self._table.c.place

    def _move_on(self, connection: Connection, key: str, now: datetime) -> None:
        """Make it the turn of the first dead letter that is left in the line of *key*, or free the key."""
        table, inbox = self._table, self._inbox
        in_line = table.c.message_key == key, table.c.place.is_not(None)
        row = connection.execute(select(table).where(*in_line).order_by(*self._order()).limit(1)).first()
        if row is None:
            connection.execute(delete(inbox).where(inbox.c.id == hold_id(key)))
            return
        hold = Hold(event_id_and_trace(stored_dead_letter(row).dead_letter.message)[0], row.id)
        response = orjson.dumps([hold.event_id, hold.dead_letter_id]).decode()
        connection.execute(update(inbox).where(inbox.c.id == hold_id(key)).values(response=response))
        connection.execute(update(table).where(*in_line, table.c.error == WAITS).values(detail=hold.reason))
        if row.error == WAITS:
            self._release(connection, row, now)
            connection.execute(update(table).where(table.c.id == row.id).values(detail=_ITS_TURN, replays=row.replays + 1))

    def _release(self, connection: Connection, row: Any, now: datetime) -> None:
        stored = stored_dead_letter(row)
        body = stored.dead_letter.message.body if stored.edited_body is None else stored.edited_body
        self._publish(connection, stored.dead_letter, body, now)

    def _publish(self, connection: Connection, dead_letter: DeadLetter, body: bytes, now: datetime) -> None:
        outgoing = [outbox_message(dead_letter, body, now)]
        self._store.save(connection, states={}, inbox_entries=(), cancelled_timers=(), outgoing=outgoing)

    def _next_place(self, connection: Connection, key: str) -> int:
        place = self._table.c.place
        query = select(func.coalesce(func.max(place), 0)).where(self._table.c.message_key == key, place.is_not(None))
        return int(connection.execute(query).scalar_one()) + 1


def _hold(response: str) -> Hold:
    return Hold(*orjson.loads(response))
