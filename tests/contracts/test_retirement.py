"""An old version can be dropped once no consumer depends on it, and not before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

import pytest

from app.messaging.event_registry import all_modules
from app.messaging.version_usage import VersionUsage, VersionUsageReport, blockers
from bus.consumers import RegisteredConsumer, subject_matches
from bus.memory.listing import MemoryConsumerDirectory
from tests.runtime.harness import Harness, harness_at, oid, product, submitted, until

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
