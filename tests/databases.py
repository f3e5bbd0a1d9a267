"""Databases with the tables of every module, migrated once in a process and copied for each test."""

from __future__ import annotations

__all__ = ["migrated_file", "migrated_url"]

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from app.messaging.event_registry import all_modules
from app.storage.migrations import migrate
from app.storage.sql.database import Database
from tests.postgres import PostgresServer


def _migrate_all(url: str) -> None:
    """Give the database at *url* the tables of every module."""
    engine = Database(url).engine
    for descriptor in all_modules():
        migrate(engine, descriptor.name)
    engine.dispose()


def migrated_file(path: Path) -> str:
    """Create an empty SQLite database with the tables of every module at *path*; return its URL."""
    path.write_bytes(_migrated_bytes())
    return f"sqlite:///{path}"


@cache
def _migrated_bytes() -> bytes:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "migrated.db"
        _migrate_all(f"sqlite:///{file}")
        return file.read_bytes()


def migrated_url(server: PostgresServer) -> str:
    """Create an empty database with the tables of every module on *server*; return its URL."""
    return server.create_database(_template(server))


@cache
def _template(server: PostgresServer) -> str:
    url = server.create_database()
    _migrate_all(url)
    return url
