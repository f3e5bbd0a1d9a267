"""`history` and its exit codes: an operator, and what runs it at night, learn from them what is wrong."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli.main import main
from tests.databases import migrated_file
from tests.storage.archive_contract import DAY, NOW, PAY, happen, place, shop

MODULES = ("inventory", "orders", "payments")

Run = Callable[..., Result]


async def fill(path: Path) -> None:
    """Make a file at *path*, and place an order in it on each of three days from `NOW` on."""
    async with shop(migrated_file(path)) as (harness, clock):
        for n in range(3):
            await happen(harness, await place(harness, n), (PAY,))
            await clock.advance(DAY)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with three orders, which were paid on three days."""
    path = tmp_path_factory.mktemp("history") / "fulfilment.db"
    asyncio.run(fill(path))
    return path


@pytest.fixture
def database(filled: Path, tmp_path: Path) -> Path:
    """A copy of the file."""
    return Path(shutil.copy(filled, tmp_path / "fulfilment.db"))


@pytest.fixture
def run(database: Path) -> Run:
    """Return a function that runs `history` on the copy, and expects an exit code; no thread of a database is left."""

    def run(*arguments: str, code: int = 0, **settings: str) -> Result:
        environment = {"DATABASE_URL": f"sqlite:///{database}", **settings}
        result = CliRunner().invoke(main, ["history", *arguments], env=environment)
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("database-")] == []
        return result

    return run


def change(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def rows(database: Path) -> list[int]:
    """Return how many rows each history has in the database."""
    with closing(sqlite3.connect(database)) as connection:
        return [connection.execute(f"SELECT count(*) FROM {name}_history").fetchone()[0] for name in MODULES]


def test_what_is_equal_ends_with_0(run: Run) -> None:
    """Of all modules together and of each one; made anew, too."""
    assert json.loads(run("verify", "--json").stdout)["is_equal"] is True
    for name in MODULES:
        assert run("verify", "--module", name).stdout.endswith("Equal: every event and every state is what it was.\n")


def test_a_rebuilt_database_is_equal_and_is_not_made_twice(run: Run, database: Path) -> None:
    """The states are in it, and nothing that would be served."""
    into = f"sqlite:///{database}.rebuilt"
    run("rebuild", "--into", into)
    assert "--into: the table" in run("rebuild", "--into", into, code=2).stderr
    for table in ("outbox", "inbox"):
        other = f"{database}.{table}"
        shutil.copy(f"{database}.rebuilt", other)
        change(Path(other), *(f"DELETE FROM {name}" for name in ("orders_order", "inventory_reservation", "inventory_product", "payments_payment")))
        with closing(sqlite3.connect(other)) as connection:
            columns = connection.execute(f"SELECT name, type FROM pragma_table_info('orders_{table}')").fetchall()
        values = ", ".join("'1'" if kind != "BLOB" else "x'01'" for _, kind in columns)
        change(Path(other), f"INSERT INTO orders_{table} VALUES ({values})")
        assert f"the table orders_{table} has rows" in run("rebuild", "--into", f"sqlite:///{other}", code=2).stderr


@pytest.mark.parametrize(
    ("statement", "settings", "shown"),
    [
        ("UPDATE orders_order SET status = 'cancelled', reason = 'requested'", {}, "States that end differently (the first 1 of 3)"),
        pytest.param("DELETE FROM payments_payment", {}, "States that end differently (the first 1 of 3)", marks=pytest.mark.slow),
        pytest.param("UPDATE orders_order SET customer_id = 'another'", {}, "States that differ otherwise (the first 1 of 3)", marks=pytest.mark.slow),
        ("SELECT 1", {"ORDER_TIMEOUT_S": "600"}, "3 timers orders.timed_out.v1 are due"),
        pytest.param(
            "UPDATE payments_history SET content = x'09' WHERE number = (SELECT max(number) FROM payments_history)", {},
            "payments: decided again up to", marks=pytest.mark.slow,
        ),
    ],
    ids=["another end", "a state is missing", "another member", "a setting", "a damaged row"],
)
def test_what_differs_ends_with_1_and_is_named(run: Run, database: Path, statement: str, settings: dict[str, str], shown: str) -> None:
    """A script that runs it must not take any of these for equal; as many differences are shown as were asked for."""
    change(database, statement)
    assert shown in run("verify", "--limit", "1", code=1, **settings).stdout
    run("rebuild", "--into", f"sqlite:///{database}.rebuilt", code=1, **settings)


def test_a_baseline_that_does_not_fit_is_refused(run: Run, database: Path, tmp_path: Path) -> None:
    """One that is not there, is of another release, or of another database; a copy of an earlier time is taken."""
    copy = shutil.copy(database, tmp_path / "earlier.db")
    run("verify", "--baseline", f"sqlite:///{copy}")
    assert "there is no database at" in run("verify", "--baseline", f"sqlite:///{tmp_path}/none.db", code=3).stderr
    with closing(sqlite3.connect(tmp_path / "empty.db")) as connection:
        connection.execute("PRAGMA user_version = 1")
    assert "migrate the copy first" in run("verify", "--baseline", f"sqlite:///{tmp_path}/empty.db", code=3).stderr
    change(tmp_path / "earlier.db", *(f"UPDATE {name}_history SET at = '2020-01-01T00:00:00.000000+00:00'" for name in MODULES))
    assert "no earlier copy of this database" in run("verify", "--baseline", f"sqlite:///{copy}", code=2).stderr


def test_days_are_archived_once_and_read_with_the_database(run: Run, database: Path, tmp_path: Path) -> None:
    """Verified, exported and purged; the archive of another database is refused everywhere."""
    into = str(tmp_path / "archive")
    whole, before = run("export").stdout, rows(database)
    assert len(whole.splitlines()) == 3 * 5
    assert len(run("archive", "--into", into).stdout.splitlines()) == 9
    assert run("archive", "--into", into).stdout == ""
    kept = NOW.now(NOW.tzinfo) - NOW - timedelta(days=1, hours=12)
    run("archive", "--into", into, "--purge", HISTORY_KEPT=f"{kept // timedelta(hours=1)}h")
    assert all(1 < left < all_rows for left, all_rows in zip(rows(database), before, strict=True))
    run("archive", "--into", into, "--purge")
    assert rows(database) == [1, 1, 1]
    assert run("export", HISTORY_ARCHIVE=into).stdout == whole
    run("verify", HISTORY_ARCHIVE=into)
    run("archive", "--check", into)
    other = tmp_path / "other.db"
    asyncio.run(fill(other))
    change(other, *(f"UPDATE {name}_history SET at = replace(at, '2026', '2025')" for name in MODULES))
    for command in (["verify"], ["export"], ["archive"]):
        refused = run(*command, code=1, DATABASE_URL=f"sqlite:///{other}", HISTORY_ARCHIVE=into)
        assert "It is the archive of another database" in refused.stderr


def test_an_archive_that_is_in_use_or_has_files_of_its_own_is_an_error(run: Run, tmp_path: Path) -> None:
    """Another run is writing to it; another engine would count a file that no manifest has."""
    into = tmp_path / "archive"
    run("archive", "--into", str(into))
    with (into / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another `history archive` is writing to it" in run("archive", "--into", str(into), code=1).stderr
    part = next((into / "rows").rglob("*.parquet"))
    shutil.copy(part, part.with_name("part-0002.parquet"))
    assert "no manifest has it" in run("archive", "--check", str(into), code=1).stderr


def test_an_export_goes_on_where_it_has_ended(run: Run, database: Path) -> None:
    """After any event; beyond the last one it is an error, and so is what cannot be read."""
    lines = run("export").stdout.splitlines(keepends=True)
    seqs = [json.loads(line)["seq"] for line in lines]
    for number in (1, 7, 15):
        assert run("export", "--after", str(seqs[number - 1])).stdout == "".join(lines[number:])
    assert "is beyond the last event" in run("export", "--after", str(seqs[-1] + 2**17), code=2).stderr
    assert "MODULES: must contain orders" in run("export", "--module", "orders", code=2, BUS="nats", MODULES="inventory").stderr
    change(database, "UPDATE orders_history SET content = x'09'")
    assert "cannot be read" in run("export", code=1).stderr
