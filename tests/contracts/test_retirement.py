"""An old version can be dropped, or is retired, once no consumer depends on it, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from loguru import logger

from app.application import Application
from app.messaging.event_registry import all_modules, build_registry
from app.messaging.versions.retirement import CHECK_SECONDS, Retirement
from app.messaging.versions.usage import VersionUsage, VersionUsageReport, blockers
from app.web.endpoints.contracts import to_json
from bus.consumers import RegisteredConsumer, RegisteredStream, subject_matches
from bus.contracts.versions import DualPublish, Upcast
from bus.memory.listing import MemoryConsumerDirectory
from bus.port import Message
from config.environment import load
from config.files import BadSetting
from modules.inventory.state import Product
from modules.orders.events import OrderCreatedV1, created_v1
from modules.registry import MODULES
from tests.clock import VirtualClock
from tests.contracts.example import SCHEMAS, SentV1, SentV2, SentV3, down_1, down_2, up_2, up_3
from tests.contracts.releases import created
from tests.runtime.harness import CONTEXT, NO_CONTENT, Harness, harness_at, oid, product, submitted, until

V1, V2 = "orders.created.v1", "orders.created.v2"


@pytest.mark.parametrize(
    ("pattern", "subject", "is_match"),
    [
        ("orders.created.v1", "orders.created.v1", True),
        ("orders.created.v1", "orders.created.v1.express", False),
        ("orders.created.v1", "orders.created.v10", False),
        ("orders.>", "orders.created.v1.express", True),
        ("orders.created.>", "orders.created", False),
        (">", "orders.created.v1", True),
        ("*.created.*", "orders.created.v1", True),
        ("*.created.*", "orders.created.v1.express", False),
        ("orders.*", "orders.created.v1", False),
        ("*", "orders", True),
    ],
)
def test_a_pattern_matches_subjects_as_on_the_server(pattern: str, subject: str, is_match: bool) -> None:
    """``*`` matches one token, ``>`` one or more at the end."""
    assert subject_matches(pattern, subject) is is_match


def registered(name: str, *subjects: str, pending: int = 0, understood: Collection[str] = ()) -> RegisteredConsumer:
    return RegisteredConsumer(name, subjects, pending, understood=frozenset(understood))


@pytest.mark.parametrize(
    ("consumers", "reasons"),
    [
        ([], []),
        ([registered("inventory", V1, V2)], []),
        ([registered("other", V2), registered("payments", "orders.cancelled.v1", pending=3)], []),
        ([registered("warehouse", V1)], ["warehouse consumes it and names no newer version"]),
        ([registered("audit", "orders.>")], ["audit consumes it by a wildcard and names no newer version"]),
        ([registered("audit", "orders.>", V2, f"{V2}.express")], []),
        ([registered("analytics", ">", understood={V1, V2, f"{V2}.express"})], []),
        (
            [registered("analytics", ">", understood={V1, f"{V2}.express"})],
            ["analytics consumes it by a wildcard and names no newer version"],
        ),
        ([registered("inventory", V1, V2, pending=2)], ["inventory has 2 unsettled messages"]),
        (
            [registered("fast", f"{V1}.express", pending=1)],
            ["fast consumes it and names no newer version", "fast has 1 unsettled messages"],
        ),
        ([registered("fast", f"{V1}.express", V2)], ["fast consumes it and names no newer version"]),
        ([registered("fast", f"{V1}.express", f"{V2}.express")], []),
    ],
)
def test_a_version_is_needed_while_a_consumer_depends_on_it(
    consumers: Sequence[RegisteredConsumer], reasons: Sequence[str]
) -> None:
    """A consumer of a newer version does not need it, once no message is pending for it."""
    assert list(blockers(V1, [V2], consumers)) == list(reasons)


def test_the_newest_version_is_always_needed() -> None:
    """With consumers or without."""
    assert blockers(V2, [], []) == ("it is the newest version",)


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with harness_at(tmp_path / "test.db") as harness:
        yield harness


async def usage(harness: Harness, subject: str) -> VersionUsage:
    report = VersionUsageReport(all_modules(), harness.contracts, harness.metrics, MemoryConsumerDirectory(harness.bus))
    [found] = [each for each in await report.usages() if each.subject == subject]
    return found


async def test_the_report_lists_consumers_and_their_outcomes(harness: Harness) -> None:
    """Counted by version and consumer, both lanes together."""
    await harness.submit("inventory", product())
    await harness.consume("inventory")
    await harness.submit("orders", submitted(oid(1)))
    harness.run(harness.relays["orders"].run())
    await until(lambda: harness.relays["orders"].pending == 0)
    old, new = await usage(harness, V1), await usage(harness, V2)
    assert (old.is_newest, old.is_published, old.since, old.is_safe_to_drop) == (False, True, "0.2.0", True)
    assert (new.is_newest, new.is_published, new.since, new.is_safe_to_drop) == (True, True, None, False)
    assert [each.consumer for each in old.consumers] == ["inventory"]
    assert (old.published, new.published) == (1, 1)
    assert not old.is_retired
    assert old.handled == {"inventory": {"superseded": 1}}
    assert new.handled == {"inventory": {"handled": 1}}


async def test_waiting_and_delivered_messages_are_pending(harness: Harness) -> None:
    """A version with unsettled messages is needed."""
    subscription = await harness.bus.subscribe("inventory", [V1, V2])
    assert not (await usage(harness, V1)).reasons
    await harness.submit("orders", submitted(oid(1)))
    assert (await usage(harness, V1)).reasons == ("inventory has 2 unsettled messages",)
    first, second = await subscription.fetch(2, 0)
    assert (await usage(harness, V1)).consumers[0].pending == 2
    await first.ack()
    await second.nak(60)
    await asyncio.sleep(0)
    assert (await usage(harness, V1)).consumers[0].pending == 1


async def test_no_version_is_safe_to_drop_while_the_bus_does_not_answer(harness: Harness) -> None:
    """The consumers are not known."""

    class Unavailable(MemoryConsumerDirectory):
        async def consumers(self) -> Sequence[RegisteredConsumer]:
            raise TimeoutError

    report = VersionUsageReport(all_modules(), harness.contracts, harness.metrics, Unavailable(harness.bus))
    [found] = [each for each in await report.usages() if each.subject == V1]
    assert found.reasons == ("the bus does not answer, so its consumers are unknown",)
    assert not found.is_safe_to_drop


async def test_a_process_reports_the_events_that_its_modules_publish_or_consume(harness: Harness) -> None:
    """Payments alone knows nothing of orders.created."""
    [payments] = [module for module in all_modules() if module.name == "payments"]
    report = VersionUsageReport([payments], harness.contracts, harness.metrics, MemoryConsumerDirectory(harness.bus))
    subjects = {each.subject for each in await report.usages()}
    assert {"payments.captured.v1", "inventory.reserved.v1", "orders.cancelled.v1"} <= subjects
    assert not {V1, V2} & subjects


@pytest.mark.parametrize(
    ("retired", "detail"),
    [
        (["orders.made.v1"], "there is no event orders.made.v1; published beside a newer version: orders.created.v1"),
        ([V2], "orders.created.v2 is the newest version of its event, which is always published"),
        (["payments.captured.v1"], "payments.captured.v1 is the newest version of its event, which is always published"),
    ],
)
def test_what_cannot_be_retired_is_refused(retired: Sequence[str], detail: str) -> None:
    """A version that does not exist, and the newest one."""
    with pytest.raises(BadSetting) as refused:
        build_registry((), retired)
    assert str(refused.value) == f"RETIRED_VERSIONS: {detail}"


@pytest.mark.parametrize("is_worker", [False, True])
def test_a_version_that_a_module_reads_alone_is_not_retired(is_worker: bool) -> None:
    """Neither what the module itself reads, nor what a worker of it does: no server has to be asked."""
    [payments] = [module for module in all_modules() if module.name == "payments"]
    changes = {"workers": {"payments-post": (OrderCreatedV1,)}} if is_worker else {"consumes": (*payments.consumes, OrderCreatedV1)}
    consumer = "payments-post" if is_worker else "payments"
    with pytest.raises(BadSetting, match=rf"^RETIRED_VERSIONS: {consumer} reads orders\.created\.v1 and no newer version$"):
        build_registry([attrs.evolve(payments, **changes)], [V1])


def test_an_older_version_is_retired_with_a_newer_one() -> None:
    """It is made from the newer one, which would otherwise be published for its sake."""
    [payments] = [module for module in all_modules() if module.name == "payments"]
    duals = DualPublish("parcels.sent", 1, 2, down_1, up_2, "1.1"), DualPublish("parcels.sent", 2, 3, down_2, up_3, "1.2")
    parcels = attrs.evolve(
        payments, name="parcels", publishes=(SentV3,), previous_versions=(SentV1, SentV2), consumes=(), workers={}, schemas=SCHEMAS,
        dual_publishes=duals,
    )  # fmt: skip
    older, newer = "parcels.sent.v1", "parcels.sent.v2"
    with pytest.raises(BadSetting, match=rf"^RETIRED_VERSIONS: {older} is older than {newer}, and has to be retired with it$"):
        build_registry([parcels], [newer])
    for retired in [older], [older, newer]:
        assert build_registry([parcels], retired).retired == set(retired)


def test_a_version_that_is_no_longer_declared_may_stay_retired() -> None:
    """The setting is not changed on the same day as the program."""
    [orders] = [module for module in all_modules() if module.name == "orders"]
    upcasts = tuple(Upcast(each.event, each.from_version, each.to_version, each.up) for each in orders.dual_publishes)
    contracts = build_registry([attrs.evolve(orders, dual_publishes=(), upcasts=upcasts)], [V1])
    assert [each.subject for each in contracts.encode_versions(created(oid(1)))] == [V2]


class FakeServer:
    """A bus and its consumers, as a test sets them."""

    is_connected = True

    def __init__(self, *consumers: RegisteredConsumer) -> None:
        self.found: Sequence[RegisteredConsumer] | Exception = consumers
        self.clock = VirtualClock()
        self.contracts = build_registry((), [V1])
        self.retirement = self.of("orders")

    def of(self, module: str) -> Retirement:
        bus: Any = self
        return Retirement([module], self.contracts, bus, self, self.clock)

    async def consumers(self) -> Sequence[RegisteredConsumer]:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    async def streams(self) -> Sequence[RegisteredStream]:
        return ()

    def published(self) -> list[str]:
        return [each.subject for each in self.contracts.encode_versions(created(oid(1)))]


OURS = registered("inventory", V1, V2, pending=7)
WAREHOUSE = registered("warehouse", V1)
KEPT = "orders.created.v1 is retired and still published: warehouse consumes it and names no newer version"


@pytest.fixture
def errors() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["extra"]["detail"]), level="ERROR", format="{message}")
    yield lines
    logger.remove(sink)


async def test_a_retired_version_is_published_until_its_last_reader_is_gone(errors: list[str]) -> None:
    """And again if one comes back; unsettled messages of other consumers do not matter. Each change is logged once."""
    server = FakeServer(OURS, WAREHOUSE)
    assert (server.published(), server.retirement.problem) == ([V2, V1], "")
    running = asyncio.create_task(server.retirement.run())
    for consumers, versions, problem in (
        ((OURS, WAREHOUSE), [V2, V1], KEPT),
        ((OURS, WAREHOUSE), [V2, V1], KEPT),
        ((OURS,), [V2], ""),
        ((OURS, registered("audit", "orders.>", V2, f"{V2}.express")), [V2], ""),
        ((OURS, WAREHOUSE), [V2, V1], KEPT),
        ((), [V2], ""),
    ):
        server.found = consumers
        await server.clock.advance(CHECK_SECONDS)
        assert (server.published(), server.retirement.problem) == (versions, problem)
    running.cancel()
    assert errors == [KEPT, KEPT]


async def test_unknown_consumers_change_nothing(errors: list[str]) -> None:
    """What was published stays so, without a connection and without an answer; only a missing answer is a problem of its own."""
    server = FakeServer()
    server.found = TimeoutError()
    await server.retirement.step()
    assert server.published() == [V2, V1]
    assert errors == [f"{V1} is retired and still published: the consumers are unknown (TimeoutError())"] == [server.retirement.problem]
    server.is_connected, server.found = False, ()
    await server.retirement.step()
    assert server.published() == [V2, V1]
    server.is_connected = True
    await server.retirement.step()
    assert (server.published(), server.retirement.problem) == ([V2], "")
    server.found = TimeoutError()
    await server.retirement.step()
    assert (server.published(), server.retirement.problem) == ([V2], "")


async def test_only_the_producer_asks_for_the_readers_of_a_version() -> None:
    """Inventory publishes no orders.created, so nothing keeps it in any version."""
    server = FakeServer(WAREHOUSE)
    inventory = server.of("inventory")
    await asyncio.wait_for(inventory.run(), 1)
    assert inventory.problem == ""


async def test_one_process_publishes_only_what_is_not_retired_and_reads_both(tmp_path: Path) -> None:
    """By local delivery no v1 is counted or superseded; a v1 that comes over the bus has its effect once, as v2."""
    settings = load({"DATABASE_URL": f"sqlite:///{tmp_path}/test.db", "RETIRED_VERSIONS": V1}, MODULES)
    application = Application(settings)
    parts = application.parts
    parts.storage.migrate()
    for name, what in ("inventory", product()), ("orders", submitted(oid(1))):
        runner = parts.runtime.runners[name]
        submitting = asyncio.create_task(runner.submit(what, id=name, trace=CONTEXT, respond=NO_CONTENT))
        await asyncio.sleep(0)
        await runner.step()
        await submitting
    metrics = parts.metrics.render().decode()
    assert f'messages_handled_total{{module="inventory",subject="{V2}",outcome="handled"}} 1' in metrics
    assert V1 not in metrics
    assert await application.checks() == {"bus": "ok", **{f"database:{name}": "ok" for name in MODULES}}

    inventory = parts.runtime.runners["inventory"]
    subscription = await parts.bus.bus.subscribe("inventory", parts.contracts.subjects_for(inventory.module.consumes))
    body = parts.contracts.encode(created_v1(created(oid(2), 3)))
    for id in "m-1", "m-2":  # a duplicate, as after a republish
        parts.bus.bus.publish(Message(V1, id, body, oid(2), {"ce-id": "e-2"}))
        [delivery] = await subscription.fetch(1, 0)
        await inventory._receive(delivery)
        await inventory.step()
    stock = await inventory.get(Product, "A")
    assert stock is not None
    assert stock.reserved == 1 + 3
    usages = {each.subject: each for each in await VersionUsageReport(parts.modules, parts.contracts, parts.metrics, parts.bus.directory).usages()}
    assert (usages[V1].is_retired, usages[V1].is_published, usages[V2].is_retired) == (True, False, False)
    assert [each.consumer for each in usages[V1].consumers] == ["inventory"]
    assert (to_json(usages[V1])["retired"], "retired" in to_json(usages[V2])) == (True, False)
    await parts.bus.bus.close(0)
    await parts.storage.close()
