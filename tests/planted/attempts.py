"""Try planted bugs in copies of the code."""

from __future__ import annotations

__all__ = ["ROOT", "Attempts", "Run", "Selection", "changed", "copy_tree", "plant", "run"]

import datetime
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from compileall import compile_dir
from contextlib import suppress
from importlib.metadata import version
from importlib.util import cache_from_source
from pathlib import Path

from attrs import define, field, frozen

from tests.planted.bug import Bug
from tests.planted.plugin import FAILED, IMPORTED, RUNNING, TARGET
from tests.planted.results import EVERYDAY, NIGHT, NOT_RUN, NOTHING, UNTRIED, Result

ROOT = Path(__file__).parents[2]

RUN_SECONDS_MAX = 1800.0
"""After this time a run is ended in which no single test takes too long."""

_PASSED = 0
_NONE_SELECTED = 5


@frozen
class Selection:
    """Files, folders and names of tests, of which those are run that the expression *marks* selects."""

    paths: tuple[str, ...]
    marks: str = "not slow"
    seconds_max: float = 60.0
    """A test that takes longer hangs, and counts as failed. The longest everyday test takes four seconds."""
    ignored: tuple[str, ...] = ()


SIMULATION = Selection(("tests/simulation",))
NIGHTLY_SIMULATION = Selection(("tests/simulation",), "slow", 300.0)
EVERYDAY_SUITE = Selection(("tests",), ignored=("tests/architecture", "tests/planted", "tests/simulation"))
"""All everyday tests that run the code; those of the architecture read it, and are no evidence."""


@frozen
class Run:
    """What a run of tests has shown."""

    failed: str | None
    """The first test that has failed or that hangs, without its parameters; None if all have passed."""
    imported: frozenset[str]


def copy_tree(target: Path) -> None:
    """Copy the files that belong to the project into the folder *target*."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def changed(bug: Bug, folder: Path) -> str:
    """
    Return the text of the file with *bug* in the copy *folder*.

    Raises:
        ValueError: The code that it changes is not there, or occurs more than once.
    """
    path = folder / bug.path
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(bug.before) != 1:
        raise ValueError(f"{bug.name}: its code occurs {text.count(bug.before)} times in {bug.path}")
    return text.replace(bug.before, bug.after)


def plant(bug: Bug, folder: Path) -> None:
    """Plant *bug* in the copy *folder*; raise ValueError if the code that it replaces has changed."""
    path = folder / bug.path
    path.write_text(changed(bug, folder), encoding="utf-8")
    # The compiled code of the other files comes with the copy.
    Path(cache_from_source(str(path))).unlink(missing_ok=True)


def run(folder: Path, tests: Selection, deselected: Iterable[str] = ()) -> Run:
    """
    Run *tests* in the copy *folder*, without those that are *deselected*, until the first fails.

    Raises:
        RuntimeError: The tests could not be run.
    """
    # A test that hangs ends pytest, which then cannot stop the servers of the test: they end with its session.
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "tests.planted.plugin", "-m", tests.marks]
    options += [f"--ignore={path}" for path in tests.ignored] + [f"--deselect={name}" for name in deselected]
    command = [sys.executable, "-m", "pytest", *options, "-o", f"faulthandler_timeout={tests.seconds_max}", *tests.paths]
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary)
        environment = {**os.environ, TARGET: temporary, "PYTHONPATH": str(folder), "CI": "1"}
        with (target / "output").open("w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            try:
                code = process.wait(RUN_SECONDS_MAX)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            notes = {path.name: path.read_text(encoding="utf-8") for path in target.iterdir()}
        failed = notes.get(FAILED) or notes.get(RUNNING)
        if code not in (_PASSED, _NONE_SELECTED) and not failed:
            raise RuntimeError(f"pytest ends with {code}: {notes['output'][-4000:]}")
    return Run(failed.partition("[")[0] if failed else None, frozenset(notes.get(IMPORTED, "").splitlines()))


def _named_alike(bug: Bug, folder: Path) -> list[str]:
    """Return those files among the tests beside *bug* that are named after the file that it changes: they are likely to find it."""
    name = f"test_{Path(bug.path).name}"
    return [str(path.relative_to(folder)) for each in bug.tests for path in sorted((folder / each).rglob(name))]


@define
class Attempts:
    """Tries bugs in copies of the folder *original*, which has none."""

    original: Path
    with_night: bool = True
    """Whether the slow part of the simulation is run."""
    with_simulation: bool = True
    """Whether any of it is run: it changes more often than the tests beside a bug, and takes longer."""
    with_suite: bool = True
    """Whether all everyday tests are run if nothing else finds a bug."""
    known: Mapping[str, str] = field(factory=dict)
    """The test that has found a bug before, by the name of the bug: it is run first."""
    _passing: dict[Selection, bool] = field(factory=dict, init=False)
    """Whether tests have passed without a bug; one test often finds several bugs."""
    _simulated: frozenset[str] = field(init=False)
    """
    The files that the simulation imports.

    It starts no other process: what it does not import, it cannot find a bug in.
    """

    def __attrs_post_init__(self) -> None:
        compile_dir(self.original, quiet=2, workers=1)
        simulation = run(self.original, SIMULATION) if self.with_simulation else Run(None, frozenset())
        if simulation.failed is not None:
            raise RuntimeError(f"the simulation fails without a planted bug: {simulation.failed}")
        self._simulated = simulation.imported

    def try_bug(self, bug: Bug) -> Result:
        """Return what finds *bug*: the quickest tests are run first, and the complete everyday suite only if nothing else finds it."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "copy"
            shutil.copytree(self.original, folder)
            plant(bug, folder)
            simulation = self._simulation(bug, folder)
            stages = [Selection((self.known[bug.name],), "")] if bug.name in self.known else []
            stages.append(Selection((*_named_alike(bug, folder), *bug.tests)))
            if simulation not in (EVERYDAY, NIGHT):
                stages.append(Selection(bug.tests, "slow", 300.0))
                stages += [EVERYDAY_SUITE] if self.with_suite else []
            found_by = next(filter(None, (self._finds(folder, tests) for tests in stages)), NOTHING)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        return Result(bug.name, simulation, found_by, today, version("fulfilment"), platform.python_version())

    def _simulation(self, bug: Bug, folder: Path) -> str:
        if not self.with_simulation:
            return NOT_RUN
        if bug.path not in self._simulated:
            return NOTHING
        if self._finds(folder, SIMULATION):
            return EVERYDAY
        if not self.with_night:
            return UNTRIED
        return NIGHT if self._finds(folder, NIGHTLY_SIMULATION) else NOTHING

    def _finds(self, folder: Path, tests: Selection) -> str | None:
        """
        Return the first of *tests* that fails because of the bug; None if there is none.

        A test that fails must fail again alone, and pass without the bug: tests that fail by chance are no evidence.
        """
        doubtful: list[str] = []
        while (failed := run(folder, tests, doubtful).failed) is not None:
            alone = Selection((failed,), tests.marks, tests.seconds_max)
            if run(folder, alone).failed is not None and self._passes_without_bug(alone):
                return failed
            doubtful.append(failed)
        return None

    def _passes_without_bug(self, tests: Selection) -> bool:
        if tests not in self._passing:
            self._passing[tests] = run(self.original, tests).failed is None
        return self._passing[tests]
