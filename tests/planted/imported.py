"""A plugin of pytest that writes which files of the project the tests have imported, one a line, to the file of `TARGET`."""

from __future__ import annotations

__all__ = ["TARGET", "pytest_sessionfinish"]

import os
import sys
from pathlib import Path

import pytest

TARGET = "PLANTED_IMPORTED"
"""The environment variable with the path of the file."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the files, relative to the root of the tests."""
    root = session.config.rootpath
    found = (Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None)))
    lines = sorted(str(path.relative_to(root)) for path in found if path.is_relative_to(root))
    Path(os.environ[TARGET]).write_text("\n".join(lines), encoding="utf-8")
