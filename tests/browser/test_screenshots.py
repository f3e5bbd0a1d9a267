"""The pictures of the console in the documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.architecture.tree import ROOT
from tests.browser.screenshots import BYTES_MAX, FOLDER, PICTURES, take
from tests.browser.site import Site


@pytest.mark.night
def test_a_picture_of_each_screen_is_taken_and_all_are_small(browser: Browser, site: Site, tmp_path: Path) -> None:
    """The documented command still works, and the documents have the pictures that it takes."""
    take(browser, site, tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == set(PICTURES)
    for folder in (tmp_path, FOLDER):
        assert sum(path.stat().st_size for path in folder.iterdir()) < BYTES_MAX
    assert {path.stem for path in FOLDER.iterdir()} == set(PICTURES)


def test_the_pictures_in_the_documents_exist() -> None:
    """Each that README or docs show."""
    for document in (ROOT / "README.rst", *(ROOT / "docs").rglob("*.rst")):
        for name in re.findall(r"^\.\. (?:image|figure):: (\S+\.png)$", document.read_text(encoding="utf-8"), re.MULTILINE):
            assert (document.parent / name).is_file(), f"{document}: {name}"
