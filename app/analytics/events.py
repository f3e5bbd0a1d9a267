"""
The form in which events come in from every source: Arrow tables, one row an event, one table for each subject.

An event in its newest version stays a text, which DuckDB takes apart. Only what an older release has published is converted
in Python, through the upcasts of the contract registry.
"""

from __future__ import annotations

__all__ = ["SCHEMA", "EventConverter", "Incoming", "Unreadable", "archived_events", "arrow_table"]

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from attrs import frozen

from app.analytics.event_tables import EventTable
from bus.contracts.registry import ContractRegistry
from bus.contracts.schemas import explain, tolerant
from bus.errors import BusError, Invalid
from bus.subjects import EXPRESS, Event, without_lane

if TYPE_CHECKING:
    from app.storage.archive.history_content import HistoryEvent

SCHEMA = pa.schema(
    {
        "event_id": pa.string(),
        "cause_id": pa.string(),
        "correlation_id": pa.string(),
        "entity_key": pa.string(),
        "module": pa.string(),
        "subject": pa.string(),
        "seq": pa.int64(),
        "occurred_at": pa.string(),
        "data": pa.string(),
    }
)
"""*subject* may have a lane; *occurred_at* is a time in RFC 3339, *data* a JSON text."""

_Upcasts = Sequence[Callable[[Event], Event]]


class Unreadable(Exception):
    """No version of the event can read the message; the text of the exception has the reason."""


def arrow_table(events: Sequence[HistoryEvent]) -> pa.Table:
    """Return *events* as a table with the columns of `SCHEMA`."""
    if not events:
        return SCHEMA.empty_table()
    seqs, modules, ids, causes, correlations, subjects, keys, moments, data = zip(*events, strict=True)
    columns = (ids, causes, correlations, keys, modules, subjects, seqs, moments, list(map(orjson.dumps, data)))
    return pa.table([pa.array(column, type) for column, type in zip(columns, SCHEMA.types, strict=True)], SCHEMA)


def archived_events(found: pa.Table) -> pa.Table:
    """Return the events that a history archive has *found* as a table with the columns of `SCHEMA`."""
    moments = found["at"].cast(pa.timestamp("us")).cast(pa.string())
    texts = pc.binary_join_element_wise(pc.utf8_replace_slice(moments, 10, 11, "T"), "+00:00", "")
    renamed = found.set_column(found.schema.get_field_index("at"), "occurred_at", texts)
    return renamed.append_column("entity_key", found["key"]).select(SCHEMA.names).cast(SCHEMA)


@frozen
class Incoming:
    """Events, each id once. Made beside the thread that stores: it takes as long as reading does."""

    by_subject: Mapping[str, pa.Table]
    """With the columns of `SCHEMA`, by the subject with its lane; none is empty."""

    @classmethod
    def of(cls, events: pa.Table) -> Incoming:
        """Return *events*, which have the columns of `SCHEMA`; of those with one id, the newest version."""
        events = _without_repeats(events)
        subjects = pc.dictionary_encode(events["subject"]).unify_dictionaries()
        if not subjects.num_chunks:
            return cls({})
        codes = pa.chunked_array([chunk.indices for chunk in subjects.chunks])
        names = subjects.chunk(0).dictionary.to_pylist()
        return cls({name: events.filter(pc.equal(codes, code)) for code, name in enumerate(names)})

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(events.num_rows for events in self.by_subject.values())

    @property
    def table(self) -> pa.Table:
        """All of them."""
        return pa.concat_tables([SCHEMA.empty_table(), *self.by_subject.values()])


def _without_repeats(events: pa.Table) -> pa.Table:
    """Return *events* with one row for each id: that of the newest version."""
    if pc.count_distinct(events["event_id"]).as_py() == events.num_rows:
        return events
    rows: dict[str, int] = {}
    subjects = events["subject"].to_pylist()
    for number, id in enumerate(events["event_id"].to_pylist()):
        if id not in rows or _version(subjects[number]) > _version(subjects[rows[id]]):
            rows[id] = number
    return events.take(pa.array(sorted(rows.values())))


def _version(subject: str) -> tuple[int, str]:
    version = subject.removesuffix(EXPRESS).rpartition(".v")[2]
    return len(version), version


class EventConverter:
    """Converts events of older versions to the newest one, which *tables* have."""

    def __init__(self, contracts: ContractRegistry, tables: Iterable[EventTable]) -> None:
        self._contracts = contracts
        self.newest = {subject for table in tables for subject in (table.subject, table.subject + EXPRESS)}
        """The subjects that need no conversion."""
        self._upcasts: dict[str, tuple[str, _Upcasts]] = {}
        for subject in self.newest:
            if not subject.endswith(EXPRESS):
                for older, upcasts in contracts.readable_subjects(contracts[subject].cls).items():
                    self._upcasts[older] = subject, upcasts

    def reads(self, row: Mapping[str, Any]) -> bool:
        """Return whether the event in *row*, with the columns of `SCHEMA`, can be converted."""
        try:
            self.converted(row["subject"], row["data"])
            datetime.fromisoformat(row["occurred_at"])
        except (Unreadable, ValueError):
            return False
        return True

    def converted(self, subject: str, data: str) -> tuple[str, str]:
        """
        Return the newest version of the event in *data*, with its subject; the lane stays.

        Raises:
            Unreadable: No version knows it, or it violates its own.
        """
        plain = without_lane(subject)
        if plain not in self._upcasts:
            raise Unreadable(f"no version of this release reads {plain}")
        newest, upcasts = self._upcasts[plain]
        lane = subject[len(plain) :]
        try:
            event = self._contracts.decode(plain, data.encode())
            for upcast in upcasts:
                event = upcast(event)
            value = self._contracts.to_plain(event)
        except Invalid as error:
            raise Unreadable(f"{plain}: {error}") from None
        except BusError as error:
            raise Unreadable(str(error)) from None
        except Exception as error:  # an upcast is a module's code
            raise Unreadable(f"{plain}: cannot be converted to {newest}: {error!r}") from error
        return newest + lane, orjson.dumps(value).decode()

    def violation(self, subject: str, data: str) -> str:
        """Return why *data* is no event of *subject*, which is in its newest version."""
        contract = self._contracts[subject]
        try:
            found = explain(tolerant(contract.schema), orjson.loads(data))
        except orjson.JSONDecodeError as error:
            return f"{contract.subject}: {error}"
        where = "; ".join(f"{each.pointer or '/'}: {each.detail}" for each in found[:3])
        return f"{contract.subject}: {where or 'a required value has another type than the column'}"
