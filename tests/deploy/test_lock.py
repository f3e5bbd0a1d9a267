"""The image installs the versions of a lock file, each with the hashes of its files."""

from __future__ import annotations

import configparser
import re

from packaging.requirements import Requirement
from packaging.version import Version

from tests.architecture.tree import ROOT

LOCK = (ROOT / "requirements/image.txt").read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"(?m)^([a-z0-9._-]+)==(\S+)", LOCK))


def test_every_dependency_of_the_image_is_locked_in_a_version_that_fits() -> None:
    """What setup.cfg asks for, with the extra that the image installs."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"] + setup["options.extras_require"]["postgres"]
    wanted = [Requirement(line) for line in lines.strip().splitlines() if line.strip()]
    assert len(wanted) > 5
    for each in wanted:
        if each.marker is not None and not each.marker.evaluate({"python_version": "3.11", "python_full_version": "3.11.2"}):
            continue
        version = ENTRIES[each.name.lower().replace("_", "-")]
        assert each.specifier.contains(Version(version)), each


def test_every_locked_version_has_hashes_and_the_image_insists_on_them() -> None:
    """A file that was replaced on the way or in the registry is refused."""
    for entry in re.split(r"(?m)^(?=[a-z0-9._-]+==)", LOCK)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    assert "--require-hashes -r requirements/image.txt" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "!requirements/image.txt" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
