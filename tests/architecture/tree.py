"""The project as files: its packages, its source files, and how to copy them."""

from __future__ import annotations

__all__ = ["MODULES", "PACKAGES", "ROOT", "SETUP", "TOOLS", "copy_to", "is_source", "name_of", "parsed", "python_files"]

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("app", "bus", "config", "modules")
TOOLS = ("bench",)
"""Packages beside the program: checked like it, and not part of the wheel."""

SETUP = ("LICENSE", "README.rst", "pyproject.toml", "setup.cfg")
MODULES = tuple(
    sorted(path.name for path in (ROOT / "modules").iterdir() if path.is_dir() and not path.name.startswith("_"))
)


def is_source(path: Path) -> bool:
    """Return True for a file that belongs to the sources; False for caches, hidden files and build results."""
    hidden = any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    return path.is_file() and path.suffix != ".pyc" and not hidden


def python_files(*folders: str) -> Iterator[Path]:
    """Yield every Python file below *folders* of the project, in a fixed order."""
    for folder in folders:
        yield from sorted(path for path in (ROOT / folder).rglob("*.py") if is_source(path))


def name_of(path: Path) -> str:
    """Return *path* relative to the project, with forward slashes."""
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def copy_to(folder: Path) -> Path:
    """Copy the packages and the files that build and check them to *folder*; return it."""
    for package in (*PACKAGES, *TOOLS):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for name in SETUP:
        shutil.copy2(ROOT / name, folder / name)
    return folder
