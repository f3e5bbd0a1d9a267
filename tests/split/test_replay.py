"""The history of each module, decided again beside its process, on NATS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.process.client import Client
from tests.process.server import run
from tests.split.conftest import Build
from tests.split.system import System


@pytest.mark.night
async def test_each_history_is_decided_again_beside_its_process(
    build: Build, connect: Callable[[System], Client]
) -> None:
    """With the events in the order in which each module has received them; a message that came twice is there once."""
    system = build().start()
    client = connect(system)
    await client.stock("A", 1_000)
    ids = await asyncio.gather(*(client.place({"A": 1 + n % 3}, priority="express" if n % 2 else "normal") for n in range(20)))
    for id in ids:
        await client.wait_until_final(id)
    for id in ids[:5]:
        await client.cancel(id)
    inventory = system.servers["inventory"][0]
    done = await asyncio.to_thread(run, inventory.folder, "republish", "--since", "1h", **inventory.settings)
    assert done.returncode == 0, done.stderr
    for module, arguments in (("orders", ("verify",)), ("inventory", ("verify",)), ("payments", ("rebuild", "--into", "sqlite:///rebuilt.db"))):
        server = system.servers[module][0]
        done = await asyncio.to_thread(run, server.folder, "history", *arguments, **server.settings)
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert done.stdout.splitlines()[1] == "Equal: every event and every state is what it was."
