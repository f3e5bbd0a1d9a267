"""
Derive events from the rows of histories by column: DuckDB takes their JSON text apart, and only the ids are derived in Python.

It returns what `app.storage.archive.history_content.TransactionHistory.events` does, or nothing: where a row is damaged or odd in any
way, that one finds out what is wrong.
"""

from __future__ import annotations

__all__ = ["RowEvents"]

from collections.abc import Collection, Sequence

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from app.analytics.connection import connect
from app.analytics.events import SCHEMA
from app.storage.archive.history_content import POSITIONS, text_of
from bus.ids import derived_id
from bus.subjects import EXPRESS

_MEMORY = "256MB"
"""What DuckDB may take for the rows that are read at once, a megabyte as they are stored."""

_ODD = ", ".join(["NULL"] * 9)

_SQL = f"""
WITH entries AS MATERIALIZED (
    SELECT module, number, occurred_at, from_json(entry, '["JSON"]') AS entry
    FROM (SELECT module, number, occurred_at, unnest(from_json(content, '["JSON"]')) AS entry FROM stored) AS texts
), decisions AS MATERIALIZED (
    SELECT module, number, occurred_at, entry[1] = '"l"' AS is_local, entry[2] AS source, entry[3] AS id, entry[4] AS correlation,
           CASE WHEN is_local THEN entry[4] ELSE entry[7] END AS is_express, CASE WHEN is_local THEN entry[5] ELSE entry[8] END AS key,
           from_json(CASE WHEN is_local THEN entry[6] ELSE entry[9] END, '[["JSON"]]') AS emitted
    FROM entries WHERE len(entry) = CASE WHEN is_local THEN 6 ELSE 9 END AND entry[1] IN ('"s"', '"b"', '"l"')
)
SELECT module, number, occurred_at, event[1]::BIGINT AS position, event[2]->>'$' AS ordinal,
       CASE WHEN is_local THEN source::BIGINT END AS local, NULL AS event_id, CASE WHEN NOT is_local THEN id->>'$' END AS cause_id,
       CASE WHEN NOT is_local THEN correlation->>'$' END AS correlation_id,
       CASE key WHEN '0' THEN first[4]->>'order_id' ELSE key->>'$' END AS entity_key,
       (event[3]->>'$') || CASE is_express WHEN 'true' THEN '{EXPRESS}' WHEN 'false' THEN '' END AS subject, event[4]::VARCHAR AS data
FROM (SELECT *, emitted[1] AS first, unnest(emitted) AS event FROM decisions) AS events
WHERE event[1] IS NOT NULL OR len(event) IS DISTINCT FROM 5
UNION ALL
SELECT module, number, occurred_at, entry[2]::BIGINT, NULL, NULL, entry[4]->>'$', entry[5]->>'$', entry[6]->>'$', entry[7]->>'$',
       entry[3]->>'$', entry[8]::VARCHAR
FROM entries WHERE entry[1] = '"t"'
UNION ALL SELECT module, number, occurred_at, {_ODD} FROM decisions WHERE emitted IS NULL
UNION ALL SELECT module, number, occurred_at, {_ODD} FROM entries WHERE entry[1] IS NULL OR entry[1] NOT IN ('"s"', '"b"', '"l"', '"t"')
UNION ALL SELECT module, number, occurred_at, {_ODD} FROM stored WHERE NOT starts_with(content, '[')
ORDER BY number, position
"""
"""
The module `app.storage.archive.history_content` describes entries and events; a null stands in place of JSON's. What is none of them
gives a row without a position. Without the materialized parts, DuckDB would take a text apart once for each column.
"""

_NEVER_NULL = ("position", "event_id", "cause_id", "entity_key", "subject", "data")


class RowEvents:
    """Derives events. Its methods run in one thread at a time."""

    def __init__(self, modules: Collection[str]) -> None:
        """Of other modules than *modules* no event is returned; their rows are needed for the ids of what follows from them."""
        self._modules = pa.array(sorted(modules))
        self._connection = connect(None, _MEMORY, threads=1)

    def events(self, rows: Sequence[tuple[str, int, str, bytes]], after: int) -> pa.Table | None:
        """
        Return the events with a `seq` greater than *after* in *rows*, with the columns of `SCHEMA`; None if a row is damaged or odd.

        *rows* are all rows of some transactions: module, number, time and content.
        """
        if not rows:
            return SCHEMA.empty_table()
        if len({(number, at) for _, number, at, _ in rows}) != len({number for _, number, _, _ in rows}):
            return None  # two transactions have one number
        try:
            found = self._taken_apart(rows)
            ids = _ids(found)
        except (duckdb.Error, ValueError, LookupError, TypeError):
            return None
        for name, column in zip(("event_id", "cause_id", "correlation_id"), ids, strict=True):
            found = found.set_column(found.schema.get_field_index(name), name, pa.array(column, pa.string()))
        if any(found[name].null_count for name in _NEVER_NULL):
            return None
        seqs = pc.add(pc.multiply(found["number"], POSITIONS), found["position"])
        is_wanted = pc.and_(pc.greater(seqs, after), pc.is_in(found["module"], self._modules))
        return found.append_column("seq", seqs).select(SCHEMA.names).cast(SCHEMA).filter(is_wanted)

    def _taken_apart(self, rows: Sequence[tuple[str, int, str, bytes]]) -> pa.Table:
        modules, numbers, moments, contents = zip(*rows, strict=True)
        texts = pa.array([text_of(content) for content in contents], pa.string())
        names = ["module", "number", "occurred_at", "content"]
        self._connection.register("stored", pa.table([pa.array(modules), pa.array(numbers), pa.array(moments), texts], names))
        found = self._connection.sql(_SQL).to_arrow_table()
        self._connection.unregister("stored")
        return found


def _ids(found: pa.Table) -> tuple[list[str], list[str], list[str]]:
    """Return the ids of the events *found*, of their causes, and their correlation ids; a cause stands before its effects."""
    known: dict[tuple[int, int], tuple[str, str]] = {}
    ids, causes, correlations = [], [], []
    names = ("number", "position", "module", "ordinal", "local", "event_id", "cause_id", "correlation_id")
    for number, position, module, ordinal, local, id, cause, correlation in zip(*(found[name].to_pylist() for name in names), strict=True):
        if local is not None:
            cause, correlation = known[number, local]
        if id is None:
            id = derived_id(cause, f"{module}.{ordinal}")
            known[number, position] = id, correlation
        ids.append(id)
        causes.append(cause)
        correlations.append(correlation)
    return ids, causes, correlations
