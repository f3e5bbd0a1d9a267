"""A PostgreSQL database that cannot keep its promises is refused at start with one line; what is only set oddly is not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.postgres import PostgresServer
from tests.process.client import Client
from tests.process.server import Server, run
from tests.transaction_pooler import TransactionPooler

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_database_in_another_encoding_is_refused(
    postgres: PostgresServer, tmp_path: Path, encoding: str, command: str
) -> None:
    """With exit code 3 and a line that names the encoding and what to do."""
    name = f"in_{encoding.lower()}_{command}"
    postgres.query(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
    done = run(tmp_path, command, DATABASE_URL=postgres.url(name), HTTP_PORT="0")
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        f"fulfilment: DATABASE_URL: the database cannot be used: its encoding is {encoding}, which cannot store every name;"
        " create a database with ENCODING 'UTF8'"
    ]


async def test_the_client_encoding_of_role_and_url_does_not_matter(
    postgres: PostgresServer, connect: Callable[[Server], Client], tmp_path: Path
) -> None:
    """A name in any script is stored and read again."""
    url = postgres.create_database()
    if not postgres.query("SELECT 1 FROM pg_roles WHERE rolname = 'latin'"):
        postgres.query("CREATE ROLE latin LOGIN SUPERUSER")
    postgres.query("ALTER ROLE latin SET client_encoding = 'LATIN1'")
    settings = {"DATABASE_URL": f"{url.replace('postgres@', 'latin@')}&client_encoding=LATIN1"}
    assert run(tmp_path, "migrate", **settings).returncode == 0
    server = Server(tmp_path, **settings).start()
    try:
        client = connect(server)
        body = {"on_hand": 5, "unit_price": {"amount": 100, "currency": "EUR"}, "name": "Zażółć 日本語 😀"}
        reply = await client.request("PUT", "/v1/inventory/SKU-1", body)
        assert (reply.status, reply.body["name"]) == (200, body["name"])
        assert (await client.get("/v1/inventory/SKU-1"))["name"] == body["name"]
        assert (await client.wait_until_final(await client.place({"SKU-1": 1})))["status"] == "confirmed"
    finally:
        server.end()


@pytest.fixture
def pooler_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pool-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("command", ["serve", pytest.param("migrate", marks=pytest.mark.night)])
def test_a_pooler_in_transaction_mode_is_refused(
    postgres: PostgresServer, tmp_path: Path, pooler_folder: Path, command: str
) -> None:
    """Locks and prepared statements need a session of their own."""
    url = postgres.create_database()
    assert run(tmp_path, "migrate", DATABASE_URL=url).returncode == 0
    with TransactionPooler(pooler_folder, postgres.folder):
        pooled = url.replace(str(postgres.folder), str(pooler_folder))
        done = run(tmp_path, command, DATABASE_URL=pooled, HTTP_PORT="0")
    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    assert line.startswith("fulfilment: DATABASE_URL: the database cannot be used: a connection pooler in transaction mode is")
