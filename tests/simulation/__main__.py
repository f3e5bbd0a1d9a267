"""
Run seeds of the simulation: ``python -m tests.simulation --seed 7 --trace``.

Without ``--seed`` it runs ``--seeds 0-999``, or until ``--minutes`` have passed. The seed decides all of a run, so a failure is
repeated with the seed alone; it is shown with as few clients and faults as it needs. Ends with 1 if a run has failed.
"""

from __future__ import annotations

__all__ = ["main"]

import itertools
import time
from collections import Counter

import click

from tests.simulation.checks.situations import SITUATIONS, never_reached, table
from tests.simulation.seeds import outcomes, silence_logs
from tests.simulation.shrink import shrunk
from tests.simulation.world.plan import draw_plan
from tests.simulation.world.run import Outcome, run_plan

_FAILED = 1
SHOWN_MAX = 8
"""Failures of one run that are printed."""

LINES_MAX = 60
"""Lines of its reduced trace that are printed."""


def show(outcome: Outcome, *, with_trace: bool) -> None:
    """Print a run, and what is left of one that has failed after its reduction."""
    if with_trace:
        click.echo("\n".join(outcome.trace))
    for failure in outcome.failures[:SHOWN_MAX]:
        click.echo(f"seed {outcome.plan.seed}: {failure}")
    if outcome.failures:
        smallest = shrunk(outcome)
        click.echo(f"reduced to {len(smallest.plan.customers)} customers and {len(smallest.plan.faults)} faults: {smallest.failures[0]}")
        if not with_trace:
            click.echo("\n".join(f"    {line}" for line in smallest.trace[-LINES_MAX:]))
        click.echo(f"seed {outcome.plan.seed} has failed; see it with: python -m tests.simulation --seed {outcome.plan.seed} --trace")


def parse_range(text: str) -> range:
    """
    Return the seeds of *text*, such as ``0-99``.

    Raises:
        click.BadParameter: It is no range.
    """
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (not dash or last.isdecimal())):
        raise click.BadParameter("must be two numbers with a dash between them, such as 0-99")
    return range(int(first), int(last or first) + 1)


@click.command(help=__doc__)
@click.option("--seed", type=int, help="Run this seed only.")
@click.option("--trace", "with_trace", is_flag=True, help="Print what happens in the run of --seed.")
@click.option("--seeds", default=None, help="The first and the last seed, such as 0-99.")
@click.option("--minutes", type=float, default=None, help="Begin no further run after this time.")
@click.option("--situations", "with_situations", is_flag=True, help="Print which situations were reached; end with 1 if one was not.")
@click.option("--jobs", default=1, show_default=True, help="How many processes run seeds.")
def main(seed: int | None, with_trace: bool, seeds: str | None, minutes: float | None, with_situations: bool, jobs: int) -> None:
    """Run the seeds, and print those that have failed."""
    if seed is not None:
        silence_logs()
        outcome = run_plan(draw_plan(seed))
        show(outcome, with_trace=with_trace)
        raise SystemExit(_FAILED if outcome.failures else 0)
    chosen = iter(parse_range(seeds)) if seeds else itertools.count() if minutes else iter(range(1_000))
    began = time.monotonic()
    until = began + 60 * minutes if minutes else float("inf")
    count, orders, failed, reached = 0, 0, [], Counter[str]()
    for outcome in outcomes(chosen, jobs, until):
        count += 1
        orders += outcome.orders
        reached.update(outcome.situations.keys())
        if outcome.failures:
            failed.append(outcome.plan.seed)
            show(outcome, with_trace=False)
    rate = 60 * count / (time.monotonic() - began)
    click.echo(f"{count} seeds, {rate:.0f} a minute, {orders} orders; failed: {sorted(failed) or 'none'}")
    missing = never_reached(reached) if with_situations else []
    if with_situations:
        click.echo(table(reached))
        click.echo(f"{len(SITUATIONS) - len(missing)} of {len(SITUATIONS)} situations were reached; never: {', '.join(missing) or 'none'}")
    raise SystemExit(_FAILED if failed or missing else 0)


if __name__ == "__main__":
    main()
