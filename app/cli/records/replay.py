"""``history verify`` and ``history rebuild``: decide the whole history again, and compare events and states."""

from __future__ import annotations

__all__ = ["rebuild", "verify"]

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from app.cli import console
from app.cli.records.replay_text import as_json, as_text
from modules.registry import MODULES

if TYPE_CHECKING:
    from app.bootstrap import Parts
    from app.runtime.replay.report import Report
    from app.storage.archive.parquet_archive import Archive
    from app.storage.module_store import ModuleStore
    from app.storage.sql.database import Database

_limit = click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(min=0), help="Differences of each kind that are shown."
)
_json = click.option("--json", "is_json", is_flag=True, help="Print one JSON object instead of text.")


def _explained(command: Callable[..., None]) -> Callable[..., None]:
    """End the process with one line if a database cannot be used."""

    @wraps(command)
    def run(**options: Any) -> None:
        from sqlalchemy.exc import DBAPIError

        from app.runtime.replay.run import BaselineMismatch, NotEmpty
        from app.storage.archive.parquet_manifest import ArchiveUnusable
        from app.storage.errors import StorageUnavailable

        try:
            command(**options)
        except BaselineMismatch as error:
            console.exit_with(console.USAGE, f"--baseline: {error}")
        except NotEmpty as error:
            console.exit_with(console.USAGE, f"--into: {error}")
        except ArchiveUnusable as error:
            console.exit_with(console.FAILED, str(error))
        except StorageUnavailable as error:
            console.exit_with(console.OUT_OF_REACH, error.detail)
        except DBAPIError as error:
            console.exit_with(console.OUT_OF_REACH, f"the database cannot be used: {str(error.orig).strip().partition(chr(10))[0]}")

    return run


@click.command(short_help="Decide the history again with the rules of today, and name what differs.")
@click.option("--module", default=None, type=click.Choice(list(MODULES)), help="Only the decisions of this module.")
@click.option("--baseline", default=None, metavar="URL", help="An earlier copy of the database; begin after what it has.")
@_limit
@_json
@_explained
def verify(module: str | None, baseline: str | None, limit: int, is_json: bool) -> None:
    """
    Decide the whole history again with the rules of this release, and name every event and every order that differs.

    \b
      python -m app history verify
      python -m app history verify --baseline sqlite:///yesterday.db --json

    Changes nothing; a server may be running. What comes from outside (requests, answers of the payment provider, timers that
    were due) is taken from the history; all events that follow are decided again, and what differs is followed through all
    modules. The states are kept in a temporary file, 1 KB an order; TMPDIR names its folder.

    Orders that begin before the history (it was purged, or the database is older) are counted and not compared; with a
    --baseline, all of them are.

    Exit codes: 0 nothing differs; 1 something differs, or a row of the history is damaged; 2 wrong usage or configuration; 3 a
    database does not exist, is not migrated or is out of reach.
    """
    from app.runtime.replay.run import create_state_tables
    from app.storage.sql.database import Database

    settings = console.settings()
    if module is not None and module not in settings.modules:
        console.exit_with(console.USAGE, f"MODULES: must contain {module}")
    parts = console.stored_parts(settings)
    names = tuple(settings.modules) if module is None else (module,)
    if baseline is not None and len({id(parts.storage.stores[name].database) for name in names}) > 1:
        console.exit_with(console.USAGE, "--baseline: the modules have several databases; name one with --module")
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="fulfilment-"))
        target = Database(f"sqlite:///{folder}/states.db")
        stack.callback(target.engine.dispose)
        create_state_tables(target.engine, parts.modules)
        report = _replayed(parts, names, target, limit, None if baseline is None else _existing(baseline, names))
    _end(report, parts, is_json, "today")


@click.command(short_help="Make all tables of states anew from the history, and compare them.")
@click.option("--into", required=True, metavar="URL", help="An empty database, which gets the tables.")
@_limit
@_json
@_explained
def rebuild(into: str, limit: int, is_json: bool) -> None:
    """
    Make all tables of states anew from the history, in another database, and compare them with the live ones.

    \b
      python -m app history rebuild --into sqlite:///rebuilt.db
      python -m app history rebuild --into postgresql://fulfilment@db/rebuilt

    The live database is only read; a server may be running. Every member of every state is compared, archived ones
    included. The new database has all of them in their tables, none in the archive, and neither history, inbox nor outbox: it
    is for comparing and reading, not for serving.

    Exit codes: 0 equal; 1 something differs, or a row of the history is damaged; 2 wrong usage or configuration, or the
    database has rows already; 3 a database does not exist, is not migrated or is out of reach.
    """
    from app.runtime.replay.run import require_empty
    from app.storage.errors import DatabaseConfigError
    from app.storage.migrations import migrate
    from app.storage.sql.database import Database

    parts = console.stored_parts(console.settings())
    try:
        target = Database(into)
        require_empty(target.engine, parts.modules)
    except DatabaseConfigError as error:
        console.exit_with(console.USAGE, f"--into: {error}")
    for module in parts.modules:
        migrate(target.engine, module.name)
    try:
        report = _replayed(parts, tuple(parts.settings.modules), target, limit, None)
    finally:
        target.engine.dispose()
    _end(report, parts, is_json, "rebuilt")


def _existing(url: str, modules: Sequence[str]) -> Database:
    """Return the database at *url*, which has the tables of this release; end the process if it has not."""
    from sqlalchemy import make_url

    from app.storage.errors import DatabaseConfigError
    from app.storage.migrations import is_current
    from app.storage.sql.database import Database

    if url.startswith("sqlite:") and not Path(make_url(url).database or "").is_file():
        console.exit_with(console.OUT_OF_REACH, f"--baseline: there is no database at {make_url(url).database}")
    try:
        found = Database(url)
    except DatabaseConfigError as error:
        console.exit_with(console.USAGE, f"--baseline: {error}")
    for module in modules:
        if not console.run_database_step(partial(is_current, found.engine, module)):
            console.exit_with(
                console.OUT_OF_REACH, f"--baseline: the tables of {module} are not those of this release; migrate the copy first"
            )
    return found


async def _check(parts: Parts, archive: Archive, groups: Sequence[Sequence[str]]) -> None:
    """Ensure that *archive* belongs to the databases of the modules in *groups*, and close what this has opened."""
    try:
        for names in groups:
            source = await parts.storage.history.source(*names)
            await source.check(archive.archives())
    finally:
        await parts.storage.close()  # its threads belong to this event loop; the replay opens connections of its own


def _replayed(
    parts: Parts, names: Sequence[str], target: Database, limit: int, baseline: Database | None
) -> Report:
    from tqdm import tqdm

    from app.gateways.gateway_request import answer_id
    from app.runtime.replay.report import Report
    from app.runtime.replay.run import replay
    from app.runtime.replay.source import DatabaseHistory
    from app.storage.archive.parquet_archive import Archive

    stores = {name: parts.storage.stores[name] for name in names}
    grouped: dict[Database, dict[str, ModuleStore]] = {}
    for name, store in stores.items():
        grouped.setdefault(store.database, {})[name] = store
    archive = None if parts.settings.history_archive is None else Archive(Path(parts.settings.history_archive))
    if archive is not None:
        asyncio.run(_check(parts, archive, [tuple(found) for found in grouped.values()]))
    histories = [DatabaseHistory(database, found, archive=archive) for database, found in grouped.items()]
    report = Report(limit)
    total = sum(each.count() for each in histories)
    with tqdm(total=total, unit="transaction", desc="history", disable=not sys.stderr.isatty()) as bar:
        replay(
            [module for module in parts.modules if module.name in stores], stores, histories, target, parts.contracts, report, answer_id,
            baseline=baseline, progress=bar.update,
        )  # fmt: skip
    return report


def _end(report: Report, parts: Parts, is_json: bool, word: str) -> None:
    if is_json:
        console.print_json(as_json(report))
    else:
        click.echo(as_text(report, word, f"ORDER_TIMEOUT_S={parts.settings.order_timeout_s:g}"))
    if not report.is_equal:
        sys.exit(console.FAILED)


