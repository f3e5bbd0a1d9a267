"""What the image is built from is named by digest or hash: the base image, the dependencies, the tools of the build."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.architecture.tree import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LOCKS = {name: (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8") for name in ("build", "image")}


def versions(lock: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)^([a-z0-9._-]+)==(\S+)", lock))


def assert_locked(wanted: list[Requirement], lock: str) -> None:
    found = versions(lock)
    for each in wanted:
        if each.marker is None or each.marker.evaluate({"python_version": "3.11", "python_full_version": "3.11.2"}):
            assert each.specifier.contains(Version(found[canonicalize_name(each.name)])), each


def test_every_dependency_of_the_image_is_locked_in_a_version_that_fits() -> None:
    """What setup.cfg asks for, with the extra that the image installs."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"] + setup["options.extras_require"]["postgres"]
    wanted = [Requirement(line) for line in lines.strip().splitlines() if line.strip()]
    assert len(wanted) > 5
    assert_locked(wanted, LOCKS["image"])


def test_every_tool_of_the_build_is_locked_in_a_version_that_fits() -> None:
    """The build backend is what pyproject.toml asks for, and what build.in names is what the lock was made of."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = (ROOT / "requirements/build.in").read_text(encoding="utf-8").splitlines()
    lines = [*pyproject["build-system"]["requires"], *(line for line in named if line and not line.startswith("#"))]
    assert_locked([Requirement(line) for line in lines], LOCKS["build"])


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_version_has_hashes_and_the_image_insists_on_them(name: str) -> None:
    """A file that was replaced on the way or in the registry is refused."""
    for entry in re.split(r"(?m)^(?=[a-z0-9._-]+==)", LOCKS[name])[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    assert re.search(rf"--require-hashes .*-r requirements/{name}\.txt", DOCKERFILE)
    assert f"!requirements/{name}.txt" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def test_the_build_takes_nothing_from_the_package_index_without_a_hash() -> None:
    """Each call of pip checks hashes or has no index, and none downloads a build backend of its own."""
    calls = re.findall(r"bin/pip ((?:(?!&&).)+)", DOCKERFILE.replace("\\\n", ""))
    assert len(calls) == 5
    for call in calls:
        assert re.search(r"--require-hashes|--no-index", call), call
        assert re.search(r"--only-binary :all:|--no-build-isolation|--find-links wheels", call), call


def test_every_base_image_is_named_by_its_digest() -> None:
    """A tag is moved by its publisher. A ``syntax`` line would name one more image."""
    arguments = dict(re.findall(r"(?m)^ARG (\w+)=(\S+)", DOCKERFILE))
    images = [re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], name) for name in re.findall(r"(?m)^FROM (\S+)", DOCKERFILE)]
    assert len(images) == 2
    for image in images:
        assert image == "scratch" or re.fullmatch(r"[a-z0-9./-]+:[a-z0-9.-]+@sha256:[0-9a-f]{64}", image), image
    assert not re.search(r"(?im)^# *syntax *=", DOCKERFILE)
    assert not re.search(r"(?m)^COPY --from=(?!build )", DOCKERFILE)


REGISTRY = """#!/bin/sh
echo "$@" >>"$ASKED"
echo "{digest}"
"""


@pytest.mark.parametrize(("digest", "tag"), [(f"sha256:{'a1' * 32}", ""), (f"sha256:{'b2' * 32}", "trixie-slim")])
@pytest.mark.parametrize("program", ["docker", "skopeo"])
def test_pin_base_image_writes_the_digest_of_a_tag(tmp_path: Path, program: str, digest: str, tag: str) -> None:
    """With either program; another tag replaces the one that is there."""
    done = pin(tmp_path, program, digest, tag)
    assert done.returncode == 0, done.stderr
    expected = f"ARG BASE=debian:{tag or 'bookworm-slim'}@{digest}"
    assert done.stdout.strip() == expected
    written = (tmp_path / "Dockerfile").read_text(encoding="utf-8")
    assert written == re.sub(r"(?m)^ARG BASE=.*", expected, DOCKERFILE)
    assert f"docker.io/library/debian:{tag or 'bookworm-slim'}" in (tmp_path / "asked").read_text(encoding="utf-8")


@pytest.mark.parametrize(("program", "digest"), [("docker", ""), ("docker", "manifest unknown"), ("none", f"sha256:{'a1' * 32}")])
def test_pin_base_image_changes_nothing_without_an_answer(tmp_path: Path, program: str, digest: str) -> None:
    """What is no digest is not written."""
    done = pin(tmp_path, program, digest)
    assert done.returncode == 1
    assert "regist" in done.stderr
    assert (tmp_path / "Dockerfile").read_text(encoding="utf-8") == DOCKERFILE


def pin(folder: Path, program: str, digest: str, tag: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script on a copy of the Dockerfile, with a registry that answers *digest*."""
    (folder / "deploy").mkdir()
    (folder / "bin").mkdir()
    shutil.copy(ROOT / "deploy/pin-base-image", folder / "deploy")
    shutil.copy(ROOT / "Dockerfile", folder)
    for name in ("bash", "dirname", "sed", "grep", "sh"):
        (folder / "bin" / name).symlink_to(str(shutil.which(name)))
    (folder / "bin" / program).write_text(REGISTRY.replace("{digest}", digest), encoding="utf-8")
    (folder / "bin" / program).chmod(0o755)
    command = [str(folder / "deploy/pin-base-image"), *([tag] if tag else [])]
    environment = {"PATH": str(folder / "bin"), "ASKED": str(folder / "asked"), "LANG": os.environ.get("LANG", "C")}
    return subprocess.run(["/usr/bin/env", "bash", *command], env=environment, capture_output=True, text=True, check=False)
