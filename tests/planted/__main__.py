"""
Plant one bug after the other in a copy of the code, and print which tests find it.

``python -m tests.planted`` tries all bugs of `tests.planted.catalogue`, ``python -m tests.planted cache timer`` those whose
names contain one of the words, ``--missing`` those that the table of docs/explanation/planted-bugs.rst does not have. Each bug
is tried by the everyday simulation, by the slow part of it if that finds nothing, and by the tests that stand beside it in the
catalogue; by all everyday tests if these miss it. ``--store`` writes each result into the table. A bug that nothing finds is a
missing test: the exit code is 1. A bug whose code has changed cannot be planted: that is an error, and nothing is tried.
"""

from __future__ import annotations

__all__ = ["main"]

import math
import os
import tempfile
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import click
from tqdm import tqdm

from tests.planted.attempts import Attempts, changed, copy_tree
from tests.planted.bug import Bug
from tests.planted.catalogue import BUGS
from tests.planted.results import NOT_RUN, PAGE, UNTRIED, Result, page_with, read, summary

_FAILED = 1


def store(result: Result) -> None:
    """Write *result* into the table of the page, in place of the earlier one of its bug."""
    page = PAGE.read_text(encoding="utf-8")
    results = read(page) | {result.bug: result}
    PAGE.write_text(page_with(page, results, [bug.name for bug in BUGS]), encoding="utf-8")


def selected(words: Sequence[str], untried: Container[str] | None) -> list[Bug]:
    """
    Return the bugs with one of *words* in their name, all if there is none.

    Of these those without a result, if *untried* is given, and those whose result of the simulation is one of *untried*.

    Raises:
        click.UsageError: There are none.
    """
    results = read(PAGE.read_text(encoding="utf-8"))
    done = {name for name, result in results.items() if untried is not None and result.simulation not in untried}
    bugs = [bug for bug in BUGS if bug.name not in done and (not words or any(word in bug.name for word in words))]
    if not bugs:
        raise click.UsageError("There is no such bug.")
    return bugs


def unfit(bugs: Iterable[Bug], folder: Path) -> list[str]:
    """Return a sentence about each of *bugs* that cannot be planted in the copy *folder*."""
    found = []
    for bug in bugs:
        try:
            changed(bug, folder)
        except ValueError as error:
            found.append(str(error))
    return found


def results_of(bugs: Sequence[Bug], attempts: Attempts, *, jobs: int, minutes: float) -> Iterator[Result]:
    """Try *bugs*, *jobs* at a time; begin with none after so many *minutes*."""
    deadline = time.monotonic() + minutes * 60

    def tried(bug: Bug) -> Result | None:
        return attempts.try_bug(bug) if time.monotonic() < deadline else None

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(tried, bug) for bug in bugs]
        try:
            for future in tqdm(as_completed(futures), total=len(bugs), unit="bug", disable=None):
                if (result := future.result()) is not None:
                    yield result
        finally:
            pool.shutdown(cancel_futures=True)


@click.command(help=__doc__)
@click.argument("words", nargs=-1)
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Bugs that are tried at the same time.")
@click.option("--minutes", default=math.inf, help="Begin with no further bug after this time.")
@click.option("--missing", "is_missing_only", is_flag=True, help="Only bugs that have no stored result.")
@click.option("--night/--no-night", "with_night", default=True, help="Whether to run the slow part of the simulation.")
@click.option("--simulation/--no-simulation", "with_simulation", default=True, help="Whether to run the simulation.")
@click.option("--suite/--no-suite", "with_suite", default=True, help="Whether to run all everyday tests if nothing else finds a bug.")
@click.option("--store", "is_stored", is_flag=True, help="Write each result into the table of the documentation.")
def main(
    words: Sequence[str],
    jobs: int,
    minutes: float,
    is_missing_only: bool,
    with_night: bool,
    with_simulation: bool,
    with_suite: bool,
    is_stored: bool,
) -> None:
    """Try the bugs, and print the table."""
    untried = {NOT_RUN} if with_simulation else set()
    if with_simulation and with_night:
        untried.add(UNTRIED)
    bugs = selected(words, untried if is_missing_only else None)
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_tree(folder)
        if sentences := unfit(BUGS, folder):
            raise click.ClickException("\n".join(["Correct the catalogue first:", *sentences]))
        known = {name: result.test for name, result in read(PAGE.read_text(encoding="utf-8")).items() if "::" in result.test}
        for result in results_of(bugs, Attempts(folder, with_night, with_simulation, with_suite, known), jobs=jobs, minutes=minutes):
            found[result.bug] = result
            # That nothing finds a bug is known only after all everyday tests.
            if is_stored and (result.is_found or with_suite):
                store(result)
    results = [found[bug.name] for bug in bugs if bug.name in found]
    width = max(len(bug.name) for bug in bugs)
    click.echo(f"{'bug':{width}}  simulation  other test")
    for result in results:
        click.echo(f"{result.bug:{width}}  {result.simulation:10}  {result.test}")
    click.echo(summary(results, untried=len(bugs) - len(results)))
    raise SystemExit(0 if all(result.is_found for result in results) else _FAILED)


if __name__ == "__main__":
    main()
