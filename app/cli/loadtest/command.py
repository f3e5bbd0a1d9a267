"""The `load` command: read the options, run the load test, print the result."""

from __future__ import annotations

__all__ = ["load"]

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import click
import orjson
from yarl import URL

from app.cli.console import FAILED, OUT_OF_REACH, with_key
from app.cli.loadtest.errors import Failed, Unreachable
from app.cli.loadtest.order_sender import Stop
from app.cli.loadtest.progress import display
from app.cli.loadtest.report import Progress, Result
from app.cli.loadtest.run import LoadOptions, run_load_test


def _checked_urls(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        _checked_url(context, parameter, value)
    return values


def _checked_url(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        url = URL(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise click.BadParameter(f"{value!r} is not an address such as http://127.0.0.1:8080")
    return value


@click.command(short_help="Measure a running server with test orders.")
@click.option(
    "--orders",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Number of orders to place.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1, max=10_000),
    default=64,
    show_default=True,
    metavar="C",
    help="Number of connections; each has at most one POST in flight.",
)
@click.option(
    "--url",
    default="http://127.0.0.1:8080",
    show_default=True,
    callback=_checked_url,
    help="Address of the server that takes the orders.",
)
@click.option(
    "--replica-url",
    "replica_urls",
    multiple=True,
    callback=_checked_urls,
    metavar="TEXT",
    help="Address of one more server that takes the orders; the connections are spread over all of them.",
)
@click.option(
    "--inventory-url",
    callback=_checked_url,
    metavar="TEXT",
    help="Address of the server that runs the inventory module; by default the same as --url.",
)
@with_key
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="R",
    help="Send R orders per second, evenly spaced. Without it each connection sends as soon as it has its response.",
)
@click.option(
    "--patience",
    "patience_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Seconds without progress after which an order counts as lost, and of rejections after which the run ends.",
)
def load(**values: Any) -> None:
    """
    Measure a running server: place orders, follow each to its end, check the stock.

    The run creates its own products and customers (load-<run id>-...), so it can share a server with other traffic; they
    are not deleted afterwards. It ends when every accepted order is confirmed or cancelled and the stock has dropped by
    exactly the confirmed quantity.

    \b
      python -m app serve                                 in one terminal
      python -m app load --orders 50000 --concurrency 64  as fast as possible
      python -m app load --orders 15000 --rate 500        500 orders a second

    Progress goes to stderr. The last line on stdout is one JSON object:

    \b
      orders           as given with --orders
      accepted         orders that were answered with 202
      confirmed, cancelled
                       accepted orders by their final state
      lost             accepted orders that were not found or did not end
      seconds          from the first POST until the last order has ended
                       and the stock matches
      accepted_per_s   accepted orders per second, up to the last 202
      completed_per_s  confirmed orders per second, over all of the seconds
      accept_ms        time from POST to 202: exact p50, p95, p99
      complete_ms      time from POST to confirmed or cancelled: the same

    How the times are measured: the end of an order is the arrival of its 202, plus the time between created_at and the
    final entry of the timeline, by the server's own timestamps. The result is never early, and late by at most the
    duration of the POST. It does not depend on when this command polls: it polls rarely while it sends, in order not to
    disturb what it measures, and catches up afterwards. With --rate the time of an order starts when the order was due,
    so the delay that a slow server causes is part of the measured time. A 429 or 503 is repeated after its Retry-After;
    the time of the order runs on.

    Ctrl-C stops the sending; the accepted orders are followed and reported. A second Ctrl-C ends the command at once.

    Exit codes: 0 every accepted order has ended and the stock matches; 1 an order is lost, the stock does not match, or
    the server ended the run with an error; 2 wrong usage; 3 the server is out of reach.
    """
    options = LoadOptions(**values)
    result: Mapping[str, Any] | None = None
    failure, code = None, 0
    with display(options.orders) as progress:
        try:
            result = _run_in_event_loop(_measure(options, progress))
        except Unreachable as error:
            failure, code = str(error), OUT_OF_REACH
        except Failed as error:
            result, failure, code = error.result, str(error), FAILED

    if result is not None and result["lost"]:
        failure, code = failure or f"{result['lost']} accepted orders are lost", FAILED
    if failure is not None:
        click.echo(f"load: {failure}", err=True)
    if result is not None:
        click.echo(orjson.dumps(result))
    click.get_current_context().exit(code)


async def _measure(options: LoadOptions, progress: Callable[[Progress], None]) -> Result:
    """Run the load test; the first SIGINT stops the sending, the second ends the process."""
    stop = Stop()
    loop = asyncio.get_running_loop()

    def on_interrupt() -> None:
        # Not a KeyboardInterrupt: one that is raised in a callback of the event loop may get lost.
        loop.add_signal_handler(signal.SIGINT, os._exit, FAILED)
        click.echo("Stopping: no more orders are sent, the accepted ones are followed to their end.", err=True)
        stop.set()

    # Windows has no signal handlers in the event loop; there Ctrl-C ends the command at once.
    with contextlib.suppress(NotImplementedError):
        loop.add_signal_handler(signal.SIGINT, on_interrupt)
    return await run_load_test(options, progress=progress, stop=stop)


def _run_in_event_loop(main: Coroutine[Any, Any, Result]) -> Result:
    """Run *main* with uvloop where it is installed, else with asyncio."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)
