"""
Migrate a module's tables to the revision that the code expects, and find out whether they are at it.

Every module has its own revisions under ``versions/<module>`` and a table ``<module>_version`` with its current one, so
that a module can move to another database together with its history. Revisions are numbered; the highest number is the
head. Alembic is imported only if there is something to migrate.
"""

from __future__ import annotations

__all__ = ["NewerDatabase", "NotMigrated", "head", "is_current", "migrate", "version"]

from math import inf
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect

from modules.errors import ModuleError

_HERE = Path(__file__).parent


class NewerDatabase(Exception):
    """The database was written by a newer release than this one."""


class NotMigrated(Exception):
    """The tables are older than this release expects, and the operator has to migrate them."""


def head(module: str) -> str:
    """
    Return the number of the latest revision of *module*.

    Raises:
        ModuleError: The module has no migration.
    """
    revisions = [file.name.partition("_")[0] for file in (_HERE / "versions" / module).rglob("[0-9]*.py")]
    if not revisions:
        raise ModuleError(f"{module}: there is no migration in app/storage/migrations/versions/{module}")
    return max(revisions)


def version(connection: Connection, module: str) -> str | None:
    """Return the revision of the tables of *module*; None if it has no tables."""
    if not inspect(connection).has_table(f"{module}_version"):
        return None
    found: str | None = connection.exec_driver_sql(f"SELECT version_num FROM {module}_version").scalar()
    return found


def migrate(engine: Engine, module: str) -> bool:
    """
    Migrate the tables of *module* to the head; return False if they were there already.

    All missing revisions run in one transaction; of two processes that migrate at once one waits for the other.

    Raises:
        NewerDatabase: The tables have a newer revision than the head.
    """
    if is_current(engine, module):
        return False
    return _upgrade(engine, module)


def is_current(engine: Engine, module: str) -> bool:
    """
    Return whether the tables of *module* are at the head.

    Raises:
        NewerDatabase: They are beyond it.
    """
    latest = head(module)
    with engine.connect() as connection:
        found = version(connection, module)
    if found is not None and found > latest:
        raise NewerDatabase(f"the tables of {module} are at revision {found}, this release knows {latest}")
    return found == latest


def _upgrade(engine: Engine, module: str) -> bool:
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)  # its own progress messages are of no use to an operator

    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_HERE))
    config.set_main_option("version_locations", str(_HERE / "versions" / module))
    config.set_main_option("recursive_version_locations", "true")  # older revisions may be in folders of their own
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            # SQLite locks the whole database; here two processes could create the same tables at once. Wait without a limit.
            connection.connection.driver_connection.answer_seconds = inf  # type: ignore[union-attr]
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"{module} migrate",))
        if version(connection, module) == head(module):
            return False
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": f"{module}_version",
                "fn": lambda revision, context: script._upgrade_revs("head", revision),
            },
        )
        with Operations.context(context):
            context.run_migrations()
    return True
