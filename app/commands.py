"""What the commands share: how they read the environment, put the house together, show what they found, and end."""

from __future__ import annotations

__all__ = ["FAILED", "OUT_OF_REACH", "USAGE", "application", "print_json", "settings", "stop", "table", "tables"]

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from config.settings import BadSetting, Settings, load

if TYPE_CHECKING:
    from app.build import Application

T = TypeVar("T")

FAILED, USAGE, OUT_OF_REACH = 1, 2, 3
"""The exit codes, beside 0."""


def stop(code: int, line: str) -> NoReturn:
    """Say *line* on stderr, and end the program with *code*."""
    click.echo(f"fulfilment: {line}", err=True)
    sys.exit(code)


def settings() -> Settings:
    """Return what the environment says; end the program in one line where that cannot be."""
    try:
        return load(os.environ)
    except BadSetting as error:
        stop(USAGE, str(error))


def application(settings: Settings) -> Application:
    """Put together what *settings* name; nothing of it runs. End the program in one line where it does not fit."""
    from app.build import Application
    from app.dialect import Unusable
    from bus.contracts import ContractError

    try:
        return Application(settings)
    except ContractError as error:
        stop(USAGE, f"contract: {error}")
    except Unusable as error:
        stop(USAGE, str(error))


def tables(do: Callable[[], T]) -> T:
    """*do* what `Application` offers about its databases; end the program in one line where it cannot be done."""
    from app.databases import OutOfReach
    from app.migrations import NewerDatabase, NotMigrated

    try:
        return do()
    except NewerDatabase as error:
        stop(OUT_OF_REACH, f"the database is newer than this release: {error}")
    except (NotMigrated, OutOfReach) as error:
        stop(OUT_OF_REACH, str(error))


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
