"""Compare the payments in the database with the charges at the payment provider."""

from __future__ import annotations

__all__ = ["reconcile"]

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from app.cli import console

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from app.bootstrap import Parts
    from app.gateways.port import ChargeLedger, ChargeRecord
    from app.gateways.reconciliation import Report
    from app.storage.sql.database import Database
    from modules.payments.state import Payment

    ReadPage = Callable[[str, Connection], list[Payment]]

PAGE = 200
CLOCK_SKEW_MAX = timedelta(minutes=5)
"""The largest difference between the provider's clock and this machine's."""

CHARGE_DELAY_MAX = timedelta(hours=1)
"""How long after the time-out of an order its charge may still be made, including all retries."""


@click.command(short_help="Print differences to the provider's list.")
@click.option(
    "--since",
    callback=console.parse_time,
    metavar="WHEN",
    help=f"Compare orders placed at or after WHEN: {console.TIME_FORMATS}. By default one day before --until.",
)
@click.option(
    "--until",
    callback=console.parse_time,
    metavar="WHEN",
    help="Compare orders placed before WHEN, in the same formats; by default now.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def reconcile(since: datetime | None, until: datetime | None, as_json: bool) -> None:
    """
    Compare the payments in the database with the payment provider's list of charges, and print the differences.

    \b
      python -m app payments reconcile --since 2026-01-31 --until 2026-02-01
      python -m app payments reconcile --since 2h --until 5m

    The kinds of differences are missing, extra, amount, refunded and disputed. A refund that is pending is no difference; a
    dispute that is open or lost is one, also if the payment shows it.

    Works with or without a running server, and changes nothing. Only this period is requested from the provider. An order
    that is being paid may differ for a moment: set --until a few minutes back.

    Exit codes: 0 both agree; 1 there are differences; 2 wrong usage or configuration; 3 the provider or the database is
    out of reach.
    """
    from app.gateways.port import ChargeLedger, GatewayError
    from app.storage.errors import StorageUnavailable

    until = until or datetime.now(UTC)
    try:
        since = since or until - timedelta(days=1)
    except OverflowError:
        raise click.BadParameter("is too early", param_hint="--until") from None
    if since >= until:
        raise click.BadParameter("must be before --until", param_hint="--since")
    settings = console.settings()
    if "payments" not in settings.modules:
        console.exit_with(console.USAGE, "MODULES: must contain payments, whose database is compared")
    if settings.payment_gateway == "simulated":
        console.exit_with(
            console.USAGE,
            f"PAYMENT_GATEWAY={settings.payment_gateway} keeps no list of charges to compare with; set it to stripe",
        )
    parts = console.stored_parts(settings)
    gateway = parts.gateways["payments"].gateway
    assert isinstance(gateway, ChargeLedger)
    charge_delay = timedelta(seconds=min(settings.order_timeout_s, 31 * 86_400)) + CHARGE_DELAY_MAX
    try:
        report = asyncio.run(_compare_with(parts, gateway, since, until, charge_delay))
    except StorageUnavailable as error:
        console.exit_with(console.OUT_OF_REACH, error.detail)
    except GatewayError as error:
        console.exit_with(console.OUT_OF_REACH, f"the payment provider: {error}")
    _show(report, since, until, settings.payment_gateway, as_json)
    if report.differences:
        sys.exit(console.FAILED)


async def _compare_with(
    parts: Parts, ledger: ChargeLedger, since: datetime, until: datetime, charge_delay: timedelta
) -> Report:
    from app.gateways.reconciliation import compare

    try:
        recorded = [payment async for payment in _payments(parts, since, until)]
        charges = ledger.records(_shifted(since, -CLOCK_SKEW_MAX), _shifted(until, charge_delay))
        return await compare(recorded, _with_progress(charges), since, until)
    finally:
        await parts.gateways["payments"].gateway.close()
        await parts.storage.close()


async def _payments(parts: Parts, since: datetime, until: datetime) -> AsyncIterator[Payment]:
    """
    Yield the payments of the orders placed between *since* and *until*, which the time prefix of their ids selects.

    Those in the archive come first: a payment that was changed since has a row in the table, too, and that row counts.
    """
    from modules.payments.state import Payment

    store = parts.storage.stores["payments"]
    list_page, archive_page = store.mappers[Payment].list_page, store.archive.page
    reads: tuple[ReadPage, ...] = (
        lambda after, connection: archive_page(connection, Payment, after, PAGE),
        lambda after, connection: list_page(connection, {}, after, PAGE, False),
    )
    for read in reads:
        async for payment in _between(store.database, read, since, until):
            yield payment


async def _between(database: Database, read: ReadPage, since: datetime, until: datetime) -> AsyncIterator[Payment]:
    from bus.ids import time_of_id

    after = f"{max(0, int(since.timestamp() * 1000)):012x}"
    after = f"{after[:8]}-{after[8:]}"
    while page := await database.read(partial(read, after)):
        for payment in page:
            placed_at = time_of_id(payment.order_id)
            if placed_at is not None and placed_at >= until:
                return
            yield payment
        after = page[-1].order_id


async def _with_progress(records: AsyncIterator[ChargeRecord]) -> AsyncIterator[ChargeRecord]:
    """Yield *records*; on a terminal, show how many there are so far."""
    from tqdm import tqdm

    with tqdm(desc="charges", unit="", file=sys.stderr, disable=not sys.stderr.isatty(), leave=False) as progress:
        async for record in records:
            progress.update()
            yield record


def _shifted(time: datetime, by: timedelta) -> datetime:
    """Return *time* + *by*, or *time* where the sum is outside the calendar."""
    try:
        return time + by
    except OverflowError:
        return time


def _show(report: Report, since: datetime, until: datetime, gateway: str, as_json: bool) -> None:
    import attrs

    from modules.values import rfc3339

    if as_json:
        document = {"gateway": gateway, "since": rfc3339(since), "until": rfc3339(until)} | attrs.asdict(report)
        console.print_json(document)
        return
    for difference in report.differences:
        parts = [f"{difference.kind:<9}", difference.order_id or "unknown order", difference.reference or "-"]
        for name, side in ("ours", difference.ours), ("theirs", difference.theirs):
            parts.append(f"{name}: {_amounts(side)}")
        click.echo("  ".join(parts))
    count = len(report.differences)
    click.echo(
        f"{report.payments} payments, {report.charges} charges at {gateway}, from {rfc3339(since)} until {rfc3339(until)}:"
        f" {f'{count} differences' if count != 1 else '1 difference'}"
    )


def _amounts(side: Any) -> str:
    if side is None:
        return "none"
    status = f"{side['status']} " if "status" in side else ""
    pending = f", {side['pending']} about to go back" if side.get("pending") else ""
    dispute = f", dispute {side['dispute']}" if side["dispute"] else ""
    return f"{status}{side['amount']} {side['currency']}, {side['refunded']} back{pending}{dispute}"
