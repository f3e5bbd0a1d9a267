"""`new`: the skeleton of a module passes every check, and the command refuses what it cannot write."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli import new as command
from app.cli.main import main
from app.cli.new.settings_table import settings_table, with_settings_table
from tests.process.client import Client
from tests.process.server import Server, environment_of, run
from tests.story.blocks import Block, copy_of_the_repository, write

REGISTERED = 'MODULES = ("orders", "inventory", "payments", "billing")\n'


def in_checkout(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> Result:
    """Run ``new`` as if *folder* were the source checkout."""
    monkeypatch.setattr(command, "_ROOT", folder)
    return CliRunner().invoke(main, ["new", *arguments])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files by which the command recognises a source checkout."""
    for name in ("setup.cfg", "tests/x", "deploy/nats/write_accounts.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_the_command_writes_every_file_and_names_the_next_steps(monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    """No placeholder is left; the only remaining step is the list of modules."""
    result = in_checkout(monkeypatch, checkout, "module", "billing")
    assert result.exit_code == 0, result.output
    written = [line.removeprefix("wrote ") for line in result.output.splitlines() if line.startswith("wrote ")]
    assert "modules/billing/schemas/billing.registered.v1.json" in written
    assert "app/storage/migrations/versions/billing/0001_first_tables.py" in written
    for name in written:
        text = (checkout / name).read_text(encoding="utf-8")
        assert "$name" not in text
        assert "${" not in text
    assert 'add "billing" to MODULES in modules/registry.py' in result.output


def test_the_command_overwrites_nothing(monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    """If one of the files exists, none is written."""
    test = checkout / "tests/modules/test_billing_decide.py"
    test.parent.mkdir()
    test.write_text("mine")
    result = in_checkout(monkeypatch, checkout, "module", "billing")
    assert result.exit_code == 2
    assert result.stderr == "fulfilment: tests/modules/test_billing_decide.py exists already; nothing was written\n"
    assert test.read_text() == "mine"
    assert not (checkout / "modules").exists()


@pytest.mark.parametrize("name", ["Billing", "bill-ing", "bill_ing", "b", "x" * 25, "../x", "b1"])
def test_the_command_refuses_a_name_that_no_subject_may_begin_with(
    monkeypatch: pytest.MonkeyPatch, checkout: Path, name: str
) -> None:
    """A wrong NAME is wrong usage; nothing is written."""
    result = in_checkout(monkeypatch, checkout, "module", name)
    assert (result.exit_code, "must be 2 to 24 of the letters a-z" in result.output) == (2, True)
    assert not (checkout / "modules").exists()


@pytest.mark.parametrize("arguments", [("module", "billing"), ("documents",)])
def test_the_command_needs_a_source_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """An installed distribution is not changed."""
    result = in_checkout(monkeypatch, tmp_path, *arguments)
    assert (result.exit_code, "needs a source checkout" in result.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
@pytest.mark.night
async def test_the_skeleton_keeps_every_rule_of_the_project(tmp_path: Path) -> None:
    """Generated and registered, it passes the architecture tests, its own test, ruff and mypy, and the server runs it."""
    folder = copy_of_the_repository(tmp_path / "copy")
    assert run(folder, "new", "module", "billing").returncode == 0
    write(Block("python", "modules/registry.py", REGISTERED), folder)
    documents = run(folder, "new", "documents")
    assert documents.returncode == 0, documents.stderr
    assert run(folder, "new", "documents").stdout == ""
    _check(folder, tmp_path / "mypy")
    server = Server(folder, DATABASE_URL=f"sqlite:///{tmp_path}/billing.db")
    client = Client(server)
    try:
        server.start()
        for label in "First", "Second":
            reply = await client.request("PUT", "/v1/billing/I-1", {"label": label})
            assert (reply.status, reply.body["label"]) == (200, "First")
        assert (await client.get("/v1/billing/I-1"))["item_id"] == "I-1"
    finally:
        await client.close()
        server.end()


def _check(folder: Path, cache: Path) -> None:
    """Run the project's own checks in *folder*."""
    scripts = Path(sysconfig.get_path("scripts"))
    tests = ["tests/architecture/test_files.py", "tests/modules/test_billing_decide.py"]
    checks: list[list[str | Path]] = [
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        [scripts / "lint-imports", "--no-cache"],
        [scripts / "ruff", "check", "modules", "app", "tests/modules"],
        [scripts / "mypy", "--cache-dir", cache, "-p", "modules.billing", "-m", "tests.modules.test_billing_decide"],
    ]
    for check in checks:
        if shutil.which(check[0]) is None:
            continue  # ruff and mypy are extras of their own
        done = subprocess.run(check, cwd=folder, env=environment_of({}), capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_page_without_the_table_of_variables_is_an_error() -> None:
    """A table that a merge has damaged would stay damaged in silence."""
    table = "==== ======= =======\nname default meaning\n==== ======= =======\nold  none    old\n==== ======= =======\n"
    assert with_settings_table(f"Head\n\n{table}\nTail\n") == f"Head\n\n{settings_table()}\n\nTail\n"
    with pytest.raises(ValueError, match="no table"):
        with_settings_table("Head\n\n==== ======= =======\n\nTail\n")
