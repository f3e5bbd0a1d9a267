"""
Each file that a setting names is deleted, emptied, replaced by garbage or by a folder under the running server.

The settings are not listed here: they are all that hold a path, and the ``<NAME>_FILE`` of all that are secret.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme

from config.environment import describe
from config.settings import Settings
from modules.registry import MODULES
from tests.process.client import Client, eventually
from tests.process.conftest import Serve
from tests.process.server import Server

KEY = "0123456789abcdef"
CA = trustme.CA().cert_pem.bytes().decode()

CONTENTS = {
    "NATS_URL_FILE": "nats://127.0.0.1:1",
    "NATS_PASSWORD_FILE": "secret-of-nats",
    "NATS_CREDS": "-----BEGIN NATS USER JWT-----",
    "NATS_TLS_CA": CA,
    "STRIPE_API_KEY_FILE": "sk_test_secret-of-stripe",
    "STRIPE_WEBHOOK_SECRET_FILE": "whsec_secret-of-webhooks",
    "API_KEYS_FILE": f"shop:operator:{KEY}\n",
    "LOG_FILE": "",
}
"""What each file holds at the start. `DATABASE_URL_FILE` and those of the modules name the same database."""


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES: dict[str, Callable[[Path], Any]] = {
    "deleted": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\xff\xfe\x00garbage\x80"),
    "a folder": put_folder,
    "readable by all": lambda path: path.chmod(0o644),
}

HARMLESS = {
    ("LOG_FILE", "deleted"), ("LOG_FILE", "empty"), ("LOG_FILE", "garbage"), ("LOG_FILE", "readable by all"),
    ("NATS_TLS_CA", "readable by all"),
    # Read at each connection; what is wrong is logged there, and the credentials from before stay in use.
    ("NATS_CREDS", "empty"), ("NATS_CREDS", "garbage"), ("NATS_TLS_CA", "empty"), ("NATS_TLS_CA", "garbage"),
}  # fmt: skip
"""Changes that a reload does not refuse."""


def path_settings() -> list[str]:
    """Return the variables that name a file: those whose help says that it is a file, and one for each secret."""
    secrets = [f"{each.name}_FILE" for each in describe(MODULES) if each.is_secret]
    named = [each.name for each in describe(MODULES) if each.help.startswith("File ")]
    return sorted({*secrets, *named})


def test_every_setting_that_may_hold_a_path_is_known() -> None:
    """The help of a new one begins with "File ...", or is a secret."""
    texts = {field.name for field in attrs.fields(Settings) if any(part in field.name for part in ("file", "path", "creds", "ca", "cert"))}
    assert {name.upper() for name in texts} - set(path_settings()) == {"ANALYTICS_FILE", "NATS_REPLICAS", "OUTBOX_CAP", "SECRET_FILES"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The files by variable; the database's address is in one for all modules."""
    found = {}
    for name in path_settings():
        path = found[name] = tmp_path / name
        path.write_text(CONTENTS.get(name, f"sqlite:///{tmp_path}/test.db"))
        path.chmod(0o600)
    return found


@pytest.mark.slow
async def test_a_file_that_is_spoilt_under_the_server_changes_nothing(
    serve: Serve, connect: Callable[[Server], Client], files: dict[str, Path]
) -> None:
    """At SIGHUP one ERROR names the variable, without the file's content; what was read before stays in use."""
    settings = {name: str(path) for name, path in files.items()}
    server = serve(
        BUS="nats", NATS_USER="shop", AUTH="keys", PAYMENT_GATEWAY="stripe", STRIPE_API_BASE="http://127.0.0.1:1", **settings
    )
    client = connect(server)
    headers = {"Authorization": f"Bearer {KEY}"}
    seen = 0

    async def next_line(word: str) -> str:
        """Return the next line with *word*."""
        nonlocal seen

        async def lines() -> list[str]:
            return [line for line in server.lines[seen:] if word in line]

        [line, *_] = await eventually(lines, bool, 20)
        seen = server.lines.index(line, seen) + 1
        return line

    for name, path in files.items():
        content, mode = path.read_bytes(), path.stat().st_mode
        for change, spoil in CHANGES.items():
            spoil(path)
            server.send(signal.SIGHUP)
            if name == "LOG_FILE" and change == "a folder":
                await next_line("LOG_FILE")
            elif (name, change) in HARMLESS:
                await next_line("were read again")
            else:
                line = json.loads(await next_line("the configuration is wrong"))
                assert (line["level"], line["detail"].partition(":")[0]) == ("ERROR", name), (name, change, line)
            reply = await client.request("GET", "/v1/inventory", headers=headers)
            assert reply.status == 200, (name, change)
            if path.is_dir():
                shutil.rmtree(path)
            path.write_bytes(content)
            path.chmod(mode)
            server.send(signal.SIGHUP)
            await next_line("were read again")
    assert (await client.request("GET", "/livez")).status == 200
    assert not any("secret-of" in line or "Traceback" in line for line in server.lines)
    assert server.stderr == ""
    server.send(signal.SIGTERM)
    assert await asyncio.to_thread(server.wait) == 0


@pytest.mark.slow
async def test_a_file_with_another_value_is_used_or_named(serve: Serve, files: dict[str, Path]) -> None:
    """Some files are read at a start only: the log names their variables."""
    settings = {name: str(path) for name, path in files.items()}
    server = serve(
        BUS="nats", NATS_USER="shop", AUTH="keys", PAYMENT_GATEWAY="stripe", STRIPE_API_BASE="http://127.0.0.1:1", **settings
    )
    files["STRIPE_API_KEY_FILE"].write_text("sk_test_another")
    files["NATS_PASSWORD_FILE"].write_text("another")
    server.send(signal.SIGHUP)
    line = await asyncio.to_thread(server.wait_for_line, lambda line: "read at a start only" in line)
    assert json.loads(line)["variables"] == "STRIPE_API_KEY"
    assert "sk_test_another" not in line
