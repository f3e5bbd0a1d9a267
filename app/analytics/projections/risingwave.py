"""
The projections for RisingWave, generated from the same files: a table of events, a view for each event, the projections.

The projections are written in what DuckDB, PostgreSQL and RisingWave have in common. Three things differ, and are converted:

- a list of structs is JSON: ``unnest(r.lines) AS u(line)`` becomes ``jsonb_array_elements``, and ``line.quantity`` a cast;
- ``unnest(generate_series(...))`` is ``generate_series(...)``;
- ``DECIMAL(38, 0)`` is ``NUMERIC``, which has no precision there.

A projection with ``percentile_cont`` is a view, computed when it is read: RisingWave maintains no such aggregate in a
materialized view.
"""

from __future__ import annotations

__all__ = ["EVENTS", "SOURCE_COLUMNS", "projection_statements", "source_statement", "view_statements"]

import re
from collections.abc import Iterable, Mapping, Sequence

from app.analytics.event_tables import EventTable
from app.analytics.projections.declaration import BadProjection, Projection

EVENTS = "events"
"""The table of all events."""

SOURCE_COLUMNS = {
    "id": "VARCHAR",
    "type": "VARCHAR",
    "time": "TIMESTAMPTZ",
    "partitionkey": "VARCHAR",
    "causationid": "VARCHAR",
    "correlationid": "VARCHAR",
    "isexpress": "BOOLEAN",
    "data": "JSONB",
}
"""The members of a message that the table has: CloudEvents in JSON (structured mode), with the extensions of this project."""

_HEAD = {
    "event_id": "id",
    "cause_id": "causationid",
    "correlation_id": "correlationid",
    "entity_key": "partitionkey",
    "module": "split_part(type, '.', 1)",
    "is_express": "isexpress",
    "seq": "CAST(NULL AS BIGINT)",
    "occurred_at": '"time"',
}
_UNNEST = re.compile(r"unnest\((\w+\.\w+)\) AS (\w+)\((\w+)\)")
_SERIES = re.compile(r"unnest\((generate_series\((?:[^()]|\([^()]*\))*\))\)")
_MEMBER = re.compile(r"(\w+) ((?:BIGINT|VARCHAR|BOOLEAN|TIMESTAMPTZ|DECIMAL\(38, 6\)))")


def source_statement(url: str, stream: str, subject: str) -> str:
    """Return the statement that creates the table of events over the JetStream *stream*; a repeated event replaces itself."""
    columns = "".join(f'    "{name}" {type},\n' for name, type in SOURCE_COLUMNS.items())
    options = {
        "connector": "nats",
        "server_url": url,
        "stream": stream,
        "subject": subject,
        "connect_mode": "plain",
        "consumer.durable_name": "risingwave",
        "scan.startup.mode": "earliest",
    }
    settings = ",\n".join(f"    {name} = '{value}'" for name, value in options.items())
    return (
        f'CREATE TABLE {EVENTS} (\n{columns}    PRIMARY KEY ("id")\n)'
        f" WITH (\n{settings}\n) FORMAT PLAIN ENCODE JSON;"
    )


def view_statements(tables: Iterable[EventTable]) -> list[str]:
    """Return the statements that create a view for each of *tables*, with the columns that it has in DuckDB."""
    return [_event_view(table) for table in tables]


def projection_statements(projections: Mapping[str, Projection], tables: Sequence[EventTable]) -> list[str]:
    """
    Return the statements that create *projections*, which are in the order of `load`.

    Raises:
        BadProjection: A list of structs is read in a way that is not converted.
    """
    members = _members(tables)
    return [_projection(projection, members) for projection in projections.values()]


def _event_view(table: EventTable) -> str:
    columns = [f"    {expression} AS {name}" for name, expression in _HEAD.items()]
    for column in table.columns:
        columns.append(f"    {_json_value('data', column.path, column.type)} AS {column.name}")
    # What forwards the events converts each to its newest version.
    selected = ",\n".join(columns)
    return f"CREATE VIEW {table.name} AS\nSELECT\n{selected}\nFROM {EVENTS}\nWHERE type = '{table.subject}';"


def _json_value(value: str, path: Sequence[str], type: str) -> str:
    *outer, last = path
    within = "".join(f" -> '{name}'" for name in outer)
    if type.endswith("[]") or type == "JSON":
        return f"{value}{within} -> '{last}'"
    return f"CAST({value}{within} ->> '{last}' AS {_converted_types(type)})"


def _projection(projection: Projection, members: Mapping[str, str]) -> str:
    select = _converted_types(_SERIES.sub(r"\1", projection.select))
    for match in _UNNEST.finditer(select):
        select = _with_members(projection, select, match[3], members)
    select = _UNNEST.sub(r"jsonb_array_elements(\1) AS \2(\3)", select)
    if "unnest(" in select:
        line = next(n for n, text in enumerate(projection.sql.splitlines(), 1) if "unnest(" in text)
        raise BadProjection(projection.path, line, "must be unnest(alias.column) AS u(name), which RisingWave's dialect needs")
    kind = "VIEW" if "percentile_cont" in select else "MATERIALIZED VIEW"
    return f"-- {projection.title}: {projection.answers}\nCREATE {kind} {projection.name} AS\n{select.rstrip()};"


def _with_members(projection: Projection, select: str, name: str, members: Mapping[str, str]) -> str:
    """Return *select* with ``name.a.b`` read out of the JSON of an array's element."""

    def read(match: re.Match[str]) -> str:
        path = match[1].split(".")[1:]
        if path[-1] not in members:
            line = next(n for n, text in enumerate(projection.sql.splitlines(), 1) if match[0] in text)
            raise BadProjection(projection.path, line, f"{match[0]}: no event has a list with such a member")
        return _json_value(name, path, members[path[-1]])

    return re.sub(rf"(?<![\w.]){name}((?:\.\w+)+)", read, select)


def _members(tables: Iterable[EventTable]) -> dict[str, str]:
    """Return the types of the members of all lists of structs."""
    lists = [column.type.replace('"', "") for table in tables for column in table.columns if column.type.endswith("[]")]
    return {name: type for text in lists for name, type in _MEMBER.findall(text)}


def _converted_types(text: str) -> str:
    return re.sub(r"DECIMAL\(38, [06]\)", "NUMERIC", text)
