"""A module is registered in one list, and an incomplete module is reported by its name."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from app.cli.main import main
from app.messaging import event_registry
from modules import inventory, payments
from modules.errors import ModuleError
from modules.module import Module
from modules.registry import MODULES, load_module


def registered(monkeypatch: pytest.MonkeyPatch, descriptor: Module | None, name: str = "trial") -> str:
    """Make *descriptor* what the package ``modules.trial`` describes; return the name."""
    package = ModuleType(f"modules.{name}")
    if descriptor is not None:
        package.module = lambda: descriptor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, f"modules.{name}", package)
    return name


def trial(**changes: Any) -> Module:
    """Return a descriptor that is complete but for *changes*."""
    return attrs.evolve(Module("trial", (), (), {}, lambda event: (), lambda *_: None, {}), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODULES)
def test_every_registered_module_has_a_complete_descriptor(name: str) -> None:
    """Its name is the package's, its tables are its own, and its routes show what it stores."""
    assert load_module(name).name == name


def test_options_reach_the_factory_of_the_module() -> None:
    """The settings pass a module its options by keyword; a name that it does not have is an error."""
    with pytest.raises(TypeError, match="timeout"):
        load_module("inventory", timeout=None)


@pytest.mark.parametrize(
    ("descriptor", "sentence"),
    [
        (None, r"trial: modules/trial/__init__\.py has no function module\(\)"),
        (trial(name="other"), "trial: its descriptor is named other"),
        (trial(tables=inventory.module().tables), "trial: the table inventory_reservation of Reservation must be named trial_"),
        (
            trial(routes=inventory.module().routes[6:7]),
            r"trial: the route GET /v1/inventory/\{product_id\} shows Product, which has no table in the descriptor",
        ),
        (
            trial(routes=inventory.module().routes[:1]),
            r"trial: the route PUT /v1/inventory/\{product_id\} names the schema ProductRequest; there is no schemas/http/",
        ),
        (trial(workers=payments.module().workers), "trial: the worker payments-gateway must be named trial-"),
    ],
)
def test_an_incomplete_descriptor_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, descriptor: Module | None, sentence: str
) -> None:
    """The sentence names the module, the part that is missing and where it belongs."""
    with pytest.raises(ModuleError, match=sentence) as caught:
        load_module(registered(monkeypatch, descriptor))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a", "Shipping", "ship-ping", "ship_ping", "x" * 25, "../etc", "shipping2"])
def test_a_name_that_no_subject_could_begin_with_is_refused(name: str) -> None:
    """A name is part of subjects, tables, consumers and variables."""
    with pytest.raises(ModuleError, match="2 to 24 of the letters a-z"):
        load_module(name)


def test_a_registered_name_without_a_package_is_reported() -> None:
    """The list names a package that does not exist."""
    with pytest.raises(ModuleError, match="poetry: there is no package modules/poetry"):
        load_module("poetry")


def test_every_command_ends_with_2_and_one_line_where_a_module_is_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever command finds it out; never a traceback."""
    monkeypatch.setattr(event_registry, "MODULES", (*MODULES, "poetry"))
    for command in (["topology"], ["asyncapi"], ["contracts", "catalogue"], ["migrate"]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2, result.output
        assert result.stderr == "fulfilment: module poetry: there is no package modules/poetry\n"


