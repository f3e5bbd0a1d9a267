"""What the house imports is what it asks to have installed."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions

from tests.architecture.tree import PACKAGES, ROOT, parsed, python_files


def imported(trees: Iterable[ast.Module]) -> set[str]:
    """Return the top-level names of all that *trees* import from elsewhere."""
    found: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            match node:
                case ast.Import(names=names):
                    found |= {alias.name.split(".")[0] for alias in names}
                case ast.ImportFrom(module=str(module), level=0):
                    found.add(module.split(".")[0])
    return found - sys.stdlib_module_names - set(PACKAGES)


def declared() -> set[str]:
    """Return the distributions that setup.cfg asks for, always or under the extra "postgres"; normalised."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = (setup["options"]["install_requires"] + setup["options.extras_require"]["postgres"]).splitlines()
    return {normal(found[0]) for line in lines if (found := re.match(r"[\w.-]+", line))}


def normal(name: str) -> str:
    """Return a distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_whatever_is_imported_is_declared() -> None:
    """Nothing is leant on that came along with something else, and may leave with it."""
    distributions = packages_distributions()
    names = imported(parsed(path) for path in python_files(*PACKAGES))
    undeclared = {name for name in names if not {normal(found) for found in distributions.get(name, ())} & declared()}
    assert names
    assert undeclared == set()


def test_an_import_is_seen_wherever_it_stands() -> None:
    """The check above can fail."""
    code = "import os, six.moves\nfrom app import door\nfrom . import x\ndef f():\n    from toml.decoder import y"
    assert imported([ast.parse(code)]) == {"six", "toml"}
