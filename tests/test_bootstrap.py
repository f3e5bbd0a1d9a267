"""How bootstrap builds the parts."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from uuid_utils import uuid7

from app.application import Application
from app.clock import SystemClock
from app.gateways.payment_worker import PaymentWorker
from app.runtime.engine import direct_takers
from app.storage.tables import DUE_NOW
from bus.errors import BrokerUnreachable
from config.environment import load
from modules.orders.events import CancelRequested
from modules.payments.events import ChargeRequested, PaymentCaptured, RefundRequested
from modules.registry import MODULES
from modules.values import Money
from tests.runtime.harness import CONTEXT, NO_CONTENT, oid, product, submitted


@pytest.mark.parametrize(("error", "code"), [(BrokerUnreachable("no NATS server accepts the connection"), 3), (ValueError("a bug"), 1)])
async def test_a_loop_that_breaks_ends_the_process_with_its_code(tmp_path: Path, error: Exception, code: int) -> None:
    """3 where a dependency was out of reach at start, 1 for what is our own; a loop that is done ends nothing."""
    application = Application(load({"DATABASE_URL": f"sqlite:///{tmp_path}/test.db"}, MODULES))
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
    await application.parts.storage.close()


class LateClock(SystemClock):
    """A clock that can be put forward."""

    late = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.late


@pytest.mark.parametrize("express", [False, True])
async def test_modules_on_one_file_deliver_locally(tmp_path: Path, express: bool) -> None:
    """In both lanes, one step of the orders runner takes an order to the charge request, which has a row in the outbox."""
    application = Application(load({"DATABASE_URL": f"sqlite:///{tmp_path}/test.db"}, MODULES))
    application.parts.storage.migrate()
    for name, what in ("inventory", product()), ("orders", attrs.evolve(submitted(), is_express=express)):
        runner = application.parts.runtime.runners[name]
        submitting = asyncio.create_task(runner.submit(what, id=name, trace=CONTEXT, respond=NO_CONTENT, is_express=express))
        await asyncio.sleep(0)
        await runner.step()
        await submitting
    lane = ".express" if express else ""
    database = application.parts.storage.stores["orders"].database

    async def published(module: str) -> list[str]:
        sql = f"SELECT subject FROM {module}_outbox WHERE due_at = '{DUE_NOW}'"
        return [row[0] for row in await database.read(lambda c: c.exec_driver_sql(sql).all())]

    assert [await published("orders"), await published("inventory")] == [[], []]
    assert await published("payments") == [f"payments.charge_requested.v1{lane}"]
    await application.parts.bus.bus.close(0)
    await database.close()


async def test_a_worker_takes_events_without_the_bus_only_where_nothing_else_consumes_them(tmp_path: Path) -> None:
    """The bus in memory carries no charge request, unless another module wants to read it, too."""
    application = Application(load({"DATABASE_URL": f"sqlite:///{tmp_path}/test.db"}, MODULES))
    parts = application.parts
    runners = parts.runtime.runners
    assert all(runner.takers.keys() == {ChargeRequested, RefundRequested} for runner in runners.values())
    curious = [
        attrs.evolve(module, consumes=(*module.consumes, ChargeRequested)) if module.name == "orders" else module
        for module in parts.modules
    ]
    takers = {name: worker.take for name, worker in parts.gateways["payments"].workers.items()}
    assert direct_takers(curious, takers).keys() == {RefundRequested}
    await parts.bus.bus.close(0)
    await parts.storage.close()


@pytest.mark.parametrize(
    ("bus", "database", "is_taken"),
    [
        ("memory", "sqlite:///{}/test.db", True),
        ("memory", "postgresql://u@127.0.0.1:1/none", True),
        ("nats", "sqlite:///{}/test.db", True),
        ("nats", "postgresql://u@127.0.0.1:1/none", False),
    ],
)
async def test_a_worker_takes_events_without_the_bus_only_where_no_replica_publishes_them(
    tmp_path: Path, bus: str, database: str, is_taken: bool
) -> None:
    """Replicas share a PostgreSQL database and its outbox; one of them would publish what another has in hand."""
    modules = MODULES if bus == "memory" else ("payments",)
    settings = {"BUS": bus, "MODULES": ",".join(modules), "DATABASE_URL": database.format(tmp_path)}
    application = Application(load(settings, MODULES))
    parts = application.parts
    assert bool(parts.runtime.runners["payments"].takers) is is_taken
    (worker,) = parts.gateways["payments"].workers.values()
    assert isinstance(worker, PaymentWorker)
    assert worker._takes_directly is is_taken
    await parts.bus.bus.close(0)
    await parts.storage.close()


async def test_an_order_counts_once_for_each_status_and_its_first_end_alone_has_a_duration(tmp_path: Path) -> None:
    """Reserved as well, which it may be for no longer than a transaction; cancelled days after it was confirmed, it is not slow."""
    clock = LateClock()
    application = Application(load({"DATABASE_URL": f"sqlite:///{tmp_path}/test.db"}, MODULES), clock)
    application.parts.storage.migrate()

    async def submit(name: str, event: Any) -> None:
        runner = application.parts.runtime.runners[name]
        submitting = asyncio.create_task(runner.submit(event, id=str(uuid7()), trace=CONTEXT, respond=NO_CONTENT))
        await asyncio.sleep(0)
        await runner.step()
        await submitting

    def counted() -> dict[str, float]:
        page = application.parts.metrics.render().decode()
        found = re.findall(r'(?m)^(?:orders_total\{status="(\w+)"\}|(order_duration_seconds_count)) (\S+)$', page)
        return {status or name.rpartition("_")[2]: float(value) for status, name, value in found if float(value)}

    await submit("inventory", product(on_hand=2))
    for id, quantity in (oid(1), 2), (oid(2), 9):
        await submit("orders", submitted(id, quantity))
    await submit("orders", CancelRequested(order_id=oid(3), why=None))
    assert counted() == {"processing": 2, "reserved": 1, "cancelled": 1, "count": 1}
    await submit("orders", PaymentCaptured(order_id=oid(1), amount=Money(200, "EUR"), reference="r"))
    assert counted() == {"processing": 2, "reserved": 1, "confirmed": 1, "cancelled": 1, "count": 2}
    clock.late = timedelta(days=3)
    await submit("orders", CancelRequested(order_id=oid(1), why=None))
    await submit("orders", CancelRequested(order_id=oid(1), why=None))
    assert counted() == {"processing": 2, "reserved": 1, "confirmed": 1, "cancelled": 2, "count": 2}
    await application.parts.bus.bus.close(0)
    await application.parts.storage.close()


async def test_modules_with_files_of_their_own_deliver_over_the_bus(tmp_path: Path) -> None:
    """A transaction cannot span two databases."""
    files = {f"{name.upper()}_DATABASE_URL": f"sqlite:///{tmp_path}/{name}.db" for name in ("orders", "payments")}
    application = Application(load({"DATABASE_URL": f"sqlite:///{tmp_path}/test.db", **files}, MODULES))
    assert not any(runner._engine.delivers_locally for runner in application.parts.runtime.runners.values())
    await application.parts.bus.bus.close(0)
    await application.parts.storage.close()
