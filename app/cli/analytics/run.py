"""``analytics run``: take the events of all modules into the DuckDB file, and follow."""

from __future__ import annotations

__all__ = ["run"]

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli import console
from app.cli.analytics.extra import require_extra
from config.settings import Settings

if TYPE_CHECKING:
    from tqdm import tqdm

    from app.analytics.ingest import Progress


@click.command(short_help="Take the events of all modules into the file, and follow.")
@click.option("--file", default=None, help="The DuckDB file, instead of ANALYTICS_FILE.")
@click.option("--once", is_flag=True, help="End when everything that is there now is taken.")
def run(file: str | None, once: bool) -> None:
    """
    Take the events of all modules into a DuckDB file, each exactly once, and follow until SIGTERM or SIGINT.

    \b
      python -m app analytics run
      python -m app analytics run --file /tmp/analytics.duckdb --once

    Reads the history in the databases that DATABASE_URL, or ORDERS_DATABASE_URL and so on, name, with or without a running
    server. It goes on where it ended, after a kill, too. Progress is shown on a terminal.

    Exit codes: 0 ended by a signal, or everything is taken; 1 the file cannot be used, or a history is damaged; 2 wrong usage
    or configuration, or the packages of the extra are missing; 3 a database does not exist, is not migrated or is out of
    reach.
    """
    settings = console.settings(ANALYTICS_FILE=file)
    require_extra()
    from app.analytics.errors import AnalyticsError
    from app.storage.errors import StorageUnavailable

    try:
        asyncio.run(_run(settings, once))
    except StorageUnavailable as error:
        console.exit_with(console.OUT_OF_REACH, error.detail)
    except (AnalyticsError, ValueError) as error:
        console.exit_with(console.FAILED, str(error))


async def _run(settings: Settings, once: bool) -> None:
    from tqdm import tqdm

    from app.analytics.analytics_file import AnalyticsFile
    from app.analytics.errors import AnalyticsError
    from app.analytics.ingest import Ingest
    from app.analytics.projections.declaration import load
    from app.analytics.projections.views import create_views
    from app.analytics.query_server import QueryServer
    from app.analytics.sources.history import HistorySource
    from app.messaging.event_registry import build_registry

    storage = console.stored_parts(settings).storage
    path = Path(settings.analytics_file)
    os.umask(0o077)  # the file has customers' data, as the databases do
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = AnalyticsFile(path, build_registry(()), memory=settings.analytics_memory)
    try:
        create_views(opened.connection, load())
    except AnalyticsError:
        opened.close()
        raise
    with tqdm(unit="event", desc="events", disable=not sys.stderr.isatty()) as bar:
        server = QueryServer(path, opened.connection)
        await server.start()
        ingest = Ingest(opened, [HistorySource("history", storage.history)], lambda progress: _show(bar, progress))
        task = asyncio.create_task(ingest.catch_up() if once else ingest.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            with suppress(asyncio.CancelledError):
                await task
        finally:
            await server.close()
            opened.close()
            await storage.close()


def _show(bar: tqdm[Any], progress: Progress) -> None:
    bar.update(progress.read)
