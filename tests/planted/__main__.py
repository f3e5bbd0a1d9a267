"""
Plant one bug after the other in a copy of the code, and print which tests find it.

``python -m tests.planted`` tries all bugs of `tests.planted.catalogue`, ``python -m tests.planted cache timer`` those whose
names contain one of the words. Each bug is tried by the simulation and by the tests that stand beside it in the catalogue. A
bug that nothing finds is a missing test: the exit code is 1.
"""

from __future__ import annotations

__all__ = ["main"]

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click
from attrs import frozen
from tqdm import tqdm

from tests.planted.catalogue import BUGS, Bug

ROOT = Path(__file__).parents[2]
SIMULATION = ("tests/simulation",)

TIMES_MAX = 3.0
"""A run hangs if it takes this many times as long as all tests without a bug: that is noticed, too."""

_FAILED = 1


@frozen
class Result:
    """What has found *bug*."""

    bug: Bug
    by_simulation: bool
    by_tests: bool


def copy_tree(target: Path) -> None:
    """Copy the files that belong to the project into the folder *target*."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def failure(folder: Path, tests: Sequence[str], seconds_max: float | None = None) -> str | None:
    """
    Return the end of what pytest prints if one of *tests* fails in the copy *folder* or has not ended in time; None if all pass.

    Raises:
        RuntimeError: The tests could not be run.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"}
    try:
        run = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds_max
        )
    except subprocess.TimeoutExpired:
        return f"no end after {seconds_max:.0f} s"
    # 2: a bug may break the import of a test; 3: pytest was ended by the fault handler, as a test hangs.
    if run.returncode not in (0, 1, 2, 3):
        raise RuntimeError(f"pytest ends with {run.returncode}: {run.stdout[-2000:]}{run.stderr[-2000:]}")
    return run.stdout[-2000:] if run.returncode else None


def plant(bug: Bug, folder: Path) -> None:
    """
    Change the copy *folder* as *bug* says.

    Raises:
        ValueError: The code that it changes is not there, or occurs more than once.
    """
    path = folder / bug.path
    text = path.read_text(encoding="utf-8")
    if text.count(bug.before) != 1:
        raise ValueError(f"{bug.name}: its code occurs {text.count(bug.before)} times in {bug.path}")
    path.write_text(text.replace(bug.before, bug.after), encoding="utf-8")


def try_bug(original: Path, seconds_max: float, bug: Bug) -> Result:
    """Return what finds *bug*, planted in a copy of the folder *original*; a run of tests takes *seconds_max*, or hangs."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        shutil.copytree(original, folder)
        plant(bug, folder)
        by_simulation, by_tests = (failure(folder, tests, seconds_max) is not None for tests in (SIMULATION, bug.tests))
        return Result(bug, by_simulation, by_tests)


@click.command(help=__doc__)
@click.argument("words", nargs=-1)
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Bugs that are tried at the same time.")
def main(words: Sequence[str], jobs: int) -> None:
    """Try the bugs, and print the table."""
    bugs = [bug for bug in BUGS if not words or any(word in bug.name for word in words)]
    if not bugs:
        raise click.UsageError("No bug has one of these words in its name.")
    with tempfile.TemporaryDirectory() as temporary:
        original = Path(temporary)
        copy_tree(original)
        tests = sorted({*SIMULATION, *(each for bug in bugs for each in bug.tests)})
        click.echo(f"{len(bugs)} bugs; first the tests without any: {' '.join(tests)}", err=True)
        began = time.monotonic()
        if (output := failure(original, tests)) is not None:
            raise click.ClickException(f"The tests fail without a planted bug; make them pass first.\n{output}")
        attempt = partial(try_bug, original, TIMES_MAX * (time.monotonic() - began))
        with ThreadPoolExecutor(jobs) as pool:
            results = list(tqdm(pool.map(attempt, bugs), total=len(bugs), unit="bug", disable=None))
    width = max(len(bug.name) for bug in bugs)
    click.echo(f"{'bug':{width}}  simulation  tests")
    for result in results:
        found = ["found" if each else "-" for each in (result.by_simulation, result.by_tests)]
        click.echo(f"{result.bug.name:{width}}  {found[0]:10}  {found[1]}")
    missed = [result for result in results if not (result.by_simulation or result.by_tests)]
    by_simulation = sum(result.by_simulation for result in results)
    click.echo(f"{len(results)} bugs: {by_simulation} found by the simulation, {len(results) - len(missed)} by something, {len(missed)} by nothing")
    raise SystemExit(_FAILED if missed else 0)


if __name__ == "__main__":
    main()
