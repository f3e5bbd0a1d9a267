"""Choose the SQL dialect for a database URL; each driver is imported only when its database is used."""

from __future__ import annotations

__all__ = ["open_dialect"]

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from app.storage.errors import DatabaseConfigError
from app.storage.sql.dialect import Dialect


def open_dialect(url: str) -> Dialect:
    """
    Return the dialect for the database at *url*.

    Raises:
        DatabaseConfigError: The URL is invalid, the database is not supported, or its driver is not installed.
    """
    try:
        name = url.partition(":")[0] if url.startswith("postgresql") else make_url(url).get_backend_name()
    except ArgumentError:
        raise DatabaseConfigError("this is not a database URL") from None
    if name == "sqlite":
        from app.storage.sql.sqlite import Sqlite

        return Sqlite()
    if name == "postgresql":
        try:
            from app.storage.sql.postgres import Postgres
        except ImportError:
            raise DatabaseConfigError("PostgreSQL needs its driver: pip install 'fulfilment[postgres]'") from None
        return Postgres()
    raise DatabaseConfigError(f"{name} is not supported: must begin with sqlite:/// or postgresql://")
