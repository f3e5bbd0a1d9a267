"""``republish``: say again what was sent, after a stream was lost."""

from __future__ import annotations

__all__ = ["republish"]

import asyncio
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import click

from app.cli import console
from config.settings import MODULES
from modules.values import rfc3339

if TYPE_CHECKING:
    from app.storage.module_store import ModuleStore
    from config.settings import Settings


@click.command()
@click.option(
    "--since", required=True, callback=console.parse_time, metavar="WHEN", help=f"What was sent since then: {console.TIME_FORMATS}."
)
@click.option("--module", "names", multiple=True, type=click.Choice(MODULES), help="Only this module; may be repeated.")
def republish(since: datetime, names: tuple[str, ...]) -> None:
    """
    Publish again what was sent, from the outbox, because a stream was lost.

    A module's sent events are kept for a day. They go out under the ids that they had, so nothing has a second effect:
    neither what the stream still holds nor what somebody has heard before. Streams that are missing are founded first.
    Servers may run meanwhile. Needs BUS=nats.
    """
    settings = console.settings()
    if settings.bus != "nats":
        console.exit_with(console.USAGE, "BUS: must be nats; a bus in memory has no streams to lose")
    unknown = [name for name in names if name not in settings.modules]
    if unknown:
        console.exit_with(console.USAGE, f"MODULES: {', '.join(unknown)} is not among them")
    application = console.application(settings)
    console.run_database_step(application.require_tables)
    chosen = {name: store for name, store in application.stores.items() if name in (names or settings.modules)}
    counts = _at_nats(settings, chosen, since)
    said = ", ".join(f"{name} {count}" for name, count in counts.items())
    click.echo(f"republished {sum(counts.values())} events since {rfc3339(since)} ({said})")


def _at_nats(settings: Settings, stores: Mapping[str, ModuleStore], since: datetime) -> dict[str, int]:
    """Publish again, with a bar on a terminal; end the program in one line where something is out of reach."""
    import logging

    from app.clock import SystemClock
    from app.messaging.nats_session import BrokerOutOfReach, publisher
    from app.messaging.republish import PublishStalled, count
    from app.messaging.republish import republish as publish_again
    from app.storage.errors import StorageUnavailable

    logging.getLogger("bus").addHandler(logging.NullHandler())

    async def there() -> dict[str, int]:
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
        return asyncio.run(there())
    except BrokerOutOfReach as error:
        console.exit_with(console.OUT_OF_REACH, str(error))
    except StorageUnavailable as error:
        console.exit_with(console.OUT_OF_REACH, error.detail)
    except PublishStalled as error:
        console.exit_with(console.FAILED, f"not everything was republished: {error}")
