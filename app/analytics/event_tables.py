"""
The tables that the events go to: one for each event, made from the JSON Schema of its newest version.

Every table begins with the columns of `HEAD`; then come the members of the data. An object is flattened: the member
``amount`` of ``total`` is the column ``total_amount``. An array is a list, and an array of objects a list of structs, in
which objects stay nested. A column that the schema does not describe further is JSON. The SQL that fills a table is made here, too.
"""

from __future__ import annotations

__all__ = ["COLUMNS", "HEAD", "Column", "EventTable", "damaged_sql", "event_tables", "insert_sql", "quoted"]

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from bus.contracts.contract import Contract
from bus.contracts.registry import ContractRegistry
from bus.contracts.versions import version_of
from bus.subjects import EXPRESS

HEAD = {
    "event_id": "VARCHAR",
    "cause_id": "VARCHAR",
    "correlation_id": "VARCHAR",
    "entity_key": "VARCHAR",
    "module": "VARCHAR",
    "is_express": "BOOLEAN",
    "seq": "BIGINT",
    "occurred_at": "TIMESTAMPTZ",
}
"""The first columns of every table, by name. *seq* is null for an event that came over the bus."""

COLUMNS = {"integer": "BIGINT", "number": "DECIMAL(38, 6)", "boolean": "BOOLEAN", "string": "VARCHAR"}
"""The type of a column by that of the JSON Schema."""

_JSON = "JSON"
_TIME = "TIMESTAMPTZ"
_UNLIMITED = 2**60
_PYTHON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


@frozen
class Column:
    """One column of the data: where its value is, and its type."""

    name: str
    path: tuple[str, ...]
    """The member, and where it is nested the members around it, outermost first."""
    type: str
    is_required: bool
    """True if a valid event has a value there that is not null."""
    is_id: bool
    """True if it has UUIDs, as text."""


@frozen
class EventTable:
    """The table of one event."""

    name: str
    """The event with an underscore, ``orders_created``."""
    subject: str
    """The event in its newest version, ``orders.created.v2``."""
    columns: tuple[Column, ...]
    """Those of the data, without `HEAD`."""
    structure: str
    """What DuckDB's ``from_json`` makes of the data, before it is flattened."""

    def types(self) -> dict[str, str]:
        """Return the type of every column, `HEAD` included, by name, in the order of the table."""
        return HEAD | {column.name: column.type for column in self.columns}


def event_tables(contracts: ContractRegistry) -> tuple[EventTable, ...]:
    """Return the tables of all events of *contracts*, in the order of their names."""
    newest: dict[str, Contract] = {}
    for contract in contracts:
        event, version = version_of(contract.subject)
        if event not in newest or version > version_of(newest[event].subject)[1]:
            newest[event] = contract
    return tuple(_table(event, newest[event]) for event in sorted(newest))


def _table(event: str, contract: Contract) -> EventTable:
    schema = contract.schema
    names = set(HEAD)
    columns = []
    for column in _columns(schema, (), True):
        name = column.name
        while name in names:
            name = f"data_{name}"
        names.add(name)
        columns.append(evolve(column, name=name))
    structure = json.dumps(_structure(schema))
    return EventTable(event.replace(".", "_"), contract.subject, tuple(columns), structure)


def _columns(schema: Mapping[str, Any], path: tuple[str, ...], is_required: bool) -> Iterator[Column]:
    """Yield the columns of an object's members; those of an object that may be absent may be null."""
    required = schema.get("required", ()) if is_required else ()
    for name, member in _members(schema):
        described, may_be_null = _without_null(member)
        here = (*path, name)
        is_set = name in required and not may_be_null
        if _is_object(described):
            yield from _columns(described, here, is_set)
        else:
            is_id = _json_type(described) == "string" and described.get("format") == "uuid"
            yield Column("_".join(here), here, _sql_type(described), is_set, is_id)


def _structure(schema: Mapping[str, Any]) -> Any:
    described, _ = _without_null(schema)
    if _is_object(described):
        return {name: _structure(member) for name, member in _members(described)}
    if described.get("type") == "array" and "items" in described:
        return [_structure(described["items"])]
    return _sql_type(described)


def _sql_type(schema: Mapping[str, Any]) -> str:
    described, _ = _without_null(schema)
    if _is_object(described):
        members = ", ".join(f'"{name}" {_sql_type(member)}' for name, member in _members(described))
        return f"STRUCT({members})"
    if described.get("type") == "array" and "items" in described:
        return f"{_sql_type(described['items'])}[]"
    kind = _json_type(described)
    if kind == "string" and described.get("format") == "date-time":
        return _TIME
    return COLUMNS.get(kind, _JSON)


def _json_type(schema: Mapping[str, Any]) -> str:
    """Return the type of the values that *schema* describes, or "" if they have several."""
    if "type" in schema:
        return schema["type"] if isinstance(schema["type"], str) else ""
    values = [schema["const"]] if "const" in schema else schema.get("enum", ())
    types = {_PYTHON_TYPES.get(type(value), "") for value in values}
    return types.pop() if len(types) == 1 else ""


def _without_null(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """Return *schema* without the alternative null, and whether it had one."""
    for keyword in ("anyOf", "oneOf"):
        options: Sequence[Mapping[str, Any]] = schema.get(keyword, ())
        rest = [option for option in options if option.get("type") != "null"]
        if len(rest) == 1:
            inner, _ = _without_null(rest[0])
            return inner, len(rest) < len(options)
        if options:
            return {}, True
    kinds = schema.get("type")
    if isinstance(kinds, list):
        rest_kinds = [kind for kind in kinds if kind != "null"]
        described = {**schema, "type": rest_kinds[0] if len(rest_kinds) == 1 else rest_kinds}
        return described, len(rest_kinds) < len(kinds)
    may_be_null = None in schema.get("enum", ()) or ("const" in schema and schema["const"] is None)
    return schema, may_be_null


def _is_object(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "object" and bool(schema.get("properties"))


def _members(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, member in schema.get("properties", {}).items():
        yield name, member if isinstance(member, Mapping) else {}


def insert_sql(table: EventTable) -> str:
    """
    Return the SQL that inserts the new events of *table* in the view ``incoming``, which has the columns of `app.analytics.events.SCHEMA`.

    Its parameters are the least and the greatest id in the view.
    """
    values = ", ".join(f"{_value(column.path)} AS {quoted(column.name)}" for column in table.columns)
    names = ", ".join([*map(quoted, table.types())])
    return f"""
        INSERT INTO {table.name} ({names})
        WITH parsed AS NOT MATERIALIZED ({_parsed(table)})
        SELECT event_id, cause_id, correlation_id, entity_key, module, ends_with(subject, '{EXPRESS}'), seq,
               TRY_CAST(occurred_at AS TIMESTAMPTZ), {values}
        FROM parsed
        WHERE {_is_complete(table)} AND NOT EXISTS (
            SELECT 1 FROM {table.name} AS old WHERE old.event_id = parsed.event_id AND old.event_id BETWEEN ? AND ?
        )
    """


def damaged_sql(table: EventTable) -> str:
    """Return the SQL that selects those events in the view ``incoming`` that the columns of *table* do not take."""
    return f"SELECT * EXCLUDE (content) FROM ({_parsed(table)}) AS parsed WHERE NOT ({_is_complete(table)})"


def _parsed(table: EventTable) -> str:
    # Without a limit, DuckDB takes the text apart once more for each column that must have a value.
    structure = table.structure.replace("'", "''")
    return f"SELECT *, from_json(data, '{structure}') AS content FROM incoming LIMIT {_UNLIMITED}"


def _is_complete(table: EventTable) -> str:
    """Return the condition that an event has its time and every value that it must have."""
    required = [f"{_value(column.path)} IS NOT NULL" for column in table.columns if column.is_required]
    return " AND ".join(["TRY_CAST(occurred_at AS TIMESTAMPTZ) IS NOT NULL", *required])


def _value(path: Sequence[str]) -> str:
    return ".".join(["content", *map(quoted, path)])


def quoted(name: str) -> str:
    """Return *name* as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'
