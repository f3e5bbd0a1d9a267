"""Every file below deploy/ that lists modules lists the same ones, and the guide for a new module names that file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modules import registry
from tests.architecture.tree import ROOT, is_source, name_of
from tests.deploy.deployed import MODULES

GUIDE = ROOT / "docs/howto/write-a-module.rst"
GENERATED = {"deploy/nats/accounts.conf", *(f"deploy/analytics/sql/{part}.sql" for part in ("sources", "events", "projections"))}
CONDITIONS = {"deploy/prometheus/alerts.yaml", "deploy/grafana/dashboards/fulfilment.json"}
"""Written from `app.telemetry.attention`; a sentence about orders or payments is no list of modules."""


def named(module: str, text: str) -> bool:
    """
    Return True if *text* has the name of *module*, perhaps as a part of another name: ``database_url_orders``.

    ``cli.orders`` is a command, not the module.
    """
    return re.search(rf"(?<![a-z])(?<!cli\.){module}(?![a-z])", text, re.IGNORECASE) is not None


def lists_modules(path: Path) -> bool:
    """Return True for a file that names two modules or more outside its comments, one for each module excepted."""
    if path.suffix == ".rst":  # a text about them
        return False
    text = re.sub(r"(?m)^\s*#.*$", "", path.read_text(encoding="utf-8"))
    return path.stem not in MODULES and sum(named(module, text) for module in MODULES) > 1


LISTS = sorted(path for path in (ROOT / "deploy").rglob("*") if is_source(path) and name_of(path) not in CONDITIONS and lists_modules(path))


def test_the_guide_names_every_file_that_lists_modules() -> None:
    """A new module is added in these files and in no other."""
    section = GUIDE.read_text(encoding="utf-8").partition("\nDeploy it\n---")[2]
    documented = set(re.findall(r"``(deploy/[^<`]+)``", section))
    assert {name_of(path) for path in LISTS} - GENERATED == documented


@pytest.mark.parametrize("path", LISTS, ids=name_of)
def test_every_list_has_every_module(path: Path) -> None:
    """A module that is missing in one of them would not be started, reached or measured."""
    text = path.read_text(encoding="utf-8")
    assert [module for module in MODULES if not named(module, text)] == []


def test_only_registered_modules_are_deployed() -> None:
    """A new module is registered first, and deployed when it is ready."""
    assert set(MODULES) <= set(registry.MODULES)
