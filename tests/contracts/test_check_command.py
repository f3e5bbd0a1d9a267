"""``contracts check``: what others rely on does not change under them, and if it would, the command says so."""

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
def copy(tmp_path: Path) -> Path:
    """Return a folder with the schemas as they are today."""
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
def test_nothing_that_was_released_has_been_broken(release: Path) -> None:
    """What others have built on in the past still holds today; CI runs just this command."""
    result = check("--against", release)
    assert result.exit_code == 0, result.output


def test_the_released_schemas_are_those_of_whole_releases() -> None:
    """At least one release is kept, and each of its subjects is still known: there is always something to read it with."""
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
def test_a_breaking_change_is_named_and_fails(
    copy: Path, change: Callable[[dict[str, Any]], None], pointer: str, kind: str
) -> None:
    """Exit 1, the subject, the member and why; whichever of the two is the newer."""
    edit(copy, "orders.cancelled.v1", change)
    result = check("--against", RELEASES[-1], "--schemas", copy)
    assert result.exit_code == 1
    assert "orders.cancelled.v1: " in result.output
    assert f"    {pointer}: {kind}: " in result.output
    assert "fulfilment: broken: orders.cancelled.v1; " in result.stderr
    assert check("--against", copy).exit_code == 1


def test_a_compatible_change_passes(copy: Path) -> None:
    """A new optional member hurts nobody: readers are tolerant."""
    edit(copy, "orders.cancelled.v1", offer)
    result = check("--against", RELEASES[-1], "--schemas", copy)
    assert result.exit_code == 0
    assert "orders.cancelled.v1: full: changed\n    /channel: full: is new and optional" in result.output


def test_one_side_may_be_enough(copy: Path) -> None:
    """Whoever knows that nothing old is left to be read may ask for less."""
    edit(copy, "orders.cancelled.v1", demand)
    arguments = ("--against", RELEASES[-1], "--schemas", copy)
    assert check(*arguments, "--require", "forward").exit_code == 0
    assert check(*arguments, "--require", "backward").exit_code == 1


def test_a_subject_that_has_gone_is_a_break(copy: Path) -> None:
    """Whatever is required: nobody hears anything any more."""
    (copy / "payments.refunded.v1.json").unlink()
    result = check("--against", RELEASES[-1], "--schemas", copy, "--require", "forward")
    assert result.exit_code == 1
    assert "payments.refunded.v1: none: removed: its consumers receive nothing any more (BREAKS)" in result.output


def test_a_new_event_and_a_declared_version_pass(copy: Path) -> None:
    """orders.created.v2 breaks with v1, and says how one becomes the other; a version of its own accord does not."""
    edit(copy, "orders.cancelled.v1", lambda schema: None)
    shutil.copy2(copy / "orders.cancelled.v1.json", copy / "orders.paused.v1.json")
    result = check("--against", RELEASES[0], "--schemas", copy)
    assert result.exit_code == 0
    assert "orders.created.v2: none: a new version; the migration from v1 declares it" in result.output
    assert "orders.paused.v1: full: a new event" in result.output
    shutil.copy2(copy / "orders.cancelled.v1.json", copy / "orders.cancelled.v2.json")
    edit(copy, "orders.cancelled.v2", drop)
    result = check("--against", RELEASES[0], "--schemas", copy)
    assert result.exit_code == 1
    assert "orders.cancelled.v2: backward: a new version; no migration declares it (BREAKS)" in result.output


def test_the_findings_come_as_json_too(copy: Path) -> None:
    """For programs."""
    edit(copy, "orders.cancelled.v1", drop)
    result = check("--against", RELEASES[-1], "--schemas", copy, "--json")
    assert result.exit_code == 1
    [broken] = [each for each in json.loads(result.stdout) if each["breaks"]]
    assert (broken["subject"], broken["compatibility"]) == ("orders.cancelled.v1", "backward")
    assert [change["pointer"] for change in broken["changes"]] == ["/items"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a git checkout of the schemas, tagged v1; the current folder is somewhere in it."""
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
    """Of both only the modules' own schemas count; the bodies of HTTP are no events."""
    edit(checkout / "modules" / "orders" / "schemas", "orders.cancelled.v1", drop)
    (checkout / "elsewhere").mkdir()
    shutil.copy2(checkout / "modules/orders/schemas/orders.cancelled.v1.json", checkout / "elsewhere")
    assert check("--against", "v1").exit_code == 0
    assert check("--against", "HEAD", "--schemas", checkout).exit_code == 1
    assert check("--against", checkout).exit_code == 1


@pytest.mark.parametrize("where", ["no-such-tag", "-x", "./nowhere"])
def test_a_release_that_is_not_there_is_a_matter_of_usage(checkout: Path, where: str) -> None:
    """Exit 2 and one line."""
    result = check(f"--against={where}")
    assert result.exit_code == 2
    assert result.stderr == f"fulfilment: {where}: there is neither such a folder nor such a git ref\n"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("readme.json", "{}", "there is no schema in it"),
        ("orders.created.v1.json", "{", "not JSON"),
        ("orders.created.v1.json", "[]", "not a schema: not an object"),
    ],
)
def test_a_folder_that_holds_no_schemas_is_a_matter_of_usage(tmp_path: Path, name: str, text: str, says: str) -> None:
    """Exit 2 and one line."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    result = check("--against", tmp_path)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_two_schemas_for_one_subject_are_too_many(tmp_path: Path, copy: Path) -> None:
    """Which of them was promised?"""
    shutil.copytree(copy, copy / "again")
    result = check("--against", copy)
    assert result.exit_code == 2
    assert "there are two schemas" in result.stderr


def test_versions_are_told_apart_as_numbers() -> None:
    """v10 comes after v9."""
    assert version_of("orders.created.v10") > version_of("orders.created.v9")
