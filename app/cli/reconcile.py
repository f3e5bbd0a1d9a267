"""``payments``: compare our books with the provider's, server or not."""

from __future__ import annotations

__all__ = ["payments"]

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from app.cli import console

if TYPE_CHECKING:
    from app.bootstrap import Application
    from app.gateways.port import ChargeLedger, ChargeRecord
    from app.gateways.reconciliation import Report
    from modules.payments.state import Payment

PAGE = 200
SKEW = timedelta(minutes=5)
"""How far the provider's clock and ours may be apart."""

LATE = timedelta(hours=1)
"""How long after an order's time-out its charge may still be made, all retries included."""


@click.group()
def payments() -> None:
    """Look after payments."""


@payments.command()
@click.option(
    "--since",
    callback=console.parse_time,
    metavar="WHEN",
    help=f"Orders placed from then on: {console.TIME_FORMATS}. By default a day before --until.",
)
@click.option(
    "--until", callback=console.parse_time, metavar="WHEN", help="Orders placed before then, said likewise; by default now."
)
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def reconcile(since: datetime | None, until: datetime | None, as_json: bool) -> None:
    """
    Compare the provider's own list of charges with our books, and say where they differ.

    Changes nothing. Orders that are being paid right now may differ for a moment: let --until lie a few minutes back.
    Exits with 0 when both agree, 1 when not, and 3 when the provider or the database is out of reach.
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
        console.exit_with(console.USAGE, "MODULES: leaves out payments; there is nothing to compare")
    application = console.application(settings)
    if not isinstance(application.gateway, ChargeLedger):
        console.exit_with(console.USAGE, f"PAYMENT_GATEWAY={settings.payment_gateway} keeps no list to compare with")
    console.run_database_step(application.require_tables)
    late = timedelta(seconds=min(settings.order_timeout_s, 31 * 86_400)) + LATE
    try:
        report = asyncio.run(_compared(application, application.gateway, since, until, late))
    except StorageUnavailable as error:
        console.exit_with(console.OUT_OF_REACH, error.detail)
    except GatewayError as error:
        console.exit_with(console.OUT_OF_REACH, f"the payment provider: {error}")
    _show(report, since, until, settings.payment_gateway, as_json)
    if report.differences:
        sys.exit(console.FAILED)


async def _compared(
    application: Application, ledger: ChargeLedger, since: datetime, until: datetime, late: timedelta
) -> Report:
    from app.gateways.reconciliation import compare

    try:
        ours = [payment async for payment in _ours(application, since, until)]
        theirs = ledger.records(_moved(since, -SKEW), _moved(until, late))
        return await compare(ours, _counted(theirs), since, until)
    finally:
        await application.gateway.close()
        for database in application.databases.values():
            await database.close()


async def _ours(application: Application, since: datetime, until: datetime) -> AsyncIterator[Payment]:
    """Yield the payments of orders placed from *since* until *until*; their ids begin with the time."""
    from bus.ids import time_of_id
    from modules.payments.state import Payment

    runner = application.runners["payments"]
    after = f"{max(0, int(since.timestamp() * 1000)):012x}"
    after = f"{after[:8]}-{after[8:]}"
    while page := await runner.list_states(Payment, {}, after=after, limit=PAGE, newest_first=False):
        for payment in page:
            placed = time_of_id(payment.order_id)
            if placed is not None and placed >= until:
                return
            yield payment
        after = page[-1].order_id


async def _counted(records: AsyncIterator[ChargeRecord]) -> AsyncIterator[ChargeRecord]:
    """Yield *records*, and show on a terminal how many there were."""
    from tqdm import tqdm

    with tqdm(desc="charges", unit="", file=sys.stderr, disable=not sys.stderr.isatty(), leave=False) as progress:
        async for record in records:
            progress.update()
            yield record


def _moved(moment: datetime, by: timedelta) -> datetime:
    try:
        return moment + by
    except OverflowError:
        return moment


def _show(report: Report, since: datetime, until: datetime, gateway: str, as_json: bool) -> None:
    import attrs

    from modules.values import rfc3339

    if as_json:
        shown = {"gateway": gateway, "since": rfc3339(since), "until": rfc3339(until)} | attrs.asdict(report)
        console.print_json(shown)
        return
    for difference in report.differences:
        parts = [f"{difference.kind:<9}", difference.order_id or "no order of ours", difference.reference or "-"]
        for name, side in ("ours", difference.ours), ("theirs", difference.theirs):
            parts.append(f"{name}: {_sum(side)}")
        click.echo("  ".join(parts))
    count = len(report.differences)
    click.echo(
        f"{report.payments} payments, {report.charges} charges at {gateway}, from {rfc3339(since)} until {rfc3339(until)}:"
        f" {f'{count} differences' if count != 1 else '1 difference'}"
    )


def _sum(side: Any) -> str:
    if side is None:
        return "none"
    status = f"{side['status']} " if "status" in side else ""
    return f"{status}{side['amount']} {side['currency']}, {side['refunded']} back"
