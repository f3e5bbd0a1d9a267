"""`analytics run` as an operator runs it: signals, a full disk, an archive, and what is missing or out of reach."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from app.analytics.query_server import socket_path
from tests.databases import migrated_file
from tests.process.server import environment_of, run
from tests.runtime.harness import until
from tests.storage.archive_contract import DAY, PAY, happen, place, shop

pytestmark = pytest.mark.slow

LIMITED = """
import resource
from app.analytics.analytics_file import AnalyticsFile
from app.cli.main import main

def limited(*arguments, take=AnalyticsFile.take, **options):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
    return take(*arguments, **options)

AnalyticsFile.take = limited
main()
"""
"""The program; from the first batch on, no file can become larger than 1,000 bytes."""

KILLED = """
import itertools, os, signal
from app.analytics import ingest
from app.analytics.analytics_file import AnalyticsFile
from app.analytics.sources import history
from app.cli.main import main

def killed(method, calls):
    numbers = itertools.count(1)

    def called(*arguments, **options):
        result = method(*arguments, **options)
        if next(numbers) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return called

history.EVENTS_MAX = 4
ingest.TRANSACTION_EVENTS = {events}
AnalyticsFile.{method} = killed(AnalyticsFile.{method}, {calls})
main()
"""
"""
The program with small batches and transactions; it is killed right after some call of a method: `_insert` stores the rows of one table,
`take` those of one batch.
"""

WITHOUT_EXTRA = """
import sys
sys.modules |= {"duckdb": None, "pyarrow": None}
from app.cli.main import main

for arguments in (["run"], ["query", "SELECT 1"], ["report"], ["watch", "--rule", "funnel.orders > 1", "--url", "http://127.0.0.1:9"]):
    try:
        main(["analytics", *arguments])
    except SystemExit as error:
        print(error.code)
"""
"""Each command, as it is without the packages of the extra; prints the exit codes."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with an order on each of two days."""
    path = tmp_path_factory.mktemp("analytics") / "fulfilment.db"

    async def fill() -> None:
        async with shop(migrated_file(path)) as (harness, clock):
            for n in range(2):
                await happen(harness, await place(harness, n), (PAY,))
                await clock.advance(DAY)

    asyncio.run(fill())
    return path


def called(program: str, folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a changed *program* with *arguments*."""
    command, environment = [sys.executable, "-c", program, *arguments], environment_of(settings)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def orders(file: Path) -> int:
    with duckdb.connect(str(file), read_only=True) as connection:
        (count,) = connection.execute("SELECT count(*) FROM orders_confirmed").fetchall()[0]
    return int(count)


def test_what_was_purged_comes_from_the_archive(database: Path, tmp_path: Path) -> None:
    """With HISTORY_ARCHIVE a file is made anew from the archive and the database."""
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path}/fulfilment.db"}
    (tmp_path / "fulfilment.db").write_bytes(database.read_bytes())
    (tmp_path / "archive").mkdir()
    archived = run(tmp_path, "history", "archive", "--into", "archive", "--purge", **settings)
    assert archived.returncode == 0, archived.stderr
    for expected, more in ((2, {"HISTORY_ARCHIVE": "archive"}), (0, {})):
        file = f"{expected}.duckdb"
        done = run(tmp_path, "analytics", "run", "--once", "--file", file, **settings, **more)
        assert done.returncode == 0, done.stderr
        assert orders(tmp_path / file) == expected


def test_a_kill_within_the_archive_loses_nothing(database: Path, tmp_path: Path) -> None:
    """A new run goes on after the last batch that was committed: in the end every event is there once."""
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path}/fulfilment.db", "HISTORY_ARCHIVE": "archive", "ANALYTICS_FILE": "analytics.duckdb"}
    (tmp_path / "fulfilment.db").write_bytes(database.read_bytes())
    (tmp_path / "archive").mkdir()
    assert run(tmp_path, "history", "archive", "--into", "archive", "--purge", **settings).returncode == 0
    for method, calls, events in (("take", 2, 100), ("_insert", 6, 1), ("take", 1, 1)):
        program = KILLED.format(method=method, calls=calls, events=events)
        done = called(program, tmp_path, "analytics", "run", "--once", **settings)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert run(tmp_path, "analytics", "run", "--once", **settings).returncode == 0
    with duckdb.connect(str(tmp_path / "analytics.duckdb"), read_only=True) as connection:
        tables = ("orders_created", "inventory_reserved", "payments_charge_requested", "payments_captured", "orders_confirmed")
        ids = [id for table in tables for (id,) in connection.execute(f"SELECT event_id FROM {table}").fetchall()]
    assert len(ids) == len({*ids}) == 10


def test_a_full_disk_ends_the_command_and_loses_nothing(database: Path, tmp_path: Path) -> None:
    """The reason is one line; the next run has every event once."""
    settings = {"DATABASE_URL": f"sqlite:///{database}", "ANALYTICS_FILE": "analytics.duckdb"}
    full = called(LIMITED, tmp_path, "analytics", "run", "--once", **settings)
    assert full.returncode == 1
    assert "analytics.duckdb: the disk is full: free some space and start again; nothing is lost" in full.stderr.splitlines()[-1]
    assert run(tmp_path, "analytics", "run", "--once", **settings).returncode == 0
    assert orders(tmp_path / "analytics.duckdb") == 2


def test_sigterm_ends_the_command_with_0(database: Path, tmp_path: Path) -> None:
    """Nothing is left but the file, which has everything."""
    file = tmp_path / "analytics.duckdb"
    environment = environment_of({"DATABASE_URL": f"sqlite:///{database}"})
    command = [sys.executable, "-m", "app", "analytics", "run", "--file", str(file)]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as process:
        try:
            asyncio.run(until(lambda: process.poll() is not None or socket_path(file).exists()))
            process.terminate()
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, errors.decode()
    assert b"Traceback" not in errors
    assert list(tmp_path.iterdir()) == [file]


UNUSABLE = {
    "no database": (("run", "--once"), {"DATABASE_URL": "sqlite:///none.db"}, 3, "none.db"),
    "no NATS": (
        ("run", "--once", "--source", "bus"), {"BUS": "nats", "NATS_URL": "nats://127.0.0.1:1", "MODULES": "orders"}, 3, "NATS is out of reach",
    ),
    "no bus": (("run", "--source", "bus"), {}, 2, "--source: bus needs BUS=nats"),
    "no folder": (("run", "--file", "/dev/null/analytics.duckdb"), {}, 1, "/dev/null"),
    "no file": (("query", "SELECT 1"), {}, 1, "there is no such file: `analytics run` makes it"),
}  # fmt: skip
"""The arguments of `analytics`, the settings, the exit code, and a part of the last line."""


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case == "no NATS")) for case in UNUSABLE])
def test_what_is_missing_is_named_in_one_line(tmp_path: Path, case: str) -> None:
    """The exit code is the documented one."""
    arguments, settings, code, reason = UNUSABLE[case]
    done = run(tmp_path, "analytics", *arguments, **settings)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert reason in done.stderr.splitlines()[-1]


def test_without_the_extra_each_command_names_it(tmp_path: Path) -> None:
    """The base program has the commands; they end with what to install."""
    done = called(WITHOUT_EXTRA, tmp_path)
    assert done.stdout.split() == ["2"] * 4, done.stderr
    assert done.stderr == "fulfilment: duckdb and pyarrow: not installed: pip install 'fulfilment[analytics]'\n" * 4
