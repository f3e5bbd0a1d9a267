"""The catalogue of planted bugs fits the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.planted.attempts import ROOT, plant
from tests.planted.bug import Bug
from tests.planted.catalogue import BUGS
from tests.planted.results import EVERYDAY, NIGHT, NOTHING, PAGE, Result, page_with, read

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


def test_the_stored_table_is_that_of_the_catalogue() -> None:
    """
    In its order, without bugs that it no longer has, and with the number of those that have no result.

    `python -m tests.planted --missing --store` adds them.
    """
    page = PAGE.read_text(encoding="utf-8")
    assert page_with(page, read(page), [bug.name for bug in BUGS]) == page


def test_each_stored_bug_is_found_by_a_test_that_exists() -> None:
    """A bug that nothing finds is a missing test; after a test is renamed, `--store` the bugs again that it finds."""
    results = read(PAGE.read_text(encoding="utf-8"))
    assert [name for name, result in results.items() if not result.is_found] == []
    found_by = {result.test for result in results.values() if result.test != NOTHING}
    assert [test for test in found_by if not (ROOT / test.partition("::")[0]).is_file()] == []
    # A test of a contract suite stands in the file of the suite, and that of a state machine is named like its class.
    texts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    names = {test.removesuffix("::runTest").rpartition("::")[2] for test in found_by if "::" in test}
    assert [name for name in names if f"def {name}(" not in texts and f"{name} = " not in texts] == []


def test_a_table_that_is_written_can_be_read_again() -> None:
    """Rows of bugs that the catalogue no longer has are left out, and the sentence above the table counts the rest."""
    kept = Result('a bug, with a "comma"', EVERYDAY, NOTHING, "2026-11-29", "0.3.0", "3.12.1")
    missed = Result("missed", NOTHING, NOTHING, "2026-11-29", "0.3.0", "3.12.1")
    gone = Result("gone", NIGHT, "tests/test_x.py::test_y", "2026-11-29", "0.3.0", "3.12.1")
    results = {result.bug: result for result in (gone, missed, kept)}
    page = page_with(PAGE.read_text(encoding="utf-8"), results, [kept.bug, missed.bug, "never tried"])
    assert read(page) == {kept.bug: kept, missed.bug: missed}
    assert "2 bugs: 1 found by the everyday simulation, 0 more by the night's, 0 by another test only, 1 by nothing; 1 not tried yet." in page
    assert [result.is_found for result in results.values()] == [True, False, True]


@pytest.mark.parametrize("page", ["no table", None])
def test_a_page_that_cannot_be_read_is_refused(page: str | None) -> None:
    """Otherwise all results would be lost when the next one is stored."""
    if page is None:
        whole = page_with(PAGE.read_text(encoding="utf-8"), {}, [])
        page = f'{whole}   "a bug","everyday"\n'
    with pytest.raises(ValueError, match=r"has no table|has 2 columns"):
        read(page)
