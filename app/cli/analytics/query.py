"""``analytics query``: ask the DuckDB file in SQL, while it is written, too."""

from __future__ import annotations

__all__ = ["query"]

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli import console
from app.cli.analytics.extra import require_extra

if TYPE_CHECKING:
    from app.analytics.query import Line

ROWS_MAX = 1_000_000
TABLE_ROWS = 200
"""Rows that are shown as a table if --limit is not given."""


@click.command(short_help="Query the file in SQL.")
@click.argument("sql")
@click.option("--file", default=None, help="The DuckDB file, instead of ANALYTICS_FILE.")
@click.option("--json", "form", flag_value="json", help="Print one JSON array, with one object a row.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV with a line of headings.")
@click.option(
    "--limit", default=None, type=click.IntRange(1, ROWS_MAX), help=f"Print at most this many rows; by default {TABLE_ROWS} as a table."
)
def query(sql: str, file: str | None, form: str | None, limit: int | None) -> None:
    """
    Query the file in DuckDB's SQL; SQL is one SELECT, or - to read it from stdin.

    \b
      python -m app analytics query "SELECT count(*) FROM orders_created"
      python -m app analytics query --csv "FROM orders_cancelled" > cancelled.csv
      python -m app analytics query "SHOW TABLES"

    Works while `analytics run` writes the file, and otherwise, too. Changes nothing, and reads no other file.

    Exit codes: 0 done; 1 the query is wrong or refused, or the file cannot be used; 2 wrong usage or configuration, or the
    packages of the extra are missing.
    """
    settings = console.settings(ANALYTICS_FILE=file)
    require_extra()
    from app.analytics.errors import AnalyticsError
    from app.analytics.query_server import ask

    sql = sys.stdin.read() if sql == "-" else sql
    limit = limit or (TABLE_ROWS if form is None else ROWS_MAX)
    try:
        lines = ask(Path(settings.analytics_file), sql, limit=limit, memory=settings.analytics_memory)
        is_complete = {"json": _print_json, "csv": _print_csv}.get(form or "", _print_table)(_checked(lines))
    except AnalyticsError as error:
        console.exit_with(console.FAILED, str(error))
    if not is_complete:
        click.echo(f"fulfilment: there are more than {limit} rows; --limit takes up to {ROWS_MAX}", err=True)


def _checked(lines: Iterator[Line]) -> Iterator[Line]:
    from app.analytics.errors import QueryRefused

    for line in lines:
        if "error" in line:
            raise QueryRefused(line["error"])
        yield line


def _print_json(lines: Iterator[Line]) -> bool:
    columns: list[str] = []
    separator = "["
    is_complete = True
    for line in lines:
        columns, is_complete = line.get("columns", columns), line.get("is_complete", True)
        for row in line.get("rows", ()):
            click.echo(separator + json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False), nl=False)
            separator = ",\n "
    click.echo("[]" if separator == "[" else "]")
    return is_complete


def _print_csv(lines: Iterator[Line]) -> bool:
    out = csv.writer(sys.stdout, lineterminator="\n")
    is_complete = True
    for line in lines:
        if "columns" in line:
            out.writerow(line["columns"])
        out.writerows([_cell(value, "") for value in row] for row in line.get("rows", ()))
        is_complete = line.get("is_complete", True)
    return is_complete


def _print_table(lines: Iterator[Line]) -> bool:
    columns: list[str] = []
    rows: list[list[str]] = []
    is_complete = True
    for line in lines:
        columns, is_complete = line.get("columns", columns), line.get("is_complete", True)
        rows += [[_cell(value, "-") for value in row] for row in line.get("rows", ())]
    click.echo(console.table(columns, rows))
    return is_complete


def _cell(value: Any, null: str) -> str:
    if value is None:
        return null
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
