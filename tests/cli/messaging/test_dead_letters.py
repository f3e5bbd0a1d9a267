"""The `dead-letters` commands, without a running server."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.cli.main import main
from app.gateways.webhook_handler import CONSUMER as WEBHOOKS
from app.messaging.dead_letters import ERRORS
from bus.port import DeadLetter, Message
from tests.parts import in_parts
from tests.runtime.harness import harness_at, oid

ROOT = Path(__file__).parents[3]
GOOD_BODY = {"order_id": oid(1), "customer_id": "c", "items": [{"product_id": "A", "quantity": 1}], "version": "v1"}


@pytest.fixture
def ids(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of three dead letters in the configured database."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")

    async def store() -> list[str]:
        async with harness_at(path) as harness:
            await harness.consume("inventory")
            await harness.bus.publish(Message("orders.created.v1", "m-1", b"{", "k", {"ce-id": "e-1"}))
            await harness.bus.publish(Message("orders.created.v1", "m-2", b'{"a": 1}', "k"))
            await harness.bus.publish(Message("orders.cancelled.v1", "m-3", b"{}", "k"))
            return [stored.dead_letter.id for stored in await harness.dead_letter_store.list(None, None, None, 10)]

    ids = asyncio.run(store())
    assert len(ids) == 3
    return ids


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["dead-letters", *arguments])


def outbox(path: Path) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT event_id, sent_at FROM inventory_outbox ORDER BY event_id").fetchall()
    finally:
        connection.close()


def test_the_list_is_a_table_with_one_line_per_dead_letter(ids: list[str]) -> None:
    """The first column is the id that the other commands take."""
    result = run("list")
    assert result.exit_code == 0, result.output
    head, *lines = result.output.splitlines()
    assert head.split() == ["ID", "CONSUMER", "SUBJECT", "ERROR", "ATTEMPTS", "REPLAYS", "LAST_SEEN"]
    assert [line.split()[0] for line in lines] == ids


def test_the_list_is_filtered_by_consumer_subject_error_and_limit(ids: list[str]) -> None:
    """With --json it is a JSON array."""
    subjects = [dead_letter["subject"] for dead_letter in json.loads(run("list", "--json").output)]
    assert sorted(subjects) == ["orders.cancelled.v1", "orders.created.v1", "orders.created.v1"]
    assert len(json.loads(run("list", "--json", "--subject", "orders.cancelled.v1").output)) == 1
    assert len(json.loads(run("list", "--json", "--consumer", "inventory", "--limit", "2").output)) == 2
    assert [
        dead_letter["error"] for dead_letter in json.loads(run("list", "--json", "--error", "unreadable").output)
    ] == ["unreadable"]
    assert len(json.loads(run("list", "--json", "--error", "invalid", "--subject", "orders.created.v1").output)) == 1
    assert json.loads(run("list", "--json", "--consumer", "payments").output) == []
    assert run("list", "--consumer", "payments").output == "no dead letters\n"


def test_show_prints_the_whole_dead_letter(ids: list[str]) -> None:
    """In the format of the API, including a body that is not JSON."""
    dead_letters = {}
    for id in ids:
        result = run("show", id)
        assert result.exit_code == 0, result.output
        dead_letters[id] = json.loads(result.output)
        assert dead_letters[id]["id"] == id
    assert {dead_letter["message"]["id"]: dead_letter["message"]["body"] for dead_letter in dead_letters.values()} == {
        "m-1": {"base64": "ew=="},
        "m-2": {"a": 1},
        "m-3": {},
    }


def test_replay_writes_the_named_dead_letters_to_the_outbox(ids: list[str], path: Path) -> None:
    """The relay of a running server finds them there within a second; a dry run writes nothing."""
    assert run("replay", "--dry-run", ids[0]).output == "1 would be replayed\n"
    assert outbox(path) == []
    result = run("replay", ids[0], ids[1])
    assert (result.exit_code, result.output) == (0, "2 replayed\n")
    assert len(outbox(path)) == 2
    assert json.loads(run("show", ids[0]).output)["replays"] == 1


@pytest.mark.parametrize("command", in_parts(["replay", "groups", "list", "discard"]))
@pytest.mark.parametrize("option", ["--consumer", "--subject", "--error"])
def test_a_value_that_no_dead_letter_can_have_is_an_error(ids: list[str], command: str, option: str) -> None:
    """A misspelled value is not the same as no dead letters; the sentence names the values that there are."""
    result = run(command, option, "faild")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{option}: there is no {option.removeprefix('--')} faild; there are " in result.stderr
    known = {"--consumer": "payments", "--subject": "orders.confirmed.v1", "--error": "no_answer"}[option]
    assert run(command, option, known).exit_code == 0


def test_every_error_code_of_the_manual_can_be_asked_for() -> None:
    """The codes that the manual explains are those that the option knows."""
    manual = "".join((ROOT / "docs" / name).read_text() for name in ("reference/dead-letters.rst", "howto/payments.rst"))
    explained = {code for line in re.findall(r"(?m)^``[a-z_`, ]+``$", manual) for code in re.findall(r"``([a-z_]+)``", line)}
    assert explained - {"pending", "captured", "declined", "unknown", "refunded"} <= ERRORS, explained - ERRORS


def test_replay_with_filters_replays_all_matching_dead_letters(ids: list[str], path: Path) -> None:
    """By error, subject or consumer."""
    assert run("replay", "--error", "unreadable", "--dry-run").output == "1 would be replayed\n"
    assert outbox(path) == []
    assert run("replay", "--error", "unreadable").output == "1 replayed\n"
    assert outbox(path) == [("e-1", None)]
    assert run("replay", "--consumer", "inventory", "--subject", "orders.created.v1").output == "2 replayed\n"


def test_a_dead_letter_whose_consumer_consumes_nothing_is_reported_and_kept(ids: list[str], path: Path) -> None:
    """The exit code is 1; the other dead letters are replayed."""

    async def store() -> str:
        now = datetime.now(UTC)
        async with harness_at(path) as harness:
            message = Message("stripe.charge.refunded", "evt_1", b"{}", "")
            await harness.dead_letter_store.add(DeadLetter("", WEBHOOKS, message, "unknown_order", "", 1, now, now))
            [stored] = await harness.dead_letter_store.list(WEBHOOKS, None, None, 10)
            return stored.dead_letter.id

    id = asyncio.run(store())
    for dry_run, output in ((), "1 replayed\n"), (("--dry-run",), "1 would be replayed\n"):
        result = run("replay", id, ids[0], *dry_run)
        assert (result.exit_code, result.stdout) == (1, output)
        assert result.stderr == f"fulfilment: {id} cannot be replayed: payments-webhooks subscribes to nothing.\n"


def test_replay_needs_either_ids_or_filters(ids: list[str], path: Path) -> None:
    """Neither, or both, is a usage error."""
    assert run("replay").exit_code == 2
    assert run("replay", ids[0], "--error", "unreadable").exit_code == 2
    assert outbox(path) == []


def test_the_groups_are_a_table_with_one_line_per_cause(ids: list[str]) -> None:
    """The last column is the id of one of them; with --json it is a JSON array."""
    head, *lines = run("groups").output.splitlines()
    assert head.split() == ["COUNT", "CONSUMER", "SUBJECT", "ERROR", "PATTERN", "LAST_SEEN", "EXAMPLE"]
    assert len(lines) == 3
    assert {line.split()[-1] for line in lines} == set(ids)
    [group] = json.loads(run("groups", "--json", "--error", "unreadable").output)
    assert (group["count"], group["subject"], group["example"] in ids) == (1, "orders.created.v1", True)
    assert run("groups", "--consumer", "payments").output == "no dead letters\n"


def test_an_edited_body_is_replayed(ids: list[str], path: Path) -> None:
    """It must match the schema of the subject, and is for one dead letter."""
    [id] = [each["id"] for each in json.loads(run("list", "--json", "--error", "unreadable").output)]
    file = path.with_name("body.json")
    file.write_text('{"order_id": "o"}')
    refused = run("replay", id, "--body", str(file))
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (1, "0 replayed\n", 1)
    assert f"{id} cannot be replayed: orders.created.v1: " in refused.stderr
    assert outbox(path) == []
    file.write_text(json.dumps(GOOD_BODY))
    assert run("replay", id, "--body", str(file)).output == "1 replayed\n"
    assert len(outbox(path)) == 1
    assert json.loads(run("show", id).output)["edited_body"] == GOOD_BODY
    assert run("replay", *ids, "--body", str(file)).exit_code == 2
    assert run("replay", id, "--body", str(path.with_name("none.json"))).exit_code == 2


def test_discard_with_filters_deletes_all_matching_dead_letters(ids: list[str]) -> None:
    """A dry run only counts, by filter and by id."""
    assert run("discard", "--subject", "orders.created.v1", "--dry-run").output == "2 would be discarded\n"
    assert run("discard", ids[0], "--dry-run").output == "1 would be discarded\n"
    assert len(json.loads(run("list", "--json").output)) == 3
    assert run("discard", "--subject", "orders.created.v1").output == "2 discarded\n"
    assert len(json.loads(run("list", "--json").output)) == 1
    assert run("discard").exit_code == 2
    assert run("discard", ids[0], "--error", "failed").exit_code == 2


def test_discard_deletes_the_named_dead_letters(ids: list[str]) -> None:
    """The others are kept."""
    result = run("discard", ids[0], ids[2])
    assert (result.exit_code, result.output) == (0, "2 discarded\n")
    assert [dead_letter["id"] for dead_letter in json.loads(run("list", "--json").output)] == [ids[1]]


@pytest.mark.parametrize("command", ["show", "replay", "discard"])
def test_an_unknown_id_is_reported_with_exit_code_1(command: str, ids: list[str]) -> None:
    """The command still processes the other ids."""
    more = [] if command == "show" else [ids[0]]
    result = run(command, "unknown", *more)
    assert result.exit_code == 1
    assert "there is no dead letter unknown" in result.stderr
    assert "Traceback" not in result.output
    if more:
        assert result.stdout.startswith("1 ")


def test_an_unusable_database_is_reported_with_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one line on stderr."""
    file = tmp_path / "no.db"
    file.write_text("this is not a database, and long enough to be sure of it" * 20)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{file}")
    result = run("list")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1


COMMANDS = [["dead-letters", *each] for each in (["list"], ["groups"], ["show", "x"], ["discard", "x"], ["replay", "x"])]


@pytest.mark.parametrize("command", [*COMMANDS, ["audit", "list"], ["payments", "reconcile", "--since", "1h"]], ids=" ".join)
@pytest.mark.parametrize("what", ["nothing", "a typo", "another program's file", "an empty file"])
def test_a_command_creates_no_database(command: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line on stderr that names the variable and the file, exit code 3, and the folder stays as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAYMENT_GATEWAY", "stripe")
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_" + "0" * 24)
    if what == "a typo":
        monkeypatch.setenv("DATABASE_URL", "sqlite:///data/fulfillment.db")
    elif what != "nothing":
        (tmp_path / "data").mkdir()
        with closing(sqlite3.connect(tmp_path / "data" / "fulfilment.db")) as other:
            if what == "another program's file":
                other.execute("CREATE TABLE customers (name TEXT)")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (3, "", 1)
    assert "DATABASE_URL" in result.stderr
    assert ("fulfillment.db" if what == "a typo" else "data/fulfilment.db") in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert what in ("another program's file", "an empty file") or list(tmp_path.iterdir()) == []


def test_a_filter_that_can_match_nothing_is_an_error(ids: list[str]) -> None:
    """A misspelled consumer or subject is not the same as no dead letters."""
    for option, value, known in (
        ("--consumer", "invntory", "inventory-express"),
        ("--subject", "orders.create.v1", "orders.created.v1"),
    ):
        for command in ("list",), ("replay",), ("replay", "--dry-run"):
            result = run(*command, option, value)
            assert (result.exit_code, result.stdout) == (2, "")
            assert value in result.stderr
            assert known in result.stderr
    assert run("list", "--consumer", "orders-express").stdout == "no dead letters\n"
    assert run("replay", "--consumer", "orders-express").stdout == "0 replayed\n"
    assert run("list", "--subject", "orders.created.v1.express").stdout == "no dead letters\n"
