"""The diagrams of the architecture page show the packages, the import layers and the events that exist."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from tests.architecture.tree import MODULES, ROOT

PAGE = (ROOT / "docs" / "explanation" / "architecture.rst").read_text(encoding="utf-8")
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "importlinter"
]["contracts"]
TOPS = ("app", "modules", "bus")

_BOX = re.compile(r"^(    \+- (\w+)/ -+\+).*\n((?:    \|.*\n)+)    \+-", re.MULTILINE)
_LAYER = re.compile(r"^    \| (\w+)(?:/|\b)", re.MULTILINE)
_PACKAGE = re.compile(r"\b(\w+(?:/\w+)*)/(?=[\s;|])")
_ARROW = re.compile(r"^    \|   v ", re.MULTILINE)


def boxes(page: str) -> dict[str, str]:
    """Return the rows of each box of the diagram of packages, by the folder that the box stands for."""
    return {
        folder: "".join(f"{row[: len(top)]}\n" for row in rows.splitlines()) for top, folder, rows in _BOX.findall(page)
    }


def layers(box: str) -> list[str]:
    """Return the names at the left edge of *box*, from top to bottom."""
    return _LAYER.findall(box)


def drawn_packages(box: str) -> set[str]:
    """Return every package that *box* names, with slashes: ``web/endpoints``."""
    return set(_PACKAGE.findall(box))


def packages(top: str) -> set[str]:
    """Return every package below the folder *top* with slashes; migrations are not distinguished by module."""
    found = (path.parent.relative_to(ROOT / top) for path in (ROOT / top).rglob("__init__.py"))
    return {path.as_posix() for path in found if path.parts and not {"migrations", "versions"} <= {*path.parts}}


def test_the_diagram_has_every_package_and_no_other() -> None:
    """Every package of app, modules and bus is in its box, and a box names no other; a fourth module may be missing."""
    drawn = boxes(PAGE)
    assert drawn.keys() == set(TOPS)
    for top in TOPS:
        undrawn = set(MODULES) - {"inventory", "orders", "payments"} if top == "modules" else set()
        assert drawn_packages(drawn[top]) | undrawn == packages(top), top


def test_what_the_diagram_draws_without_a_slash_is_a_file() -> None:
    """A layer that is no package is one Python file."""
    for top, box in boxes(PAGE).items():
        files = [name for name in layers(box) if name not in drawn_packages(box)]
        assert [name for name in files if not (ROOT / top / f"{name}.py").is_file()] == []


def test_the_layers_drawn_are_the_layers_that_import_linter_checks() -> None:
    """The order of the rows of app is the order of the contract, with an arrow between each two."""
    box = boxes(PAGE)["app"]
    (contract,) = [c for c in CONTRACTS if c["type"] == "layers" and "bootstrap" in c["layers"]]
    # __main__ only calls cli; parentheses mark a layer that import-linter does not require to exist.
    assert [layer.strip("()") for layer in contract["layers"] if layer != "__main__"] == layers(box)
    assert len(_ARROW.findall(box)) == len(layers(box)) - 1


def test_the_boxes_drawn_are_in_the_order_that_import_linter_checks() -> None:
    """app imports modules, and modules import bus."""
    (contract,) = [c for c in CONTRACTS if c["type"] == "layers" and "modules" in c["layers"]]
    assert list(boxes(PAGE)) == contract["layers"]


def test_every_module_and_event_in_the_diagram_of_an_order_exists() -> None:
    """A column is a module, or one of the parties outside; an event has a schema."""
    diagram = PAGE.partition("The path of an order\n")[2].partition("\nIn one process")[0]
    columns = next(line for line in diagram.splitlines() if line.startswith("    client")).split()
    assert {name for name in columns if name in MODULES} == {"orders", "inventory", "payments"}
    events = set(re.findall(r"\b(?:orders|inventory|payments)\.\w+", diagram))
    assert len(events) >= 5
    for event in events:
        assert list((ROOT / "modules" / event.partition(".")[0] / "schemas").glob(f"{event}.v*.json")), event


@pytest.mark.parametrize(
    ("change", "was"),
    [
        (("web/endpoints/ ", "web/handlers/  "), "an unknown package"),
        (("; gateways/stripe/", ""), "a missing package"),
        (("orders/   ", "shipments/"), "an unknown module"),
    ],
)
def test_a_wrong_diagram_is_found(change: tuple[str, str], was: str) -> None:
    """The comparison of packages can fail."""
    wrong = PAGE.replace(*change)
    assert wrong != PAGE, was
    assert any(drawn_packages(box) != packages(top) for top, box in boxes(wrong).items()), was


def test_layers_in_another_order_are_found() -> None:
    """The comparison of layers can fail."""
    box = boxes(PAGE)["app"]
    assert layers(box.replace("| web/ ", "| bus/ ")) != layers(box)
    assert _ARROW.findall(box.replace("|   v", "|   ^")) == []
