"""The rows of stored dead letters, and the messages of their replays."""

from __future__ import annotations

__all__ = [
    "DETAIL_MAX",
    "UNREADABLE",
    "StoredDeadLetter",
    "aware",
    "changed_pointers",
    "outbox_message",
    "row_of",
    "stored_dead_letter",
    "stored_text",
    "with_other_version",
]

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import orjson
from attrs import frozen
from uuid_utils import uuid7

from app.messaging.cloudevents import event_id_and_trace
from app.storage.state_rows import to_db_timestamp
from app.storage.tables import DUE_NOW, OutboxMessage
from bus.contracts.versions import VERSIONS
from bus.errors import Invalid, Rejected, UnknownSubject, Unreadable
from bus.port import DeadLetter, Message
from bus.subjects import is_unpublished, is_unroutable, replay_subject

UNREADABLE = frozenset(error.code for error in (Rejected, Unreadable, UnknownSubject, Invalid))
"""Errors of a message whose body cannot be read: a replay fails again, unless the consumer has changed."""

DETAIL_MAX = 8_192
"""Characters of a detail or a header that are stored."""

POINTERS_MAX = 10


@frozen
class StoredDeadLetter:
    """A stored dead letter, how often it has been replayed, and the body that its latest edited replay had, if any."""

    dead_letter: DeadLetter
    replays: int = 0
    edited_body: bytes | None = None
    is_in_line: bool = False
    """True for one that holds its key or waits behind another one; see `app.messaging.dead_letters.line`."""


def row_of(id: str, dead_letter: DeadLetter) -> dict[str, Any]:
    """Return the values of a new row for *dead_letter*, by column."""
    return {
        "id": id,
        "consumer": stored_text(dead_letter.consumer),
        "subject": stored_text(dead_letter.message.subject),
        "error": stored_text(dead_letter.error, 64),
        "detail": stored_text(dead_letter.detail, DETAIL_MAX),
        "attempts": dead_letter.attempts,
        "first_seen": dead_letter.first_seen,
        "last_seen": dead_letter.last_seen,
        "replays": 0,
        "message_id": stored_text(dead_letter.message.id),
        "message_key": stored_text(dead_letter.message.key),
        "message_headers": orjson.dumps({stored_text(k): stored_text(v, DETAIL_MAX) for k, v in dead_letter.message.headers.items()}).decode(),
        "message_body": dead_letter.message.body,
        "edited_body": None,
        "place": None,
    }


def with_other_version(old: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Return what changes in the stored dead letter *old* because *row*, another version of its event, is one, too."""
    if old.error in UNREADABLE and row["error"] not in UNREADABLE:
        first, second = (row["subject"], row["detail"]), (old.subject, old.detail)
        changes = {name: row[name] for name in ("message_id", "subject", "error", "message_headers", "message_body", "edited_body", "last_seen")}
    else:
        first, second = (old.subject, old.detail), (row["subject"], row["detail"])
        changes = {"last_seen": row["last_seen"]}
    other = f"{second[0]}: {second[1].removeprefix(f'{second[0]}: ')}"
    return changes | {"detail": first[1] if other in first[1] else f"{first[1]}; {other}"[:DETAIL_MAX]}


def stored_text(text: str, length_max: int = 255) -> str:
    """Return *text* so that every database can store it: a message from another system may contain any characters."""
    text = text if text.isascii() else text.encode("utf-8", "replace").decode()
    return text.replace("\0", "\ufffd")[:length_max]


def stored_dead_letter(row: Any) -> StoredDeadLetter:
    """Return the dead letter in *row*."""
    headers = orjson.loads(row.message_headers)
    return StoredDeadLetter(
        DeadLetter(
            id=row.id,
            consumer=row.consumer,
            message=Message(row.subject, row.message_id, row.message_body, row.message_key, headers),
            error=row.error,
            detail=row.detail,
            attempts=row.attempts,
            first_seen=aware(row.first_seen),
            last_seen=aware(row.last_seen),
        ),
        row.replays,
        row.edited_body,
        row.place is not None,
    )


def aware(at: datetime) -> datetime:
    """Return *at* with its time zone; SQLite returns times in UTC without one."""
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def outbox_message(dead_letter: DeadLetter, body: bytes, now: datetime) -> OutboxMessage:
    """Return a new message that carries the old event, with *body*, to the consumer that gave up on it."""
    message, consumer = dead_letter.message, dead_letter.consumer
    is_unpublished_event = is_unpublished(consumer)
    headers = message.headers
    event_id, trace = event_id_and_trace(message)
    return OutboxMessage(
        id=str(uuid7()),
        event_id=event_id,
        # An unroutable message had no consumer; it is published again under its own subject, for consumers that know it now.
        subject=message.subject if is_unroutable(consumer) or is_unpublished_event else replay_subject(consumer, message.subject),
        key=message.key[:64],
        body=body,
        timer=None,
        correlation_id=trace.correlation_id,
        causation_id=stored_text(headers.get("ce-causationid") or event_id),
        traceparent=trace.traceparent,
        occurred_at=_occurred_at(headers.get("ce-time"), now),
        due_at=DUE_NOW,
        versions=headers.get(VERSIONS) if is_unpublished_event else None,
    )


def _occurred_at(text: str | None, now: datetime) -> str:
    try:
        return to_db_timestamp(aware(datetime.fromisoformat(text or "")).astimezone(UTC))
    except (ValueError, OverflowError):  # a year that is none in UTC
        return to_db_timestamp(now)


def changed_pointers(stored: bytes, edited: bytes) -> list[str]:
    """Return JSON Pointers (RFC 6901) to up to `POINTERS_MAX` values of *edited* that *stored* has not; ``""`` if it is not JSON."""
    try:
        before = orjson.loads(stored)
    except orjson.JSONDecodeError:
        return [""]
    return list(islice(_differences(before, orjson.loads(edited), ""), POINTERS_MAX))


def _differences(before: Any, after: Any, pointer: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            escaped = name.replace("~", "~0").replace("/", "~1")
            yield from _differences(before.get(name), after.get(name), f"{pointer}/{escaped}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for at, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _differences(one, other, f"{pointer}/{at}")
    elif before != after:
        yield pointer
