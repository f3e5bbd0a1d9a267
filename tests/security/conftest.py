"""The whole program in this process, with a key for each role; and a NATS server with the accounts of the deployment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import pytest
from aiohttp import ClientSession
from attrs import frozen

from app.application import Application
from app.bootstrap import build_modules
from app.messaging.consumers import planned_topology
from bus.jetstream.admin.provisioning import apply
from config.api_keys import ROLES
from config.settings import Settings
from modules.registry import MODULES
from tests.architecture.tree import ROOT
from tests.nats import NatsServer
from tests.process.client import Reply

FILE = (
    *(f"{role}:{role}:{role}-key-0123456789" for role in ROLES),
    "web-1:shop:web-1-key-0123456789:c-1",
    "web-2:shop:web-2-key-0123456789:c-2",
)


@frozen
class Program:
    """A running program and a client; *caller* is the name of a key, which begins with that name."""

    application: Application
    address: str
    session: ClientSession

    async def send(self, caller: str, method: str, path: str, body: object = None, **headers: str) -> Reply:
        """Send one request with the key of *caller*; an empty *caller* has none."""
        if caller:
            headers["Authorization"] = f"Bearer {caller}-key-0123456789"
        async with self.session.request(method, self.address + path, json=body, headers=headers) as response:
            is_endless = response.content_type == "text/event-stream"
            return Reply(response.status, response.headers, "" if is_endless else await response.text())

    def routes(self) -> set[tuple[str, str]]:
        """Return method and path template of every route of the application, but for the one that catches the rest."""
        app = self.application._web.app
        assert app is not None
        found = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
        return {(method, path) for method, path in found if method != "*"}


@pytest.fixture
async def program(tmp_path: Path) -> AsyncIterator[Program]:
    keys = tmp_path / "keys"
    keys.write_text("\n".join(FILE))
    keys.chmod(0o600)
    settings = Settings(
        known_modules=MODULES,
        database_url=f"sqlite:///{tmp_path}/test.db",
        http_port=0,
        auth="keys",
        api_keys_file=str(keys),
        cors_origins=("https://a.example",),
        shutdown_grace_s=2,
    )
    application = Application(settings)
    address = await application.start()
    async with ClientSession() as session:
        yield Program(application, address, session)
    await application.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server with accounts.conf, and the streams and durables of the program."""
    folder = tmp_path_factory.mktemp("nats")
    (folder / "accounts.conf").write_bytes((ROOT / "deploy/nats/accounts.conf").read_bytes())
    patch = pytest.MonkeyPatch()
    for user in (*MODULES, "provisioner"):
        patch.setenv(f"{user.upper()}_PASSWORD", f"p-{user}")
    with NatsServer(folder, config='include "accounts.conf"') as started:
        patch.undo()
        asyncio.run(provision(started))
        yield started


async def provision(server: NatsServer) -> None:
    client = await nats.connect(server.url, user="provisioner", password="p-provisioner")
    await apply(client.jetstream(), planned_topology(build_modules(Settings(known_modules=MODULES))), replicas=1)
    await client.close()
