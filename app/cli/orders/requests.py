"""Requests of the commands for orders, and the options that they share."""

from __future__ import annotations

__all__ = ["FilteredCommand", "exit_with", "fetch", "fetch_pages", "path_of", "query_of", "with_url"]

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, urlencode

import click

from app.cli import console
from app.cli.http_client import RequestFailed, get_json

if TYPE_CHECKING:
    from modules.filters import Filter

PAGE = 200

with_url = click.option("--url", default=None, help="Address of the server; by default from HTTP_HOST and HTTP_PORT.")


class FilteredCommand(click.Command):
    """
    A command with an option for each filter of the list of orders.

    The filters are imported when the command is used: the other commands start without the module ``orders``.
    """

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        """Return the parameters; those of the filters stand behind the arguments."""
        from modules.orders.routes import filters

        own = super().get_params(context)
        place = sum(isinstance(parameter, click.Argument) for parameter in own)
        return [*own[:place], *(_option(filter) for filter in filters), *own[place:]]


def query_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the query for the *values* of the options that `FilteredCommand` adds."""
    given = {name: value for name, value in values.items() if value is not None}
    return {name: value.isoformat() if isinstance(value, datetime) else str(value) for name, value in given.items()}


def path_of(order: str) -> str:
    """Return the path of the order with the id *order*."""
    return f"/v1/orders/{quote(order, safe='')}"


def fetch(path: str, url: str | None, key: str | None) -> Any:
    """Return the JSON of a GET of *path*; end the process with one line if the server refuses or does not answer."""
    try:
        return get_json(path, console.settings(), url, key)
    except RequestFailed as error:
        exit_with(error)


def fetch_pages(path: str, values: Mapping[str, Any], limit: int, url: str | None, key: str | None) -> list[dict[str, Any]]:
    """Return up to *limit* items of the list at *path*, page by page; ends the process as `fetch` does."""
    query = query_of(values)
    rows: list[dict[str, Any]] = []
    while True:
        page = fetch(f"{path}?{urlencode({**query, 'limit': min(PAGE, limit - len(rows))})}", url, key)
        rows += page["items"]
        if page["next_cursor"] is None or len(rows) >= limit:
            return rows
        query["cursor"] = page["next_cursor"]


def _option(filter: Filter) -> click.Option:
    schema, is_time = filter.schema, filter.schema.get("format") == "date-time"
    help = filter.description or f"Only orders with this {filter.name.replace('_', ' ')}."
    if is_time:
        help = f"{help} {console.TIME_FORMATS[:1].upper()}{console.TIME_FORMATS[1:]}."
    elif "enum" in schema:
        help = f"{help} One of {', '.join(schema['enum'])}."
    return click.Option(
        [f"--{filter.name.replace('_', '-')}", filter.name],
        default=None,
        type=int if schema.get("type") == "integer" else str,
        callback=console.parse_time if is_time else None,
        metavar="WHEN" if is_time else None,
        help=help,
    )


def exit_with(error: RequestFailed) -> NoReturn:
    """End the process with the line and the exit code for *error*."""
    if error.status is None:
        console.exit_with(console.OUT_OF_REACH, str(error))
    console.exit_with(console.FAILED, f"{error}{f' ({error.code}): {error.detail}' if error.code else ''}")
