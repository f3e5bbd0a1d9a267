"""``orders``: list, show and explain orders, and take them to another machine."""

from __future__ import annotations

__all__ = ["orders"]

from typing import Any

import click

from app.cli import console
from app.cli.orders.exchange import export, import_
from app.cli.orders.requests import FilteredCommand, fetch, fetch_pages, path_of, with_url
from app.cli.orders.tree import has_colours, lines_of

COLUMNS = ("order_id", "customer_id", "status", "reason", "total", "waiting_for", "created_at", "updated_at")


@click.group(short_help="List, show and explain orders.")
def orders() -> None:
    """
    List, show and explain orders.

    \b
      python -m app orders list --status processing,reserved --created-before 10m
      python -m app orders explain ORDER

    Every command asks a running server, but for `import`, which writes to the database that DATABASE_URL names.
    """


@orders.command("list", cls=FilteredCommand, short_help="List orders.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="List at most this many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, in the format of the API.")
@with_url
@console.with_key
def list_(limit: int, as_json: bool, url: str | None, key: str | None, **filters: Any) -> None:
    """
    List orders, the newest first, without archived ones (ORDERS_KEPT).

    \b
      python -m app orders list --waiting-for payment
      python -m app orders list --q 01a2 --json

    Exit codes: 0 done, also if there are none; 1 the server refuses; 2 wrong usage or configuration; 3 no server answers.
    """
    rows = fetch_pages("/v1/orders", filters, limit, url, key)
    if as_json:
        console.print_json(rows)
    elif rows:
        click.echo(console.table(COLUMNS, [[_cell(row.get(column)) for column in COLUMNS] for row in rows]))
    else:
        click.echo("no orders")


@orders.command(short_help="Show an order.")
@click.argument("order")
@with_url
@console.with_key
def show(order: str, url: str | None, key: str | None) -> None:
    """
    Show the order ORDER as JSON, in the format of the API.

    Exit codes: 0 done; 1 there is none, or the server refuses; 2 wrong usage or configuration; 3 no server answers.
    """
    console.print_json(fetch(path_of(order), url, key))


@orders.command(short_help="Explain an order.")
@click.argument("order")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, in the format of the API.")
@with_url
@console.with_key
def explain(order: str, as_json: bool, url: str | None, key: str | None) -> None:
    """
    Explain the order ORDER: where it stands, what it waits for, and what has led to what.

    \b
      python -m app orders explain 01a22486-f1eb-739c-9002-ad50d7b6f262

    Prints one sentence, then the tree of the events over all modules with what else is known of the order. On a terminal
    it has colours, unless NO_COLOR is set.

    Exit codes: 0 done; 1 there is none, or the server refuses; 2 wrong usage or configuration; 3 no server answers.
    """
    explained = fetch(f"{path_of(order)}/explain", url, key)
    if as_json:
        console.print_json(explained)
    else:
        for line in lines_of(explained, has_colours()):
            click.echo(line, color=True)


orders.add_command(export)
orders.add_command(import_)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return console.amount(value) if isinstance(value, dict) else str(value)
