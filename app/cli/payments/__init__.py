"""``payments``: list payments, settle those that wait for a person, and compare them with the provider."""

from __future__ import annotations

__all__ = ["payments"]

from datetime import datetime
from typing import Any, NoReturn
from urllib.parse import quote, urlencode

import click

from app.cli import console
from app.cli.payments.reconcile import reconcile

PAGE = 200
COLUMNS = ("order_id", "status", "amount", "refunded", "refund_status", "dispute", "reason", "updated_at")
CASE_STATUSES = ("captured", "unknown")
STATUSES = ("pending", "captured", "declined", "unknown", "refunded")

with_url = click.option("--url", default=None, help="Address of the server; by default from HTTP_HOST and HTTP_PORT.")


@click.group(short_help="List, settle and compare payments.")
def payments() -> None:
    """
    List payments, settle those that wait for a person, and compare them with the payment provider.

    \b
      python -m app payments list --needs-settling
      python -m app payments settle ORDER --outcome refunded --reason "given back in the dashboard"
      python -m app payments reconcile --since 1d
    """


@payments.command("list", short_help="List payments.")
@click.option("--status", multiple=True, type=click.Choice(STATUSES), help="Only payments with this status; repeatable.")
@click.option("--needs-settling", is_flag=True, help="Only payments that wait for a person.")
@click.option(
    "--since",
    callback=console.parse_time,
    metavar="WHEN",
    help=f"Only payments of orders placed at or after WHEN: {console.TIME_FORMATS}.",
)
@click.option("--until", callback=console.parse_time, metavar="WHEN", help="Only payments of orders placed before WHEN.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="List at most this many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, in the format of the API.")
@with_url
@console.with_key
def list_(
    status: tuple[str, ...],
    needs_settling: bool,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
    url: str | None,
    key: str | None,
) -> None:
    """
    List payments, those of the newest orders first, without archived ones (ORDERS_KEPT).

    \b
      python -m app payments list --status unknown --status pending --since 1d
      python -m app payments list --needs-settling --json

    Asks a running server that runs the payments module.

    Exit codes: 0 done, also if there are none; 1 the server refuses; 2 wrong usage or configuration; 3 no server answers.
    """
    if needs_settling and not status:
        status = CASE_STATUSES  # with any other status nothing waits for a person, but a decline has a reason, too
    filters = {
        "needs_settling": "true" if needs_settling else "",
        "status": ",".join(dict.fromkeys(status)),
        "created_after": since.isoformat() if since is not None else "",
        "created_before": until.isoformat() if until is not None else "",
    }
    query = {name: value for name, value in filters.items() if value}
    rows = _fetch(query, limit, url, key)
    if as_json:
        console.print_json(rows)
    elif rows:
        click.echo(console.table(COLUMNS, [[_cell(row.get(column)) for column in COLUMNS] for row in rows]))
    else:
        click.echo("no payments")


@payments.command(short_help="Settle a payment that waits for a person.")
@click.argument("order_id", metavar="ORDER")
@click.option(
    "--outcome",
    required=True,
    type=click.Choice(["captured", "declined", "refunded"]),
    help="What happened to the money at the provider: taken and kept, never taken, or given back.",
)
@click.option("--reason", required=True, help="Why, as free text; it is kept with the payment.")
@with_url
@console.with_key
def settle(order_id: str, outcome: str, reason: str, url: str | None, key: str | None) -> None:
    """
    Settle the payment of ORDER, which waits for a person: record what happened to its money at the provider.

    \b
      python -m app payments settle ORDER --outcome refunded --reason "given back in the dashboard"

    It moves no money: do that first, in the provider's dashboard. An order that waits for the payment continues.

    Exit codes: 0 done; 1 there is no such payment, it waits for no person, or the outcome is impossible; 2 wrong usage or
    configuration; 3 no server answers.
    """
    from app.cli.http_client import RequestFailed, post_json

    path = f"/v1/payments/{quote(order_id, safe='')}/settle"
    try:
        settled = post_json(path, {"outcome": outcome, "reason": reason}, console.settings(), url, key)
    except RequestFailed as error:
        _exit_with(error)
    click.echo(f"{settled['order_id']} is {settled['status']}")


payments.add_command(reconcile)


def _fetch(query: dict[str, str], limit: int, url: str | None, key: str | None) -> list[dict[str, Any]]:
    """Return up to *limit* payments that match *query*, from as many pages as that takes."""
    from app.cli.http_client import RequestFailed, get_json

    settings = console.settings()
    found: list[dict[str, Any]] = []
    cursor = None
    while len(found) < limit:
        page_query = {**query, "limit": str(PAGE), **({} if cursor is None else {"cursor": cursor})}
        try:
            page = get_json(f"/v1/payments?{urlencode(page_query)}", settings, url, key)
        except RequestFailed as error:
            _exit_with(error)
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    return found[:limit]


def _exit_with(error: Any) -> NoReturn:
    line = str(error) if error.detail is None else f"{error} ({error.code}): {error.detail}"
    console.exit_with(console.OUT_OF_REACH if error.status is None else console.FAILED, line)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return console.amount(value) if isinstance(value, dict) else str(value)
