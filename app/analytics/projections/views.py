"""
The projections as views of the file, for queries in SQL.

The process that writes the file creates them anew at each start, so they are those of its release, and a mistake in one is reported
before anything is read.
"""

from __future__ import annotations

__all__ = ["create_views"]

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from app.analytics.projections.declaration import BadProjection, Projection

if TYPE_CHECKING:
    import duckdb

_LINE = re.compile(r"LINE (\d+):")
_NUMBERS = ("INT", "DECIMAL", "DOUBLE", "FLOAT")


def create_views(connection: duckdb.DuckDBPyConnection, projections: Mapping[str, Projection]) -> None:
    """
    Create a view for each of *projections*, which are in the order of `load`, and drop those of projections that are gone.

    Raises:
        BadProjection: The SQL is wrong, reads a table that the file does not have, or lacks a declared column.
    """
    import duckdb

    connection.execute("BEGIN")
    try:
        found = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        for (name,) in found:
            connection.execute(f'DROP VIEW "{name}"')
        for projection in projections.values():
            try:
                # On one line with the first comment, so that the lines of an error are those of the file.
                connection.execute(f"CREATE VIEW {projection.name} AS {projection.sql}")
                described = connection.execute(f"DESCRIBE {projection.name}").fetchall()
            except duckdb.Error as error:
                text = str(error)
                line = _LINE.search(text)
                detail = text.partition("\n")[0]
                raise BadProjection(projection.path, int(line[1]) if line else projection.first_line, detail) from None
            _require_columns(projection, {row[0]: row[1] for row in described})
        connection.execute("COMMIT")
    except BaseException:  # also a KeyboardInterrupt: the transaction must not stay open
        connection.execute("ROLLBACK")
        raise


def _require_columns(projection: Projection, columns: Mapping[str, str]) -> None:
    """Raise BadProjection if the head names a column that the SELECT does not have, or that has the wrong type."""
    chart = projection.chart
    named = {"time": (projection.time,), "chart": (chart.x, *chart.y, *filter(None, (chart.series,)))}
    named |= {"keys": projection.keys, "sums": projection.sums, "ratios": tuple(projection.ratios), "money": projection.money}
    for field, names in named.items():
        for name in names:
            line = projection.line_of(field)
            if name not in columns:
                known = ", ".join(columns)
                raise BadProjection(projection.path, line, f"there is no column {name!r}; the SELECT has {known}")
            is_number = any(part in columns[name] for part in _NUMBERS)
            if not is_number and (field in ("sums", "ratios", "money") or name in chart.y):
                raise BadProjection(projection.path, line, f"{name!r} must be a number, and is {columns[name]}")
    if "TIME ZONE" not in columns[projection.time]:
        detail = f"{projection.time!r} must be a TIMESTAMPTZ, and is {columns[projection.time]}"
        raise BadProjection(projection.path, projection.line_of("time"), detail)
    if projection.money and "currency" not in columns:
        raise BadProjection(projection.path, projection.line_of("money"), "amounts need a column 'currency' beside them")
