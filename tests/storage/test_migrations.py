"""A migrated database has the tables that the code describes."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, MetaData, create_engine, inspect

from app.storage.migrations import NewerDatabase, head, migrate, version
from app.storage.migrations.common import EDITIONS, create_message_tables
from app.storage.tables import archive_table, audit_table, heartbeat_table, history_table, message_tables
from modules.errors import ModuleError
from modules.registry import MODULES, load_module

DESCRIPTORS = {name: load_module(name) for name in MODULES}
STATES = {name: next(iter(descriptor.tables.values())).metadata for name, descriptor in DESCRIPTORS.items()}


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return create_engine(f"sqlite:///{tmp_path / 'test.db'}")


def expected(module: str, dialect: str = "sqlite") -> MetaData:
    """Return the metadata of every table that the code of *module* uses."""
    metadata = MetaData()
    for table in STATES[module].sorted_tables:
        # Alembic ignores that an index is declared for one kind of database only (Index.ddl_if).
        others = {index.name for index in table.indexes if index._ddl_if is not None and index._ddl_if.dialect != dialect}
        copy = table.to_metadata(metadata)
        copy.indexes = {index for index in copy.indexes if index.name not in others}
    message_tables(module, metadata)
    heartbeat_table(module, metadata)
    audit_table(module, metadata)
    archive_table(module, metadata)
    history_table(module, metadata)
    return metadata


@pytest.mark.parametrize("module", STATES)
def test_a_migrated_database_has_the_columns_and_indexes_that_the_code_describes(module: str, engine: Engine) -> None:
    """Alembic finds nothing to add, drop or alter."""
    assert set(DESCRIPTORS[module].tables.values()) == set(STATES[module].sorted_tables)
    migrate(engine, module)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": f"{module}_version", "compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, expected(module)) == []
    engine.dispose()


@pytest.mark.parametrize("module", STATES)
def test_a_migrated_database_has_the_checks_that_the_code_describes(module: str, engine: Engine) -> None:
    """Alembic compares neither CHECK constraints nor ``WITHOUT ROWID``."""
    migrate(engine, module)
    described = create_engine("sqlite://")
    expected(module).create_all(described)
    migrated, direct = inspect(engine), inspect(described)
    for table in expected(module).tables:
        assert checks(migrated, table) == checks(direct, table), table
        found = [_is_without_rowid(e, table) for e in (engine, described)]
        assert found[0] == found[1], table
    engine.dispose()
    described.dispose()


def checks(inspector: object, table: str) -> list[tuple[str, str]]:
    return sorted((c["name"], " ".join(c["sqltext"].split())) for c in inspector.get_check_constraints(table))  # type: ignore[attr-defined]


def _is_without_rowid(engine: Engine, table: str) -> bool:
    with engine.connect() as connection:
        sql = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).scalar()
        return "WITHOUT ROWID" in str(sql)


def test_the_name_of_every_table_begins_with_its_module(engine: Engine) -> None:
    """So a module can move its tables to another database."""
    for module in STATES:
        before = set(inspect(engine).get_table_names())
        migrate(engine, module)
        new = set(inspect(engine).get_table_names()) - before
        assert new
        assert all(name.startswith(f"{module}_") for name in new)
    engine.dispose()


def test_a_second_migration_does_nothing(engine: Engine) -> None:
    """`migrate` returns True the first time and False the second."""
    with engine.connect() as connection:
        assert version(connection, "orders") is None
    assert migrate(engine, "orders") is True
    assert migrate(engine, "orders") is False
    with engine.connect() as connection:
        assert version(connection, "orders") == head("orders")
    engine.dispose()


def test_a_newer_database_is_refused(engine: Engine) -> None:
    """A release does not write into tables of a revision that it does not know."""
    migrate(engine, "orders")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE orders_version SET version_num = '9999'")
    with pytest.raises(NewerDatabase, match=r"orders.*9999"):
        migrate(engine, "orders")
    engine.dispose()


def test_a_new_module_gets_todays_message_tables_in_one_step(engine: Engine) -> None:
    """What `create_message_tables` creates is what the code works with, column by column, index by index."""
    described = MetaData()
    message_tables("trial", described)
    heartbeat_table("trial", described)
    audit_table("trial", described)
    archive_table("trial", described)
    history_table("trial", described)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        with Operations.context(context):
            create_message_tables("trial", edition=len(EDITIONS))
        assert compare_metadata(context, described) == []
    engine.dispose()


def test_a_module_without_a_migration_is_reported(engine: Engine) -> None:
    """A missing migration is an error, never silence."""
    for ask in (migrate, lambda engine, module: head(module)):
        with pytest.raises(ModuleError, match="trial: there is no migration in app/storage/migrations/versions/trial"):
            ask(engine, "trial")
    engine.dispose()
