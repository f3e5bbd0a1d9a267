"""What the commands share: how they read the environment, put the house together, show what they found, and end."""

from __future__ import annotations

__all__ = [
    "FAILED",
    "OUT_OF_REACH",
    "TIME_FORMATS",
    "USAGE",
    "application",
    "exit_with",
    "parse_time",
    "print_json",
    "run_database_step",
    "settings",
    "table",
    "with_key",
]

import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from config.settings import BadSetting, Settings, load

if TYPE_CHECKING:
    from app.bootstrap import Application

T = TypeVar("T")

FAILED, USAGE, OUT_OF_REACH = 1, 2, 3
"""The exit codes, beside 0."""

TIME_FORMATS = "a time (2026-01-31T09:00:00Z; UTC if it names no zone), a date (2026-01-31, in UTC) or an age (90m, 2h, 1d)"
"""What `parse_time` reads, for the help of an option."""

_AGO = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_KEY = re.compile(rb"[!-~]+")


def exit_with(code: int, line: str) -> NoReturn:
    """Say *line* on stderr, and end the program with *code*."""
    click.echo(f"fulfilment: {line}", err=True)
    sys.exit(code)


def settings() -> Settings:
    """Return what the environment says; end the program in one line where that cannot be."""
    try:
        return load(os.environ)
    except BadSetting as error:
        exit_with(USAGE, str(error))


def application(settings: Settings) -> Application:
    """Put together what *settings* name; nothing of it runs. End the program in one line where it does not fit."""
    from app.bootstrap import Application
    from app.storage.errors import DatabaseConfigError
    from bus.errors import ContractError

    try:
        return Application(settings)
    except ContractError as error:
        exit_with(USAGE, f"contract: {error}")
    except DatabaseConfigError as error:
        exit_with(USAGE, str(error))


def run_database_step(do: Callable[[], T]) -> T:
    """*do* what `Application` offers about its databases; end the program in one line where it cannot be done."""
    from app.storage.databases import DatabaseUnreachable
    from app.storage.migrations import NewerDatabase, NotMigrated

    try:
        return do()
    except NewerDatabase as error:
        exit_with(OUT_OF_REACH, f"the database is newer than this release: {error}")
    except (NotMigrated, DatabaseUnreachable) as error:
        exit_with(OUT_OF_REACH, str(error))


def parse_time(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """Read `TIME_FORMATS`, as an option's callback; return it in UTC."""
    if value is None:
        return None
    text = value.strip()
    try:
        if ago := _AGO.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is not {TIME_FORMATS}") from None


def _key(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        found = Path(value).read_bytes().strip()
    except OSError as error:
        raise click.BadParameter(f"{value}: {error.strerror}") from None
    if not _KEY.fullmatch(found):
        raise click.BadParameter(f"{value} must hold one API key, of visible ASCII characters, and nothing else")
    return found.decode("ascii")


with_key = click.option(
    "--key-file",
    "key",
    default=None,
    type=click.Path(exists=True, dir_okay=False),
    callback=_key,
    help="A file that holds an API key, for a server with AUTH=keys.",
)
"""Gives a command the parameter *key*: what the file holds, or None."""


def print_json(value: Any) -> None:
    """Print *value* as JSON that a person can read, too."""
    import orjson

    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return *rows* in columns as wide as they must be, under *head*."""
    lines = [[column.upper() for column in head], *rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)
