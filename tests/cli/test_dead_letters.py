"""``dead-letters`` on the command line, with the server away."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.cli.main import main
from app.gateways.webhook_handler import CONSUMER as WEBHOOKS
from bus.port import DeadLetter, Message
from tests.runtime.harness import harness_at


@pytest.fixture
def ids(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three letters in the database that the environment names: their ids."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")

    async def lay_down() -> list[str]:
        async with harness_at(path) as harness:
            await harness.consume("inventory")
            await harness.bus.publish(Message("orders.created.v1", "m-1", b"{", "k", {"ce-id": "e-1"}))
            await harness.bus.publish(Message("orders.created.v1", "m-2", b'{"a": 1}', "k"))
            await harness.bus.publish(Message("orders.cancelled.v1", "m-3", b"{}", "k"))
            return [kept.dead_letter.id for kept in await harness.dead_letter_store.list(None, None, None, 10)]

    found = asyncio.run(lay_down())
    assert len(found) == 3
    return found


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["dead-letters", *arguments])


def outbox(path: Path) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT event_id, sent_at FROM inventory_outbox ORDER BY event_id").fetchall()
    finally:
        connection.close()


def test_a_list_is_a_table_with_a_line_for_each(ids: list[str]) -> None:
    """Its first column is what the other commands take."""
    result = run("list")
    assert result.exit_code == 0, result.output
    head, *lines = result.output.splitlines()
    assert head.split() == ["ID", "CONSUMER", "SUBJECT", "ERROR", "ATTEMPTS", "REPLAYS", "LAST_SEEN"]
    assert [line.split()[0] for line in lines] == ids


def test_a_list_is_narrowed_by_consumer_subject_error_and_limit(ids: list[str]) -> None:
    """And is JSON for programs."""
    subjects = [dead_letter["subject"] for dead_letter in json.loads(run("list", "--json").output)]
    assert sorted(subjects) == ["orders.cancelled.v1", "orders.created.v1", "orders.created.v1"]
    assert len(json.loads(run("list", "--json", "--subject", "orders.cancelled.v1").output)) == 1
    assert len(json.loads(run("list", "--json", "--consumer", "inventory", "--limit", "2").output)) == 2
    assert [dead_letter["error"] for dead_letter in json.loads(run("list", "--json", "--error", "unreadable").output)] == ["unreadable"]
    assert len(json.loads(run("list", "--json", "--error", "invalid", "--subject", "orders.created.v1").output)) == 1
    assert json.loads(run("list", "--json", "--consumer", "payments").output) == []
    assert run("list", "--consumer", "payments").output == "no dead letters\n"


def test_a_letter_is_shown_whole(ids: list[str]) -> None:
    """As the API shows it, a body that is no JSON included."""
    letters = {}
    for id in ids:
        result = run("show", id)
        assert result.exit_code == 0, result.output
        letters[id] = json.loads(result.output)
        assert letters[id]["id"] == id
    assert {dead_letter["message"]["id"]: dead_letter["message"]["body"] for dead_letter in letters.values()} == {
        "m-1": {"base64": "ew=="},
        "m-2": {"a": 1},
        "m-3": {},
    }


def test_named_letters_are_put_into_the_outbox(ids: list[str], path: Path) -> None:
    """Where the relay of a running server finds them within a second; a dry run puts nothing there."""
    assert run("replay", "--dry-run", ids[0]).output == "1 would be replayed\n"
    assert outbox(path) == []
    result = run("replay", ids[0], ids[1])
    assert (result.exit_code, result.output) == (0, "2 replayed\n")
    assert len(outbox(path)) == 2
    assert json.loads(run("show", ids[0]).output)["replays"] == 1


def test_all_that_fit_are_replayed(ids: list[str], path: Path) -> None:
    """By error, subject or consumer."""
    assert run("replay", "--error", "unreadable", "--dry-run").output == "1 would be replayed\n"
    assert outbox(path) == []
    assert run("replay", "--error", "unreadable").output == "1 replayed\n"
    assert outbox(path) == [("e-1", None)]
    assert run("replay", "--consumer", "inventory", "--subject", "orders.created.v1").output == "2 replayed\n"


def test_a_letter_that_nobody_hears_is_named_and_stays(ids: list[str], path: Path) -> None:
    """With 1; the others named go all the same."""

    async def lay_down() -> str:
        now = datetime.now(UTC)
        async with harness_at(path) as harness:
            message = Message("stripe.charge.refunded", "evt_1", b"{}", "")
            await harness.dead_letter_store.add(DeadLetter("", WEBHOOKS, message, "unknown_order", "", 1, now, now))
            [kept] = await harness.dead_letter_store.list(WEBHOOKS, None, None, 10)
            return kept.dead_letter.id

    id = asyncio.run(lay_down())
    for dry_run, said in ((), "1 replayed\n"), (("--dry-run",), "1 would be replayed\n"):
        result = run("replay", id, ids[0], *dry_run)
        assert (result.exit_code, result.stdout) == (1, said)
        assert result.stderr == f"fulfilment: {id} cannot be replayed: payments-webhooks hears nothing.\n"


def test_replaying_everything_has_to_be_said(ids: list[str], path: Path) -> None:
    """Neither a name nor an option, or both, is a mistake of usage."""
    assert run("replay").exit_code == 2
    assert run("replay", ids[0], "--error", "unreadable").exit_code == 2
    assert outbox(path) == []


def test_what_is_discarded_is_gone(ids: list[str]) -> None:
    """And only that."""
    result = run("discard", ids[0], ids[2])
    assert (result.exit_code, result.output) == (0, "2 discarded\n")
    assert [dead_letter["id"] for dead_letter in json.loads(run("list", "--json").output)] == [ids[1]]


@pytest.mark.parametrize("command", ["show", "replay", "discard"])
def test_an_unknown_id_ends_with_1_and_is_named(command: str, ids: list[str]) -> None:
    """What else was named is done all the same."""
    more = [] if command == "show" else [ids[0]]
    result = run(command, "nobody", *more)
    assert result.exit_code == 1
    assert "there is no dead letter nobody" in result.stderr
    assert "Traceback" not in result.output
    if more:
        assert result.stdout.startswith("1 ")


def test_a_database_that_cannot_be_used_ends_with_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line."""
    file = tmp_path / "no.db"
    file.write_text("this is not a database, and long enough to be sure of it" * 20)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{file}")
    result = run("list")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1
