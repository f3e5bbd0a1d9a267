"""Statements wait for each other and go to PostgreSQL in one piece; an error is never lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Boolean, Connection, Integer, LargeBinary, String

from app.storage.sql.database import Database
from app.storage.sql.postgres_pipeline import Pipeline
from app.storage.sql.postgres_statements import ArrayStatement, array_encoder, text_array
from modules.payments.events import ChargeSucceeded
from tests.databases import migrated_url
from tests.examples import examples
from tests.postgres import PostgresServer
from tests.runtime.harness import harness_at, oid, product, submitted

INSERT = ArrayStatement("INSERT INTO number SELECT * FROM unnest(?::int[])", [array_encoder(Integer())])
SELECT = ArrayStatement("SELECT n FROM number WHERE n = ANY(?)", [array_encoder(Integer())])


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A database with one table of unique numbers."""
    database = Database(postgres.create_database())
    await database.write(lambda c: c.exec_driver_sql("CREATE TABLE number (n INTEGER PRIMARY KEY)"))
    yield database
    await database.close()


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was sent together, by the first word of each statement."""
    found: list[list[str]] = []
    exchange = Pipeline.exchange

    def record(pipeline: Pipeline) -> None:
        if pipeline._queue:
            found.append([statement.sql.split()[0] for statement in pipeline._queue])
        exchange(pipeline)

    monkeypatch.setattr(Pipeline, "exchange", record)
    return found


def insert(*numbers: int) -> Any:
    """Return work that inserts *numbers*."""
    return lambda connection: INSERT.execute(connection, [(n,) for n in numbers])


def found(connection: Connection) -> list[int]:
    """Return all numbers."""
    return [n for (n,) in connection.exec_driver_sql("SELECT n FROM number ORDER BY n")]


async def test_reads_share_a_round_trip_with_begin_and_writes_with_commit(database: Database, exchanges: list[list[str]]) -> None:
    """A transaction that loads, decides and writes takes two round trips, however many statements it has."""

    def work(connection: Connection) -> list[Any]:
        first, second = (SELECT.fetch(connection, [(n,)]) for n in (1, 2))
        seen = [*first(), *second()]
        insert(1)(connection)
        insert(2)(connection)
        return seen

    assert await database.write(work) == []
    assert exchanges == [["BEGIN", "SELECT", "SELECT", "SELECT"], ["INSERT", "INSERT", "COMMIT"]]
    assert await database.read(found) == [1, 2]


async def test_a_transaction_is_committed_only_once_its_id_is_known(database: Database, exchanges: list[list[str]]) -> None:
    """The outcome of a commit whose answer is lost is asked for by the id: it must have arrived before."""
    await database.write(insert(1))
    assert exchanges == [["BEGIN", "SELECT", "INSERT"], ["COMMIT"]]


async def test_a_transaction_that_breaks_before_its_commit_is_sent_is_repeated(database: Database) -> None:
    """All its statements waited for the commit, and the connection broke while it was idle: nothing was stored."""
    await database.write(insert(1))
    terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    await database.read(lambda c: c.exec_driver_sql(terminate).all())
    await database.write(insert(2))
    assert await database.read(found) == [1, 2]


async def test_a_statement_of_sqlalchemy_sees_what_waits(database: Database) -> None:
    """Whatever has a result sends the statements before it first."""

    def work(connection: Connection) -> list[int]:
        insert(1)(connection)
        return found(connection)

    assert await database.write(work) == [1]


async def test_the_error_of_a_statement_that_waited_is_raised_and_nothing_is_stored(database: Database) -> None:
    """The server skips the COMMIT behind it; the next transaction finds the connection in order."""
    await database.write(insert(1))

    def work(connection: Connection) -> None:
        SELECT.fetch(connection, [(5,)])()
        insert(2)(connection)
        insert(1)(connection)
        insert(3)(connection)

    with pytest.raises(psycopg.errors.UniqueViolation):
        await database.write(work)
    assert await database.read(found) == [1]
    await database.write(insert(4))
    assert await database.read(found) == [1, 4]


async def test_only_the_work_whose_statement_failed_fails(database: Database) -> None:
    """Work that shares the transaction is repeated without it, although the error came with the commit of all."""
    await database.write(insert(0))
    jobs = [database.write(insert(n)) for n in (1, 2, 0, 3)]
    ends = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(end) for end in ends] == [type(None), type(None), psycopg.errors.UniqueViolation, type(None)]
    assert await database.read(found) == [0, 1, 2, 3]


async def test_a_statement_that_cannot_be_prepared_fails_alone(database: Database) -> None:
    """It is prepared again the next time, under another name, and so are those that the server has skipped."""
    wrong = ArrayStatement("SELECT nothing FROM number WHERE n = ANY(?)", [array_encoder(Integer())])
    for _ in range(2):
        with pytest.raises(Exception, match="refuses"):
            await database.write(lambda c: wrong.fetch(c, [(1,)])())
        await database.write(lambda c: SELECT.fetch(c, [(1,)])())


async def test_work_that_fails_by_itself_sends_nothing_of_what_waits(database: Database, exchanges: list[list[str]]) -> None:
    """The transaction has not begun on the server yet, so there is nothing to roll back."""

    def work(connection: Connection) -> None:
        insert(1)(connection)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.write(work)
    assert exchanges == []
    assert await database.read(found) == []


async def test_more_than_the_sockets_hold_goes_through(database: Database) -> None:
    """Neither side waits for the other to read first."""
    await database.write(lambda c: c.exec_driver_sql("CREATE TABLE text (t TEXT)"))
    statement = ArrayStatement("INSERT INTO text SELECT * FROM unnest(?::text[]) RETURNING t", [text_array])
    rows = [("x" * 1_000_000,)] * 4

    def work(connection: Connection) -> list[int]:
        fetched = [statement.fetch(connection, rows) for _ in range(4)]
        return [len(t) for fetch in fetched for (t,) in fetch()]

    assert await database.write(work) == [1_000_000] * 16


async def test_an_order_that_is_delivered_locally_costs_six_round_trips(
    postgres: PostgresServer, exchanges: list[list[str]]
) -> None:
    """Two to place it: the product, then all writes; four for the captured charge: each module in turn, then all writes."""
    async with harness_at(migrated_url(postgres), delivers_locally=True) as harness:
        await harness.submit("inventory", product(10))
        exchanges.clear()
        await harness.submit("orders", submitted(oid(1)), new_key=oid(1))
        assert [each[-1] for each in exchanges] == ["SELECT", "COMMIT"]
        exchanges.clear()
        await harness.submit("payments", ChargeSucceeded(order_id=oid(1), reference="ref", calls=1))
        assert [each[-1] for each in exchanges] == ["SELECT", "SELECT", "SELECT", "COMMIT"]
        assert await harness.rows("SELECT status FROM orders_order") == [("confirmed",)]


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.fixture
def connection(postgres: PostgresServer) -> Iterator[Connection]:
    """A connection on which a transaction has begun."""
    engine = Database(postgres.url()).engine
    with engine.connect() as connection, connection.begin():
        yield connection
    engine.dispose()


@pytest.mark.parametrize(
    ("column_type", "name", "values"),
    [
        (String(), "text", TEXTS),
        (Integer(), "bigint", st.integers(-(2**63), 2**63 - 1)),
        (Boolean(), "boolean", st.booleans()),
        (LargeBinary(), "bytea", st.binary()),
    ],
    ids=["text", "bigint", "boolean", "bytea"],
)
def test_an_array_arrives_as_it_was_written(column_type: Any, name: str, values: Any, connection: Connection) -> None:
    """Nulls, quotes, backslashes, braces, commas, the word NULL and empty values included."""
    statement = ArrayStatement(f"SELECT * FROM unnest(?::{name}[])", [array_encoder(column_type)])

    @settings(max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.none() | values, min_size=1, max_size=30))
    def arrives(column: list[Any]) -> None:
        assert [value for (value,) in statement.fetch(connection, [(value,) for value in column])()] == column

    if name == "text":
        arrives = example(["", "NULL", '"', "\\", '\\"', "{}", ",", " ", None, "a\nb"])(arrives)
    arrives()


@pytest.mark.parametrize("column", [["a\0b"], ["a", "\0"], ["\0", None], ["\0", ""]])
def test_a_text_with_a_nul_is_refused(column: list[str | None]) -> None:
    """PostgreSQL cannot store it; it must not end one text and begin another."""
    with pytest.raises(psycopg.DataError, match="NUL"):
        text_array(column)
