"""The databases of a process: which module is kept where, and whether its tables are what this release expects."""

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

_AT_ONCE_SECONDS = 0.2
"""Whoever was killed a moment ago is gone by then."""


class DatabaseUnreachable(Exception):
    """A database cannot be used now; its message is one line that names the variable, and neither host nor password."""


def open_databases(settings: Settings, modules: Iterable[str]) -> dict[str, Database]:
    """
    Return the databases of *modules*, by address; none of them has been asked for anything yet.

    Raises:
        Unusable: One of them cannot be opened; names the variable.
    """
    found: dict[str, Database] = {}
    for module in modules:
        url = settings.database_url(module)
        try:
            found[url] = found.get(url) or Database(url)
        except DatabaseConfigError as error:
            raise DatabaseConfigError(f"{_variable(settings, module)}: {error}") from None
    return found


def migrate_all(settings: Settings, databases: Mapping[str, Database], modules: Iterable[str]) -> list[str]:
    """
    Bring the tables of *modules* to the head; return the names of those that were behind.

    Raises:
        NewerDatabase: A database was written by a newer release.
        OutOfReach: One cannot be opened or written.
    """
    return [module for module in modules if _ask(settings, databases, module, migrate)]


def require_tables(settings: Settings, databases: Mapping[str, Database], modules: Iterable[str]) -> None:
    """
    See to it that the tables of *modules* are at the head: a database of our own is migrated, a shared one is not touched.

    Raises:
        NotMigrated: A shared database is behind.
        NewerDatabase, OutOfReach: As for `migrate_all`.
    """
    for module in modules:
        is_shared = databases[settings.database_url(module)].dialect.is_shared
        if not _ask(settings, databases, module, is_current if is_shared else migrate) and is_shared:
            raise NotMigrated(f"the tables of {module} are not up to date; run `python -m app migrate` first")


def claim_modules(settings: Settings, databases: Mapping[str, Database], modules: Iterable[str]) -> list[ExclusiveAccess]:
    """
    Claim *modules* in their databases, where only one process may serve them; close the claims to give them up.

    A process that is on its way out is waited for: a restart may overlap.

    Raises:
        OutOfReach: Another process has claimed one and does not end, or a database cannot be used.
    """
    claims: list[ExclusiveAccess] = []
    for module in modules:
        database = databases[settings.database_url(module)]
        claim = partial(database.dialect.acquire_exclusive, database.engine, module)
        try:
            try:
                found = claim(_AT_ONCE_SECONDS)
            except DatabaseConfigError as error:
                logger.warning(f"{error}; waiting for it to end", seconds=settings.shutdown_grace_s)
                found = claim(settings.shutdown_grace_s)
        except (DatabaseConfigError, sqlite3.OperationalError) as error:
            for each in claims:
                each.close()
            raise DatabaseUnreachable(f"{_variable(settings, module)}: {error}; end that first") from None
        if found is not None:
            claims.append(found)
    return claims


def _ask(settings: Settings, databases: Mapping[str, Database], module: str, question: Callable[[Engine, str], T]) -> T:
    database = databases[settings.database_url(module)]
    try:
        return question(database.engine, module)
    except DBAPIError as error:
        why = database.dialect.explain(error)
        raise DatabaseUnreachable(f"{_variable(settings, module)}: the database cannot be used: {why}") from error


def _variable(settings: Settings, module: str) -> str:
    """Return the name of the variable that says where *module* is kept."""
    own = f"{module}_database_url"
    return own.upper() if getattr(settings, own) else "DATABASE_URL"
