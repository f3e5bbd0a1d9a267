"""How the parts are put together, and what the house does when one of its loops ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import attrs
import pytest

from app.build import Application
from bus.errors import Unreachable
from config.settings import load
from tests.app.stand import CONTEXT, NOTED, product, submitted


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


@pytest.mark.parametrize("express", [False, True])
async def test_neighbours_on_one_file_take_the_short_way(tmp_path: Path, express: bool) -> None:
    """In both lanes, as far as the request to the gateway, which has to travel: nothing is turned but the orders' shell."""
    application = Application(load({"DATABASE_URL": f"sqlite:///{tmp_path}/test.db"}))
    application.migrate()
    for name, what in ("inventory", product()), ("orders", attrs.evolve(submitted(), is_express=express)):
        shell = application.shells[name]
        told = asyncio.create_task(shell.tell(what, id=name, context=CONTEXT, answer=NOTED, express=express))
        await asyncio.sleep(0)
        await shell.step()
        await told
    lane = ".express" if express else ""
    database = application.stores["orders"].database

    async def said(module: str) -> list[str]:
        sql = f"SELECT subject FROM {module}_outbox WHERE due_at = occurred_at"
        return [row[0] for row in await database.read(lambda c: c.exec_driver_sql(sql).all())]

    assert [await said("orders"), await said("inventory")] == [[], []]
    assert await said("payments") == [f"payments.charge_requested.v1{lane}"]
    await application.bus.close(0)
    await database.close()


async def test_who_has_a_file_of_his_own_takes_the_long_way(tmp_path: Path) -> None:
    """A transaction ends where its database does."""
    files = {f"{name.upper()}_DATABASE_URL": f"sqlite:///{tmp_path}/{name}.db" for name in ("orders", "payments")}
    application = Application(load({"DATABASE_URL": f"sqlite:///{tmp_path}/test.db", **files}))
    assert [shell.short_way for shell in application.shells.values()] == [None] * 3
    await application.bus.close(0)
    for database in application.databases.values():
        await database.close()
