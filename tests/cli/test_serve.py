"""SIGHUP reads the files of the environment again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.application import Application
from app.cli import console
from app.cli.serve import _reload


async def test_keys_are_read_again_where_the_address_came_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables that the options replaced may be wrong: they are not in use."""
    keys = tmp_path / "keys"
    keys.write_text("old:shop:0123456789abcdef")
    keys.chmod(0o600)
    for name, value in {
        "AUTH": "keys", "API_KEYS_FILE": str(keys), "DATABASE_URL": f"sqlite:///{tmp_path}/test.db", "HTTP_PORT": "none",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    application = Application(console.settings(HTTP_PORT="0"))
    authenticator = application._gate.authenticator
    keys.write_text("new:shop:0123456789abcdef")
    await _reload(application, asyncio.Lock())
    assert (authenticator.by_name("old"), authenticator.by_name("new") is not None) == (None, True)
