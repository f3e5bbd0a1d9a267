"""What the commands share: the same word means the same to each of them."""

from __future__ import annotations

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
COMMANDS = {
    "republish": ("republish", "--since"),
    "reconcile": ("payments", "reconcile", "--since"),
    "reconcile until": ("payments", "reconcile", "--since", "2000-01-01", "--until"),
}
UNDERSTOOD = ("must be nats", "keeps no list")
"""What these commands say, here, to those who have said when."""


def read(text: str) -> datetime:
    """Return what *text* means as an option's value."""
    found = parse_time(click.Context(main), click.Option(["--since"]), text)
    assert found is not None
    assert found.tzinfo is UTC
    return found


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T09:00:00Z", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        ("2026-01-31T09:00:00", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        ("2026-01-31 09:00", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        (" 2026-01-31T10:30:00.5+01:30 ", datetime(2026, 1, 31, 9, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_a_time_is_utc_unless_it_says_otherwise(text: str, meant: datetime) -> None:
    """A date is its first moment."""
    assert read(text) == meant


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("1s", timedelta(seconds=1)),
        ("90m", timedelta(minutes=90)),
        ("2h ", timedelta(hours=2)),
        ("7d", timedelta(days=7)),
    ],
)
def test_an_age_is_as_long_ago(text: str, age: timedelta) -> None:
    """Counted from now."""
    before = datetime.now(UTC)
    assert before - age <= read(text) <= datetime.now(UTC) - age


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2h30m", "0h", "-1h", "2 h", "999999d", "2026-02-30", "12:00", "0001-01-01T00:00:00+01:00"]
)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_moment_that_nobody_understands_is_a_mistake_of_usage(
    text: str, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is one that lies before all calendars; each command says what it would understand."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/test.db")
    result = CliRunner().invoke(main, [*command, text])
    assert result.exit_code == 2
    assert f"{text!r} is not a time (2026-01-31T09:00:00Z; " in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["2026-01-31", "2026-01-31T09:00:00", "2026-01-31T10:00:00+01:00", "2h"])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_understands_every_way_to_say_when(
    text: str, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one takes, the others take; here they find something else to complain about."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/test.db")
    result = CliRunner().invoke(main, [*command, text])
    assert result.exit_code == 2
    assert any(said in result.stderr for said in UNDERSTOOD), result.stderr


@pytest.mark.parametrize("command", [("republish",), ("payments", "reconcile")], ids=" ".join)
def test_help_says_how_to_say_when(command: tuple[str, ...]) -> None:
    """With an example of each."""
    result = CliRunner().invoke(main, [*command, "--help"], terminal_width=1_000)
    for example in ("2026-01-31T09:00:00Z", "(2026-01-31,", "90m", "UTC"):
        assert example in " ".join(result.stdout.split())


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"shop:secret\nother:secret\n", b"s\xc3\xa9cret", b"\xffsecret"])
@pytest.mark.parametrize("command", WITH_KEY.values(), ids=WITH_KEY)
def test_a_file_without_a_key_is_a_mistake_of_usage(content: bytes, command: tuple[str, ...], tmp_path: Path) -> None:
    """One key is one line of visible ASCII; nothing of what was found instead is shown."""
    path = tmp_path / "key"
    path.write_bytes(content)
    result = CliRunner().invoke(main, [*command, "--key-file", str(path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--key-file" in result.stderr
    assert "secret" not in result.output


@pytest.mark.parametrize("command", WITH_KEY.values(), ids=WITH_KEY)
def test_a_key_file_that_is_not_there_is_a_mistake_of_usage(command: tuple[str, ...], tmp_path: Path) -> None:
    """And so is a folder."""
    for path in tmp_path, tmp_path / "nowhere":
        assert CliRunner().invoke(main, [*command, "--key-file", str(path)]).exit_code == 2


def test_a_key_is_what_its_file_holds_without_the_space_around_it(tmp_path: Path) -> None:
    """Editors end a line where a key ends; without a file there is none."""

    @click.command()
    @with_key
    def tell(key: str | None) -> None:
        click.echo(repr(key))

    path = tmp_path / "key"
    path.write_bytes(b"  0123456789abcdef\r\n")
    assert CliRunner().invoke(tell, ["--key-file", str(path)]).stdout == "'0123456789abcdef'\n"
    assert CliRunner().invoke(tell).stdout == "None\n"
