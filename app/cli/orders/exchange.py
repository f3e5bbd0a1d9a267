"""``orders export`` and ``orders import``: take orders out of one machine and into another."""

from __future__ import annotations

__all__ = ["export", "import_"]

import asyncio
import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlencode

import click

from app.cli import console
from app.cli.http_client import RequestFailed, open_response
from app.cli.orders.requests import FilteredCommand, exit_with, path_of, query_of, with_url


@click.command(cls=FilteredCommand, short_help="Export an order, or a list of orders.")
@click.argument("order", required=False)
@click.option("--output", default=None, type=click.Path(dir_okay=False, writable=True), help="Write to this file, not to stdout.")
@with_url
@console.with_key
def export(order: str | None, output: str | None, url: str | None, key: str | None, **filters: Any) -> None:
    """
    Export the order ORDER with its explanation, for `orders import` on another machine.

    \b
      python -m app orders export 01a22486-f1eb-739c-9002-ad50d7b6f262 --output order.json
      python -m app orders export --status cancelled --created-after 1d > cancelled.ndjson

    Without ORDER, export all orders that the options select, one JSON object a line, the newest first.

    Exit codes: 0 done; 1 there is no such order, the server refuses, or the connection broke off; 2 wrong usage or
    configuration; 3 no server answers.
    """
    query = query_of(filters)
    if order is not None and query:
        raise click.UsageError("name one order, or select orders by options")
    path = f"{path_of(order)}/export" if order is not None else f"/v1/orders/export?{urlencode(query)}".rstrip("?")
    with ExitStack() as stack:
        try:
            response = stack.enter_context(open_response(path, console.settings(), url, key))
            target: BinaryIO = sys.stdout.buffer if output is None else stack.enter_context(Path(output).open("wb"))
            shutil.copyfileobj(response, target)
        except RequestFailed as error:
            exit_with(error)
        except OSError as error:
            console.exit_with(console.FAILED, f"the export is not complete: {error}")
        except Exception as error:  # http.client: the connection ended before the body did
            console.exit_with(console.FAILED, f"the export is not complete: {type(error).__name__}")


@click.command("import", short_help="Import exported orders.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.File("rb"))
def import_(files: tuple[BinaryIO, ...]) -> None:
    """
    Import orders that `orders export ORDER` has exported on another machine; - is stdin.

    \b
      DATABASE_URL=sqlite:///copy.db python -m app orders import order.json
      DATABASE_URL=sqlite:///copy.db python -m app serve

    Writes to the database that DATABASE_URL names, while no server runs on it. Then `orders explain` shows what it showed where
    the order comes from. The order does nothing here: it has no timer, and nothing is charged or refunded. An order that
    is here is not changed: the same one is nothing to do, another one with its id is refused.

    Exit codes: 0 done, or nothing to do; 1 a file is no export, or an order is here and differs; 2 wrong usage or configuration;
    3 a database is out of reach, not migrated, or used by a server.
    """
    from app.cli.orders.importing import Imported, ImportFailed, import_order
    from app.storage.errors import StorageUnavailable

    parts = console.parts(console.settings())
    claims = console.run_database_step(parts.storage.claim)
    console.run_database_step(parts.storage.require_tables)

    async def run() -> list[Imported]:
        try:
            return [await import_order(parts, _exported(file)) for file in files]
        finally:
            await parts.storage.close()

    try:
        for imported in asyncio.run(run()):
            what = f"imported, with {imported.transactions} transactions" if imported.is_new else "is here, and is the same"
            click.echo(f"{imported.order_id}: {what}")
    except ImportFailed as error:
        console.exit_with(console.FAILED, str(error))
    except StorageUnavailable as error:
        console.exit_with(console.OUT_OF_REACH, error.detail)
    finally:
        for claim in claims:
            claim.close()


def _exported(file: BinaryIO) -> Any:
    from app.cli.orders.importing import ImportFailed

    try:
        found = json.load(file)
    except ValueError:
        raise ImportFailed(f"{file.name} is not JSON") from None
    if not isinstance(found, dict):
        raise ImportFailed(f"{file.name} is no export of an order")
    return found
