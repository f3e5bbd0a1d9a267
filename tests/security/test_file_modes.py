"""Only the owner can read what the program writes, whatever the umask."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.process.server import environment_of

pytestmark = pytest.mark.slow


def test_every_file_of_a_server_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """The database, what SQLite writes beside it, the locks and the log; a file that exists keeps its mode."""
    code = """
        import asyncio, os
        os.umask(0)
        from app.application import Application
        from app.telemetry import logs
        from config.settings import Settings
        from modules.registry import MODULES

        async def main():
            logs.setup("INFO", "json", "app.log")
            application = Application(Settings(known_modules=MODULES, http_port=0, shutdown_grace_s=1))
            await application.start()
            for path in os.listdir("data"):
                print(oct(os.stat(f"data/{path}").st_mode & 0o777), path)
            await application.stop()

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path, env=environment_of({}), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = dict(line.split()[::-1] for line in done.stdout.splitlines() if line.startswith("0o"))
    assert {"fulfilment.db", "fulfilment.db-wal", "fulfilment.db-shm", "fulfilment.db-orders.lock"} <= found.keys()
    assert set(found.values()) == {"0o600"}, found
    assert stat.S_IMODE(os.stat(tmp_path / "app.log").st_mode) == 0o600
