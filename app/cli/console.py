"""Shared parts of the commands: read the environment, build the application, print results, end with an exit code."""

from __future__ import annotations

__all__ = [
    "FAILED",
    "OUT_OF_REACH",
    "TIME_FORMATS",
    "USAGE",
    "amount",
    "application",
    "audited",
    "exit_with",
    "parse_time",
    "parts",
    "print_json",
    "run_database_step",
    "settings",
    "stored_parts",
    "table",
    "with_key",
]

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from config.environment import load
from config.files import BadSetting
from config.settings import Settings
from modules.registry import MODULES
from modules.values import decimal_text

if TYPE_CHECKING:
    from app.application import Application
    from app.bootstrap import Parts
    from app.storage.audit import Audit

T = TypeVar("T")

FAILED, USAGE, OUT_OF_REACH = 1, 2, 3
"""The exit codes other than 0."""

TIME_FORMATS = (
    "a time (2026-01-31T09:00:00Z; UTC if it names no zone), a date (2026-01-31, in UTC) or an age (90m, 2h, 1d)"
)
"""The formats that `parse_time` reads, for the help of an option."""

_AGE = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_KEY = re.compile(rb"[!-~]+")


def exit_with(code: int, line: str) -> NoReturn:
    """Print *line* on stderr and end the process with *code*."""
    click.echo(f"fulfilment: {line}", err=True)
    sys.exit(code)


def settings(**options: str | None) -> Settings:
    """
    Return the settings from the environment; end the process with one line if a variable is invalid.

    *options* are values from the command line, by the name of the variable that each replaces; None sets nothing.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return load({**os.environ, **given}, MODULES)
    except BadSetting as error:
        exit_with(USAGE, str(error))


def application(settings: Settings) -> Application:
    """Build the application without starting it; end the process with one line if that is impossible."""
    from app.application import Application

    return _build(Application, settings)


def parts(settings: Settings) -> Parts:
    """Build the parts without a web server; end the process with one line if that is impossible."""
    from app.bootstrap import build_parts

    return _build(build_parts, settings)


def stored_parts(settings: Settings) -> Parts:
    """Build the parts over databases that exist and are up to date; end the process with one line if one is not."""
    from app.storage.databases import require_existing

    run_database_step(lambda: require_existing(settings, settings.modules))
    found = parts(settings)
    run_database_step(found.storage.check_tables)
    return found


def _build(build: Callable[[Settings], T], settings: Settings) -> T:
    from app.storage.errors import DatabaseConfigError
    from bus.errors import ContractError

    try:
        return build(settings)
    except ContractError as error:
        exit_with(USAGE, f"contract: {error}")
    except (BadSetting, DatabaseConfigError) as error:
        exit_with(USAGE, str(error))


def run_database_step(step: Callable[[], T]) -> T:
    """
    Call *step*, a method of `app.storage.databases.Storage` or `Application.start`, and return its result.

    End the process with one line if the database is unusable.
    """
    from app.storage.databases import DatabaseUnreachable
    from app.storage.migrations import NewerDatabase, NotMigrated

    try:
        return step()
    except NewerDatabase as error:
        exit_with(OUT_OF_REACH, f"the database is newer than this release: {error}")
    except (NotMigrated, DatabaseUnreachable) as error:
        exit_with(OUT_OF_REACH, str(error))


def audited(action: str, target: str = "") -> Audit:
    """Return, for the audit, that the user who runs this command requests *action*, an operation id of the API."""
    from app.storage.audit import Audit

    try:
        user = getuser()
    except (KeyError, OSError):  # a container may have no entry for its user
        user = str(os.getuid())
    return Audit(f"cli:{user}", action, target)


def parse_time(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """Parse one of `TIME_FORMATS` into UTC; the callback of an option."""
    if value is None:
        return None
    text = value.strip()
    try:
        if age := _AGE.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{_UNITS[age[2]]: int(age[1])})
        parsed = datetime.fromisoformat(text)
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is not {TIME_FORMATS}") from None


def _read_key(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        key = Path(value).read_bytes().strip()
    except OSError as error:
        raise click.BadParameter(f"{value}: {error.strerror}") from None
    if not _KEY.fullmatch(key):
        raise click.BadParameter(f"{value} must contain one API key of visible ASCII characters and nothing else")
    return key.decode("ascii")


with_key = click.option(
    "--key-file",
    "key",
    default=None,
    type=click.Path(exists=True, dir_okay=False),
    callback=_read_key,
    help="File that contains the API key, for a server with AUTH=keys.",
)
"""Adds the option --key-file to a command; the parameter *key* is the content of the file, or None."""


def amount(money: Mapping[str, Any]) -> str:
    """Return *money*, as the API shows it in minor units, in the usual unit of its currency: ``12.50 EUR`` (ISO 4217)."""
    return f"{decimal_text(money['amount'], money['currency'])} {money['currency']}"


def print_json(value: Any) -> None:
    """Print *value* as indented JSON."""
    import orjson

    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return *rows* as text in aligned columns below the headings *head*."""
    lines = [[column.upper() for column in head], *rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)
