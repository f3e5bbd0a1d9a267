"""A server in the process of the test, and the commands that ask it."""

from __future__ import annotations

__all__ = ["Site", "serving"]

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import frozen
from click.testing import CliRunner, Result

from app.application import Application
from app.cli.main import main
from config.settings import Settings
from modules.registry import MODULES
from tests.process.client import Client


@frozen
class Site:
    """A server at *url* on the database *path*, with a *client* of it."""

    url: str
    path: Path
    client: Client

    async def run(self, *arguments: str) -> Result:
        """Run a command that asks the server."""
        return await asyncio.to_thread(CliRunner().invoke, main, [*arguments, "--url", self.url])


@frozen
class _Target:
    url: str
    path: Path

    def url_of(self, path: str) -> str:
        return f"{self.url}{path}"

    def database_of(self, module: str) -> Path:
        return self.path


@asynccontextmanager
async def serving(path: Path, **more: Any) -> AsyncIterator[Site]:
    """Serve all modules from the SQLite file at *path* until the block ends."""
    given: dict[str, Any] = {"database_url": f"sqlite:///{path}", "http_port": 0, "shutdown_grace_s": 1.0}
    application = Application(Settings(known_modules=MODULES, **given | more))
    url = await application.start()
    client = Client(_Target(url, path))
    try:
        yield Site(url, path, client)
    finally:
        await client.close()
        await application.stop()
