"""``republish``: publish sent events again from the outbox, after a stream was lost."""

from __future__ import annotations

__all__ = ["republish"]

import asyncio
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import click

from app.cli import console
from modules.registry import MODULES
from modules.values import rfc3339

if TYPE_CHECKING:
    from app.storage.module_store import ModuleStore
    from config.settings import Settings


@click.command(short_help="Publish events again after a lost stream.")
@click.option(
    "--since",
    required=True,
    callback=console.parse_time,
    metavar="WHEN",
    help=f"Publish the events sent at or after WHEN: {console.TIME_FORMATS}.",
)
@click.option(
    "--module",
    "names",
    multiple=True,
    type=click.Choice(MODULES),
    help="Only the events of this module; can be repeated. By default every module that MODULES names.",
)
def republish(since: datetime, names: tuple[str, ...]) -> None:
    """
    Publish sent events again from the outbox, after a JetStream stream was lost.

    \b
      BUS=nats python -m app republish --since 2h
      BUS=nats python -m app republish --since 2026-01-31T09:00:00Z --module orders

    The outbox keeps sent events for a day. They are published with their original ids, so nothing takes effect twice: the
    stream drops the ids that it still knows, and a consumer ignores an event that it has processed. Missing streams are
    created first. Servers may keep running. Needs BUS=nats.

    Exit codes: 0 done; 1 the broker stopped accepting messages; 2 wrong usage or configuration; 3 NATS or the database
    is out of reach.
    """
    settings = console.settings()
    if settings.bus != "nats":
        console.exit_with(console.USAGE, "BUS: must be nats; the memory bus has no streams to publish to again")
    missing = [name for name in names if name not in settings.modules]
    if missing:
        console.exit_with(console.USAGE, f"MODULES: must contain {', '.join(missing)}")
    storage = console.stored_parts(settings).storage
    chosen = {name: store for name, store in storage.stores.items() if name in (names or settings.modules)}
    counts = _republish_all(settings, chosen, since)
    by_module = ", ".join(f"{name} {count}" for name, count in counts.items())
    click.echo(f"republished {sum(counts.values())} events since {rfc3339(since)} ({by_module})")


def _republish_all(settings: Settings, stores: Mapping[str, ModuleStore], since: datetime) -> dict[str, int]:
    """Publish the events of *stores* again; return the counts by module. Shows a progress bar on a terminal."""
    import logging

    from app.clock import SystemClock
    from app.messaging.nats_session import BrokerOutOfReach, publisher
    from app.messaging.republish import PublishStalled, count
    from app.messaging.republish import republish as publish_again
    from app.storage.errors import StorageUnavailable

    logging.getLogger("bus").addHandler(logging.NullHandler())

    async def run() -> dict[str, int]:
        from tqdm import tqdm

        try:
            async with publisher(settings) as bus:
                total = sum([await count(store, since) for store in stores.values()])
                with tqdm(total=total, unit="event", desc="republish", disable=not sys.stderr.isatty()) as bar:
                    return {
                        name: await publish_again(store, bus, SystemClock(), since, on_sent=bar.update)
                        for name, store in stores.items()
                    }
        finally:
            for database in {id(store.database): store.database for store in stores.values()}.values():
                await database.close()

    try:
        return asyncio.run(run())
    except BrokerOutOfReach as error:
        console.exit_with(console.OUT_OF_REACH, str(error))
    except StorageUnavailable as error:
        console.exit_with(console.OUT_OF_REACH, error.detail)
    except PublishStalled as error:
        console.exit_with(console.FAILED, f"not every event was republished; run the command again: {error}")
