"""The `history` and `audit` commands, on the database of a few orders."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.cli.main import main
from app.storage.archive.history_content import POSITIONS
from modules.registry import MODULES
from tests.cli.site import serving


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A database with three orders, of which the last one is cancelled, and their ids."""
    path = tmp_path_factory.mktemp("records") / "test.db"

    async def place() -> list[str]:
        async with serving(path) as site:
            await site.client.stock("SKU-1", 10, 1250)
            ids = [await site.client.place({"SKU-1": 1}) for _ in range(3)]
            for each in ids:
                await site.client.wait_until_final(each)
            await site.client.cancel(ids[-1], "no")
            await site.client.wait_for_payment(ids[-1], "refunded")
            return ids

    return path, asyncio.run(place())


@pytest.fixture
def orders(recorded: tuple[Path, list[str]], path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of these orders, in a configured database of this test."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")
    path.write_bytes(recorded[0].read_bytes())
    path.chmod(0o600)
    return recorded[1]


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, arguments)


def exported(*arguments: str) -> list[dict[str, Any]]:
    result = run("history", "export", *arguments)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
def test_an_export_continues_behind_any_event(orders: list[str]) -> None:
    """Each line has the key of its event; behind the last one there is nothing."""
    lines = exported()
    assert {line["key"] for line in lines} == set(orders)
    for at in 0, len(lines) // 2, len(lines) - 1:
        assert exported("--after", str(lines[at]["seq"])) == lines[at + 1 :]
    assert [line["subject"] for line in exported("--module", "inventory", "--subject", "inventory.reserved.v1")] == ["inventory.reserved.v1"] * 3


def test_a_position_beyond_the_last_transaction_is_refused(orders: list[str], path: Path) -> None:
    """It may be of an event that is written later, or of another database: the first of the transaction after the last."""
    with closing(sqlite3.connect(path)) as connection:
        numbers = [connection.execute(f"SELECT max(number) FROM {name}_history").fetchone()[0] for name in MODULES]
    first = (max(numbers) + 1) * POSITIONS
    assert exported("--after", str(first - 1)) == []
    refused = run("history", "export", "--after", str(first))
    assert (refused.exit_code, "beyond the last event" in refused.stderr) == (2, True)


def test_a_history_that_is_decided_otherwise_ends_with_1(orders: list[str], path: Path) -> None:
    """Equal is 0; timers that are due at another time are named with the direction, and a state that was edited is found."""
    assert run("history", "verify").exit_code == 0
    earlier = run("history", "verify", ORDER_TIMEOUT_S="600")
    assert (earlier.exit_code, "3 timers orders.timed_out.v1 are due 300 s earlier" in earlier.stdout) == (1, True)
    later = run("history", "verify", ORDER_TIMEOUT_S="1200")
    assert (later.exit_code, "3 timers orders.timed_out.v1 are due 300 s later" in later.stdout) == (1, True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE orders_order SET status = 'cancelled', reason = 'requested' WHERE order_id = ?", (orders[0],))
    found = run("history", "verify", "--json")
    assert (found.exit_code, json.loads(found.stdout)["end_difference_count"]) == (1, 1)


def test_the_modules_of_several_databases_have_no_common_baseline(orders: list[str], path: Path) -> None:
    """One module has to be named: a baseline is the copy of one database."""
    more = {"PAYMENTS_DATABASE_URL": f"sqlite:///{path.with_name('payments.db')}"}
    path.with_name("payments.db").write_bytes(path.read_bytes())
    copy = path.with_name("copy.db")
    copy.write_bytes(path.read_bytes())
    refused = run("history", "verify", "--baseline", f"sqlite:///{copy}", **more)
    assert (refused.exit_code, "--baseline: the modules have several databases" in refused.stderr) == (2, True)
    assert run("history", "verify", "--baseline", f"sqlite:///{copy}", "--module", "orders", **more).exit_code == 0


def test_the_audit_is_selected_by_each_of_its_options(orders: list[str]) -> None:
    """The newest first."""

    def listed(*arguments: str) -> list[str]:
        result = run("audit", "list", "--json", *arguments)
        assert result.exit_code == 0, result.stderr
        return [record["action"] for record in json.loads(result.stdout)]

    assert listed() == ["cancelOrder", "setProduct"]
    assert listed("--action", "setProduct") == ["setProduct"]
    assert listed("--target", orders[-1]) == ["cancelOrder"]
    assert listed("--limit", "1") == ["cancelOrder"]
    assert listed("--actor", "somewhere-else") == []
    cancelled_at = json.loads(run("audit", "list", "--json").stdout)[0]["at"]
    assert listed("--before", cancelled_at) == ["setProduct"]
    assert listed("--after", cancelled_at) == ["cancelOrder"]
    assert listed("--before", (datetime.now(UTC) - timedelta(hours=1)).isoformat()) == []
