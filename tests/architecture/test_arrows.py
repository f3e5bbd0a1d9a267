"""
app → modules → bus, and config on its own.

The contracts stand in pyproject.toml and import-linter holds them. A rule that cannot fail is no rule, so each is also
broken here, in a copy of the house, and has to be seen to break.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT, copy_to, name_of, parsed, python_files

LINT = Path(sysconfig.get_path("scripts")) / "lint-imports"

CONTRACTS = {
    contract["id"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}

BREACHES = [
    ("bus/errors.py", "import modules.orders.events", "arrows"),
    ("bus/errors.py", "import app.runtime.service", "arrows"),
    ("modules/orders/decide.py", "import app.runtime.service", "arrows"),
    ("modules/routes.py", "from app.runtime.service import Door", "arrows"),
    ("config/settings.py", "import bus.errors", "leaf"),
    ("config/settings.py", "from modules.orders import events", "leaf"),
    ("bus/errors.py", "import config.settings", "settings"),
    ("modules/payments/decide.py", "def f():\n    from config import settings", "settings"),
    ("modules/orders/decide.py", "import modules.inventory.state", "neighbours"),
    ("modules/orders/routes.py", "from modules.payments import decide", "neighbours"),
    ("modules/payments/state.py", "import modules.orders", "neighbours"),
    ("modules/inventory/events.py", "from modules.inventory import state", "language"),
]
IMPURITIES = [(module, "import " + module) for module in CONTRACTS["pure"]["forbidden_modules"]] + [
    ("asyncio through bus", "from bus.memory.bus import *"),
]

# As attributes only: a plain `now` is an argument, and where the time is meant to come from.
CLOCK = {"now", "today", "utcnow"}
DICE = {"urandom", "uuid1", "uuid4", "uuid6", "uuid7"}
WAITING = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)


def lint(folder: Path) -> tuple[int, set[str], set[str], str]:
    """Run import-linter in *folder*; return its exit code, the ids of the kept and of the broken, and all it said."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Wide enough that no name is wrapped.
    env["COLUMNS"] = "200"
    done = subprocess.run([LINT, "--no-cache"], cwd=folder, env=env, capture_output=True, text=True, check=False)
    ids = {contract["name"]: id for id, contract in CONTRACTS.items()}
    results = re.findall(r"^(.+) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE)
    kept = {ids[name] for name, result in results if result == "KEPT"}
    broken = {ids[name] for name, result in results if result == "BROKEN"}
    return done.returncode, kept, broken, done.stdout + done.stderr


def breaks(folder: Path, file: str, line: str) -> set[str]:
    """Append *line* to *file* in a copy of the house; return the contracts that this breaks."""
    with copy_to(folder).joinpath(file).open("a", encoding="utf-8") as target:
        target.write(f"\n{line}\n")
    exit_code, kept, broken, said = lint(folder)
    assert kept | broken == CONTRACTS.keys(), said
    assert (exit_code != 0) == bool(broken), said
    return broken


def impure(tree: ast.AST) -> list[str]:
    """Return what in *tree* waits, looks at a clock or rolls dice, by line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, WAITING):
            found.append(f"{node.lineno}: {type(node).__name__}")
        elif isinstance(node, ast.Attribute) and node.attr in CLOCK | DICE:
            found.append(f"{node.lineno}: .{node.attr}")
        elif isinstance(node, ast.Name) and node.id in DICE:
            found.append(f"{node.lineno}: {node.id}")
    return found


def test_every_arrow_points_the_right_way() -> None:
    """app runs, modules decide, bus carries, config tells; no import points back."""
    exit_code, kept, broken, said = lint(ROOT)
    assert (exit_code, broken) == (0, set()), said
    assert kept == CONTRACTS.keys(), said


@pytest.mark.parametrize(("file", "line", "contract"), BREACHES)
def test_a_wrong_import_breaks_its_contract(tmp_path: Path, file: str, line: str, contract: str) -> None:
    """A contract that can be broken unseen holds nothing. (What one wrong import drags in may break more of them.)"""
    assert contract in breaks(tmp_path, file, line)


@pytest.mark.parametrize("line", [line for _, line in IMPURITIES], ids=[name for name, _ in IMPURITIES])
def test_the_core_reaches_no_loop_clock_dice_log_or_wire(tmp_path: Path, line: str) -> None:
    """What decides may not wait, nor know the hour; not even by way of the bus."""
    assert "pure" in breaks(tmp_path, "modules/inventory/decide.py", line)


def test_a_neighbours_events_may_be_read(tmp_path: Path) -> None:
    """A module's events are its published language; a contract that forbade them too would hold too much."""
    lines = "import modules.inventory.events\nfrom modules.payments import events as heard"
    assert breaks(tmp_path, "modules/orders/decide.py", lines) == set()


def test_the_contract_between_modules_covers_each_of_them() -> None:
    """It names none: a new module is covered from its first day. Only events and the shared files may be imported."""
    shared = sorted(path.stem for path in (ROOT / "modules").glob("*.py") if path.stem != "__init__")
    assert CONTRACTS["neighbours"]["modules"] == ["modules.*"]
    assert CONTRACTS["neighbours"]["ignore_imports"] == [
        f"modules.** -> modules.{name}" for name in ("*.events", *shared)
    ]


@pytest.mark.parametrize("path", list(python_files("modules")), ids=name_of)
def test_nothing_in_the_core_waits_or_looks_at_a_clock(path: Path) -> None:
    """No await, no clock, no dice in modules: time and chance come in as arguments."""
    assert impure(parsed(path)) == []


@pytest.mark.parametrize(
    "code",
    [
        "async def f(): pass",
        "async def f():\n    await g()",
        "async def f():\n    async with g(): pass",
        "async def f():\n    async for x in g(): pass",
        "x = datetime.now(UTC)",
        "x = date.today()",
        "x = uuid4()",
        "x = field(factory=datetime.now)",
    ],
)
def test_a_clock_or_an_await_in_the_core_is_seen(code: str) -> None:
    """The check above can fail."""
    assert impure(ast.parse(code)) != []
