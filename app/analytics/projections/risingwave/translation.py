"""
A projection in RisingWave's SQL, translated from DuckDB's by sqlglot.

Three things differ in ways that sqlglot does not know, because they depend on the tables: a list of structs is a JSONB array here,
a DECIMAL has no precision, and a series needs no unnest.

Only what is in `NODES` is translated. It was compared with the grammar and the functions of RisingWave 3.0.3, and what the
projections use runs in PostgreSQL in the tests. Anything else could be printed as SQL that RisingWave refuses, or that counts
differently.
"""

from __future__ import annotations

__all__ = ["NODES", "NotTranslated", "translated"]

from collections.abc import Mapping
from typing import Any

from sqlglot import ErrorLevel, exp, parse_one
from sqlglot.errors import SqlglotError

from app.analytics.errors import AnalyticsError
from app.analytics.event_tables import EventTable
from app.analytics.projections.declaration import Projection
from app.analytics.projections.risingwave.members import member

NODES = frozenset({
    # The statement
    "Alias", "CTE", "Column", "Distinct", "Filter", "From", "Group", "Having", "Identifier", "Join", "Order", "Ordered", "Select", "Star",
    "Subquery", "Table", "TableAlias", "Union", "Unnest", "Where", "Window", "WindowSpec", "With", "WithinGroup",
    # Values, and how they are compared and computed
    "Add", "And", "Case", "Cast", "DataType", "DataTypeParam", "Div", "EQ", "GT", "GTE", "If", "In", "Interval", "Is", "LT", "LTE", "Like",
    "Literal", "Mul", "NEQ", "Neg", "Not", "Null", "Or", "Paren", "Sub", "Var",
    # Functions
    "Avg", "Coalesce", "Count", "Explode", "Extract", "GenerateSeries", "Greatest", "Lag", "Lead", "Least", "Max", "Min", "Nullif",
    "PercentileCont", "Round", "Sqrt", "StddevSamp", "Sum", "TimestampTrunc",
})  # fmt: skip
"""The parts of a statement that are translated, by sqlglot's names."""


class NotTranslated(AnalyticsError):
    """A projection uses SQL that is not translated to RisingWave's: the message names it. Write it in other words."""


def translated(projection: Projection, tables: Mapping[str, EventTable]) -> str:
    """
    Return the SELECT of *projection* in RisingWave's SQL; *tables* are those of the events by name.

    Raises:
        NotTranslated: The projection uses something that is not translated.
    """
    try:
        tree = parse_one(projection.select, read="duckdb")
        if unknown := sorted({_name(node) for node in tree.walk() if type(node).__name__ not in NODES}):
            raise NotTranslated(f"{projection.name}: not translated: {', '.join(unknown)}")
        for explode in list(tree.find_all(exp.Explode)):
            if not isinstance(explode.this, exp.GenerateSeries):
                raise NotTranslated(f"{projection.name}: not translated: {explode.sql('duckdb')}; write unnest after FROM")
            explode.replace(explode.this)
        for unnest in list(tree.find_all(exp.Unnest)):
            _read_json(projection, unnest, tables)
        for kind in list(tree.find_all(exp.DataType)):
            if kind.is_type(exp.DataType.Type.DECIMAL):
                kind.set("expressions", [])
        return tree.sql("risingwave", pretty=True, unsupported_level=ErrorLevel.RAISE)
    except SqlglotError as error:
        raise NotTranslated(f"{projection.name}: not translated: {str(error).partition(chr(10))[0]}") from error


def _name(node: exp.Expr) -> str:
    """Return the name of a function as it is written, and of anything else as sqlglot has it."""
    return node.name if isinstance(node, exp.Anonymous) else type(node).__name__


def _read_json(projection: Projection, unnest: exp.Unnest, tables: Mapping[str, EventTable]) -> None:
    """Replace ``unnest(t.list) AS u(line)`` by the elements of a JSONB array, and what is read of ``line`` by its members."""
    select = unnest.find_ancestor(exp.Select)
    alias = unnest.args.get("alias")
    names = [column.name for column in alias.columns] if alias is not None else []
    what = unnest.expressions[0]
    type = _type_of(what, select, tables) if isinstance(what, exp.Column) else None
    if select is None or alias is None or type is None or len(names) != 1 or len(unnest.expressions) != 1:
        raise NotTranslated(f"{projection.name}: not translated: {unnest.sql('duckdb')}; only `unnest(table.list) AS x(y)`, of a list of an event")
    elements = exp.Table(this=exp.Anonymous(this="jsonb_array_elements", expressions=[what.copy()]), alias=alias.copy())
    unnest.replace(elements)
    for column in list(select.find_all(exp.Column)):
        first, *path = (part.name for part in column.parts)
        if first == names[0]:
            if not path:
                raise NotTranslated(f"{projection.name}: not translated: {first} without a member, which is JSON here")
            column.replace(parse_one(member(first, path, _member_type(type, path)), read="postgres"))


def _type_of(column: exp.Column, select: exp.Select | None, tables: Mapping[str, EventTable]) -> exp.DataType | None:
    """Return the type of an element of the list in *column*; None if it is no list of an event."""
    sources = {source.alias_or_name: source.name for source in (select or exp.Select()).find_all(exp.Table)}
    table = tables.get(sources.get(column.table, ""))
    type = table.types().get(column.name, "") if table is not None else ""
    return exp.DataType.build(type.removesuffix("[]"), dialect="duckdb") if type.endswith("[]") else None


def _member_type(type: exp.DataType, path: list[str]) -> str:
    """Return DuckDB's type of the member at *path* of the struct *type*."""
    found: Any = type
    for name in path:
        members = {definition.name: definition.args["kind"] for definition in found.expressions if isinstance(definition, exp.ColumnDef)}
        if name not in members:
            raise SqlglotError(f"{'.'.join(path)}: an element of the list has no such member")
        found = members[name]
    text: str = found.sql("duckdb")
    return text if text != "TEXT" else "VARCHAR"
