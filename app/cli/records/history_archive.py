"""``history archive``: write closed days of the history into a folder, verify them, and delete them from the database."""

from __future__ import annotations

__all__ = ["archive"]

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.cli import console

if TYPE_CHECKING:
    from app.storage.archive.parquet_manifest import Manifest


@click.command()
@click.option("--into", default=None, type=click.Path(file_okay=False), help="Folder of the archive, instead of HISTORY_ARCHIVE.")
@click.option("--purge", is_flag=True, help="Also delete from the database what is in the archive, and older than HISTORY_KEPT.")
@click.option("--check", default=None, type=click.Path(file_okay=False), help="Only verify every file of the archive in this folder.")
def archive(into: str | None, purge: bool, check: str | None) -> None:
    """
    Write closed days as Parquet files into a folder, and verify them.

    A day is closed an hour after its end, in UTC. A run that was interrupted is continued by the next one. With HISTORY_ARCHIVE,
    export and GET /v1/history read the folder and the database as one history. --purge verifies each file of a day
    just before it deletes the rows of that day.

    Exit codes: 0 done, also if no day is closed; 1 a file is missing or damaged, cannot be written, or does not fit the database, or
    another process is writing to the archive; 2 wrong usage or configuration; 3 the database does not exist, is not migrated
    or is out of reach.
    """
    from app.storage.archive.parquet_manifest import ArchiveUnusable

    if check is not None and (into is not None or purge):
        console.exit_with(console.USAGE, "--check: verifies an archive, without --into and --purge")
    try:
        if check is not None:
            _check_archive(check)
        else:
            _archive(into, purge)
    except ArchiveUnusable as error:
        console.exit_with(console.FAILED, str(error))


def _archive(into: str | None, purge: bool) -> None:
    from app.storage.archive.history_reader import HistoryReader
    from app.storage.archive.parquet_archive import Archive
    from app.storage.archive.parquet_writer import HistoryArchiver
    from app.storage.errors import StorageUnavailable

    settings = console.settings(HISTORY_ARCHIVE=into)
    if settings.history_archive is None:
        console.exit_with(console.USAGE, "--into: name the folder of the archive, or set HISTORY_ARCHIVE")
    kept = None if settings.history_kept is None else timedelta(seconds=settings.history_kept)
    storage, archive = console.stored_parts(settings).storage, Archive(Path(settings.history_archive))

    async def run() -> None:
        histories = {name: (store.database, store.history) for name, store in storage.stores.items()}
        reader = HistoryReader(histories, archive=archive)
        try:
            for group in reader.groups():
                archiver = HistoryArchiver(await reader.source(*group), archive)
                async for day in archiver.archive():
                    _print_day("archived", day.manifest, day.manifest.row_count)
                if purge:
                    async for day in archiver.purge(group, kept):
                        _print_day("purged", day.manifest, day.purged)
        finally:
            await storage.close()

    try:
        with archive.lock():
            asyncio.run(run())
    except StorageUnavailable as error:
        console.exit_with(console.OUT_OF_REACH, error.detail)
    except ValueError as error:
        console.exit_with(console.FAILED, str(error))


def _check_archive(folder: str) -> None:
    from tqdm import tqdm

    from app.storage.archive.parquet_archive import Archive

    archive = Archive(Path(folder))
    lines = []
    for module, found in archive.archives().modules.items():
        for manifest in tqdm(found.manifests, unit="day", desc=module, disable=not sys.stderr.isatty()):
            archive.verify(manifest)
        days, size = found.manifests, sum(part.bytes for manifest in found.manifests for part in manifest.parts)
        counts = (sum(each.row_count for each in days), sum(each.event_count for each in days), sum(each.incomplete for each in days))
        lines.append([module, str(days[0].day), str(days[-1].day), str(len(days)), *map(str, counts), str(size)])
    archive.require_listed()
    click.echo(console.table(["module", "first day", "last day", "days", "rows", "events", "incomplete", "bytes"], lines))


def _print_day(verb: str, manifest: Manifest, rows: int) -> None:
    size = sum(part.bytes for part in manifest.parts)
    more = f" {manifest.event_count} events {size} bytes" if verb == "archived" else ""
    click.echo(f"{verb} {manifest.day} {manifest.module}: {rows} rows{more}")
