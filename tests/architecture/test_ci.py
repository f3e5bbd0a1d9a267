"""The summary that continuous integration prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.architecture.tree import ROOT


def summed_up(folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/sum_up.py", folder], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.splitlines()


def test_each_failed_test_is_named_with_the_end_of_its_message(tmp_path: Path) -> None:
    """A log that is cut off at its beginning still names the failed tests; a test whose teardown fails is named twice."""
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.fixture\n"
        "def broken():\n"
        "    yield\n"
        "    raise OSError('in the teardown')\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'first' + '.' * 9000 + 'last'\n"
        "def test_left_out(): pytest.skip()\n"
        "def test_twice(broken): raise KeyError\n"
    )
    reports = tmp_path / "reports"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "/dev/null", "-p", "no:cacheprovider", suite, f"--junitxml={reports}/py.xml"],
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    lines = summed_up(reports)
    assert lines[-2:] == ["py: 1 passed, 3 failed, 1 skipped", "1 passed, 3 failed"]
    named = [line.rpartition("::")[2] for line in lines if line.startswith("--- py: ")]
    assert named == ["test_bad", "test_twice", "test_twice"]
    output = "\n".join(lines)
    assert "last" in output
    assert "in the teardown" in output
    assert len(output) < 12_000


def test_the_results_of_all_environments_are_summed(tmp_path: Path) -> None:
    """One line for each environment, then the sum; without any environment the sum is zero."""
    assert summed_up(tmp_path) == ["0 passed, 0 failed"]
    for name, cases in ("a", 2), ("b", 1):
        (tmp_path / f"{name}.xml").write_text(f"<testsuites><testsuite>{'<testcase/>' * cases}</testsuite></testsuites>")
    assert summed_up(tmp_path) == ["a: 2 passed, 0 failed, 0 skipped", "b: 1 passed, 0 failed, 0 skipped", "3 passed, 0 failed"]
