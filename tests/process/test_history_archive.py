"""`history archive` as an operator runs it: through kill -9, a full disk and a damaged file, beside a running server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet
import pytest

from app.storage.archive.history_content import HistoryEvent
from app.storage.archive.history_reader import HistoryReader
from app.storage.archive.history_table import HistoryTable
from app.storage.archive.parquet_archive import Archive
from app.storage.archive.parquet_manifest import ArchiveUnusable
from app.storage.archive.parquet_writer import HistoryArchiver
from app.storage.sql.database import Database
from tests.databases import migrated_file
from tests.process.client import Client
from tests.process.conftest import Serve
from tests.process.server import SEPARATE_DATABASES, Server, environment_of, run
from tests.process.test_history import pages
from tests.storage.archive_contract import DAY, PAY, happen, place, shop
from tests.story.blocks import blocks_of

pytestmark = pytest.mark.slow

MODULES = ("orders", "inventory", "payments")
ROOT = Path(__file__).parents[2]
ENGINES = ROOT / "docs" / "howto" / "history" / "read-the-archive.rst"


LIMITED = """
import resource
from app.cli.main import main
from app.storage.archive.parquet_files import DatasetWriter

def limited(*arguments, begin=DatasetWriter.__init__):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
    begin(*arguments)

DatasetWriter.__init__ = limited
main()
"""
"""The program; no file of an archive can become larger than 1,000 bytes."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SQLite file with an order on each of eight days in 2026."""
    path = tmp_path_factory.mktemp("history") / "fulfilment.db"

    async def fill() -> None:
        async with shop(migrated_file(path)) as (harness, clock):
            for n in range(8):
                await happen(harness, await place(harness, n), (PAY,))
                await clock.advance(DAY)

    asyncio.run(fill())
    return path


@pytest.fixture
def database(filled: Path, tmp_path: Path) -> Path:
    """Return a copy of the file."""
    return Path(shutil.copy(filled, tmp_path / "fulfilment.db"))


def command(database: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `history` with *arguments* in the folder of *database*."""
    done = run(database.parent, "history", *arguments, DATABASE_URL=f"sqlite:///{database}")
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


@asynccontextmanager
async def history_at(path: Path, archive: Archive | None) -> AsyncIterator[HistoryReader]:
    database = Database(f"sqlite:///{path}")
    yield HistoryReader({name: (database, HistoryTable(name, database.dialect)) for name in MODULES}, archive=archive)
    await database.close()


def events_of(database: Path, folder: str = "") -> list[HistoryEvent]:
    """Return the events of *database*, and of the archive in *folder* beside it."""

    async def read() -> list[HistoryEvent]:
        async with history_at(database, Archive(database.parent / folder) if folder else None) as reader:
            return [event async for part in reader.events() for event in part]

    return asyncio.run(read())


def killed_after(database: Path, lines: int, *arguments: str) -> None:
    """Run `history` with *arguments*, and kill it once it has printed *lines*."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "app", "history", *arguments], cwd=database.parent, stdout=subprocess.PIPE,
        env=environment_of({"DATABASE_URL": f"sqlite:///{database}"}),
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        for _ in range(lines):
            assert process.stdout.readline()
        process.kill()


def left(database: Path) -> list[int]:
    """Return how many rows each module has in the database."""
    with closing(sqlite3.connect(database)) as connection:
        return [connection.execute(f"SELECT count(*) FROM {name}_history").fetchone()[0] for name in MODULES]


@pytest.mark.slow
def test_a_run_that_is_killed_is_finished_by_the_next_one(database: Path) -> None:
    """Archiving and purging: after kill -9 at any moment archive and database together are what the database was."""
    whole = events_of(database)
    assert len(whole) == 8 * 5
    for lines in (1, 8):
        killed_after(database, lines, "archive", "--into", "archive")
        assert events_of(database, "archive") == whole
    printed = command(database, "archive", "--into", "archive").stdout.splitlines()
    assert {line.split()[0] for line in printed} == {"archived"}
    killed_after(database, 5, "archive", "--into", "archive", "--purge")
    assert events_of(database, "archive") == whole
    assert 1 < left(database)[0] < 16
    command(database, "archive", "--into", "archive", "--purge")
    assert left(database) == [1, 1, 1]
    assert events_of(database, "archive") == whole
    counts = command(database, "archive", "--check", "archive").stdout.splitlines()
    assert [line.split()[0] for line in counts] == ["MODULE", *sorted(MODULES)]
    assert sum(int(line.split()[5]) for line in counts[1:]) == len(whole)


def test_two_runs_at_once_and_wrong_options_are_refused(database: Path) -> None:
    """The second run names the first; nothing is written by it."""
    import fcntl

    folder = database.parent / "archive"
    folder.mkdir()
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711\n")
        file.flush()
        error = command(database, "archive", "--into", "archive", code=1).stderr
    assert error == "fulfilment: archive: another `history archive` is writing to it (process 4711); wait for its end\n"
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert "--into: name the folder" in command(database, "archive", code=2).stderr
    error = command(database, "archive", "--check", "nowhere", code=1).stderr
    assert error == "fulfilment: nowhere: there is no such folder; create it, or correct HISTORY_ARCHIVE\n"


def test_a_disk_that_is_full_is_an_error_and_the_next_run_goes_on(database: Path) -> None:
    """The file and the reason are named; no part of a file is left under its name."""
    whole = events_of(database)

    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "history", "archive", "--into", "archive"], cwd=database.parent, capture_output=True, text=True,
        env=environment_of({"DATABASE_URL": f"sqlite:///{database}"}), check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("fulfilment: archive/rows/module=")
    assert "File too large; free space" in done.stderr
    assert not [*(database.parent / "archive").rglob("*.parquet*")]
    assert events_of(database, "archive") == whole
    command(database, "archive", "--into", "archive")
    assert events_of(database, "archive") == whole


def _torn(folder: Path) -> str:
    path = next((folder / "rows").rglob("day=2026-01-02/*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    return f"{path.name}: has "


def _damaged(folder: Path) -> str:
    path = next((folder / "rows" / "module=orders").rglob("day=2026-01-02/*.parquet"))
    path.write_bytes(path.read_bytes()[::-1])
    return f"{path.name}: is damaged"


def _gone(folder: Path) -> str:
    next((folder / "rows").rglob("day=2026-01-02/*.parquet")).unlink()
    return "part-0001.parquet: does not exist, but its manifest does; restore it from a copy"


def _other(folder: Path) -> str:
    manifests = folder / "manifests" / "orders"
    (manifests / "2026-01-02.json").write_bytes((manifests / "2026-01-03.json").read_bytes())
    return "manifests/orders/2026-01-02.json: is the manifest of orders on 2026-01-03; restore"


def _missing(folder: Path) -> str:
    (folder / "manifests" / "orders" / "2026-01-02.json").unlink()
    return "2026-01-03.json: begins after transaction"


def _newer(folder: Path) -> str:
    path = folder / "manifests" / "payments" / "2026-01-02.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"format": 1', '"format": 2'), encoding="utf-8")
    return "2026-01-02.json: has the format 2 of a newer release; read it with that release"


def _empty(folder: Path) -> str:
    (folder / "manifests" / "payments" / "2026-01-02.json").write_bytes(b"")
    return "2026-01-02.json: is damaged"


IN_FILES = (_torn, _damaged, _gone)


@pytest.mark.parametrize("harm", [_torn, _damaged, _gone, _other, _missing, _newer, _empty])
async def test_what_is_wrong_with_an_archive_is_named(
    filled: Path, tmp_path: Path, archived: Path, harm: Callable[[Path], str]
) -> None:
    """A check and every reader end with the file and what to do; nothing is left out, nothing purged."""
    archive = Archive(Path(await asyncio.to_thread(shutil.copytree, archived, tmp_path / "archive")))
    error, before = harm(archive.folder), left(filled)
    async with history_at(filled, archive) as reader:

        async def read() -> None:
            async for _ in reader.events():
                pass

        async def purge() -> None:
            async for _ in HistoryArchiver(await reader.source(*MODULES), archive).purge(MODULES, None):
                pass

        async def check() -> None:
            for found in archive.archives().modules.values():
                for manifest in found.manifests:
                    archive.verify(manifest)

        for use in (read, check, *([] if harm in IN_FILES else [purge])):
            with pytest.raises(ArchiveUnusable) as caught:
                await use()
            assert str(caught.value).startswith(f"{archive.folder}/")
            assert use is check or error in str(caught.value)
    assert left(filled) == before


@pytest.fixture(scope="module")
def archived(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an archive of `filled`."""
    folder = tmp_path_factory.mktemp("archived")
    done = run(folder, "history", "archive", "--into", "archive", DATABASE_URL=f"sqlite:///{filled}")
    assert done.returncode == 0, done.stderr
    return folder / "archive"


def test_the_example_for_duckdb_works(archived: Path) -> None:
    """The query of the how-to, over the folder of the test."""
    (sql,) = [block.text for block in blocks_of(ENGINES) if "read_parquet" in block.text]
    rows = duckdb.connect().execute(sql.replace("/srv/history", str(archived))).fetchall()
    assert [(str(day), *rest) for day, *rest in rows] == [(f"2026-01-0{n}", "EUR", 1, 200) for n in range(1, 9)]


def test_the_table_for_trino_has_the_columns_of_the_files(archived: Path) -> None:
    """And the page lists them; the partitions come last."""
    (sql,) = [block.text for block in blocks_of(ENGINES) if "CREATE TABLE" in block.text]
    columns = re.findall(r"(\w+) ([A-Z]+(?:\(6\))?)[,\n]", sql.partition("(")[2].partition(") WITH")[0])
    types = {"int64": "BIGINT", "string": "VARCHAR", "timestamp[us, tz=UTC]": "TIMESTAMP(6)"}
    file = next((archived / "events").rglob("*.parquet"))
    stored = [(field.name, types[str(field.type)]) for field in pyarrow.parquet.read_schema(file)]
    assert columns == [*stored, ("module", "VARCHAR"), ("day", "DATE")]
    assert [part.partition("=")[0] for part in file.relative_to(archived / "events").parts[:-1]] == ["module", "day"]
    assert set(re.findall(r"^``(\w+)`` ", ENGINES.read_text(encoding="utf-8"), re.MULTILINE)) == {name for name, _ in stored}


def test_without_pyarrow_the_archive_is_refused_and_everything_else_works(database: Path) -> None:
    """The message has the command that installs it."""
    stub = database.parent / "stub"
    stub.mkdir()
    (stub / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\nu.find_spec = lambda name, *more: None if name == 'pyarrow' else find(name, *more)\n",
        encoding="utf-8",
    )
    path = os.pathsep.join((str(stub), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", "app", "history", "archive", "--into", "archive"], cwd=database.parent, capture_output=True, text=True,
        env=environment_of({"DATABASE_URL": f"sqlite:///{database}"}) | {"PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "fulfilment: HISTORY_ARCHIVE: needs pyarrow: pip install 'fulfilment[analytics]'\n")


def age(server: Server) -> None:
    """Set the history back: its first half to four days ago, its second half to three days ago."""
    day = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    for name in MODULES:
        with closing(sqlite3.connect(server.database_of(name))) as connection, connection:
            (last,) = connection.execute(f"SELECT max(number) FROM {name}_history").fetchone()
            for (number,) in connection.execute(f"SELECT number FROM {name}_history").fetchall():
                moment = day - timedelta(days=4 - (2 * number > last), microseconds=-number)
                connection.execute(f"UPDATE {name}_history SET at = ? WHERE number = ?", (moment.isoformat(timespec="microseconds"), number))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Return the settings of a server with an archive."""
    folder = tmp_path / "history"
    folder.mkdir()
    return {"HISTORY_ARCHIVE": str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, pytest.param(SEPARATE_DATABASES, marks=pytest.mark.night)], ids=["one database", "a database each"])
async def test_a_server_shows_the_archive_and_its_database_as_one(
    serve: Serve, connect: Callable[[Server], Client], files: dict[str, str], settings: dict[str, str]
) -> None:
    """While days are archived and purged beside it; a folder that is not there is 503, and orders go on."""
    server = await asyncio.to_thread(serve, **files, **settings)
    client = connect(server)
    await client.stock("A", 100)

    async def order(count: int) -> None:
        for id in await asyncio.gather(*(client.place({"A": 1}) for _ in range(count))):
            await client.wait_until_final(id)

    async def shown(limit: int = 7) -> list[Any]:
        queries = [f"&module={name}" for name in MODULES] if settings else [""]
        return [item for query in queries for item in await pages(client, query, limit)]

    await order(6)
    await asyncio.to_thread(age, server)
    before = await shown()
    given = {name: value for name, value in server.settings.items() if name.endswith("DATABASE_URL") or name == "HISTORY_ARCHIVE"}
    for arguments in (["archive"], ["archive", "--purge"]):
        running = asyncio.create_task(asyncio.to_thread(run, server.folder, "history", *arguments, **given))
        while not running.done():
            assert await shown() == before
        done = await running
        assert done.returncode == 0, done.stderr
        assert await shown() == before
    assert "purged" in done.stdout
    await order(2)
    after = await shown(3)
    assert len(after) == len(before) + 2 * 5
    assert {item["seq"] for item in after} >= {item["seq"] for item in before}
    folder = Path(files["HISTORY_ARCHIVE"])
    await asyncio.to_thread(folder.rename, folder.with_name("away"))
    for _ in range(2):
        problem = await client.get("/v1/history?module=orders", 503)
        assert problem["code"] == "history_archive_unusable"
        assert str(folder) not in json.dumps(problem)
    await order(1)
    assert len([line for line in server.lines if "there is no such folder" in line]) == 1
    await asyncio.to_thread(folder.with_name("away").rename, folder)
    assert len(await shown()) == len(after) + 5
