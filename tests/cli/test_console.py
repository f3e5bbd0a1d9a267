"""The options that several commands share: every command reads a time or a key file in the same way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from app.cli.console import parse_time, with_key
from app.cli.main import main

WITH_KEY = {
    "load": ("load", "--url", "http://127.0.0.1:9", "--orders", "1"),
    "status": ("contracts", "status", "--url", "http://127.0.0.1:9"),
}
IMPORTED = """
import sys
from app.cli.main import main
main(["orders", "explain", "--help"], standalone_mode=False)
print({"aiohttp", "sqlalchemy", "duckdb"} & set(sys.modules), file=sys.stderr)
"""
COMMANDS = {
    "republish": ("republish", "--since"),
    "reconcile": ("payments", "reconcile", "--since"),
    "reconcile until": ("payments", "reconcile", "--since", "2000-01-01", "--until"),
}
LATER_ERRORS = ("must be nats", "keeps no list")
"""The errors that these commands report here after they have parsed the time."""


def read(text: str) -> datetime:
    """Parse *text* as the value of an option."""
    parsed = parse_time(click.Context(main), click.Option(["--since"]), text)
    assert parsed is not None
    assert parsed.tzinfo is UTC
    return parsed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T09:00:00Z", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        ("2026-01-31T09:00:00", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        ("2026-01-31 09:00", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        (" 2026-01-31T10:30:00.5+01:30 ", datetime(2026, 1, 31, 9, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_a_time_without_a_zone_is_in_utc(text: str, expected: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A date stands for its first moment; the zone of the machine makes no difference."""
    monkeypatch.setenv("TZ", "XYZ-09:30")
    time.tzset()
    try:
        assert read(text) == expected
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("1s", timedelta(seconds=1)),
        ("90m", timedelta(minutes=90)),
        ("2h ", timedelta(hours=2)),
        ("7d", timedelta(days=7)),
    ],
)
def test_an_age_is_subtracted_from_the_current_time(text: str, age: timedelta) -> None:
    """Seconds, minutes, hours and days."""
    before = datetime.now(UTC)
    assert before - age <= read(text) <= datetime.now(UTC) - age


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2h30m", "0h", "-1h", "2 h", "999999d", "2026-02-30", "12:00", "0001-01-01T00:00:00+01:00"],
)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_invalid_time_is_a_usage_error(
    text: str, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is a time before year 1; every command names the formats that it reads."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/test.db")
    result = CliRunner().invoke(main, [*command, text])
    assert result.exit_code == 2
    assert f"{text!r} is not a time (2026-01-31T09:00:00Z; " in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["2026-01-31", "2026-01-31T09:00:00", "2026-01-31T10:00:00+01:00", "2h"])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_reads_every_time_format(
    text: str, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a valid time each command continues, and fails later for another reason in this environment."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/test.db")
    result = CliRunner().invoke(main, [*command, text])
    assert result.exit_code == 2
    assert any(text in result.stderr for text in LATER_ERRORS), result.stderr


@pytest.mark.parametrize("command", [("republish",), ("payments", "reconcile")], ids=" ".join)
def test_the_help_explains_the_time_formats(command: tuple[str, ...]) -> None:
    """It has an example of each format."""
    result = CliRunner().invoke(main, [*command, "--help"], terminal_width=1_000)
    for example in ("2026-01-31T09:00:00Z", "(2026-01-31,", "90m", "UTC"):
        assert example in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"two words", b"shop:secret\nother:secret\n", b"s\xc3\xa9cret", b"\xffsecret"]
)
@pytest.mark.parametrize("command", WITH_KEY.values(), ids=WITH_KEY)
def test_a_key_file_without_exactly_one_key_is_a_usage_error(
    content: bytes, command: tuple[str, ...], tmp_path: Path
) -> None:
    """A key is one line of visible ASCII characters; the error does not print the content of the file."""
    path = tmp_path / "key"
    path.write_bytes(content)
    result = CliRunner().invoke(main, [*command, "--key-file", str(path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--key-file" in result.stderr
    assert "secret" not in result.output


@pytest.mark.parametrize("command", WITH_KEY.values(), ids=WITH_KEY)
def test_a_missing_key_file_is_a_usage_error(command: tuple[str, ...], tmp_path: Path) -> None:
    """So is a folder."""
    for path in tmp_path, tmp_path / "nowhere":
        assert CliRunner().invoke(main, [*command, "--key-file", str(path)]).exit_code == 2


def test_the_key_is_the_content_of_the_file_without_surrounding_white_space(tmp_path: Path) -> None:
    """Editors add a line end to a file. Without the option there is no key."""

    @click.command()
    @with_key
    def print_key(key: str | None) -> None:
        click.echo(repr(key))

    path = tmp_path / "key"
    path.write_bytes(b"  0123456789abcdef\r\n")
    assert CliRunner().invoke(print_key, ["--key-file", str(path)]).stdout == "'0123456789abcdef'\n"
    assert CliRunner().invoke(print_key).stdout == "None\n"


def test_a_command_that_asks_a_server_starts_without_the_parts_of_one() -> None:
    """Of the time that it takes, these imports would be two thirds."""
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("Usage: ")
    assert done.stderr == "set()\n"


def test_the_garbage_collector_runs_seldom_in_every_command() -> None:
    """A command that reads millions of rows makes no reference cycles; `serve` and its workers take the same thresholds."""
    code = "import gc; from app.cli.main import main; main(['version'], standalone_mode=False); print(gc.get_threshold()[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "50000"


@pytest.mark.parametrize("name", ["config.py", "bus/__init__.py"])
def test_a_file_that_hides_a_package_is_named_with_the_way_out(name: str, tmp_path: Path) -> None:
    """``python -m`` looks into the current folder first; with -P it does not, nor does the installed command."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *options, "-m", "app", "version"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60)

    hidden = run()
    assert (hidden.returncode, hidden.stdout) == (2, "")
    assert hidden.stderr == f"{name} in this folder hides a package of this program; type `fulfilment` for `python -m app`\n"
    assert run("-P").returncode == 0
