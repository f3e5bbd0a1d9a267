"""The wheel contains every source file: schemas, migrations and pages included."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.architecture.tree import PACKAGES, ROOT, copy_to, is_source, name_of

BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_to(tmp_path_factory.mktemp("source"))
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", BUILD, target], cwd=folder, check=True, capture_output=True)
    (found,) = target.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_contains_every_file_of_the_packages(wheel: Path) -> None:
    """`pip install .` installs all source files and nothing else."""
    written = {name_of(path) for package in PACKAGES for path in (ROOT / package).rglob("*") if is_source(path)}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == written


@pytest.mark.slow
def test_the_wheel_contains_the_licence(wheel: Path) -> None:
    """The licence is part of every distribution."""
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
