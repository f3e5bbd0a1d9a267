"""A planted bug counts as found only if a test has failed because of it."""

from __future__ import annotations

import os
import select
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from attrs import define, field
from click.testing import CliRunner

from tests.planted import __main__ as command
from tests.planted import attempts
from tests.planted.attempts import ROOT, Attempts, Run, Selection, run
from tests.planted.bug import Bug
from tests.planted.results import EVERYDAY, NOTHING

PLUGIN = "tests/planted/plugin.py"

FOUND_BY = {
    1: "tests/simulation/test_simulated.py::test_it",
    2: "tests/named/test_named.py::test_it",
    3: "tests/named/test_named.py::test_slow",
    4: "tests/test_elsewhere.py::test_it",
}
"""The only test that fails, by the number in the changed code."""

BY_CHANCE = "tests/named/test_named.py::test_by_chance"
ALWAYS = "tests/named/test_named.py::test_that_fails_without_a_bug"


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project with two files of code and the plugin, whose tests need no other plugins."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    folder = tmp_path / "project"
    (folder / PLUGIN).parent.mkdir(parents=True)
    shutil.copy(ROOT / PLUGIN, folder / PLUGIN)
    for name in ("answers.py", "other.py"):
        (folder / name).write_text("0", encoding="utf-8")
    options = "addopts = --import-mode=importlib\npythonpath = .\nfaulthandler_exit_on_timeout = true\n"
    (folder / "pytest.ini").write_text(f"[pytest]\n{options}", encoding="utf-8")
    return folder


@define
class _Suite:
    """Tests that run no process; the one that fails by chance does so in the first run of each bug."""

    ran_first: list[str] = field(factory=list)

    def run(self, folder: Path, tests: Selection, deselected: Sequence[str] = ()) -> Run:
        number = int((folder / "answers.py").read_text(encoding="utf-8"))
        failing = {FOUND_BY.get(number), ALWAYS}
        if number and "tests/named" in tests.paths and not deselected:
            failing.add(BY_CHANCE)
        for name in (BY_CHANCE, ALWAYS, *FOUND_BY.values()):
            is_selected = name.startswith(tests.paths) and not name.startswith(tests.ignored) and name not in deselected
            if is_selected and ("slow" in name) == (tests.marks == "slow"):
                self.ran_first.append(name)
                if name in failing:
                    return Run(name, frozenset())
        return Run(None, frozenset({"answers.py"} if number < 5 else ()))


@pytest.mark.parametrize(
    ("number", "simulation", "test"),
    [(1, EVERYDAY, NOTHING), (2, NOTHING, FOUND_BY[2]), (3, NOTHING, FOUND_BY[3]), (4, NOTHING, FOUND_BY[4]), (5, NOTHING, NOTHING)],
)
def test_each_kind_of_result_is_distinguished(
    original: Path, monkeypatch: pytest.MonkeyPatch, number: int, simulation: str, test: str
) -> None:
    """The simulation, a named test, any other everyday test, or nothing; no test that fails by chance, or without the bug too."""
    monkeypatch.setattr(attempts, "run", _Suite().run)
    result = Attempts(original).try_bug(Bug("a bug", "answers.py", "0", str(number), ("tests/named",)))
    assert (result.simulation, result.test) == (simulation, test)


def test_the_test_that_found_a_bug_before_is_run_first(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a bug that was tried before is tried in seconds, and a file that the simulation does not import is not simulated."""
    suite = _Suite()
    monkeypatch.setattr(attempts, "run", suite.run)
    tried = Attempts(original, known={"a bug": FOUND_BY[4]})
    suite.ran_first.clear()
    assert tried.try_bug(Bug("a bug", "answers.py", "0", "4", ("tests/named",))).test == FOUND_BY[4]
    assert set(suite.ran_first) == {FOUND_BY[1], FOUND_BY[4]}
    suite.ran_first.clear()
    tried.try_bug(Bug("a bug", "other.py", "0", "1", ("tests/named",)))
    assert FOUND_BY[1] not in suite.ran_first


@pytest.mark.slow  # it runs pytest
def test_a_test_that_hangs_has_failed(original: Path) -> None:
    """Its run ends, and so does a process that it has started."""
    text = """
import subprocess, time
from pathlib import Path

def test_hang():
    child = subprocess.Popen(["sleep", "1000"])
    Path("child").write_text(str(child.pid))
    time.sleep(1000)
"""
    (original / "tests" / "test_hang.py").write_text(text, encoding="utf-8")
    found = run(original, Selection(("tests/test_hang.py",), seconds_max=3.0))
    assert found.failed == "tests/test_hang.py::test_hang"
    with suppress(ProcessLookupError):
        ended, _, _ = select.select([os.pidfd_open(int((original / "child").read_text(encoding="utf-8")))], [], [], 30.0)
        assert ended


@pytest.mark.slow  # it runs pytest
def test_the_tests_run_in_the_order_of_their_paths(original: Path) -> None:
    """The quickest are named first, also if the project has another order."""
    for name in ("test_a", "test_b"):
        (original / "tests" / f"{name}.py").write_text(f"def {name}():\n    assert False\n", encoding="utf-8")
    assert run(original, Selection(("tests/test_b.py", "tests"))).failed == "tests/test_b.py::test_b"
    assert run(original, Selection(("tests",))).failed == "tests/test_a.py::test_a"


@pytest.mark.slow  # it runs pytest
def test_a_file_that_cannot_be_imported_has_failed(original: Path) -> None:
    """A bug may break the import of a test."""
    (original / "tests" / "test_it.py").write_text("from answers import gone\n", encoding="utf-8")
    assert run(original, Selection(("tests",))).failed == "tests/test_it.py"


@pytest.mark.slow  # it runs pytest
def test_a_run_without_a_result_is_an_error(original: Path) -> None:
    """Otherwise a bug would seem to be found by tests that do not exist."""
    with pytest.raises(RuntimeError, match=r"not found: .*tests/missing"):
        run(original, Selection(("tests/missing",)))


def test_a_bug_whose_code_has_changed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is named before any is tried: otherwise it would seem to be found by nothing, or by chance."""
    gone = Bug("the first", "app/clock.py", "no such line\n", "", ())
    moved = Bug("the second", "app/no_such_file.py", "x\n", "", ())
    monkeypatch.setattr(command, "BUGS", (gone, moved))
    shown = CliRunner().invoke(command.main, [])
    assert shown.exit_code == 1
    assert "the first: its code occurs 0 times in app/clock.py\nthe second: its code occurs 0 times in app/no_such_file.py\n" in shown.output
