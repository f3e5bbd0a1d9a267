"""What the house does when one of its loops ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.build import Application
from bus.errors import Unreachable
from config.settings import load


@pytest.mark.parametrize(("error", "code"), [(Unreachable("no NATS server lets us in"), 3), (ValueError("a bug"), 1)])
async def test_a_loop_that_breaks_ends_the_process_with_its_code(tmp_path: Path, error: Exception, code: int) -> None:
    """3 where a dependency was out of reach at start, 1 for what is our own; a loop that is done ends nothing."""
    application = Application(load({"DATABASE_URL": f"sqlite:///{tmp_path}/test.db"}))
    codes: list[int] = []
    application.on_fatal = codes.append

    async def done() -> None:
        """End well."""

    async def broken() -> None:
        raise error

    application._run(done(), "done")
    application._run(broken(), "broken")
    await asyncio.wait(application._tasks)
    await asyncio.sleep(0)
    assert codes == [code]
    for database in application.databases.values():
        await database.close()
