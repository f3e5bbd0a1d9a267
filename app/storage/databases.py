"""The databases of a process: open them, migrate their tables, and claim the modules that only one process may serve."""

from __future__ import annotations

__all__ = [
    "DatabaseUnreachable",
    "ModuleClaimed",
    "Storage",
    "build_storage",
    "claim_modules",
    "migrate_all",
    "open_databases",
    "require_existing",
    "require_tables",
]

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from attrs import frozen
from sqlalchemy import Engine, MetaData, Table, inspect, make_url
from sqlalchemy.exc import DBAPIError

from app.storage.archive.history_reader import HistoryReader
from app.storage.archive.parquet_archive import Archive
from app.storage.errors import DatabaseConfigError
from app.storage.migrations import NotMigrated, head, is_current, migrate
from app.storage.module_store import ModuleStore
from app.storage.sql.database import Database
from app.storage.sql.dialect import Dialect, ExclusiveAccess
from app.storage.tables import archive_table, audit_table, heartbeat_table, history_table, message_tables
from config.settings import Settings
from modules.errors import ModuleError
from modules.module import Module

T = TypeVar("T")

_CLAIM_SECONDS = 0.2
"""Long enough for a process that was killed a moment ago to be gone."""

_MODULES = "modules"
"""The name under which one process claims a whole PostgreSQL database."""


class DatabaseUnreachable(Exception):
    """A database cannot be used now; the message is one line that names the variable, and neither host nor password."""


class ModuleClaimed(DatabaseUnreachable):
    """Another process serves a module from the same file; it may be about to end."""

    def __init__(self, variable: str, detail: str) -> None:
        self.detail = detail
        super().__init__(f"{variable}: {detail}; end that first")


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
            raise DatabaseConfigError(f"{settings.database_variable(module)}: {error}") from None
    return databases


def migrate_all(settings: Settings, databases: Mapping[str, Database], modules: Iterable[str]) -> list[str]:
    """
    Migrate the tables of *modules* to the latest revision; return the names of the modules that were behind.

    Raises:
        NewerDatabase: A database was written by a newer release.
        DatabaseUnreachable: A database cannot be opened or written.
    """
    modules = tuple(modules)
    require_fitness(settings, databases, modules)
    return [module for module in modules if _call(settings, databases, module, migrate)]


def require_fitness(settings: Settings, databases: Mapping[str, Database], modules: Iterable[str]) -> None:
    """
    Ensure that each database server of *modules* keeps its promises to this program.

    Raises:
        DatabaseUnreachable: It does not, or it is out of reach; the message gives the reason.
    """
    checked: set[str] = set()
    for module in modules:
        url, dialect = settings.database_url(module), databases[settings.database_url(module)].dialect
        if url in checked or not dialect.is_shared:
            continue
        checked.add(url)

        def unfitness(engine: Engine, module: str, dialect: Dialect = dialect) -> str:
            with engine.connect() as connection:
                return dialect.unfitness(connection)

        if why := _call(settings, databases, module, unfitness):
            raise DatabaseUnreachable(f"{settings.database_variable(module)}: the database cannot be used: {why}")


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


def require_existing(settings: Settings, modules: Iterable[str]) -> None:
    """
    Ensure that each SQLite file of *modules* exists and has tables of the module, without creating or changing anything.

    Raises:
        DatabaseUnreachable: One of them does not; names the variable and the file.
    """
    for module in modules:
        url, variable = settings.database_url(module), settings.database_variable(module)
        if not str(url).startswith("sqlite:"):
            continue
        path = make_url(str(url)).database or ""
        advice = f"start the server once, or correct {variable}"
        try:
            with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as connection:
                found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (f"{module}_version",)).fetchone()
        except sqlite3.Error:
            raise DatabaseUnreachable(f"{variable}: there is no database at {path}; {advice}") from None
        if found is None:
            raise DatabaseUnreachable(f"{variable}: the database at {path} has no tables of {module}; {advice}")


def claim_modules(settings: Settings, databases: Mapping[str, Database], modules: Iterable[str]) -> list[ExclusiveAccess]:
    """
    Acquire exclusive access to *modules* where only one process may serve them; close the results to give it up.

    That is so for a SQLite file, and with ``BUS=memory`` for a PostgreSQL database, too: that bus reaches no other process.
    With NATS, several processes share a PostgreSQL database.

    Raises:
        ModuleClaimed: Another process serves one of them; nothing is acquired.
        DatabaseUnreachable: A database cannot be used.
    """
    modules = tuple(modules)
    require_fitness(settings, databases, modules)
    claims: dict[tuple[str, str], ExclusiveAccess] = {}
    for module in modules:
        url = settings.database_url(module)
        dialect, engine = databases[url].dialect, databases[url].engine
        if dialect.is_shared and settings.bus != "memory":
            continue
        key = url, _MODULES if dialect.is_shared else module
        if key in claims:
            continue
        try:
            claims[key] = dialect.acquire_exclusive(engine, key[1], _CLAIM_SECONDS)
        except (DatabaseConfigError, DBAPIError, sqlite3.OperationalError) as error:
            for acquired in claims.values():
                acquired.close()
            variable = settings.database_variable(module)
            if isinstance(error, DatabaseConfigError):
                raise ModuleClaimed(variable, str(error)) from None
            why = dialect.explain(error) if isinstance(error, DBAPIError) else str(error)
            raise DatabaseUnreachable(f"{variable}: the database cannot be used: {why}") from None
    return list(claims.values())


def _first_missing(engine: Engine, tables: Iterable[Table]) -> str | None:
    """Return which of *tables*, or of their columns, the database does not have; None where it has all of them."""
    wanted = {table.name: table for table in tables}
    found = inspect(engine).get_multi_columns(filter_names=list(wanted))
    for name, table in wanted.items():
        if (None, name) not in found:
            return f"there is no table {name}"
        columns = {column["name"] for column in found[None, name]}
        for column in table.columns:
            if column.name not in columns:
                return f"the table {name} has no column {column.name}"
    return None


def _call(settings: Settings, databases: Mapping[str, Database], module: str, function: Callable[[Engine, str], T]) -> T:
    """Call *function* with the engine and the name of *module*; explain an error of the database to the operator."""
    database = databases[settings.database_url(module)]
    try:
        return function(database.engine, module)
    except DBAPIError as error:
        why = database.dialect.explain(error)
        raise DatabaseUnreachable(f"{settings.database_variable(module)}: the database cannot be used: {why}") from error


@frozen
class Storage:
    """The databases of this process by address, and each module's store in one of them by the module's name."""

    settings: Settings
    databases: Mapping[str, Database]
    stores: Mapping[str, ModuleStore]

    def claim(self) -> list[ExclusiveAccess]:
        """Claim the modules' files for this process; raises as `claim_modules` does."""
        return claim_modules(self.settings, self.databases, self.stores)

    def migrate(self) -> list[str]:
        """
        Migrate the tables of every module to the latest revision; return the names of the modules that were behind.

        Raises:
            NewerDatabase: A database was written by a newer release.
            DatabaseUnreachable: A database cannot be opened or written.
            ModuleError: A module lacks a table or a column, because a migration is missing.
        """
        behind = migrate_all(self.settings, self.databases, self.stores)
        self._require_every_table()
        return behind

    def require_tables(self) -> None:
        """
        Ensure that the tables of every module are at the latest revision, as `require_tables` does.

        Raises:
            NotMigrated: A shared database is behind.
            NewerDatabase, DatabaseUnreachable, ModuleError: As for `migrate`.
        """
        require_tables(self.settings, self.databases, self.stores)
        self._require_every_table()
        for module, store in self.stores.items():

            def prepare_numbers(engine: Engine, module: str, store: ModuleStore = store) -> None:
                store.database.dialect.prepare_numbers(engine, [store.history.name])

            _call(self.settings, self.databases, module, prepare_numbers)

    def check_tables(self) -> None:
        """
        Do as `require_tables`, but migrate nothing.

        Raises:
            NotMigrated: A database is behind.
            NewerDatabase, DatabaseUnreachable: As for `migrate`.
        """
        for module in self.stores:
            if not _call(self.settings, self.databases, module, is_current):
                raise NotMigrated(f"the tables of {module} are not up to date; run `python -m app migrate` first")

    def _require_every_table(self) -> None:
        for module, store in self.stores.items():

            def first_missing(engine: Engine, module: str, store: ModuleStore = store) -> str | None:
                metadata = MetaData()
                own = (mapper.table for mapper in store.mappers.values())
                more = (heartbeat_table, audit_table, archive_table, history_table)
                beside = (*message_tables(module, metadata), *(table(module, metadata) for table in more))
                return _first_missing(engine, (*own, *beside))

            missing = _call(self.settings, self.databases, module, first_missing)
            if missing is not None:
                raise ModuleError(f"{module}: {missing}; a migration has to create it")

    @property
    def history(self) -> HistoryReader:
        """The history of the modules."""
        histories = {name: (store.database, store.history) for name, store in self.stores.items()}
        folder = self.settings.history_archive
        return HistoryReader(histories, archive=None if folder is None else Archive(Path(folder)))

    async def close(self) -> None:
        """Close the databases."""
        for database in self.databases.values():
            await database.close()


def build_storage(settings: Settings, modules: Sequence[Module]) -> Storage:
    """
    Return a store for each of *modules*.

    Raises:
        DatabaseConfigError: A database cannot be opened; names the variable.
        ModuleError: A module has no migration, or a state class does not fit its table.
    """
    databases = open_databases(settings, [module.name for module in modules])
    if settings.history_archive is not None and find_spec("pyarrow") is None:
        raise DatabaseConfigError("HISTORY_ARCHIVE: needs pyarrow: pip install 'fulfilment[analytics]'")
    # With an archive, only `history archive --purge` deletes: it knows what is there.
    deletes = settings.history_kept is not None and settings.history_archive is None
    kept = timedelta(seconds=settings.history_kept or 0) if deletes else None
    stores: dict[str, ModuleStore] = {}
    for module in modules:
        head(module.name)
        try:
            store = stores[module.name] = ModuleStore(module, databases[settings.database_url(module.name)])
        except TypeError as error:
            raise ModuleError(f"{module.name}: {error}") from error
        store.history.kept = kept
    return Storage(settings, databases, stores)
