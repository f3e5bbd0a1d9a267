"""``analytics run``: take the events of all modules into the DuckDB file, and follow."""

from __future__ import annotations

__all__ = ["run"]

import asyncio
import ctypes
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli import console
from app.cli.analytics.extra import require_extra
from config.settings import Settings

if TYPE_CHECKING:
    from tqdm import tqdm

    from app.analytics.ingest import Progress

M_ARENA_MAX, ARENAS = -8, 2
"""
A parameter of glibc's ``mallopt``, and its value. Each thread would have an arena of its own, and what is freed in one stays there: what
one thread reads another one frees, and the process takes some 80 MiB more.
"""


@click.command(short_help="Take the events of all modules into the file, and follow.")
@click.option("--file", default=None, help="The DuckDB file, instead of ANALYTICS_FILE.")
@click.option("--once", is_flag=True, help="End when everything that is there now is taken.")
@click.option("--from-zero", is_flag=True, help="Empty the file first, and read everything from its beginning.")
@click.option(
    "--source",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "database", "bus"]),
    help="Where the events come from: the histories in the databases, or the streams of the bus.",
)
def run(file: str | None, once: bool, from_zero: bool, source: str) -> None:
    """
    Take the events of all modules into a DuckDB file, each exactly once, and follow until SIGTERM or SIGINT.

    \b
      python -m app analytics run
      python -m app analytics run --file /tmp/analytics.duckdb --once
      BUS=nats python -m app analytics run --source bus

    Reads the histories in the databases that DATABASE_URL, or ORDERS_DATABASE_URL and so on, name, with or without a running
    server. With BUS=nats a module whose database is not there is read from its stream, which keeps 47 hours. It goes on where it
    ended, after a kill, too. Progress is shown on a terminal.

    Exit codes: 0 ended by a signal, or everything is taken; 1 the file cannot be used, or a history is damaged; 2 wrong usage
    or configuration, or the packages of the extra are missing; 3 a database does not exist, is not migrated or is out of
    reach, or NATS is.
    """
    settings = console.settings(ANALYTICS_FILE=file)
    if source == "bus" and settings.bus == "memory":
        console.exit_with(console.USAGE, "--source: bus needs BUS=nats")
    require_extra()
    from app.analytics.errors import AnalyticsError, SourceUnavailable
    from app.storage.errors import StorageUnavailable

    os.umask(0o077)  # the file has customers' data, as the databases do
    try:
        with suppress(asyncio.CancelledError):  # by a signal
            console.run_database_step(lambda: asyncio.run(_run(settings, once=once, from_zero=from_zero, source=source)))
    except StorageUnavailable as error:
        console.exit_with(console.OUT_OF_REACH, error.detail)
    except SourceUnavailable as error:
        console.exit_with(console.OUT_OF_REACH, str(error))
    except (AnalyticsError, ValueError) as error:
        console.exit_with(console.FAILED, str(error))


async def _run(settings: Settings, *, once: bool, from_zero: bool, source: str) -> None:
    import pyarrow as pa
    from tqdm import tqdm

    from app.analytics.analytics_file import AnalyticsFile
    from app.analytics.ingest import Ingest
    from app.analytics.projections.declaration import load
    from app.analytics.projections.views import create_views
    from app.analytics.query_server import QueryServer
    from app.analytics.sources.choice import open_sources
    from app.messaging.event_registry import build_registry

    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own allocators keep some 200 MiB that are free
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    path, contracts = Path(settings.analytics_file), build_registry(())
    file = AnalyticsFile(path, contracts, memory=settings.analytics_memory, from_zero=from_zero)
    async with AsyncExitStack() as stack:
        stack.callback(file.close)
        create_views(file.connection, load())
        found = await stack.enter_async_context(open_sources(settings, contracts, file.id, source))
        server = QueryServer(path, file.connection)
        await server.start()
        stack.push_async_callback(server.close)
        bar = stack.enter_context(tqdm(unit=" events", desc="analytics", disable=not sys.stderr.isatty()))
        ingest = Ingest(file, found.sources, lambda progress: _show(bar, progress))
        await ingest.run(once=once)


def _show(bar: tqdm[Any], progress: Progress) -> None:
    bar.update(progress.read)
