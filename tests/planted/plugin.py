"""
A plugin of pytest for the runs with a planted bug: it notes which test is running, which has failed first, and what was imported.

It writes to files, as a test that hangs ends pytest at once. Hypothesis does not reduce what fails: one example is enough here.
"""

from __future__ import annotations

__all__ = ["FAILED", "IMPORTED", "RUNNING", "TARGET", "pytest_configure", "pytest_sessionfinish"]

import os
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, settings

TARGET = "PLANTED_TARGET"
"""The environment variable with the path of the folder for the files."""

RUNNING = "running"
"""The test that runs; empty when pytest has come to its end."""

FAILED = "failed"
"""The first test that has failed, or the file that could not be imported; it is missing if all have passed."""

IMPORTED = "imported"
"""The files of the project that were imported, relative to the root of the tests, one a line."""


def _write(name: str, text: str) -> None:
    (Path(os.environ[TARGET]) / name).write_text(text, encoding="utf-8")


def _note_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.failed and not (Path(os.environ[TARGET]) / FAILED).exists():
        _write(FAILED, report.nodeid)


def pytest_configure() -> None:
    """Let hypothesis try the same examples in each run, and not reduce those that fail."""
    phases = (Phase.explicit, Phase.generate, Phase.target)
    settings.register_profile("planted", settings.get_profile("ci"), phases=phases)
    settings.load_profile("planted")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the tests in the order of the command line, as the first failure ends the run."""
    items.sort(key=lambda item: min((rank for rank, path in enumerate(config.args) if item.nodeid.startswith(path)), default=0))


def pytest_runtest_logstart(nodeid: str) -> None:
    """Note the test that runs."""
    _write(RUNNING, nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the first test that fails."""
    _note_failure(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note the first file that cannot be imported."""
    _note_failure(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Note that no test runs any more, and the files of the project that were imported."""
    root = session.config.rootpath
    found = (Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None)))
    _write(IMPORTED, "\n".join(sorted(str(path.relative_to(root)) for path in found if path.is_relative_to(root))))
    _write(RUNNING, "")
