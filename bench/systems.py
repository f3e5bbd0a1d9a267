"""
The systems that are compared: this program in its deployments, and the same saga built on other libraries.

Each answers ``POST /v1/orders`` with the id of the order, and ``GET /v1/orders/<id>`` with its state. Each keeps the
defaults of its database server and of its NATS server.
"""

from __future__ import annotations

__all__ = ["RIVALS", "Running", "System", "ours", "systems"]

import json
import sqlite3
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psycopg
from attrs import frozen

from bench.environments import ROOT, go_program, python_of
from bench.load import PRODUCTS
from bench.processes import Program
from tests.nats import NatsServer
from tests.postgres import PostgresServer

MODULES = ("orders", "inventory", "payments")
RIVALS = Path(__file__).with_name("rivals")

_READY = r"ready at (http://\S+)"
_ON_HAND = 1_000_000_000


@frozen
class Running:
    """A system that serves."""

    url: str
    """Where it takes orders."""
    completed: Callable[[], int]
    """Returns how many orders are confirmed."""
    own: Sequence[int]
    """Its own processes."""
    servers: Sequence[int] = ()
    """The NATS and the PostgreSQL server."""


@frozen
class System:
    """A system that can be started in an empty folder, as often as needed."""

    name: str
    title: str
    start: Callable[[Path], AbstractContextManager[Running]]
    prepare: Callable[[], object] = dict
    """Installs or builds it. Raises `bench.environments.Unavailable` where that is not possible."""


def systems() -> dict[str, System]:
    """Return all systems by name, the reference first."""
    found = [
        System("sqlite", "ours, one process, SQLite", ours),
        System("workers", "ours, the same and one HTTP process", lambda folder: ours(folder, settings={"HTTP_WORKERS": "1"})),
        System("postgres", "ours, one process, PostgreSQL", lambda folder: ours(folder, with_postgres=True)),
        System("split", "ours, three processes, NATS, SQLite", _split),
        System(
            "split-retired", "ours, three processes, without ``orders.created.v1``",
            lambda folder: _split(folder, settings={"RETIRED_VERSIONS": "orders.created.v1"}),
        ),
        System("split-postgres", "ours, three processes, NATS, PostgreSQL", lambda folder: _split(folder, True)),
        System("dbos", "DBOS, SQLite", _dbos, lambda: python_of("dbos")),
        System("dbos-postgres", "DBOS, PostgreSQL", lambda folder: _dbos(folder, True), lambda: python_of("dbos")),
        System("faststream", "FastStream, three processes, NATS, PostgreSQL", _faststream, lambda: python_of("faststream")),
        System("go", "Go, three processes, NATS, keeps nothing", _go, go_program),
        System("go-durable", "Go, the same with SQLite, group commit", lambda folder: _go(folder, True), go_program),
    ]
    return {system.name: system for system in found}


@contextmanager
def ours(
    folder: Path,
    *,
    settings: Mapping[str, str] | None = None,
    with_postgres: bool = False,
    program: Sequence[str] = ("-m", "app"),
) -> Iterator[Running]:
    """Run all modules in one process with the in-memory bus; *program* is what Python runs in place of ``-m app``."""
    with ExitStack() as stack:
        database, servers = f"sqlite:///{folder}/orders.db", []
        if with_postgres:
            postgres = _start_postgres(stack, folder)
            database, servers = postgres.create_database(), [postgres.pid]
        url = {"DATABASE_URL": database}
        if with_postgres:
            _migrate(folder, url)
        server = _start(stack, "serve", [sys.executable, *program, "serve"], folder, _OURS | url | dict(settings or {}))
        server.wait_until_ready()
        _put_stock(server.found)
        yield Running(server.found, _counter(database, "orders_order"), [server.pid], servers)


@contextmanager
def _split(
    folder: Path, with_postgres: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Run each module in a process of its own, with a database of its own."""
    with ExitStack() as stack:
        nats = stack.enter_context(NatsServer(folder / "nats"))
        servers = [nats.pid]
        urls = {module: f"sqlite:///{folder}/{module}.db" for module in MODULES}
        if with_postgres:
            postgres = _start_postgres(stack, folder)
            servers.append(postgres.pid)
            urls = {module: postgres.create_database() for module in MODULES}
        programs = {}
        for module in MODULES:
            environment = _OURS | {"BUS": "nats", "NATS_URL": nats.url, "MODULES": module, "DATABASE_URL": urls[module]}
            environment |= dict(settings or {})
            if with_postgres:
                _migrate(folder, environment)
            programs[module] = _start(stack, module, [sys.executable, "-m", "app", "serve"], folder / module, environment)
        for program in programs.values():
            program.wait_until_ready()
        _put_stock(programs["inventory"].found)
        pids = [program.pid for program in programs.values()]
        yield Running(programs["orders"].found, _counter(urls["orders"], "orders_order"), pids, servers)


@contextmanager
def _dbos(folder: Path, with_postgres: bool = False) -> Iterator[Running]:
    """Run the saga as a DBOS workflow; the tables of the application and of DBOS are in one database each."""
    with ExitStack() as stack:
        application, system = f"sqlite:///{folder}/application.db", f"sqlite:///{folder}/system.db"
        servers = []
        if with_postgres:
            postgres = _start_postgres(stack, folder)
            servers.append(postgres.pid)
            application, system = (_with_driver(postgres.create_database(), "psycopg") for _ in range(2))
        settings = {"APPLICATION_DATABASE_URL": application, "SYSTEM_DATABASE_URL": system, "DBOS__APPVERSION": "1"}
        command = [python_of("dbos"), RIVALS / "dbos_saga.py"]
        program = _start(stack, "dbos", command, folder, settings)
        program.wait_until_ready()
        yield Running(program.found, _counter(application, "orders"), [program.pid], servers)


@contextmanager
def _faststream(folder: Path) -> Iterator[Running]:
    """Run a FastStream service for each module."""
    with ExitStack() as stack:
        nats = stack.enter_context(NatsServer(folder / "nats"))
        postgres = _start_postgres(stack, folder)
        urls = {module: postgres.create_database() for module in MODULES}
        command = [python_of("faststream"), RIVALS / "faststream_saga.py"]
        programs = {
            module: _start(
                stack, module, [*command, module], folder / module,
                {"DATABASE_URL": _with_driver(urls[module], "asyncpg"), "NATS_URL": nats.url},
            )
            for module in MODULES
        }  # fmt: skip
        for program in programs.values():
            program.wait_until_ready()
        pids = [program.pid for program in programs.values()]
        yield Running(programs["orders"].found, _counter(urls["orders"], "orders"), pids, [nats.pid, postgres.pid])


@contextmanager
def _go(folder: Path, is_durable: bool = False) -> Iterator[Running]:
    """Run a Go service for each module."""
    with ExitStack() as stack:
        nats = stack.enter_context(NatsServer(folder / "nats"))
        programs = {
            module: _start(
                stack, module, [go_program(), module, nats.url, *([f"{module}.db"] if is_durable else [])], folder / module, {}
            )
            for module in MODULES
        }  # fmt: skip
        for program in programs.values():
            program.wait_until_ready()
        url = programs["orders"].found

        def completed() -> int:
            with urllib.request.urlopen(f"{url}/completed", timeout=30) as answer:
                return int(json.load(answer))

        yield Running(url, completed, [program.pid for program in programs.values()], [nats.pid])


_OURS = {"HTTP_PORT": "0", "LOG_FORMAT": "json", "PYTHONPATH": str(ROOT)}


def _start(
    stack: ExitStack, name: str, command: Sequence[str | Path], folder: Path, settings: Mapping[str, str]
) -> Program:
    program = Program(name, command, folder, _READY, settings)
    stack.callback(program.end)
    return program


def _start_postgres(stack: ExitStack, folder: Path) -> PostgresServer:
    """Start a PostgreSQL server with its own defaults; every commit waits for the disk."""
    folder.chmod(0o755)  # the server may run as another user
    (folder / "postgres").mkdir()
    postgres = PostgresServer(folder / "postgres", settings={}).start()
    stack.callback(postgres.stop)
    return postgres


def _migrate(folder: Path, settings: Mapping[str, str]) -> None:
    """Create the tables, as an operator does before the first start on PostgreSQL."""
    migration = Program("migrate", [sys.executable, "-m", "app", "migrate"], folder, r"\Z", _OURS | dict(settings))
    migration.wait()


def _put_stock(url: str) -> None:
    for product in PRODUCTS:
        body = {"on_hand": _ON_HAND, "unit_price": {"amount": 100, "currency": "EUR"}}
        request = urllib.request.Request(
            f"{url}/v1/inventory/{product}", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="PUT"
        )
        urllib.request.urlopen(request, timeout=30).close()


def _with_driver(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://")


def _counter(url: str, table: str) -> Callable[[], int]:
    """Return a function that counts the confirmed orders in *table* of the database at *url*."""
    query = f"SELECT count(*) FROM {table} WHERE status = 'confirmed'"
    if url.startswith("sqlite:///"):
        path = url.removeprefix("sqlite:///")

        def count() -> int:
            connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
            try:
                return int(connection.execute(query).fetchone()[0])
            finally:
                connection.close()

        return count

    def count_in_postgres() -> int:
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            row = connection.execute(query).fetchone()
            assert row is not None
            return int(row[0])

    return count_in_postgres
