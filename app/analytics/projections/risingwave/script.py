"""
The SQL that RisingWave is set up with, in three parts that are run in this order.

`sources` reads the outboxes of the modules' PostgreSQL databases, `events` makes the tables of the events from them, and
`projections` is what is counted. The second and the third part are PostgreSQL's SQL as well, in which the tests run them.
"""

from __future__ import annotations

__all__ = ["PARTS", "Script", "script"]

from collections.abc import Mapping, Sequence

from attrs import frozen

from app.analytics.event_tables import EventTable
from app.analytics.projections.declaration import Projection, read_by
from app.analytics.projections.risingwave.members import member
from app.analytics.projections.risingwave.translation import NotTranslated, translated
from bus.subjects import EXPRESS

PARTS = ("sources", "events", "projections")
"""The names of the parts, in the order in which they are run."""

_OUTBOX = {
    "id": "VARCHAR",
    "event_id": "VARCHAR",
    "subject": "VARCHAR",
    "key": "VARCHAR",
    "body": "BYTEA",
    "name": "VARCHAR",
    "correlation_id": "VARCHAR",
    "causation_id": "VARCHAR",
    "occurred_at": "TIMESTAMPTZ",
}
"""The columns of an outbox that are read, with their types."""

_SOURCES = """\
-- Made by `python -m app analytics sql`: change the declarations, not this file. For psql, connected to RisingWave:
--   psql -h localhost -p 4566 -d dev -U root --set=password=... --file=sources.sql
-- The databases have the names of the modules, on one server; set host, port or <module>_database for others.
\\if :{?host} \\else \\set host postgres \\endif
\\if :{?port} \\else \\set port 5432 \\endif
\\if :{?user} \\else \\set user analytics \\endif
SET timezone = 'UTC';

-- Events from before the first connection, from the Parquet archive; an event that the outbox has, too, counts once.
CREATE TABLE IF NOT EXISTS archived_events (
    event_id VARCHAR PRIMARY KEY,
    cause_id VARCHAR,
    correlation_id VARCHAR,
    subject VARCHAR,
    key VARCHAR,
    occurred_at TIMESTAMPTZ,
    data VARCHAR
);
"""

_SOURCE = """
\\if :{{?{module}_database}} \\else \\set {module}_database {module} \\endif
CREATE SOURCE IF NOT EXISTS {module}_database WITH (
    connector = 'postgres-cdc',
    hostname = :'host',
    port = :'port',
    username = :'user',
    password = :'password',
    database.name = :'{module}_database',
    schema.name = 'public',
    slot.name = 'analytics_{module}',
    publication.name = 'analytics',
    publication.create.enable = 'false'
);
CREATE TABLE IF NOT EXISTS {module}_outbox (
{columns},
    PRIMARY KEY (id)
) FROM {module}_database TABLE 'public.{module}_outbox';
"""

_EVENTS = """\
-- Made by `python -m app analytics sql`: change the declarations, not this file.
-- One table for each event, in its newest version; an event id is there once.
SET timezone = 'UTC';
"""

_EVENT = """
CREATE MATERIALIZED VIEW IF NOT EXISTS {name} AS
SELECT
{columns}
FROM (
    SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY is_archived, id) AS copy_number
    FROM (
        SELECT
            0 AS is_archived, id, event_id, causation_id AS cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(convert_from(body, 'UTF8') AS JSONB) AS data
        FROM {module}_outbox
        WHERE name IS NULL AND subject IN ({subjects})
        UNION ALL
        SELECT
            1 AS is_archived, event_id AS id, event_id, cause_id, correlation_id, key AS entity_key, subject, occurred_at,
            CAST(data AS JSONB) AS data
        FROM archived_events
        WHERE subject IN ({subjects})
    ) AS copies
) AS numbered
WHERE copy_number = 1;
"""

_HEAD = {
    "module": "'{module}' AS module",
    "is_express": "subject LIKE '%{express}' AS is_express",
    "seq": "CAST(NULL AS BIGINT) AS seq",
}

_UNREADABLE = """
-- Events of which no row is in the newest version: the upcasts of the modules are Python, which does not run here.
CREATE MATERIALIZED VIEW IF NOT EXISTS unreadable_events AS
SELECT event_id, min(subject) AS subject, min(occurred_at) AS occurred_at
FROM (
{copies}
    UNION ALL
    SELECT event_id, subject, occurred_at FROM archived_events
) AS copies
GROUP BY event_id
HAVING count(*) FILTER (WHERE subject IN ({subjects})) = 0;
"""

_COPIES = """\
    SELECT event_id, subject, occurred_at FROM {module}_outbox WHERE name IS NULL AND subject NOT LIKE '{module}.replay.%'"""

_PROJECTIONS = """\
-- Made by `python -m app analytics sql`: change the declarations, not this file.
-- Materialized views are brought up to date with each event; a day begins at midnight UTC.
SET timezone = 'UTC';
"""

_PROJECTION = """
-- {title}: {answers}
CREATE MATERIALIZED VIEW IF NOT EXISTS {name} AS
{select};
"""


@frozen
class Script:
    """The SQL by the names in `PARTS`, and what it lacks."""

    parts: Mapping[str, str]
    left_out: Mapping[str, str]
    """The projections that are not in it, by name, each with the reason."""


def script(tables: Sequence[EventTable], projections: Mapping[str, Projection]) -> Script:
    """Return the SQL for *tables* and *projections*, which are in the order of `load`."""
    modules = list(dict.fromkeys(_module(table) for table in tables))
    columns = ",\n".join(f"    {name} {type}" for name, type in _OUTBOX.items())
    sources = _SOURCES + "".join(_SOURCE.format(module=module, columns=columns) for module in modules)
    events = _EVENTS + "".join(map(_event, tables)) + _unreadable(modules, tables)
    counted, left_out = _counted({table.name: table for table in tables}, projections)
    return Script({"sources": sources, "events": events, "projections": _PROJECTIONS + counted}, left_out)


def _module(table: EventTable) -> str:
    return table.subject.partition(".")[0]


def _event(table: EventTable) -> str:
    module = _module(table)
    columns = []
    data = {column.name: column for column in table.columns}
    for name in table.types():
        if name in data:
            column = data[name]
            columns.append(f"{member('data', column.path, column.type)} AS {name}")
        else:
            columns.append(_HEAD.get(name, name).format(module=module, express=EXPRESS))
    text = ",\n".join(f"    {column}" for column in columns)
    return _EVENT.format(name=table.name, columns=text, module=module, subjects=_subjects([table]))


def _unreadable(modules: Sequence[str], tables: Sequence[EventTable]) -> str:
    copies = "\n    UNION ALL\n".join(_COPIES.format(module=module) for module in modules)
    return _UNREADABLE.format(copies=copies, subjects=_subjects(tables))


def _subjects(tables: Sequence[EventTable]) -> str:
    return ", ".join(f"'{subject}'" for table in tables for subject in (table.subject, table.subject + EXPRESS))


def _counted(tables: Mapping[str, EventTable], projections: Mapping[str, Projection]) -> tuple[str, dict[str, str]]:
    text = ""
    left_out: dict[str, str] = {}
    for name, projection in projections.items():
        try:
            if missing := sorted(read_by(projection, left_out)):
                raise NotTranslated(f"{name}: reads {', '.join(missing)}")
            select = translated(projection, tables)
            text += _PROJECTION.format(title=projection.title, answers=projection.answers, name=name, select=select)
        except NotTranslated as error:
            left_out[name] = str(error)
            text += f"\n-- Left out: {error}\n"
    return text, left_out
