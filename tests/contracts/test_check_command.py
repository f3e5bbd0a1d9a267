"""``contracts check`` reports whether today's schemas are compatible with those of a release."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.cli.main import main
from bus.contracts.versions import version_of
from tests.architecture.tree import MODULES, ROOT

RELEASED = ROOT / "tests" / "contracts" / "released"
RELEASES = sorted(path for path in RELEASED.iterdir())


def check(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["contracts", "check", *map(str, arguments)])


@pytest.fixture
def schema_folder(tmp_path: Path) -> Path:
    """Return a folder with a copy of today's schemas."""
    folder = tmp_path / "schemas"
    folder.mkdir()
    for module in MODULES:
        for path in (ROOT / "modules" / module / "schemas").glob("*.json"):
            shutil.copy2(path, folder)
    return folder


def edit(folder: Path, subject: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / f"{subject}.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    change(schema)
    path.write_text(json.dumps(schema), encoding="utf-8")


def narrow(schema: dict[str, Any]) -> None:
    schema["properties"]["reason"] = {"enum": ["requested"]}


def drop(schema: dict[str, Any]) -> None:
    del schema["properties"]["items"]
    schema["required"].remove("items")


def demand(schema: dict[str, Any]) -> None:
    schema["properties"]["channel"] = {"type": "string"}
    schema["required"].append("channel")


def widen(schema: dict[str, Any]) -> None:
    schema["properties"]["customer_id"]["maxLength"] = 128


def offer(schema: dict[str, Any]) -> None:
    schema["properties"]["channel"] = {"type": "string"}
    schema["description"] = "Now with a channel."


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_no_released_schema_is_broken(release: Path) -> None:
    """Consumers of an earlier release still work with today's schemas; CI runs the same command."""
    result = check("--against", release)
    assert result.exit_code == 0, result.output


def test_the_released_schemas_are_complete() -> None:
    """At least one release is kept, and each of its subjects still exists."""
    assert RELEASES
    today = {path.stem for module in MODULES for path in (ROOT / "modules" / module / "schemas").glob("*.json")}
    for release in RELEASES:
        subjects = {path.stem for path in release.glob("*.json")}
        assert len(subjects) >= 10
        assert subjects <= today


@pytest.mark.parametrize(
    ("change", "pointer", "kind"),
    [
        (narrow, "/reason", "forward"),
        (drop, "/items", "backward"),
        (demand, "/channel", "forward"),
        (widen, "/customer_id", "backward"),
    ],
)
def test_a_breaking_change_fails_and_is_named(
    schema_folder: Path, change: Callable[[dict[str, Any]], None], pointer: str, kind: str
) -> None:
    """Exit code 1, the subject, the member and the reason, whichever of the two is newer."""
    edit(schema_folder, "orders.cancelled.v1", change)
    result = check("--against", RELEASES[-1], "--schemas", schema_folder)
    assert result.exit_code == 1
    assert "orders.cancelled.v1: " in result.output
    assert f"    {pointer}: {kind}: " in result.output
    assert "fulfilment: broken: orders.cancelled.v1; " in result.stderr
    assert check("--against", schema_folder).exit_code == 1


def test_a_compatible_change_passes(schema_folder: Path) -> None:
    """A new optional member is compatible, because readers are tolerant."""
    edit(schema_folder, "orders.cancelled.v1", offer)
    result = check("--against", RELEASES[-1], "--schemas", schema_folder)
    assert result.exit_code == 0
    assert "orders.cancelled.v1: full: changed\n    /channel: full: is new and optional" in result.output


def test_one_direction_of_compatibility_may_suffice(schema_folder: Path) -> None:
    """An operator who knows that no old message is left may require less."""
    edit(schema_folder, "orders.cancelled.v1", demand)
    arguments = ("--against", RELEASES[-1], "--schemas", schema_folder)
    assert check(*arguments, "--require", "forward").exit_code == 0
    assert check(*arguments, "--require", "backward").exit_code == 1


def test_a_removed_subject_is_a_break(schema_folder: Path) -> None:
    """In every direction: its consumers receive nothing any more."""
    (schema_folder / "payments.refunded.v1.json").unlink()
    result = check("--against", RELEASES[-1], "--schemas", schema_folder, "--require", "forward")
    assert result.exit_code == 1
    assert "payments.refunded.v1: none: removed: its consumers receive nothing any more (BREAKS)" in result.output


def test_a_new_event_and_a_declared_version_pass(schema_folder: Path) -> None:
    """orders.created.v2 is incompatible with v1, but declares a conversion; a new version without one is a break."""
    edit(schema_folder, "orders.cancelled.v1", lambda schema: None)
    shutil.copy2(schema_folder / "orders.cancelled.v1.json", schema_folder / "orders.paused.v1.json")
    result = check("--against", RELEASES[0], "--schemas", schema_folder)
    assert result.exit_code == 0
    assert "orders.created.v2: none: a new version; the dual publishing from v1 declares it" in result.output
    assert "orders.paused.v1: full: a new event" in result.output
    shutil.copy2(schema_folder / "orders.cancelled.v1.json", schema_folder / "orders.cancelled.v2.json")
    edit(schema_folder, "orders.cancelled.v2", drop)
    result = check("--against", RELEASES[0], "--schemas", schema_folder)
    assert result.exit_code == 1
    assert "orders.cancelled.v2: backward: a new version; no dual publishing or upcast declares it (BREAKS)" in result.output


def test_the_result_can_be_printed_as_json(schema_folder: Path) -> None:
    """For programs."""
    edit(schema_folder, "orders.cancelled.v1", drop)
    result = check("--against", RELEASES[-1], "--schemas", schema_folder, "--json")
    assert result.exit_code == 1
    [broken] = [each for each in json.loads(result.stdout) if each["breaks"]]
    assert (broken["subject"], broken["compatibility"]) == ("orders.cancelled.v1", "backward")
    assert [change["pointer"] for change in broken["changes"]] == ["/items"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a git checkout of the schemas, tagged v1, and change to a folder in it."""
    root = tmp_path / "checkout"
    for module in MODULES:
        shutil.copytree(ROOT / "modules" / module / "schemas", root / "modules" / module / "schemas")
    git: list[str | Path] = ["git", "-C", root, "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    subprocess.run([*git, "tag", "v1"], check=True)
    monkeypatch.chdir(root / "modules")
    return root


def test_a_release_may_be_a_git_ref_or_a_checkout(checkout: Path) -> None:
    """Only the modules' event schemas count in both, not the schemas of HTTP bodies."""
    edit(checkout / "modules" / "orders" / "schemas", "orders.cancelled.v1", drop)
    (checkout / "elsewhere").mkdir()
    shutil.copy2(checkout / "modules/orders/schemas/orders.cancelled.v1.json", checkout / "elsewhere")
    assert check("--against", "v1").exit_code == 0
    assert check("--against", "HEAD", "--schemas", checkout).exit_code == 1
    assert check("--against", checkout).exit_code == 1


@pytest.mark.parametrize("where", ["no-such-tag", "-x", "./nowhere"])
def test_an_unknown_release_is_a_usage_error(checkout: Path, where: str) -> None:
    """Exit code 2 and one line."""
    result = check(f"--against={where}")
    assert result.exit_code == 2
    assert result.stderr == f"fulfilment: {where}: there is neither such a folder nor such a git ref\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("readme.json", "{}", "there is no schema in it"),
        ("orders.created.v1.json", "{", "not JSON"),
        ("orders.created.v1.json", "[]", "not a schema: not an object"),
    ],
)
def test_a_folder_without_schemas_is_a_usage_error(tmp_path: Path, name: str, content: str, message: str) -> None:
    """Exit code 2 and one line."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    result = check("--against", tmp_path)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_two_schemas_for_one_subject_are_a_usage_error(tmp_path: Path, schema_folder: Path) -> None:
    """It is not clear which of them was released."""
    shutil.copytree(schema_folder, schema_folder / "again")
    result = check("--against", schema_folder)
    assert result.exit_code == 2
    assert "there are two schemas" in result.stderr


def test_versions_are_compared_as_numbers() -> None:
    """v10 is newer than v9."""
    assert version_of("orders.created.v10") > version_of("orders.created.v9")
