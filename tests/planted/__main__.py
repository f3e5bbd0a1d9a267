"""
Plant one bug after the other in a copy of the code, and print which tests find it.

``python -m tests.planted`` tries all bugs of `tests.planted.catalogue`, ``python -m tests.planted cache timer`` those whose
names contain one of the words, ``--missing`` those that the table of docs/explanation/planted-bugs.rst does not have. Each bug
is tried by the everyday simulation, by the slow part of it if that finds nothing, and by the tests that stand beside it in the
catalogue. ``--store`` writes each result into the table. A bug that nothing finds is a missing test: the exit code is 1.
"""

from __future__ import annotations

__all__ = ["main"]

import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from threading import Lock

import click
from attrs import define, field, frozen
from tqdm import tqdm

from tests.planted.bug import Bug
from tests.planted.catalogue import BUGS
from tests.planted.imported import TARGET
from tests.planted.results import EVERYDAY, NIGHT, NOTHING, PAGE, UNTRIED, Result, page_with, read, summary

ROOT = Path(__file__).parents[2]

TIMES_MAX = 3.0
SPARE_SECONDS = 45.0
"""A run hangs if it takes this many times as long as without a bug, and this time more: that is noticed, too."""

_HANGS = "no end in time"
_FAILED = 1
_FAILED_TEST = re.compile(r"^(?:FAILED|ERROR) (tests/\S+?\.py(?:::\w+)*)", re.MULTILINE)


@frozen
class Tests:
    """Files and folders of tests, of which those are run that the expression *marks* selects."""

    paths: tuple[str, ...]
    marks: str = "not slow"


SIMULATION = Tests(("tests/simulation",))
NIGHTLY_SIMULATION = Tests(("tests/simulation",), "slow")


def copy_tree(target: Path) -> None:
    """Copy the files that belong to the project into the folder *target*."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def failure(folder: Path, tests: Tests, seconds_max: float | None = None, imported: str = "") -> str | None:
    """
    Return the first of *tests* that fails in the copy *folder*, or that they have no end in time; None if all pass.

    The files that they import are listed in the file *imported*, if that is given.

    Raises:
        RuntimeError: The tests could not be run.
    """
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", tests.marks]
    command = [sys.executable, "-m", "pytest", *options, *tests.paths]
    if imported:
        command += ["-p", "tests.planted.imported"]
    environment = {**os.environ, TARGET: imported, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"}
    try:
        run = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds_max
        )
    except subprocess.TimeoutExpired:
        return _HANGS
    # 2: a bug may break the import of a test; 3: pytest was ended by the fault handler, as a test hangs.
    if run.returncode not in (0, 1, 2, 3):
        raise RuntimeError(f"pytest ends with {run.returncode}: {run.stdout[-2000:]}{run.stderr[-2000:]}")
    return first_failed(run.stdout) if run.returncode else None


def first_failed(output: str) -> str:
    """Return the first failed test of pytest's *output*, without its parameters; the end of the output if it names none."""
    failed = _FAILED_TEST.search(output)
    return failed[1] if failed else " ".join(output[-80:].split())


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


@frozen
class Passed:
    """How long tests without a bug take, and which files they import."""

    seconds: float
    imported: frozenset[str]


@define
class Attempts:
    """Tries bugs in copies of the folder *original*, which has none."""

    original: Path
    with_night: bool = True
    """Whether the slow part of the simulation is run."""
    _passed: dict[Tests, Passed] = field(factory=dict, init=False)
    _lock: Lock = field(factory=Lock, init=False)

    def try_bug(self, bug: Bug) -> Result:
        """
        Return what finds *bug*.

        Raises:
            click.ClickException: The tests fail without a bug.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "copy"
            shutil.copytree(self.original, folder)
            plant(bug, folder)
            simulation = NOTHING
            # The simulation starts no other process: what it does not import, it cannot find a bug in.
            if bug.path in self._without_bug(SIMULATION).imported:
                if self._failure(folder, SIMULATION):
                    simulation = EVERYDAY
                elif not self.with_night:
                    simulation = UNTRIED
                elif self._failure(folder, NIGHTLY_SIMULATION):
                    simulation = NIGHT
            found_by = self._failure(folder, Tests(bug.tests)) or NOTHING
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        return Result(bug.name, simulation, found_by, today, version("fulfilment"), platform.python_version())

    def _failure(self, folder: Path, tests: Tests) -> str | None:
        return failure(folder, tests, TIMES_MAX * self._without_bug(tests).seconds + SPARE_SECONDS)

    def _without_bug(self, tests: Tests) -> Passed:
        with self._lock:
            if tests not in self._passed:
                self._passed[tests] = self._run(tests)
            return self._passed[tests]

    def _run(self, tests: Tests) -> Passed:
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as listed:
            began = time.monotonic()
            if (failed := failure(self.original, tests, imported=listed.name)) is not None:
                raise click.ClickException(f"A test fails without a planted bug; make it pass first: {failed}")
            return Passed(time.monotonic() - began, frozenset(listed.read().splitlines()))


def store(result: Result) -> None:
    """Write *result* into the table of the page, in place of the earlier one of its bug."""
    page = PAGE.read_text(encoding="utf-8")
    results = read(page) | {result.bug: result}
    PAGE.write_text(page_with(page, results, [bug.name for bug in BUGS]), encoding="utf-8")


def selected(words: Sequence[str], *, is_missing_only: bool, with_night: bool) -> list[Bug]:
    """
    Return the bugs with one of *words* in their name, all if there is none; of these those without a result, if asked for.

    A result without the slow part of the simulation counts as none if that is to run.

    Raises:
        click.UsageError: There are none.
    """
    results = read(PAGE.read_text(encoding="utf-8")) if is_missing_only else {}
    done = {name for name, result in results.items() if not (with_night and result.simulation == UNTRIED)}
    bugs = [bug for bug in BUGS if bug.name not in done and (not words or any(word in bug.name for word in words))]
    if not bugs:
        raise click.UsageError("There is no such bug.")
    return bugs


@click.command(help=__doc__)
@click.argument("words", nargs=-1)
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Bugs that are tried at the same time.")
@click.option("--missing", "is_missing_only", is_flag=True, help="Only bugs that have no stored result.")
@click.option("--night/--no-night", "with_night", default=True, help="Whether to run the slow part of the simulation.")
@click.option("--store", "is_stored", is_flag=True, help="Write each result into the table of the documentation.")
def main(words: Sequence[str], jobs: int, is_missing_only: bool, with_night: bool, is_stored: bool) -> None:
    """Try the bugs, and print the table."""
    bugs = selected(words, is_missing_only=is_missing_only, with_night=with_night)
    results = []
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(jobs) as pool:
        original = Path(temporary)
        copy_tree(original)
        for result in tqdm(pool.map(Attempts(original, with_night).try_bug, bugs), total=len(bugs), unit="bug", disable=None):
            results.append(result)
            if is_stored:
                store(result)
    width = max(len(bug.name) for bug in bugs)
    click.echo(f"{'bug':{width}}  simulation  other test")
    for result in results:
        click.echo(f"{result.bug:{width}}  {result.simulation:10}  {result.test}")
    click.echo(summary(results))
    raise SystemExit(0 if all(result.is_found for result in results) else _FAILED)


if __name__ == "__main__":
    main()
