"""The same rooms in every module, and the same tidiness in every room."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from modules import registry
from tests.architecture.tree import MODULES, PACKAGES, ROOT, is_source, name_of, parsed, python_files

ROOMS = {"__init__.py", "decide.py", "events.py", "routes.py", "schemas", "state.py"}
LINES_MAX = 350

FORBIDDEN = {"Abstract", "Base", "Helper", "Helpers", "Impl", "Manager", "Util", "Utils"}
OF_TUPLES = {"_asdict", "_fields", "_make", "_replace"}
"""Public in spite of their names: a named tuple keeps the others for its members."""

LEFT_UNDONE = re.compile(r"\b(?:%s)\b" % "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)))  # noqa: UP031

HOUSE = list(python_files(*PACKAGES, "tests"))
WRITTEN = sorted(
    path
    for folder in (*PACKAGES, "deploy", "docs", "tests")
    for path in (ROOT / folder).rglob("*")
    if is_source(path) and path.suffix in {".env", ".html", ".json", ".mako", ".py", ".rst", ".toml", ".yaml"}
)


def words(name: str) -> set[str]:
    """Return the words of a CamelCase or snake_case name, capitalised: ``HTTPBase`` has HTTP and Base."""
    return {word.capitalize() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)}


def bad_names(path: str, tree: ast.Module) -> list[str]:
    """Return the names of the file and of the classes in it that say nothing."""
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return [name for name in (*Path(path).with_suffix("").parts, *classes) if words(name) & FORBIDDEN]


def exported(tree: ast.Module) -> list[str] | None:
    """Return the names in ``__all__``, or None where there is none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def in_order(names: Iterable[str]) -> list[str]:
    """Sort *names* as the house does: CONSTANTS, then Classes, then functions."""
    return sorted(names, key=lambda name: (0 if name.isupper() else 1 if name.lstrip("_")[:1].isupper() else 2, name))


def defined(tree: ast.Module) -> set[str]:
    """Return the names that a module makes or imports at its top."""
    found: set[str] = set()
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Assign(targets=targets):
                found |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {(alias.asname or alias.name).split(".")[0] for alias in names}
    return found


def taken_from_others(tree: ast.Module) -> list[str]:
    """Return the names of others' that begin with an underscore: imported, or reached for in a module of ours."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and _is_ours(node.module)]
    taken = {alias.name for node in imports for alias in node.names}
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    reached = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
        and re.match("_[^_]", node.attr) and node.attr not in OF_TUPLES
    }  # fmt: skip
    return sorted({name for name in taken if name.startswith("_")} | reached)


def _is_ours(module: str | None) -> bool:
    return module is not None and module.split(".")[0] in PACKAGES


def test_the_packages_below_modules_are_the_registered_modules() -> None:
    """A package that the list leaves out would run nowhere; shared files beside them are no modules."""
    assert set(MODULES) == set(registry.MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_the_same_rooms(module: str) -> None:
    """Who knows one module finds the way in all of them."""
    folder = ROOT / "modules" / module
    assert {path.name for path in folder.iterdir() if path.name != "__pycache__"} == ROOMS


@pytest.mark.parametrize("module", MODULES)
def test_every_module_promises_its_own_subjects_only(module: str) -> None:
    """A schema is filed under the subject that it describes, with the module that says it."""
    schemas = [path.name for path in (ROOT / "modules" / module / "schemas").glob("*.json")]
    assert schemas
    assert [name for name in schemas if not re.fullmatch(rf"{module}\.[a-z_]+\.v[1-9][0-9]*\.json", name)] == []


@pytest.mark.parametrize("path", [path for path in HOUSE if "tests" not in path.parts], ids=name_of)
def test_no_file_outgrows_its_noun(path: Path) -> None:
    """What does not fit into 350 lines is more than one thing; only a contract's suite of tests may be longer."""
    assert len(path.read_text(encoding="utf-8").splitlines()) < LINES_MAX


@pytest.mark.parametrize("path", HOUSE, ids=name_of)
def test_every_name_says_what_it_names(path: Path) -> None:
    """No Manager, Helper, Utils, Base, Impl or Abstract, neither class nor file."""
    assert bad_names(name_of(path), parsed(path)) == []


@pytest.mark.parametrize("path", list(python_files(*PACKAGES)), ids=name_of)
def test_what_a_file_offers_is_listed_in_order_and_exists(path: Path) -> None:
    """__all__ is sorted, names nothing twice and nothing that is not there; with public names, there is one."""
    tree = parsed(path)
    names = exported(tree)
    if names is None:
        # A migration is found by its file, not by a name in it.
        public = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        assert "migrations" in path.parts or {name for name in public if not name.startswith("_")} == set()
    else:
        assert names == in_order(set(names))
        assert set(names) <= defined(tree)


@pytest.mark.parametrize("path", list(python_files(*PACKAGES)), ids=name_of)
def test_nobody_takes_what_another_file_keeps_to_itself(path: Path) -> None:
    """A name with an underscore is its own file's business; what is shared has a public name."""
    assert taken_from_others(parsed(path)) == []


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_nothing_is_left_for_later(path: Path) -> None:
    """What is not done is an issue, not a comment."""
    assert LEFT_UNDONE.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("app/utils.py", ""),
        ("app/helpers/names.py", ""),
        ("app/storage/module_store.py", "class ConnectionManager: ..."),
        ("app/storage/module_store.py", "class BaseStore: ..."),
        ("app/storage/module_store.py", "class SQLBase: ..."),
        ("bus/memory/bus.py", "def f():\n    class BusImpl: ..."),
    ],
)
def test_a_name_that_says_nothing_is_seen(path: str, code: str) -> None:
    """The check of names can fail."""
    assert bad_names(path, ast.parse(code)) != []


@pytest.mark.parametrize(
    ("path", "code"),
    [("app/storage/module_store.py", "class Database: ..."), ("app/basement.py", ""), ("bus/port.py", "class Implication: ...")],
)
def test_a_name_that_only_contains_such_a_word_may_stay(path: str, code: str) -> None:
    """The check of names reads words, not letters."""
    assert bad_names(path, ast.parse(code)) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from app.cli.main import _stop", ["_stop"]),
        ("def f():\n    from app import cli\n    cli._stop(1)", ["cli._stop"]),
        ("from app.web.endpoints.dead_letters import _show as show", ["_show"]),
        ("from app import cli\ncli.main(cli.__doc__)", []),
        ("from app.storage.outbox import Parcel\nParcel._fields", []),
        ("from os import _exit\nself._stop()", []),
    ],
)
def test_a_look_into_another_file_is_seen(code: str, found: list[str]) -> None:
    """That check can fail, too; what is not ours is not ours to judge."""
    assert taken_from_others(ast.parse(code)) == found


def test_disorder_and_things_undone_are_seen() -> None:
    """The other checks can fail."""
    assert exported(ast.parse("__all__ = ['b', 'a']")) == ["b", "a"]
    assert in_order({"b", "An", "a", "MAX"}) == ["MAX", "An", "a", "b"]
    assert defined(ast.parse("a = 1\ndef b(): ...\nclass C: ...\nimport d.e\nfrom f import g as h")) == {*"abCdh"}
    assert LEFT_UNDONE.findall("# " + "TO" + "DO: sleep") != []
