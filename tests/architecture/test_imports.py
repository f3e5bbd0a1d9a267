"""
The import rules: app → modules → bus, config on its own, and the layers inside each package.

The contracts are in pyproject.toml, and import-linter checks them. A rule that cannot fail is not a rule, so each
contract is also broken here, in a copy of the project, and has to be reported as broken.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sysconfig
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

from tests.architecture.tree import PACKAGES, ROOT, copy_to, name_of, parsed, python_files
from tests.parts import in_parts

LINT = Path(sysconfig.get_path("scripts")) / "lint-imports"

CONTRACTS = {
    contract["id"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}

BREACHES = [
    ("app/clock.py", "import bench.load", "bench"),
    ("bench/rivals/dbos_saga.py", "from bus import ids", "rivals"),
    ("bench/rivals/faststream_saga.py", "import bench.load", "rivals"),
    ("bus/errors.py", "import modules.orders.events", "packages"),
    ("bus/errors.py", "import app.runtime.service", "packages"),
    ("modules/orders/decide.py", "import app.runtime.service", "packages"),
    ("modules/routes.py", "from app.runtime.service import Reply", "packages"),
    ("app/clock.py", "import app.telemetry.logs", "layers"),
    ("app/telemetry/message_metrics.py", "from app.runtime.work import WorkItem", "layers"),
    ("app/storage/errors.py", "import app.runtime.service", "layers"),
    ("app/messaging/consumers.py", "from app.gateways import payment_worker", "layers"),
    ("app/messaging/consumers.py", "from app.analytics import event_tables", "layers"),
    ("app/analytics/event_tables.py", "from app.runtime.work import WorkItem", "layers"),
    ("app/runtime/engine.py", "from app.web.handler import Handler", "layers"),
    ("app/storage/errors.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from app.runtime.work import WorkItem", "layers"),
    ("app/shelf.py", "", "layers"),
    ("bus/port.py", "import bus.memory.bus", "bus-layers"),
    ("bus/contracts/registry.py", "import bus.jetstream.bus", "bus-layers"),
    ("bus/jetstream/delivery.py", "import bus.jetstream.pull_consumer", "jetstream-layers"),
    ("bus/jetstream/delivery.py", "import bus.jetstream.bus", "jetstream-layers"),
    ("bus/jetstream/connection.py", "import bus.jetstream.publisher", "jetstream-layers"),
    ("bus/jetstream/pool.py", "", "jetstream-layers"),
    ("bus/ids.py", "import bus.port", "bus-layers"),
    ("bus/queue.py", "", "bus-layers"),
    ("bus/jetstream/bus.py", "from bus.memory.bus import MemoryBus", "adapters"),
    ("bus/memory/bus.py", "import bus.jetstream.delivery", "adapters"),
    ("app/runtime/work_queue.py", "import app.runtime.runner", "cycles"),
    ("bus/memory/messages.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from bus.memory.bus import MemoryBus", "cycles"),
    ("modules/values.py", "import modules.routes\nimport modules.orders", "cycles"),
    ("config/settings.py", "import bus.errors", "leaf"),
    ("config/settings.py", "from modules.orders import events", "leaf"),
    ("bus/errors.py", "import config.settings", "settings"),
    ("modules/payments/decide.py", "def f():\n    from config import settings", "settings"),
    ("modules/orders/decide.py", "import modules.inventory.state", "neighbours"),
    ("modules/orders/routes.py", "from modules.payments import decide", "neighbours"),
    ("modules/payments/state.py", "import modules.orders", "neighbours"),
    ("modules/payments/state.py", "import modules.registry", "neighbours"),
    ("modules/values.py", "from modules.orders.events import OrderCreated", "shared"),
    ("modules/module.py", "def f():\n    import modules.orders", "shared"),
    ("modules/inventory/events.py", "from modules.inventory import state", "language"),
]
IMPURITIES = [(module, "import " + module) for module in CONTRACTS["pure"]["forbidden_modules"]] + [
    ("asyncio through bus", "from bus.memory.bus import *"),
]

FLOORS_MAX = 12

# As attributes only: a plain `now` is an argument, and that is where the time has to come from.
CLOCK = {"now", "today", "utcnow"}
RANDOM = {"urandom", "uuid1", "uuid4", "uuid6", "uuid7"}
WAITING = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)


def lint(folder: Path) -> tuple[int, set[str], set[str], str]:
    """Run import-linter in *folder*; return its exit code, the ids of kept and of broken contracts, and its output."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Wide enough that no name is wrapped.
    env["COLUMNS"] = "200"
    done = subprocess.run([LINT, "--no-cache"], cwd=folder, env=env, capture_output=True, text=True, check=False)
    ids = {contract["name"]: id for id, contract in CONTRACTS.items()}
    results = re.findall(r"^(.+) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE)
    kept = {ids[name] for name, result in results if result == "KEPT"}
    broken = {ids[name] for name, result in results if result == "BROKEN"}
    return done.returncode, kept, broken, done.stdout + done.stderr


def package_of(module: str) -> str:
    """Return the part of *module* that a reader takes in as one: ``app.runtime``, ``bus.port``; all modules are one."""
    top, *rest = module.split(".")
    if top == "modules" and rest and (ROOT / "modules" / rest[0]).is_dir():
        return "modules.*"
    return ".".join((top, *rest[:1]))


def floors(imports: Iterable[tuple[str, str]]) -> list[str]:
    """
    Return the longest chain of packages in which each imports the next one; *imports* are pairs of modules.

    Raises:
        CycleError: Packages import each other in a circle.
    """
    below: dict[str, set[str]] = defaultdict(set)
    for importer, imported in imports:
        if package_of(importer) != package_of(imported):
            below[package_of(importer)].add(package_of(imported))
    chains: dict[str, list[str]] = {}
    for package in TopologicalSorter(below).static_order():
        chains[package] = [package, *max((chains[each] for each in below.get(package, ())), key=len, default=[])]
    return max(chains.values(), key=len)


def breaks(folder: Path, file: str, line: str) -> set[str]:
    """Append *line* to *file* in a copy of the project; return the contracts that this breaks."""
    with copy_to(folder).joinpath(file).open("a", encoding="utf-8") as target:
        target.write(f"\n{line}\n")
    exit_code, kept, broken, output = lint(folder)
    assert kept | broken == CONTRACTS.keys(), output
    assert (exit_code != 0) == bool(broken), output
    return broken


def impure(tree: ast.AST) -> list[str]:
    """Return every await, clock and random source in *tree*, with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, WAITING):
            found.append(f"{node.lineno}: {type(node).__name__}")
        elif isinstance(node, ast.Attribute) and node.attr in CLOCK | RANDOM:
            found.append(f"{node.lineno}: .{node.attr}")
        elif isinstance(node, ast.Name) and node.id in RANDOM:
            found.append(f"{node.lineno}: {node.id}")
    return found


def test_every_import_contract_is_kept() -> None:
    """No import of the project breaks a contract."""
    exit_code, kept, broken, output = lint(ROOT)
    assert (exit_code, broken) == (0, set()), output
    assert kept == CONTRACTS.keys(), output


@pytest.mark.parametrize(("file", "line", "contract"), in_parts(BREACHES, everyday=0, by_day=1, group=lambda row: row[-1]))
def test_a_wrong_import_breaks_its_contract(tmp_path: Path, file: str, line: str, contract: str) -> None:
    """Each contract reports a wrong import. (One wrong import may break several contracts.)"""
    assert contract in breaks(tmp_path, file, line)


@pytest.mark.parametrize("line", in_parts([line for _, line in IMPURITIES], everyday=0, by_day=5), ids=[name for name, _ in IMPURITIES])
def test_modules_reach_no_event_loop_clock_randomness_log_or_network(tmp_path: Path, line: str) -> None:
    """A decider may not reach them indirectly either, for example through the bus."""
    assert "pure" in breaks(tmp_path, "modules/inventory/decide.py", line)


def test_the_packages_stand_on_at_most_twelve_floors() -> None:
    """No circle, and no longer chain: a reader can hold the order of the packages in mind."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = [(each, other) for each in graph.modules for other in graph.find_modules_directly_imported_by(each)]
    chain = floors(imports)
    assert len(chain) <= FLOORS_MAX, " > ".join(chain)


def test_a_circle_and_the_longest_chain_are_found() -> None:
    """The check above can fail."""
    chain = [("app.web.a", "app.runtime.b"), ("app.runtime.c", "bus.port"), ("app.web.a", "bus.port"), ("bus.port", "bus.ids")]
    assert floors(chain) == ["app.web", "app.runtime", "bus.port", "bus.ids"]
    assert floors([("modules.orders.decide", "modules.payments.events"), ("modules.payments", "modules.orders.events"),
                   ("modules.orders", "modules.values")]) == ["modules.*", "modules.values"]  # fmt: skip
    with pytest.raises(CycleError):
        floors([*chain, ("bus.ids", "app.web.d")])


def test_a_module_may_import_the_events_of_another(tmp_path: Path) -> None:
    """Events are a module's published language."""
    lines = "import modules.inventory.events\nfrom modules.payments import events as consumed"
    assert breaks(tmp_path, "modules/orders/decide.py", lines) == set()


def test_the_contracts_between_modules_cover_each_of_them() -> None:
    """
    The first names no module: a new one is covered from its first day. Only events and the shared files may be imported,
    the registry excepted, and the shared files import no module.
    """
    shared = sorted(path.stem for path in (ROOT / "modules").glob("*.py") if path.stem != "__init__")
    assert CONTRACTS["neighbours"]["modules"] == ["modules.*"]
    assert CONTRACTS["neighbours"]["ignore_imports"] == [
        f"modules.** -> modules.{name}" for name in ("*.events", *shared) if name != "registry"
    ]
    assert CONTRACTS["shared"]["source_modules"] == [f"modules.{name}" for name in shared]


def test_a_new_module_is_independent_from_its_first_day(tmp_path: Path) -> None:
    """The contract covers every package below `modules`, without a list of names."""
    copy = copy_to(tmp_path)
    (copy / "modules/shipping").mkdir()
    (copy / "modules/shipping/__init__.py").write_text("import modules.orders.state\n")
    assert "neighbours" in lint(copy)[2]


@pytest.mark.parametrize("path", list(python_files("modules")), ids=name_of)
def test_modules_use_no_await_clock_or_randomness(path: Path) -> None:
    """Time and randomness reach a decider as arguments."""
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
def test_an_await_or_a_clock_in_a_module_is_reported(code: str) -> None:
    """The check above can fail."""
    assert impure(ast.parse(code)) != []
