"""Queries: read only, reach nothing but the tables, and are answered while the file is written."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.analytics import connection, query_server
from app.analytics.analytics_file import AnalyticsFile
from app.analytics.errors import AnalyticsError, FileInUse, FileUnusable, QueryRefused
from app.analytics.query import Answer, answer, gathered
from app.analytics.query_server import QueryServer, ask, socket_path
from tests.analytics.events import CONTRACTS, incoming, order_events
from tests.runtime.harness import until

REFUSED = {
    "INSERT INTO analytics_format VALUES (2, 'id')": "only SELECT and EXPLAIN",
    "DROP TABLE orders_created": "only SELECT and EXPLAIN",
    "CREATE TEMP TABLE mine (n INTEGER)": "only SELECT and EXPLAIN",
    "SET memory_limit = '10GB'": "only SELECT and EXPLAIN",
    "PRAGMA database_list": "only SELECT and EXPLAIN",
    "ATTACH 'other.duckdb'": "only SELECT and EXPLAIN",
    "COPY (SELECT 1) TO 'written.csv'": "only SELECT and EXPLAIN",
    "CHECKPOINT": "only SELECT and EXPLAIN",
    "INSTALL httpfs": "only SELECT and EXPLAIN",
    "COMMIT; DROP TABLE orders_created": "must be one statement, not 2",
    "": "must be one statement, not 0",
    "EXPLAIN ANALYZE INSERT INTO analytics_format VALUES (2, 'id')": "read-only",
    "EXPLAIN ANALYZE CREATE TABLE mine (n INTEGER)": "read-only",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO 'written.csv'": "disabled by configuration",
    "EXPLAIN ANALYZE SET threads = 1": "locked",
    "WITH written AS (INSERT INTO analytics_format VALUES (2, 'id') RETURNING *) SELECT * FROM written": "read-only",
    "SELECT * FROM read_text('/etc/passwd')": "disabled by configuration",
    "SELECT * FROM read_csv('/etc/passwd')": "disabled by configuration",
    "SELECT * FROM glob('/etc/*')": "disabled by configuration",
    "SELECT * FROM '/etc/passwd'": "does not exist",
    "SELECT * FROM no_such_table": "no_such_table",
    "SELEC 1": "SELEC",
    "SELECT error('at the first row')": "at the first row",
}
"""What is no query, or reaches too far, each with a part of the reason."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "analytics.duckdb"


@pytest.fixture
def file(path: Path) -> Iterator[AnalyticsFile]:
    opened = AnalyticsFile(path, CONTRACTS)
    opened.take(incoming([each for number in range(3) for each in order_events(number)]))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def memory() -> Iterator[AnalyticsFile]:
    """A database in memory that no test changes."""
    opened = AnalyticsFile(None, CONTRACTS)
    yield opened
    opened.close()


@pytest.fixture
async def served(path: Path, file: AnalyticsFile) -> AsyncIterator[Path]:
    """The path of a file that is open for writing and answers."""
    server = QueryServer(path, file.connection)
    await server.start()
    yield path
    await server.close()


def asked(path: Path, sql: str, limit: int = 100) -> Answer:
    return gathered(ask(path, sql, limit=limit))


@pytest.mark.parametrize("sql", REFUSED)
def test_what_is_no_query_is_refused(memory: AnalyticsFile, sql: str) -> None:
    """It changes nothing, and the reason names what is wrong."""
    with pytest.raises(QueryRefused) as caught:
        gathered(answer(memory.connection.cursor(), sql, 10))
    assert REFUSED[sql].lower() in str(caught.value).lower()
    assert memory.connection.execute("SELECT max(format) FROM analytics_format").fetchall() == [(1,)]
    assert not Path("written.csv").exists()


@pytest.mark.parametrize(
    ("rows", "limit", "found", "is_complete"),
    [(0, 1, 0, True), (3, 3, 3, True), (3, 2, 2, False), (1000, 1000, 1000, True), (2500, 1500, 1500, False), (2500, 2500, 2500, True)],
)
def test_an_answer_has_at_most_the_rows_that_were_asked_for(memory: AnalyticsFile, rows: int, limit: int, found: int, is_complete: bool) -> None:
    """Of all blocks together; as many rows as that are the whole answer."""
    whole = gathered(answer(memory.connection.cursor(), f"SELECT range FROM range({rows})", limit))
    assert ([row[0] for row in whole.rows], whole.is_complete) == (list(range(found)), is_complete)


def test_what_json_has_not_is_null(memory: AnalyticsFile) -> None:
    """A number that is none, and one without an end."""
    found = gathered(answer(memory.connection.cursor(), "SELECT 'nan'::DOUBLE, 'inf'::DOUBLE, [1.5, '-inf'::DOUBLE]", 1))
    assert found.rows == [[None, None, [1.5, None]]]


async def test_a_query_is_answered_while_the_file_is_written(served: Path, file: AnalyticsFile) -> None:
    """The answer has what is committed, in JSON's types; it ends at --limit."""
    sql = "SELECT entity_key, total_amount, occurred_at, lines FROM inventory_reserved ORDER BY seq"
    found = await asyncio.to_thread(asked, served, sql)
    assert found.columns == ["entity_key", "total_amount", "occurred_at", "lines"]
    assert found.is_complete
    assert [row[2] for row in found.rows] == [f"2026-03-01T12:00:0{second}Z" for second in (1, 2, 3)]
    assert isinstance(found.rows[0][3], list)
    await asyncio.to_thread(file.take, incoming(order_events(3)))
    some = await asyncio.to_thread(asked, served, sql, 2)
    assert (len(some.rows), some.is_complete) == (2, False)
    assert (await asyncio.to_thread(asked, served, "SELECT count(*) FROM orders_created")).rows == [[4]]
    long = await asyncio.to_thread(asked, served, "SELECT range FROM range(2500)", 10_000)
    assert ([row[0] for row in long.rows], long.is_complete) == (list(range(2500)), True)


async def test_every_refusal_reaches_the_client(served: Path) -> None:
    """A wrong query costs neither the server nor the next query."""
    for sql in ("SELEC 1", "DROP TABLE orders_created", "SELECT * FROM read_text('/etc/passwd')"):
        with pytest.raises(QueryRefused):
            await asyncio.to_thread(asked, served, sql)
    assert (await asyncio.to_thread(asked, served, "SELECT 1")).rows == [[1]]


async def test_the_socket_is_for_its_user_only_and_ends_with_the_server(path: Path, file: AnalyticsFile) -> None:
    """Other users of the machine cannot connect; a socket that a killed process has left is replaced."""
    with closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(socket_path(path)))
    server = QueryServer(path, file.connection)
    await server.start()
    assert stat.S_IMODE(socket_path(path).stat().st_mode) == 0o600
    await server.close()
    assert not socket_path(path).exists()


ENDLESS = "SELECT count(*) FROM range(100000) AS a, range(100000) AS b, range(100000) AS c WHERE hash(a.range, b.range, c.range) = 1"
"""It keeps little: a join of longer ranges would fill the memory, and then the disk."""


async def test_a_query_ends_when_its_client_leaves(served: Path, file: AnalyticsFile) -> None:
    """A query that nothing waits for does not go on to use the processor."""
    _, writer = await asyncio.open_unix_connection(str(socket_path(served)))
    endless = ENDLESS
    writer.write(json.dumps({"sql": endless, "limit": 1}).encode() + b"\n")
    await writer.drain()
    writer.close()
    async with asyncio.timeout(30):
        for _ in range(5):  # one more than run at once
            assert (await asyncio.to_thread(asked, served, "SELECT 1")).rows == [[1]]


async def test_the_end_of_the_server_ends_its_queries(path: Path, file: AnalyticsFile) -> None:
    """The client gets an error, and SIGTERM does not wait for a long query."""
    server = QueryServer(path, file.connection)
    await server.start()
    endless = ENDLESS
    errors: list[AnalyticsError] = []

    def client() -> None:
        try:
            asked(path, endless)
        except AnalyticsError as error:
            errors.append(error)

    thread = threading.Thread(target=client)
    thread.start()
    await until(lambda: server.running)
    async with asyncio.timeout(30):
        await server.close()
        await asyncio.to_thread(thread.join)
    assert len(errors) == 1


def test_without_a_process_that_writes_the_file_is_read(path: Path) -> None:
    """Nothing has to run for a query."""
    with closing(AnalyticsFile(path, CONTRACTS)) as opened:
        opened.take(incoming(order_events(1)))
    assert asked(path, "SELECT count(*) FROM orders_created").rows == [[1]]
    with pytest.raises(QueryRefused):
        asked(path, "DELETE FROM orders_created")


def test_a_file_that_does_not_exist_is_not_created(path: Path) -> None:
    """The reason names the command that makes it."""
    with pytest.raises(FileUnusable, match="there is no such file: `analytics run` makes it"):
        asked(path, "SELECT 1")
    assert not path.exists()


@pytest.mark.slow
def test_a_query_spills_a_limited_amount(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs more than the memory goes to the disk, up to the limit; then the reason names both."""
    with closing(AnalyticsFile(path, CONTRACTS)):
        pass
    sql = "SELECT * FROM (SELECT range, hash(range) AS h FROM range(4000000)) ORDER BY h"
    assert len(gathered(ask(path, sql, limit=1, memory="50MB")).rows) == 1
    monkeypatch.setattr(connection, "SPILLED_GB_MAX", 0.01)
    with pytest.raises(QueryRefused, match="more memory than ANALYTICS_MEMORY, and more disk"):
        gathered(ask(path, sql, limit=1, memory="50MB"))


def test_the_socket_of_another_user_is_named(path: Path, file: AnalyticsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names what to do."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(query_server, "_at", refuse)
    with pytest.raises(FileUnusable, match="ask as the user that runs `analytics run`"):
        asked(path, "SELECT 1")


async def test_a_query_that_is_too_long_or_cut_off_is_explained(path: Path, served: Path) -> None:
    """Neither ends with a traceback."""
    with pytest.raises(QueryRefused, match="and may have 1048576"):
        await asyncio.to_thread(asked, served, "SELECT '" + "x" * 2_000_000 + "'")

    def hang_up(listener: socket.socket) -> None:
        listener.accept()[0].close()  # with what was sent unread: the client gets a reset

    socket_path(path).unlink()
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(socket_path(path)))
        listener.listen()
        thread = threading.Thread(target=hang_up, args=(listener,))
        thread.start()
        with pytest.raises(FileInUse, match="ended during the query: ask again"):
            await asyncio.to_thread(asked, path, "SELECT 1")
        thread.join()
