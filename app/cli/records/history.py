"""``history``: export every event that was published, and archive closed days, whether a server is running or not."""

from __future__ import annotations

__all__ = ["history"]

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from app.cli import console
from app.cli.records.history_archive import archive
from app.cli.records.replay import rebuild, verify
from modules.registry import MODULES

if TYPE_CHECKING:
    from app.storage.archive.history_content import HistoryEvent
    from app.storage.archive.history_reader import HistoryReader


@click.group(short_help="Export and archive every event that was published; decide all of it again.")
def history() -> None:
    """
    Export or archive every event that was published, local delivery included, in order, or decide all of it again.

    \b
      python -m app history export > history.ndjson
      python -m app history export --after 786432 >> history.ndjson
      python -m app history archive --into archive
      python -m app history verify
      python -m app history rebuild --into sqlite:///rebuilt.db

    Works on the database that DATABASE_URL names, with or without a running server.
    """


history.add_command(archive)
history.add_command(verify)
history.add_command(rebuild)


@history.command()
@click.option("--after", default=0, type=click.IntRange(min=0), help="Only events that follow the one with this seq.")
@click.option("--module", default=None, type=click.Choice(list(MODULES)), help="Only the events of this module.")
@click.option("--subject", default=None, help="Only events under this subject, for example orders.confirmed.v1.")
def export(after: int, module: str | None, subject: str | None) -> None:
    """
    Print the events, the oldest first, one JSON object a line.

    Each line has the members of the API, and the key. To continue an export that ended early, or later, give the seq of its
    last line as --after. Modules that have a database each have an order each: name one with --module. A progress bar is
    shown on a terminal.

    Exit codes: 0 done, also if there are no events; 1 the history is damaged, or was written by a newer release; 2 wrong
    usage or configuration, or --after is beyond the last event; 3 the database does not exist, is not migrated or is out of
    reach.
    """
    from app.storage.archive.history_reader import SeveralDatabases
    from app.storage.errors import StorageUnavailable
    from app.web.endpoints.history import subjects_of
    from bus.subjects import EXPRESS, without_lane

    settings = console.settings()
    if module is not None and module not in settings.modules:
        console.exit_with(console.USAGE, f"MODULES: must contain {module}")
    parts = console.stored_parts(settings)
    storage, subjects = parts.storage, subjects_of(parts.contracts)
    if subject is not None and without_lane(subject) not in subjects:
        console.exit_with(console.USAGE, f"--subject: must be one of {', '.join(subjects)}, or one of them with {EXPRESS}")

    async def run() -> None:
        try:
            await _export(storage.history, after, module, subject)
        finally:
            await storage.close()

    try:
        asyncio.run(run())
    except SeveralDatabases as error:
        console.exit_with(console.USAGE, f"--module: {error}")
    except StorageUnavailable as error:
        console.exit_with(console.OUT_OF_REACH, error.detail)
    except ValueError as error:
        console.exit_with(console.FAILED, str(error))


async def _export(reader: HistoryReader, after: int, module: str | None, subject: str | None) -> None:
    from tqdm import tqdm

    from app.storage.archive.history_content import POSITIONS

    bounds = await reader.bounds(module)
    if bounds is None and not after:
        return
    first, last = bounds or (0, 0)
    if after >= (last + 1) * POSITIONS:
        detail = f"{after} is beyond the last event of this database; was it exported from another one?"
        console.exit_with(console.USAGE, f"--after: {detail}")
    start = max(after // POSITIONS, first)
    with tqdm(total=last + 1 - start, unit="transaction", desc="history", disable=not sys.stderr.isatty()) as bar:
        async for events in reader.events(after=after, module=module, subject=subject):
            _write(events)
            reached = min(events[-1].seq // POSITIONS, last) if events else start - 1
            bar.update(max(reached + 1 - start - bar.n, 0))


def _write(events: Sequence[HistoryEvent]) -> None:
    import orjson

    from app.web.endpoints.history import to_json

    out = sys.stdout.buffer
    for event in events:
        out.write(orjson.dumps({**to_json(event), "key": event.key}) + b"\n")
    out.flush()
