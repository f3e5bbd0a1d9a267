"""The page on writing a module, followed to the letter in a copy of the repository."""

from __future__ import annotations

import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.storage.migrations.common import EDITIONS
from tests.architecture.tree import ROOT
from tests.nats import NatsServer
from tests.process.client import Client, eventually
from tests.process.server import Server, environment_of
from tests.story.blocks import blocks_of, copy_of_the_repository, write

pytestmark = [pytest.mark.process, pytest.mark.slow]

BLOCKS = blocks_of(ROOT / "docs/howto/write-a-module.rst")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the module of the page; every command up to ``serve`` has been run, in order."""
    folder = copy_of_the_repository(tmp_path_factory.mktemp("repository"))
    for block in BLOCKS:
        if block.file:
            write(block, folder)
        elif "serve" not in block.text:
            _run(block.text, folder)
    return folder


def _run(session: str, folder: Path) -> None:
    """Run the commands of *session*; where it shows an output, that is what they print."""
    for step in session.removeprefix("$ ").split("\n$ "):
        command, _, output = step.partition("\n")
        words = shlex.split(command)
        assert words[0] == "python", command
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=folder, env=environment_of({}), capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if output:
            assert done.stdout == output


def test_the_migration_of_the_page_has_the_newest_edition() -> None:
    """A module that is written today needs every table that the runtime uses today."""
    [block] = [block for block in BLOCKS if block.file.endswith("0001_first_tables.py")]
    assert f"edition={len(EDITIONS)})" in block.text



def test_the_page_keeps_the_rules_of_the_architecture(repository: Path) -> None:
    """Imports point the right way, and every module has the same files."""
    lint = Path(sysconfig.get_path("scripts")) / "lint-imports"
    rules: list[list[str | Path]] = [
        [lint, "--no-cache"],
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/architecture/test_files.py"],
    ]
    for command in rules:
        done = subprocess.run(command, cwd=repository, env=environment_of({}), capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


async def test_the_module_of_the_page_announces_a_shipment_in_one_process(repository: Path, tmp_path: Path) -> None:
    """On SQLite, over HTTP; before the order is confirmed there is no shipment."""
    with ExitStack() as stack:
        server = Server(repository, DATABASE_URL=f"sqlite:///{tmp_path}/one.db")
        stack.callback(server.end)
        server.start()
        await _order_until_the_shipment(server)


class _Processes:
    """One server for each module; a path is answered by the one that runs its module."""

    def __init__(self, servers: dict[str, Server]) -> None:
        self.servers = servers

    def url_of(self, path: str) -> str:
        return self.servers[path.split("/")[2]].url + path

    def database_of(self, module: str) -> Path | str:
        return self.servers[module].database


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path / "nats") as server:
        yield server


async def test_the_module_of_the_page_announces_a_shipment_in_a_process_of_its_own(
    repository: Path, tmp_path: Path, broker: NatsServer
) -> None:
    """Four processes, four files, NATS between them; shipping starts with the command of the page."""
    [words] = [shlex.split(line)[1:-4] for block in BLOCKS for line in block.text.splitlines() if "MODULES=shipping" in line]
    of_the_page = dict(word.split("=", 1) for word in words)
    with ExitStack() as stack:
        servers = {}
        for module in ("orders", "inventory", "payments", "shipping"):
            settings = of_the_page if module == "shipping" else {"BUS": "nats", "MODULES": module}
            address = {"HTTP_PORT": "0", "NATS_URL": broker.url, "DATABASE_URL": f"sqlite:///{tmp_path}/{module}.db"}
            servers[module] = Server(repository, **settings | address)
            stack.callback(servers[module].end)
            servers[module].launch()
        for server in servers.values():
            server.wait_until_ready()
        await _order_until_the_shipment(_Processes(servers))


async def _order_until_the_shipment(server: Server | _Processes) -> None:
    client = Client(server)
    try:
        await client.stock("SKU-1", 10)
        order_id = await client.place({"SKU-1": 2})
        assert (await client.wait_until_final(order_id))["status"] == "confirmed"
        reply = await eventually(
            lambda: client.request("GET", f"/v1/shipping/{order_id}"), lambda reply: reply.status == 200
        )
        assert (reply.body["order_id"], reply.body["pieces"]) == (order_id, 2)
    finally:
        await client.close()
