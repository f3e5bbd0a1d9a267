"""Files, folders and names: the same files in every module, few entries in a folder, names that say something."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from modules import registry
from tests.architecture.tree import MODULES, PACKAGES, ROOT, TOOLS, is_source, name_of, parsed, python_files

MODULE_FILES = {"__init__.py", "decide.py", "events.py", "routes.py", "schemas", "state.py"}
LINES_MAX = 350
ENTRIES_MAX = 12

FORBIDDEN = {"Abstract", "Base", "Helper", "Helpers", "Impl", "Manager", "Util", "Utils"}
OF_TUPLES = {"_asdict", "_fields", "_make", "_replace"}
"""Public despite their names: a named tuple reserves the other names for its fields."""

LEFT_UNDONE = re.compile(r"\b(?:%s)\b" % "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)))  # noqa: UP031

SOURCES = list(python_files(*PACKAGES, *TOOLS, "tests"))
WRITTEN = sorted(
    path
    for folder in (*PACKAGES, *TOOLS, "deploy", "docs", "tests")
    for path in (ROOT / folder).rglob("*")
    if is_source(path) and path.suffix in {".env", ".html", ".json", ".mako", ".py", ".rst", ".toml", ".yaml"}
)


def words(name: str) -> set[str]:
    """Return the words of a CamelCase or snake_case name, capitalised: ``HTTPBase`` has HTTP and Base."""
    return {word.capitalize() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)}


def bad_names(path: str, tree: ast.Module) -> list[str]:
    """Return the file name parts and class names that contain a word of `FORBIDDEN`."""
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
    """Sort *names* as this project does: CONSTANTS, then Classes, then functions."""
    return sorted(names, key=lambda name: (0 if name.isupper() else 1 if name.lstrip("_")[:1].isupper() else 2, name))


def defined(tree: ast.Module) -> set[str]:
    """Return the names that a module defines or imports at its top level."""
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


def private_names_of_others(tree: ast.Module) -> list[str]:
    """Return the private names of other files that *tree* imports, or reads from an imported module of this project."""
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
    return module is not None and module.split(".")[0] in (*PACKAGES, *TOOLS)


def wrongly_exported(path: Path) -> list[str]:
    """Return the names of ``__all__`` that do not exist or are out of order, or the public names of a file without one."""
    tree = parsed(path)
    names = exported(tree)
    if names is None:
        # Alembic finds a migration by its file, not by a name in it.
        public = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        return [] if "migrations" in path.parts else sorted(name for name in public if not name.startswith("_"))
    return sorted(set(names) - defined(tree)) if names == in_order(set(names)) else names


def offences(paths: Iterable[Path], found_in: Callable[[Path], list[str]]) -> dict[str, list[str]]:
    """Return what *found_in* returns for each of *paths*, by name, without those for which it returns nothing."""
    return {name_of(path): found for path in paths if (found := found_in(path))}


def test_the_packages_below_modules_are_the_registered_modules() -> None:
    """A package that the list leaves out would run nowhere; shared files beside them are no modules."""
    assert set(MODULES) == set(registry.MODULES)


def crowded(folder: Path) -> list[str]:
    """Return the folders below *folder* with more than `ENTRIES_MAX` entries, ``__init__.py`` not counted."""
    found = []
    for each in (folder, *sorted(path for path in folder.rglob("*") if path.is_dir())):
        names = {path.name for path in each.iterdir() if is_entry(path)} - {"__init__.py"}
        if len(names) > ENTRIES_MAX:
            found.append(f"{each.name}: {len(names)}")
    return found


def is_entry(path: Path) -> bool:
    """Return True for a source file, and for a folder that contains one."""
    return any(map(is_source, path.rglob("*"))) if path.is_dir() else is_source(path)


@pytest.mark.parametrize("package", [*PACKAGES, *TOOLS])
def test_no_folder_is_crowded(package: str) -> None:
    """A folder has at most 12 entries: a reader can take them in at one look."""
    assert crowded(ROOT / package) == []


def test_a_crowded_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail; it does not count caches and ``__init__.py``."""
    monkeypatch.setattr("tests.architecture.tree.ROOT", tmp_path)
    for name in ("__init__.py", "__pycache__/a.pyc", *(f"file_{n}.py" for n in range(ENTRIES_MAX))):
        (tmp_path / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "app" / name).touch()
    assert crowded(tmp_path / "app") == []
    (tmp_path / "app/one_more.py").touch()
    assert crowded(tmp_path / "app") == [f"app: {ENTRIES_MAX + 1}"]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_the_same_files(module: str) -> None:
    """A reader who knows one module can find everything in the others; what `decide` calls may stand in further files."""
    folder = ROOT / "modules" / module
    assert {path.name for path in folder.iterdir()} >= MODULE_FILES


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_schemas_for_its_own_subjects_only(module: str) -> None:
    """A schema file has the name of the subject that it describes, and belongs to the module that publishes it."""
    schemas = [path.name for path in (ROOT / "modules" / module / "schemas").glob("*.json")]
    assert schemas
    assert [name for name in schemas if not re.fullmatch(rf"{module}\.[a-z_]+\.v[1-9][0-9]*\.json", name)] == []


def test_no_file_is_too_long() -> None:
    """A file of more than 350 lines holds more than one thing; only test suites may be longer."""
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES if "tests" not in path.parts}
    assert {name: length for name, length in lengths.items() if length >= LINES_MAX} == {}


def test_no_name_contains_a_forbidden_word() -> None:
    """No Manager, Helper, Utils, Base, Impl or Abstract, in class names and in file names."""
    # Only a file with such a word somewhere in it is parsed.
    may_have_one = re.compile("|".join(FORBIDDEN), re.IGNORECASE)
    suspects = [path for path in SOURCES if may_have_one.search(name_of(path) + path.read_text(encoding="utf-8"))]
    assert offences(suspects, lambda path: bad_names(name_of(path), parsed(path))) == {}


def test_the_public_names_of_a_file_are_listed_in_order_and_exist() -> None:
    """``__all__`` is sorted, without duplicates, and names only what exists; a file with public names has one."""
    assert offences(python_files(*PACKAGES, *TOOLS), wrongly_exported) == {}


def test_no_file_uses_private_names_of_another() -> None:
    """A name with a leading underscore belongs to its own file; what is shared has a public name."""
    assert offences(python_files(*PACKAGES, *TOOLS), lambda path: private_names_of_others(parsed(path))) == {}


def test_every_number_of_examples_is_a_share() -> None:
    """The everyday part tries an eighth of the examples: no test gives Hypothesis a number of its own."""
    own = re.compile(r"max_examples=(?!examples\()\w+")
    assert own.findall("settings(" + "max_examples" + "=30)") != []
    assert offences(python_files("tests"), lambda path: own.findall(path.read_text(encoding="utf-8"))) == {}


def test_no_file_contains_a_to_do_mark() -> None:
    """Unfinished work is an issue, not a comment."""
    assert offences(WRITTEN, lambda path: LEFT_UNDONE.findall(path.read_text(encoding="utf-8"))) == {}


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
def test_a_forbidden_name_is_reported(path: str, code: str) -> None:
    """The check of names can fail."""
    assert bad_names(path, ast.parse(code)) != []


@pytest.mark.parametrize(
    ("path", "code"),
    [("app/storage/module_store.py", "class Database: ..."), ("app/basement.py", ""), ("bus/port.py", "class Implication: ...")],
)
def test_a_word_that_only_contains_a_forbidden_word_is_allowed(path: str, code: str) -> None:
    """The check compares whole words."""
    assert bad_names(path, ast.parse(code)) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from app.cli.main import _stop", ["_stop"]),
        ("def f():\n    from app import cli\n    cli._stop(1)", ["cli._stop"]),
        ("from app.web.endpoints.dead_letters import _show as show", ["_show"]),
        ("from app import cli\ncli.main(cli.__doc__)", []),
        ("from app.storage.tables import OutboxMessage\nOutboxMessage._fields", []),
        ("from os import _exit\nself._stop()", []),
    ],
)
def test_the_use_of_a_private_name_is_reported(code: str, found: list[str]) -> None:
    """The check can fail; it covers the packages of this project only."""
    assert private_names_of_others(ast.parse(code)) == found


def test_disorder_and_to_do_marks_are_reported() -> None:
    """The other checks can fail."""
    assert exported(ast.parse("__all__ = ['b', 'a']")) == ["b", "a"]
    assert in_order({"b", "An", "a", "MAX"}) == ["MAX", "An", "a", "b"]
    assert defined(ast.parse("a = 1\ndef b(): ...\nclass C: ...\nimport d.e\nfrom f import g as h")) == {*"abCdh"}
    assert LEFT_UNDONE.findall("# " + "TO" + "DO: sleep") != []
