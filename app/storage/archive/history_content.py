"""
What is in one row of a history: what one transaction has decided in one module, and what it has published.

A row is a byte with the number of the format, then a JSON array of entries in the order of the decisions, which format 3
compresses (Zstandard, RFC 8878) and format 2 did (zlib, RFC 1950). An entry is an array that begins with what the module has decided about:

- ``"s", name, id, correlation_id, is_express, data``: a submitted event (a request, the answer of a gateway, a webhook).
  *name* is its class, or its subject if it has one.
- ``"b", subject, id, correlation_id, is_express, data``: an event that the bus delivered.
- ``"l", position, subject``: an event that another module has emitted in the same transaction, at this *position* of it.
  The event itself is in the row of its producer, which has the same number.

Then it has what the decision has emitted: ``is_express, key, [event, ...]``. *key* is 0 if it equals the member
``order_id`` of the first event. An event is ``[position, ordinal, subject, data]``; a timer, which is not published yet, is
``[null, ordinal, subject, data, due_at]``. A decision that has only changed states has nothing here, and one that has changed
nothing at all has a 0.

An entry ``"t", position, subject, id, cause_id, correlation_id, key, data`` is no decision: a timer
was due. It stands before everything that follows from the event.

What can be derived is not stored: an emitted event's id from the id of its cause and from its ordinal, its correlation id
from its cause, its time from the row.
"""

from __future__ import annotations

__all__ = [
    "COMPRESSED",
    "COMPRESSED_MIN",
    "ENTRY_LENGTHS",
    "PLAIN",
    "POSITIONS",
    "Decided",
    "Emitted",
    "Entry",
    "HistoryEvent",
    "HistoryIncomplete",
    "Row",
    "TransactionHistory",
    "decoded",
    "fired",
    "seq_of",
    "text_of",
]

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from attrs import frozen
from backports.zstd import ZstdError, decompress

from app.storage.tables import OutboxMessage
from bus.ids import derived_id
from bus.subjects import EXPRESS, original_subject

POSITIONS = 1 << 17
"""Positions of events in one transaction; a batch of 10,000 items needs 60,000. With it a sequence number has 53 bits."""

Entry = Sequence[Any]
"""See above."""

PLAIN, _ZLIB, COMPRESSED = b"\x01", b"\x02", b"\x03"
"""The first byte of the content of a row."""

COMPRESSED_MIN = 512
"""Bytes of JSON from which on a row is compressed. The decisions about many orders differ in ids and numbers only."""

_TIMER = "t"
_LOCAL = "l"
ENTRY_LENGTHS = {"s": 6, "b": 6, _LOCAL: 3}
"""By kind: the members of an entry before what was emitted."""


class HistoryIncomplete(ValueError):
    """A row refers to an event that no history in its database has."""


class HistoryEvent(NamedTuple):
    """A published event. A tuple, because a replay creates millions, and an attrs object takes several times as long."""

    seq: int
    """It grows with every event of a process; unique among the modules of one database."""
    module: str
    """The module that has published it."""
    event_id: str
    cause_id: str
    correlation_id: str
    subject: str
    key: str
    at: str
    """When it was published, as the database stores a time: when it was decided, or for a timer when it was found to be due."""
    data: Mapping[str, Any]


@frozen
class Emitted:
    """An event or a timer that a decision has emitted."""

    position: int | None
    """Its position in the transaction; None for a timer."""
    ordinal: int
    subject: str
    """Without its lane."""
    data: Mapping[str, Any]
    due_at: str | None = None


@frozen
class Decided:
    """One decision: what *module* has decided about, and what it has emitted."""

    module: str
    number: int
    at: str
    id: str
    """The id of the event that it has decided about."""
    correlation_id: str
    name: str
    """The subject of that event, without its lane, as the module has read it; or the class of a submitted event."""
    data: Mapping[str, Any]
    source: str
    """The subject under which *data* is stored: another one than *name* if the module has read another version."""
    is_express: bool
    has_changed: bool
    """False if it has neither changed a state nor emitted anything."""
    key: str | None
    emits_express: bool
    emitted: tuple[Emitted, ...]


@frozen
class Row:
    """One row of the history of *module*."""

    module: str
    number: int
    at: str
    entries: Sequence[Entry]


_READERS: Mapping[bytes, Callable[[bytes], bytes]] = {PLAIN: bytes, _ZLIB: zlib.decompress, COMPRESSED: decompress}


def decoded(content: bytes) -> Sequence[Entry]:
    """
    Return the entries in the *content* of a row.

    Raises:
        ValueError: The content is damaged, or was written by a newer release.
    """
    try:
        entries: Sequence[Entry] = orjson.loads(text_of(content))
    except orjson.JSONDecodeError as error:
        raise ValueError(f"a row of the history is damaged: {error}") from error
    return entries


def text_of(content: bytes) -> bytes:
    """
    Return the JSON text in the *content* of a row.

    Raises:
        ValueError: As for `decoded`; the text is not examined.
    """
    content = bytes(content)
    format, data = content[:1], content[1:]
    if format not in _READERS:
        raise ValueError(f"a row of the history has the format {format.hex() or 'none'}, which this release does not know")
    try:
        return _READERS[format](data)
    except (zlib.error, ZstdError) as error:
        raise ValueError(f"a row of the history is damaged: {error}") from error


def fired(timers: Sequence[OutboxMessage]) -> list[Entry]:
    """Return the entries for *timers* that are due and are published from now on."""
    return [
        (
            _TIMER, position, original_subject(each.subject), each.event_id, each.causation_id, each.correlation_id, each.key,
            orjson.loads(each.body),
        )
        for position, each in enumerate(timers)
    ]  # fmt: skip


def seq_of(number: int, position: int) -> int:
    """Return the sequence number of the event at *position* of the transaction *number*."""
    return number * POSITIONS + position


class TransactionHistory:
    """The rows of one transaction, with what was derived put back."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """*rows* have one number; those of all modules that took part are there."""
        self._rows = rows
        self._emitted: dict[int, tuple[Row, Entry, Entry]] = {
            event[0]: (row, entry, event) for row, entry in self._decisions() for event in _events(entry) if event[0] is not None
        }
        """The published events by position, each with the entry of its cause."""
        self._ids: dict[int, tuple[str, str, str]] = {}
        """By position: the event's id, that of its cause, and its correlation id."""

    def events(self) -> list[HistoryEvent]:
        """
        Return the published events in their order.

        Raises:
            HistoryIncomplete: The row of a producer is missing.
        """
        found = [*(self._event(position) for position in self._emitted), *self._fired()]
        return sorted(found, key=lambda event: event.seq)

    def about(self, key: str) -> tuple[list[HistoryEvent], list[Decided]]:
        """
        Return the published events whose key is *key*, and the decisions about events with it as their ``order_id``.

        Of a transaction with the decisions about many orders this derives only what it returns.

        Raises:
            HistoryIncomplete: The row of a producer is missing.
        """
        events = [self._event(position) for position, (_, entry, _) in self._emitted.items() if _key(entry) == key]
        events += [event for event in self._fired() if event.key == key]
        decided = [self._decided(row, entry) for row, entry in self._decisions() if self._is_about(entry, key)]
        return sorted(events, key=lambda event: event.seq), decided

    def rows_about(self, key: str) -> list[Row]:
        """Return the rows with only those entries that `about` of *key* needs; positions are as they were."""
        found = []
        for row in self._rows:
            entries = [
                entry
                for entry in row.entries
                if (entry[6] == key if entry[0] == _TIMER else self._is_about(entry, key) or _key(entry) == key)
            ]
            if entries:
                found.append(Row(row.module, row.number, row.at, entries))
        return found

    def decisions(self) -> list[Decided]:
        """
        Return the decisions, module by module, those of each in their order.

        Raises:
            HistoryIncomplete: The row of a producer is missing.
        """
        return [self._decided(row, entry) for row, entry in self._decisions()]

    def _fired(self) -> Iterator[HistoryEvent]:
        for row in self._rows:
            for entry in row.entries:
                if entry[0] == _TIMER:
                    _, position, subject, id, cause, correlation, key, data = entry
                    seq = seq_of(row.number, position)
                    yield HistoryEvent(seq, row.module, id, cause, correlation, subject, key, row.at, data)

    def _is_about(self, entry: Entry, key: str) -> bool:
        if entry[0] != _LOCAL:
            return bool(entry[5].get("order_id") == key)
        return entry[1] in self._emitted and _key(self._emitted[entry[1]][1]) == key

    def _decisions(self) -> Iterator[tuple[Row, Entry]]:
        return ((row, entry) for row in self._rows for entry in row.entries if entry[0] != _TIMER)

    def _event(self, position: int) -> HistoryEvent:
        row, entry, (_, _, subject, data, *_) = self._emitted[position]
        is_express, _, _ = entry[ENTRY_LENGTHS[entry[0]] :]
        id, cause, correlation = self._ids_of(position)
        subject += EXPRESS if is_express else ""
        return HistoryEvent(
            seq_of(row.number, position), row.module, id, cause, correlation, subject, _key(entry) or "", row.at, data
        )  # fmt: skip

    def _cause(self, row: Row, entry: Entry) -> tuple[str, str]:
        """Return the id and the correlation id of what *entry* has decided about."""
        if entry[0] != _LOCAL:
            return entry[2], entry[3]
        self._source(row, entry[1])
        id, _, correlation = self._ids_of(entry[1])
        return id, correlation

    def _ids_of(self, position: int) -> tuple[str, str, str]:
        if position not in self._ids:
            row, entry, event = self._emitted[position]
            cause, correlation = self._cause(row, entry)
            self._ids[position] = derived_id(cause, f"{row.module}.{event[1]}"), cause, correlation
        return self._ids[position]

    def _source(self, row: Row, position: int) -> tuple[Row, Entry, Entry]:
        if position not in self._emitted:
            raise HistoryIncomplete(
                f"transaction {row.number} of {row.module} refers to an event that no history in this database has: the history"
                " of the module that has published it was deleted, or is in another database; read it there, or what follows"
                f" here, after {seq_of(row.number, POSITIONS - 1)}"
            )
        return self._emitted[position]

    def _decided(self, row: Row, entry: Entry) -> Decided:
        id, correlation = self._cause(row, entry)
        if entry[0] == _LOCAL:
            name, is_express = entry[2].removesuffix(EXPRESS), entry[2].endswith(EXPRESS)
            _, _, (_, _, source, data, *_) = self._source(row, entry[1])
        else:
            name, is_express, data = entry[1], entry[4], entry[5]
            source = name
        rest = entry[ENTRY_LENGTHS[entry[0]] :]
        emitted = tuple([Emitted(*event) for event in _events(entry)])
        return Decided(
            row.module, row.number, row.at, id, correlation, name, data, source, is_express, rest != [0], _key(entry),
            bool(rest and rest[0]), emitted,
        )  # fmt: skip


def _events(entry: Entry) -> Sequence[Entry]:
    """Return the events and timers that *entry* has emitted."""
    length = ENTRY_LENGTHS[entry[0]]
    return entry[length + 2] if len(entry) == length + 3 else ()


def _key(entry: Entry) -> str | None:
    """Return the key of the events that *entry* has emitted; None if it has emitted none."""
    events = _events(entry)
    if not events:
        return None
    key = entry[ENTRY_LENGTHS[entry[0]] + 1]
    return str(events[0][3]["order_id"] if key == 0 else key)
