"""
Bring a module's tables to what the code expects, and say when they are not.

Every module has a history of its own under ``versions/<module>`` and a table ``<module>_version`` that says how far it
has come: a module can move to another database and take its history along. Revisions are numbered; the highest number
is the head. Alembic is imported only when there is something to do.
"""

from __future__ import annotations

__all__ = ["NewerDatabase", "NotMigrated", "head", "is_current", "migrate", "version"]

from math import inf
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect

_HERE = Path(__file__).parent


class NewerDatabase(Exception):
    """The database was written by a newer release than this one."""


class NotMigrated(Exception):
    """The tables are not what this release expects, and somebody has to say that they may be changed."""


def head(module: str) -> str:
    """Return the number of *module*'s latest revision."""
    return max(file.name.partition("_")[0] for file in (_HERE / "versions" / module).glob("[0-9]*.py"))


def version(connection: Connection, module: str) -> str | None:
    """Return the revision that *module*'s tables are at; None when there are none."""
    if not inspect(connection).has_table(f"{module}_version"):
        return None
    found: str | None = connection.exec_driver_sql(f"SELECT version_num FROM {module}_version").scalar()
    return found


def migrate(engine: Engine, module: str) -> bool:
    """
    Bring *module*'s tables to the head; return whether there was anything to do.

    Each revision is one transaction; two processes that migrate at once wait for each other.

    Raises:
        NewerDatabase: They are beyond it.
    """
    if is_current(engine, module):
        return False
    return _upgrade(engine, module)


def is_current(engine: Engine, module: str) -> bool:
    """
    Tell whether *module*'s tables are at the head.

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

    logging.getLogger("alembic").setLevel(logging.WARNING)  # what it says of itself is no news to an operator

    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_HERE))
    config.set_main_option("version_locations", str(_HERE / "versions" / module))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            # SQLite gives the whole database to whoever begins; here two would make the same tables at once.
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
