"""Logs never stop the server, and a signal makes it reopen its log and read its keys again."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import frozen

from tests.process.client import Client, eventually
from tests.process.conftest import Serve
from tests.process.server import Server, environment_of

pytestmark = pytest.mark.slow

FIRST, SECOND = "first-key-0123456789", "second-key-0123456789"


@frozen
class Address:
    """The target of a client: a server that this file starts itself."""

    url: str

    def url_of(self, path: str) -> str:
        return self.url + path

    def database_of(self, module: str) -> Path | str:
        raise AssertionError(module)


def launch(folder: Path) -> subprocess.Popen[bytes]:
    """Start a server whose stdout is a pipe that only the caller reads."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "app", "serve"],
        cwd=folder,
        env=environment_of({"HTTP_PORT": "0", "LOG_LEVEL": "DEBUG"}),
        stdout=subprocess.PIPE,
    )


async def test_a_stdout_that_nothing_reads_stops_neither_requests_nor_the_shutdown(tmp_path: Path) -> None:
    """The pipe takes 64 KiB and then blocks its writer; requests write many times that."""
    process = launch(tmp_path)
    assert process.stdout is not None
    url = ""
    while not url:
        if found := re.search(rb"ready at (http://\S+)", process.stdout.readline()):
            url = found[1].decode()
    client = Client(Address(url))
    try:
        async with asyncio.timeout(30):
            await client.stock("SKU-1", 10_000)
            for _ in range(8):
                await asyncio.gather(*(client.place({"SKU-1": 1}) for _ in range(50)))
            assert await client.get("/livez")
    finally:
        await client.close()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(process.wait, 30)
        process.stdout.close()
    assert code == 0
    assert time.monotonic() - began < 15.0


async def test_a_hangup_opens_the_log_anew_and_reads_the_keys_again(
    serve: Serve, connect: Callable[[Server], Client], tmp_path: Path
) -> None:
    """The server keeps running; an invalid file of keys is logged, and the previous keys stay valid."""
    keys, log = tmp_path / "keys", tmp_path / "app.log"
    keys.write_text(f"shop:{FIRST}\n")
    keys.chmod(0o600)
    server = serve(AUTH="keys", API_KEYS_FILE=str(keys), LOG_FILE=str(log))
    client = connect(server)

    async def status(key: str) -> int:
        return (await client.request("GET", "/v1/inventory", headers={"Authorization": f"Bearer {key}"})).status

    assert (await status(FIRST), await status(SECOND)) == (200, 401)

    async def messages() -> list[str]:
        return [json.loads(line)["message"] for line in log.read_text().splitlines()] if log.exists() else []

    await eventually(messages, lambda found: "ready" in found)
    log.rename(tmp_path / "app.log.1")
    keys.write_text(f"shop:{SECOND}\n")
    server.send(signal.SIGHUP)
    await asyncio.to_thread(server.wait_for_line, lambda line: "were read again" in line)
    assert (await status(FIRST), await status(SECOND)) == (401, 200)

    keys.write_text("shop\n")
    server.send(signal.SIGHUP)
    line = await asyncio.to_thread(server.wait_for_line, lambda line: "configuration is wrong" in line)
    assert (json.loads(line)["level"], "API_KEYS_FILE: line 1" in json.loads(line)["detail"]) == ("ERROR", True)
    assert (await status(FIRST), await status(SECOND)) == (401, 200)

    await eventually(messages, lambda found: "the configuration is wrong, and the one before stays in use" in found)
    assert "ready" in (tmp_path / "app.log.1").read_text()
    server.send(signal.SIGTERM)
    assert await asyncio.to_thread(server.wait) == 0
