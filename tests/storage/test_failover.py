"""A standby of the PostgreSQL server takes its place, or the server crashes: what is known about earlier transactions."""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest
from sqlalchemy.exc import SQLAlchemyError

from app.storage.sql import postgres
from app.storage.sql.postgres import Postgres
from tests.postgres import PostgresServer


@pytest.mark.parametrize(
    "run_sql",
    [postgres.RUN_SQL, pytest.param("SELECT '-'", marks=pytest.mark.slow)],
    ids=["statistics of its own", "statistics that were copied"],
)
def test_the_outcome_of_a_transaction_is_unknown_after_a_fail_over(
    replicated: tuple[PostgresServer, PostgresServer], run_sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The new server gives the number of a transaction that it never had to another one, and would answer for that one.

    A standby that was made from the files of a server that was shut down has the age of its statistics.
    """
    monkeypatch.setattr(postgres, "RUN_SQL", run_sql)
    primary, standby = replicated
    standby.query("ALTER SYSTEM SET primary_conninfo = ''")
    standby.query("SELECT pg_reload_conf()")
    standby.wait_for("SELECT count(*) = 0 FROM pg_stat_wal_receiver")
    dialect = Postgres()
    engine = dialect.engine(primary.url(standby=standby))
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE lost ()")
        tx_id = dialect.transaction_id(connection)
        connection.commit()
        assert dialect.was_committed(engine, tx_id) is True
        primary.kill()
        engine.dispose()
    standby.query("SELECT pg_promote()")
    number = str(tx_id).split()[0]
    while standby.query(f"SELECT pg_current_xact_id() <= '{number}'")[0][0]:
        pass
    assert standby.query(f"SELECT pg_xact_status('{number}')") == [("committed",)]
    assert standby.query("SELECT count(*) FROM pg_tables WHERE tablename = 'lost'") == [(0,)]
    assert dialect.was_committed(engine, tx_id) is None
    engine.dispose()


@pytest.mark.slow
def test_the_outcome_of_a_transaction_is_unknown_after_a_crash(replicated: tuple[PostgresServer, PostgresServer]) -> None:
    """The same server gives the number of a transaction that is not in its log to another one, and would answer for that one."""
    server, _ = replicated
    server.query("CHECKPOINT")
    dialect = Postgres()
    engine = dialect.engine(server.url())
    connection = engine.connect()
    connection.exec_driver_sql("CREATE TABLE lost ()")
    tx_id = dialect.transaction_id(connection)
    server.kill()
    server.start()
    number = str(tx_id).split()[0]
    while server.query(f"SELECT pg_current_xact_id() <= '{number}'")[0][0]:
        pass
    # Mostly a query of the loop has it, sometimes a worker of the server, whose transaction may have been aborted.
    assert server.query(f"SELECT pg_xact_status('{number}')")[0][0] in ("committed", "aborted")
    assert dialect.was_committed(engine, tx_id) is None
    with suppress(psycopg.Error, SQLAlchemyError):  # the server has closed it
        connection.close()
