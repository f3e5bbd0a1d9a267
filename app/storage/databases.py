"""The databases of a process: open them, migrate their tables, and claim the modules that only one process may serve."""

from __future__ import annotations

__all__ = ["DatabaseUnreachable", "claim_modules", "migrate_all", "open_databases", "require_tables"]

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

from loguru import logger
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.storage.errors import DatabaseConfigError
from app.storage.migrations import NotMigrated, is_current, migrate
from app.storage.sql.database import Database
from app.storage.sql.dialect import ExclusiveAccess
from config.settings import Settings

T = TypeVar("T")

_FIRST_CLAIM_SECONDS = 0.2
"""Long enough for a process that was killed a moment ago to be gone; nothing is logged before."""


class DatabaseUnreachable(Exception):
    """A database cannot be used now; the message is one line that names the variable, and neither host nor password."""


def open_databases(settings: Settings, modules: Iterable[str]) -> dict[str, Database]:
    """
    Return the databases of *modules* by URL; no connection is opened yet.

    Raises:
        DatabaseConfigError: A URL is invalid, or its driver is not installed; names the variable.
    """
    databases: dict[str, Database] = {}
    for module in modules:
        url = settings.database_url(module)
        try:
            databases[url] = databases.get(url) or Database(url)
        except DatabaseConfigError as error:
            raise DatabaseConfigError(f"{_variable(settings, module)}: {error}") from None
    return databases


def migrate_all(settings: Settings, databases: Mapping[str, Database], modules: Iterable[str]) -> list[str]:
    """
    Migrate the tables of *modules* to the latest revision; return the names of the modules that were behind.

    Raises:
        NewerDatabase: A database was written by a newer release.
        DatabaseUnreachable: A database cannot be opened or written.
    """
    return [module for module in modules if _call(settings, databases, module, migrate)]


def require_tables(settings: Settings, databases: Mapping[str, Database], modules: Iterable[str]) -> None:
    """
    Ensure that the tables of *modules* are at the latest revision.

    A database that only this process uses is migrated; a shared one is only checked.

    Raises:
        NotMigrated: A shared database is behind.
        NewerDatabase, DatabaseUnreachable: As for `migrate_all`.
    """
    for module in modules:
        is_shared = databases[settings.database_url(module)].dialect.is_shared
        if not _call(settings, databases, module, is_current if is_shared else migrate) and is_shared:
            raise NotMigrated(f"the tables of {module} are not up to date; run `python -m app migrate` first")


def claim_modules(settings: Settings, databases: Mapping[str, Database], modules: Iterable[str]) -> list[ExclusiveAccess]:
    """
    Acquire exclusive access to *modules* where only one process may serve them; close the results to give it up.

    Waits up to the shutdown grace for a process that is shutting down, because a restart may overlap.

    Raises:
        DatabaseUnreachable: Another process keeps its access, or a database cannot be used.
    """
    claims: list[ExclusiveAccess] = []
    for module in modules:
        database = databases[settings.database_url(module)]
        acquire = partial(database.dialect.acquire_exclusive, database.engine, module)
        try:
            try:
                claim = acquire(_FIRST_CLAIM_SECONDS)
            except DatabaseConfigError as error:
                logger.warning(f"{error}; waiting for it to end", seconds=settings.shutdown_grace_s)
                claim = acquire(settings.shutdown_grace_s)
        except (DatabaseConfigError, sqlite3.OperationalError) as error:
            for acquired in claims:
                acquired.close()
            raise DatabaseUnreachable(f"{_variable(settings, module)}: {error}; end that first") from None
        if claim is not None:
            claims.append(claim)
    return claims


def _call(settings: Settings, databases: Mapping[str, Database], module: str, function: Callable[[Engine, str], T]) -> T:
    """Call *function* with the engine and the name of *module*; explain an error of the database to the operator."""
    database = databases[settings.database_url(module)]
    try:
        return function(database.engine, module)
    except DBAPIError as error:
        why = database.dialect.explain(error)
        raise DatabaseUnreachable(f"{_variable(settings, module)}: the database cannot be used: {why}") from error


def _variable(settings: Settings, module: str) -> str:
    """Return the name of the environment variable that gives the database of *module*."""
    own = f"{module}_database_url"
    return own.upper() if getattr(settings, own) else "DATABASE_URL"
