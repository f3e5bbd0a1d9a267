"""``audit``: list who changed what, from the database, whether a server is running or not."""

from __future__ import annotations

__all__ = ["audit"]

import asyncio
from datetime import datetime

import click

from app.cli import console

COLUMNS = ("at", "actor", "action", "target", "from", "to")

DEAD_LETTER_ACTIONS = frozenset({"discardDeadLetter", "discardDeadLetters", "replayDeadLetter", "replayDeadLetters"})
"""Audited operations beside those of the modules' routes."""


@click.group(short_help="List who changed what.")
def audit() -> None:
    """
    List who changed what, from which value to which.

    \b
      python -m app audit list --target SKU-1
      python -m app audit list --actor back-office --after 1d

    Works on the database that DATABASE_URL names, with or without a running server.
    """


@audit.command("list")
@click.option("--actor", default=None, help="Only changes by this API key or user.")
@click.option("--action", default=None, help="Only changes by this operation, for example setProduct.")
@click.option("--target", default=None, help="Only changes of this order, product or dead letter.")
@click.option("--after", default=None, callback=console.parse_time, help=f"Only from here on: {console.TIME_FORMATS}.")
@click.option("--before", default=None, callback=console.parse_time, help="Only before; in the same formats.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="List at most this many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, in the format of the API.")
def list_(
    actor: str | None,
    action: str | None,
    target: str | None,
    after: datetime | None,
    before: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """
    List changes that a person or a key requested, the newest first.

    Placing an order is not among them: the order itself is the record.

    Exit codes: 0 done, also if there are none; 2 wrong usage or configuration, or no operation of that name; 3 the database
    does not exist, is not migrated or is out of reach.
    """
    import orjson

    from app.storage.audit import AuditTrail
    from app.storage.errors import StorageUnavailable
    from app.web.endpoints.audit import to_json
    from modules.routes import ImportRoute

    parts = console.stored_parts(console.settings())

    async def run() -> list[dict[str, object]]:
        trail = AuditTrail(parts.storage.stores)
        try:
            found = await trail.list(actor=actor, action=action, target=target, after=after, before=before, limit=limit)
        finally:
            await parts.storage.close()
        return [to_json(record) for record in found]

    try:
        rows = asyncio.run(run())
    except StorageUnavailable as error:
        console.exit_with(console.OUT_OF_REACH, error.detail)
    if not rows and action is not None:
        routes = (route for module in parts.modules for route in module.routes)
        audited = (route for route in routes if isinstance(route, ImportRoute) or getattr(route, "is_audited", False))
        known = {route.name for route in audited} | DEAD_LETTER_ACTIONS
        if action not in known:
            console.exit_with(console.USAGE, f"--action: there is no operation {action}; there are {', '.join(sorted(known))}")
    if as_json:
        console.print_json(rows)
    elif rows:
        shown = [{**row, "from": orjson.dumps(row["from"]).decode(), "to": orjson.dumps(row["to"]).decode()} for row in rows]
        click.echo(console.table(COLUMNS, [[str(row[column]) for column in COLUMNS] for row in shown]))
    else:
        click.echo("no changes")
