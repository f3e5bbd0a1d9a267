"""Every package that the project imports is declared as a dependency."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions

import pytest

from tests.architecture.tree import PACKAGES, ROOT, parsed, python_files


def imported(trees: Iterable[ast.Module]) -> set[str]:
    """Return the top-level names that *trees* import from other distributions."""
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
    """Return the normalised names of the distributions that setup.cfg requires, the extras of the program included."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = setup["options.extras_require"]
    lines = (setup["options"]["install_requires"] + "".join(extras[name] for name in ("analytics", "otel", "postgres", "risingwave"))).splitlines()
    return {normal(found[0]) for line in lines if (found := re.match(r"[\w.-]+", line))}


def normal(name: str) -> str:
    """Return a distribution's name, normalised as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.slow
def test_every_imported_distribution_is_declared() -> None:
    """No import depends on a package that only another dependency installs."""
    distributions = packages_distributions()
    names = imported(parsed(path) for path in python_files(*PACKAGES))
    undeclared = {name for name in names if not {normal(found) for found in distributions.get(name, ())} & declared()}
    assert names
    assert undeclared == set()


def test_an_import_inside_a_function_is_found() -> None:
    """The check above can fail."""
    code = "import os, six.moves\nfrom app import clock\nfrom . import x\ndef f():\n    from toml.decoder import y"
    assert imported([ast.parse(code)]) == {"six", "toml"}
