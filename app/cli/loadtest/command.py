"""The command line of `run_load_test`."""

from __future__ import annotations

__all__ = ["load"]

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine, Mapping
from typing import Any

import click
import orjson
from yarl import URL

from app.cli.console import FAILED, OUT_OF_REACH, with_key
from app.cli.loadtest.errors import Failed, Unreachable
from app.cli.loadtest.order_sender import Stop
from app.cli.loadtest.progress import display
from app.cli.loadtest.report import Result
from app.cli.loadtest.run import run_load_test


def _checked_url(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        url = URL(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise click.BadParameter(f"{value!r} is not a URL such as http://127.0.0.1:8080")
    return value


@click.command()
@click.option(
    "--orders",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    metavar="N",
    help="How many orders to place.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1, max=10_000),
    default=64,
    show_default=True,
    metavar="C",
    help="How many connections; each has one POST in flight at most.",
)
@click.option(
    "--url", default="http://127.0.0.1:8080", show_default=True, callback=_checked_url, help="Where the server is."
)
@click.option(
    "--inventory-url",
    callback=_checked_url,
    metavar="TEXT",
    help="Where the stock is kept, if another server does that; the same by default.",
)
@with_key
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="R",
    help="Orders per second, evenly spaced. Without it each connection sends its next order when it has its answer.",
)
@click.option(
    "--patience",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Seconds without news before an order is given up as lost, and of refusals before the run is.",
)
def load(
    orders: int,
    concurrency: int,
    url: str,
    inventory_url: str | None,
    key: str | None,
    rate: float | None,
    patience: float,
) -> None:
    """
    Place orders against a running server, follow each to its end, and measure.

    The run makes its own products and customers (load-<run id>-...), so it may share a server with other traffic; they
    stay there afterwards. It ends when every accepted order is confirmed or cancelled and the stock has given up
    exactly what was confirmed.

    \b
      python -m app serve                                 in one terminal
      python -m app load --orders 50000 --concurrency 64  as fast as it goes
      python -m app load --orders 15000 --rate 500        at a steady 500 a second

    Progress goes to stderr. The last line on stdout is one JSON object:

    \b
      orders           asked for
      accepted         answered with 202
      confirmed, cancelled
                       how they ended
      lost             accepted, but not found or not ended
      seconds          from the first POST to the last end and the stock taken
      accepted_per_s   202s by the second, up to the last of them
      completed_per_s  confirmed orders by the second, over all of the seconds
      accept_ms        POST to 202: p50, p95, p99, exact
      complete_ms      POST to confirmed or cancelled: the same

    How the times come about. The end of an order is its 202 plus what the server's own stamps put between created_at
    and the terminal entry of the timeline: never early, late by at most the time of that POST, and independent of when
    this command looked: it looks seldom while it places, so as not to disturb what it measures, and catches up
    afterwards. With --rate an order's time runs from when it was due, so a stalling server is charged for the
    orders it held up. A 429 or 503 is repeated after its Retry-After, and the order's time runs on.

    Ctrl-C ends the placing; what was accepted is followed and reported. A second Ctrl-C leaves at once.

    Exit codes: 0 all is well; 1 something is lost, the stock does not match, or the server broke the run off; 2 usage;
    3 the server is out of reach.
    """
    with display(orders) as progress:

        async def measure() -> Result:
            stop = Stop()
            loop = asyncio.get_running_loop()

            def interrupted() -> None:
                # Not a KeyboardInterrupt: raised in a callback of the loop it may get lost.
                loop.add_signal_handler(signal.SIGINT, os._exit, FAILED)
                click.echo("Stopping: no more orders are placed, the accepted ones are followed.", err=True)
                stop.set()

            # There are no loop signal handlers on Windows; there Ctrl-C leaves at once.
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(signal.SIGINT, interrupted)
            return await run_load_test(
                url,
                orders,
                concurrency,
                rate,
                inventory_url=inventory_url,
                key=key,
                patience_seconds=patience,
                progress=progress,
                stop=stop,
            )

        try:
            result: Mapping[str, Any] | None = _on_a_loop(measure())
            trouble, code = None, 0
        except Unreachable as error:
            result, trouble, code = None, str(error), OUT_OF_REACH
        except Failed as error:
            result, trouble, code = error.result, str(error), FAILED

    if result is not None and result["lost"]:
        trouble, code = trouble or f"{result['lost']} accepted orders are lost", FAILED
    if trouble is not None:
        click.echo(f"load: {trouble}", err=True)
    if result is not None:
        click.echo(orjson.dumps(result))
    click.get_current_context().exit(code)


def _on_a_loop(main: Coroutine[Any, Any, Result]) -> Result:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)
