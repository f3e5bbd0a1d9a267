"""One module's dead letters inside a transaction: stored, put back into the outbox, deleted."""

from __future__ import annotations

__all__ = ["REPLAY_MAX", "Conditions", "DeadLetterTable", "dead_letter_id", "dead_letters_in"]

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from attrs import evolve
from sqlalchemy import ColumnElement, Connection, delete, select, update
from uuid_utils import uuid7

from app.messaging.cloudevents import event_id_and_trace
from app.messaging.dead_letters.line import DeadLetterLine
from app.messaging.dead_letters.rows import (
    StoredDeadLetter,
    changed_pointers,
    outbox_message,
    row_of,
    stored_dead_letter,
    with_other_version,
)
from app.storage.audit import Audit, audit_entry
from app.storage.module_store import ModuleStore
from app.storage.tables import shared_message_tables
from bus.ids import derived_id
from bus.port import WAITS, Clock, DeadLetter
from bus.subjects import is_unpublished

Conditions = list[ColumnElement[bool]]

REPLAY_MAX = 500
"""Dead letters that are replayed or discarded in one transaction."""


class DeadLetterTable:
    """The dead letters of the module of *store*; with *keeps_order* one holds its key, see `app.messaging.dead_letters.line`."""

    def __init__(self, store: ModuleStore, clock: Clock, *, keeps_order: bool) -> None:
        self.store = store
        self.table = shared_message_tables(store.module.name)[2]
        self.line = DeadLetterLine(store)
        self._clock = clock
        self._keeps_order = keeps_order

    def add(self, dead_letter: DeadLetter, connection: Connection) -> bool:
        """
        Insert or update the row of *dead_letter*; return False when the table holds its event already, or it waits only.

        The messages of an event that is published in several versions share one row. It keeps the message that a replay
        is most likely to help; the detail names the other ones, too.
        """
        table, line = self.table, self.line
        id = dead_letter_id(dead_letter)
        row = row_of(id, dead_letter)
        is_in_line = self._keeps_order and line.takes(dead_letter)
        if is_in_line:
            line.first(connection, row["message_key"])
        if is_in_line and dead_letter.error == WAITS:
            line.park(connection, dead_letter, row, self._clock.now())
            return False
        columns = (table.c.message_id, table.c.attempts, table.c.subject, table.c.error, table.c.detail, table.c.place)
        old = connection.execute(select(*columns).where(table.c.id == id).with_for_update()).first()
        if is_in_line:
            event_id = event_id_and_trace(dead_letter.message)[0]
            row["place"] = line.join(connection, row, event_id, None if old is None else old.place)
            if old is not None and old.place is None:
                connection.execute(update(table).where(table.c.id == id).values(place=row["place"]))
        if old is None:
            connection.execute(table.insert().values(row))
        elif old.subject != row["subject"]:
            connection.execute(update(table).where(table.c.id == id).values(with_other_version(old, row)))
            return False
        elif old.message_id != row["message_id"] or old.error == WAITS:
            changes = {name: row[name] for name in ("message_id", "error", "detail", "last_seen")}
            changes["attempts"] = old.attempts + dead_letter.attempts
            connection.execute(update(table).where(table.c.id == id).values(changes))
        else:
            return False
        return True

    def discard(self, conditions: Conditions, audit: Audit | None, connection: Connection) -> int:
        """Delete up to `REPLAY_MAX` dead letters that meet *conditions*, and move their lines on; return how many there were."""
        table, line = self.table, self.line
        # What waits goes first: it would be published when what it waits for is deleted.
        query = select(table).where(*conditions).order_by(table.c.error != WAITS, table.c.id).limit(REPLAY_MAX)
        found = dead_letters_in(query, connection)
        holds = line.lock(connection, _keys_in_line(found))
        if audit is not None:
            changes = [(_shown(each.dead_letter), None, str(each.dead_letter.id)) for each in found]
            self._record(audit, changes, connection)
        ids = [each.dead_letter.id for each in found]
        count = connection.execute(delete(table).where(table.c.id.in_(ids))).rowcount
        line.leave(connection, holds, ids, self._clock.now())
        return count

    def _record(self, audit: Audit, changes: Sequence[tuple[Any, Any, str]], connection: Connection) -> None:
        """Write to the audit, in the transaction of the change, what *changes* of each dead letter: from, to, id."""
        now = self._clock.now()
        rows = [audit_entry(evolve(audit, target=id), str(uuid7()), now, old, new) for old, new, id in changes]
        self.store.save(connection, states={}, inbox_entries=(), cancelled_timers=(), outgoing=(), audit=rows)

    def replay(
        self,
        conditions: Conditions,
        after: str,
        body: bytes | None,
        audit: Audit | None,
        connection: Connection,
    ) -> list[str]:
        """Put up to `REPLAY_MAX` dead letters that meet *conditions* back into the outbox, or in line; return their ids."""
        table, line = self.table, self.line
        query = select(table).where(*conditions, table.c.id > after).order_by(table.c.id).limit(REPLAY_MAX)
        found = dead_letters_in(query, connection)
        dead_letters = [stored.dead_letter for stored in found]
        holds = line.lock(connection, _keys_in_line(found))
        behind = {
            each.dead_letter.id: hold
            for each in found
            if each.is_in_line and (hold := holds.get(each.dead_letter.message.key)) and hold.dead_letter_id != each.dead_letter.id
        }
        now = self._clock.now()
        rows = [
            outbox_message(each, each.message.body if body is None else body, now) for each in dead_letters if each.id not in behind
        ]
        self.store.save(connection, states={}, inbox_entries=(), cancelled_timers=(), outgoing=rows)
        ids = [dead_letter.id for dead_letter in dead_letters]
        if audit is not None:
            changes = [(None, _shown(each) | _shown_edit(each, body), str(each.id)) for each in dead_letters]
            self._record(audit, changes, connection)
        edit = {} if body is None else {"edited_body": body}
        sent = [id for id in ids if id not in behind]
        connection.execute(update(table).where(table.c.id.in_(sent)).values(replays=table.c.replays + 1, **edit))
        for id, hold in behind.items():
            line.wait(connection, id, hold, body)
        return ids


def _keys_in_line(found: Sequence[StoredDeadLetter]) -> list[str]:
    return [each.dead_letter.message.key for each in found if each.is_in_line]


def _shown(dead_letter: DeadLetter) -> dict[str, str]:
    """Return what the audit shows of *dead_letter*: not the message, which holds customers' data."""
    return {"consumer": dead_letter.consumer, "subject": dead_letter.message.subject, "error": dead_letter.error}


def _shown_edit(dead_letter: DeadLetter, body: bytes | None) -> dict[str, str]:
    """Return what the audit shows of an edited *body*: which members differ, and which text it was."""
    if body is None:
        return {}
    return {"edited": ", ".join(changed_pointers(dead_letter.message.body, body)), "sha256": sha256(body).hexdigest()}


def dead_letter_id(dead_letter: DeadLetter) -> str:
    """Return the id under which *dead_letter* is stored: one for each event and consumer."""
    # Each version that was never published is a dead letter of its own: other consumers may need that version.
    is_message = is_unpublished(dead_letter.consumer)
    id = dead_letter.message.id if is_message else event_id_and_trace(dead_letter.message)[0]
    return derived_id(id, dead_letter.consumer)


def dead_letters_in(query: Any, connection: Connection) -> list[StoredDeadLetter]:
    """Return the dead letters that *query* finds."""
    return [stored_dead_letter(row) for row in connection.execute(query)]
