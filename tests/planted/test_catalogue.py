"""The catalogue of planted bugs fits the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.planted.__main__ import ROOT, plant
from tests.planted.bug import Bug
from tests.planted.catalogue import BUGS

BUGS_MIN = 60


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_can_be_planted(bug: Bug, tmp_path: Path) -> None:
    """Its code occurs once, the change can be compiled, and the tests beside it exist."""
    path = tmp_path / bug.path
    path.parent.mkdir(parents=True)
    path.write_bytes((ROOT / bug.path).read_bytes())
    plant(bug, tmp_path)
    compile(path.read_text(encoding="utf-8"), bug.path, "exec")
    assert path.read_bytes() != (ROOT / bug.path).read_bytes()
    assert [each for each in bug.tests if not (ROOT / each).exists()] == []


def test_the_catalogue_is_large_and_names_each_bug_once() -> None:
    """The goal is sixty; a name is what the command line selects by."""
    assert len(BUGS) >= BUGS_MIN
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_a_bug_whose_code_has_changed_is_reported(tmp_path: Path) -> None:
    """Otherwise a bug that is not planted would seem to be found by nothing, or by chance."""
    (tmp_path / "file.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="occurs 0 times"):
        plant(Bug("a name", "file.py", "x = 2\n", "x = 3\n", ()), tmp_path)
