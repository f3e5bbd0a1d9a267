"""What is wrong at the start is said in one line, with an exit code that a supervisor understands."""

from __future__ import annotations

import json
import re
import signal
import socket
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from openapi_spec_validator import validate
from sqlalchemy import create_engine

from app.cli.main import main
from app.storage.migrations import migrate
from tests.process.conftest import Serve
from tests.process.invariants import MODULES
from tests.process.server import Server, run

SECRET = "hunter2-do-not-tell"


def refused(folder: Path, code: int, *said: str, command: str = "serve", **settings: str) -> str:
    """Run *command*, which must end with *code* and one line on stderr that has *said* in it; return the line."""
    done = run(folder, command, **{"HTTP_PORT": "0", **settings})
    assert done.returncode == code, (done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "ready at" not in done.stdout
    for output in (done.stdout, done.stderr):
        assert "Traceback" not in output
        assert SECRET not in output
    for word in said:
        assert word in lines[0]
    return lines[0]


def test_a_bad_value_is_named(tmp_path: Path) -> None:
    """
    A bad value ends the program with 2 and one line that names the variable, before anything is made.

    tests/config knows many more of them; here it is the program that refuses.
    """
    bad = {
        "HTTP_PORT": "abc",
        "MODULES": "orders,inventory,payments,poetry",
        "DATABASE_URL": f"mysql://u:{SECRET}@h/d",
        "LOG_FILE": "no/such/folder/log",
    }
    with ThreadPoolExecutor(2) as pool:
        said = dict(zip(bad, pool.map(lambda name: refused(tmp_path, 2, name, **{name: bad[name]}), bad), strict=True))
    assert "poetry" in said["MODULES"]
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens_to_the_world_by_accident(tmp_path: Path) -> None:
    """Without authentication, an address that others reach is refused unless one says that one knows."""
    refused(tmp_path, 2, "AUTH", HTTP_HOST="0.0.0.0")


def test_stripe_needs_its_key(tmp_path: Path) -> None:
    """What goes together is asked for together."""
    refused(tmp_path, 2, "STRIPE_API_KEY", PAYMENT_GATEWAY="stripe")


def test_a_secret_in_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The variable is named, and nothing of its content: it may be the secret, put into the wrong variable."""
    refused(tmp_path, 2, "DATABASE_URL_FILE", DATABASE_URL_FILE=f"/nowhere/{SECRET}")


def test_a_port_in_use(tmp_path: Path) -> None:
    """A port that somebody else has is a dependency out of reach: 3."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        refused(tmp_path, 3, port, HTTP_PORT=port)


@pytest.mark.slow
def test_a_database_that_somebody_serves(tmp_path: Path, serve: Serve) -> None:
    """Two would send each other's events, and charge twice; whoever takes over from one that was killed starts at once."""
    server = serve()
    url = f"sqlite:///{server.database}"
    refused(tmp_path, 3, "DATABASE_URL", "another process serves", DATABASE_URL=url, SHUTDOWN_GRACE_S="1")
    assert run(tmp_path, "dead-letters", "list", DATABASE_URL=f"sqlite:///{server.database}").returncode == 0
    server.kill()
    server.start()


@pytest.mark.slow
def test_a_restart_may_overlap(tmp_path: Path, serve: Serve) -> None:
    """Whoever is told to start while another is on its way out waits for it, and says so."""
    first, second = serve(), Server(tmp_path)
    try:
        second.launch()
        second.wait_for_line(lambda line: "another process serves orders" in line)
        first.send(signal.SIGTERM)
        second.wait_until_ready()
        assert first.wait() == 0
    finally:
        second.end()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Where a file is in the way, no database can be: one line, and 2 or 3."""
    (tmp_path / "file").write_text("in the way")
    refused(tmp_path, 2, "DATABASE_URL", DATABASE_URL=f"sqlite:///{tmp_path}/file/fulfilment.db")


def test_a_database_that_is_a_folder(tmp_path: Path) -> None:
    """What cannot be opened is out of reach."""
    (tmp_path / "folder").mkdir()
    refused(tmp_path, 3, "database", DATABASE_URL=f"sqlite:///{tmp_path}/folder")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """Somebody else's file is left as it is."""
    file = tmp_path / "letter.db"
    file.write_text("Dear Sir or Madam, " * 400)
    refused(tmp_path, 3, "database", DATABASE_URL=f"sqlite:///{file}")
    assert file.read_text() == "Dear Sir or Madam, " * 400


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """An older release does not touch what a newer one wrote, whichever module it belongs to."""
    file = tmp_path / "fulfilment.db"
    engine = create_engine(f"sqlite:///{file}")
    for module in MODULES:
        migrate(engine, module)
    engine.dispose()
    for module in MODULES:
        with closing(sqlite3.connect(file)) as connection, connection:
            (known,) = connection.execute(f"SELECT version_num FROM {module}_version").fetchone()
            connection.execute(f"UPDATE {module}_version SET version_num = '9999'")
        command = "serve" if module == "payments" else "migrate"
        refused(tmp_path, 3, "newer", module, "9999", command=command, DATABASE_URL=f"sqlite:///{file}")
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute(f"UPDATE {module}_version SET version_num = ?", (known,))
    assert run(tmp_path, "migrate", DATABASE_URL=f"sqlite:///{file}").stdout == "nothing to do: every table is up to date\n"


def test_migrate_says_what_it_did(tmp_path: Path) -> None:
    """Once there is something to do, and then no more."""
    first, second = run(tmp_path, "migrate"), run(tmp_path, "migrate")
    assert (first.returncode, second.returncode, first.stderr, second.stderr) == (0, 0, "", "")
    assert all(module in first.stdout for module in MODULES)
    assert "nothing to do" in second.stdout


def test_version(tmp_path: Path) -> None:
    """One line, and nothing is made for it."""
    done = run(tmp_path, "version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"fulfilment \d+\.\d+\.\d+\S*\n", done.stdout)
    assert list(tmp_path.iterdir()) == []


def test_openapi_prints_a_valid_description(tmp_path: Path) -> None:
    """What it prints is OpenAPI 3.1 and nothing else."""
    done = run(tmp_path, "openapi")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["openapi"].startswith("3.1")
    validate(document)


def every(command: click.Command, *names: str) -> Iterator[tuple[str, ...]]:
    """Yield the names by which *command* is called, and all commands below it."""
    yield names
    for name, each in command.commands.items() if isinstance(command, click.Group) else ():
        yield from every(each, *names, name)


def test_every_command_explains_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--help` works everywhere, whatever the environment holds."""
    done = run(tmp_path, "dead-letters", "replay", "--help", HTTP_PORT="abc")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
    monkeypatch.setenv("HTTP_PORT", "abc")
    commands = list(every(main))
    assert {(), ("serve",), ("dead-letters", "replay")} < set(commands)
    for names in commands:
        result = CliRunner().invoke(main, [*names, "--help"])
        assert (result.exit_code, result.stderr) == (0, ""), names
        assert result.stdout.startswith("Usage: "), names


@pytest.mark.parametrize("arguments", [["frobnicate"], ["serve", "--no-such-option"], ["check", "--url", "ftp://x"]])
def test_a_usage_error_is_2(tmp_path: Path, arguments: list[str]) -> None:
    """What cannot be meant is refused before anything happens."""
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_check_tells_a_server_from_none(serve: Serve, tmp_path: Path) -> None:
    """0 while it is well; 3 where nobody answers."""
    server = serve()
    for arguments in ([], ["--live"]):
        done = run(tmp_path, "check", *arguments, "--url", server.url)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        json.loads(done.stdout)
    port = server.url.rpartition(":")[2]
    assert run(tmp_path, "check", "--live", HTTP_PORT=port).returncode == 0
    server.kill()
    done = run(tmp_path, "check", "--live", "--url", server.url)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
