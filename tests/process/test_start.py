"""Errors at the start: one line on stderr and a defined exit code."""

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

pytestmark = pytest.mark.slow

SECRET = "hunter2-do-not-tell"


def fails_with(folder: Path, code: int, *words: str, command: str = "serve", **settings: str) -> str:
    """Run *command*, which must exit with *code* and one line on stderr that contains *words*; return the line."""
    done = run(folder, command, **{"HTTP_PORT": "0", **settings})
    assert done.returncode == code, (done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "ready at" not in done.stdout
    for output in (done.stdout, done.stderr):
        assert "Traceback" not in output
        assert SECRET not in output
    for word in words:
        assert word in lines[0]
    return lines[0]


def test_an_invalid_setting_is_named(tmp_path: Path) -> None:
    """
    The program exits with 2 and one line that names the variable, before it creates a file.

    tests/config has many more invalid values; this test runs the program.
    """
    bad = {
        "HTTP_PORT": "abc",
        "MODULES": "orders,inventory,payments,poetry",
        "DATABASE_URL": f"mysql://u:{SECRET}@h/d",
        "LOG_FILE": "no/such/folder/log",
    }
    with ThreadPoolExecutor(2) as pool:
        lines = dict(
            zip(bad, pool.map(lambda name: fails_with(tmp_path, 2, name, **{name: bad[name]}), bad), strict=True)
        )
    assert "poetry" in lines["MODULES"]
    assert list(tmp_path.iterdir()) == []


def test_a_public_address_without_authentication_is_refused(tmp_path: Path) -> None:
    """AUTH=off is allowed on a public address only with an explicit setting."""
    fails_with(tmp_path, 2, "AUTH", HTTP_HOST="0.0.0.0")


def test_stripe_needs_an_api_key(tmp_path: Path) -> None:
    """PAYMENT_GATEWAY=stripe without STRIPE_API_KEY is an error."""
    fails_with(tmp_path, 2, "STRIPE_API_KEY", PAYMENT_GATEWAY="stripe")


def test_a_missing_secret_file_is_named_by_its_variable(tmp_path: Path) -> None:
    """The value is not printed: it may be the secret itself, set in the wrong variable."""
    fails_with(tmp_path, 2, "DATABASE_URL_FILE", DATABASE_URL_FILE=f"/nowhere/{SECRET}")


def test_a_port_in_use_is_reported_with_exit_code_3(tmp_path: Path) -> None:
    """The line names the port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        fails_with(tmp_path, 3, port, HTTP_PORT=port)


def test_a_database_that_another_server_uses_is_refused(tmp_path: Path, serve: Serve) -> None:
    """Two servers would send the same events and charge twice. After a kill the next server starts at once."""
    server = serve()
    url = f"sqlite:///{server.database}"
    fails_with(tmp_path, 3, "DATABASE_URL", "another process serves", DATABASE_URL=url, SHUTDOWN_GRACE_S="1")
    assert run(tmp_path, "dead-letters", "list", DATABASE_URL=f"sqlite:///{server.database}").returncode == 0
    server.kill()
    server.start()


def test_a_server_waits_for_its_predecessor_to_end(tmp_path: Path, serve: Serve) -> None:
    """A server that starts while another one shuts down logs that it waits, and then starts."""
    first, second = serve(), Server(tmp_path)
    try:
        second.launch()
        second.wait_for_line(lambda line: "another process serves orders" in line)
        first.send(signal.SIGTERM)
        second.wait_until_ready()
        assert first.wait() == 0
    finally:
        second.end()


def test_a_database_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    """A file has the name of the folder: exit code 2."""
    (tmp_path / "file").write_text("in the way")
    fails_with(tmp_path, 2, "DATABASE_URL", DATABASE_URL=f"sqlite:///{tmp_path}/file/fulfilment.db")


def test_a_folder_instead_of_a_database_is_refused(tmp_path: Path) -> None:
    """A database that cannot be opened is out of reach: exit code 3."""
    (tmp_path / "folder").mkdir()
    fails_with(tmp_path, 3, "database", DATABASE_URL=f"sqlite:///{tmp_path}/folder")


def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    """The file is not changed."""
    file = tmp_path / "text.db"
    file.write_text("This is a text file. " * 400)
    fails_with(tmp_path, 3, "database", DATABASE_URL=f"sqlite:///{file}")
    assert file.read_text() == "This is a text file. " * 400


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """An older release does not change the tables of a newer one, whichever module they belong to."""
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
        fails_with(tmp_path, 3, "newer", module, "9999", command=command, DATABASE_URL=f"sqlite:///{file}")
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute(f"UPDATE {module}_version SET version_num = ?", (known,))
    assert (
        run(tmp_path, "migrate", DATABASE_URL=f"sqlite:///{file}").stdout
        == "nothing to do: every table is up to date\n"
    )


def test_migrate_prints_what_it_did(tmp_path: Path) -> None:
    """The first run migrates every module, the second has nothing to do."""
    first, second = run(tmp_path, "migrate"), run(tmp_path, "migrate")
    assert (first.returncode, second.returncode, first.stderr, second.stderr) == (0, 0, "", "")
    assert all(module in first.stdout for module in MODULES)
    assert "nothing to do" in second.stdout


def test_version_prints_one_line(tmp_path: Path) -> None:
    """It creates no file."""
    done = run(tmp_path, "version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"fulfilment \d+\.\d+\.\d+\S*\n", done.stdout)
    assert list(tmp_path.iterdir()) == []


def test_openapi_prints_a_valid_document(tmp_path: Path) -> None:
    """The output is an OpenAPI 3.1 document and nothing else."""
    done = run(tmp_path, "openapi")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["openapi"].startswith("3.1")
    validate(document)


def all_commands(command: click.Command | None, *names: str) -> Iterator[tuple[str, ...]]:
    """Yield the names of *command* and of all commands below it."""
    yield names
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from all_commands(command.get_command(context, name), *names, name)


def test_every_command_has_a_help_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--help` works for every command, also with an invalid environment."""
    done = run(tmp_path, "dead-letters", "replay", "--help", HTTP_PORT="abc")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
    monkeypatch.setenv("HTTP_PORT", "abc")
    commands = list(all_commands(main))
    assert {(), ("serve",), ("dead-letters", "replay")} < set(commands)
    for names in commands:
        result = CliRunner().invoke(main, [*names, "--help"])
        assert (result.exit_code, result.stderr) == (0, ""), names
        assert result.stdout.startswith("Usage: "), names


@pytest.mark.parametrize("arguments", [["frobnicate"], ["serve", "--no-such-option"], ["check", "--url", "ftp://x"]])
def test_a_usage_error_exits_with_2(tmp_path: Path, arguments: list[str]) -> None:
    """Without a traceback."""
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_check_distinguishes_a_running_server_from_none(serve: Serve, tmp_path: Path) -> None:
    """It exits with 0 while the server is healthy, with 3 when no server answers."""
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
