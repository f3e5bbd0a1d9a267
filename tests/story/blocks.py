"""Read the code blocks of a document that have a file's name above them, and write the files."""

from __future__ import annotations

__all__ = ["Block", "blocks_of", "copy_of_the_repository", "write"]

import re
import shutil
from pathlib import Path
from textwrap import dedent

from attrs import frozen

from tests.architecture.tree import ROOT, copy_to

_BLOCK = re.compile(
    r"^\.\. code-block:: (?P<language>\w+)\n(?:   :caption: (?P<file>.+)\n)?\n(?P<text>(?:(?:   .*)?\n)+)", re.MULTILINE
)


@frozen
class Block:
    """A block in some *language*; *file* is the name above it, empty where there is none."""

    language: str
    file: str
    text: str


def blocks_of(document: Path) -> list[Block]:
    """Return the blocks of *document* in their order."""
    found = _BLOCK.finditer(document.read_text(encoding="utf-8"))
    return [Block(each["language"], each["file"] or "", dedent(each["text"]).strip("\n") + "\n") for each in found]


def write(block: Block, folder: Path) -> None:
    """
    Write the file of *block*.

    Of a file that exists, the block shows the one line that changes: it replaces the line that assigns the same name.
    """
    path = folder / block.file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        return
    name = block.text.partition(" = ")[0]
    old = path.read_text(encoding="utf-8")
    new, count = re.subn(rf"^{re.escape(name)} = .*\n", lambda _: block.text, old, flags=re.MULTILINE)
    assert count == 1, f"{block.file} has {count} lines that assign {name}"
    path.write_text(new, encoding="utf-8")


def copy_of_the_repository(folder: Path) -> Path:
    """Copy what a new module is written into to *folder*: packages, deploy, docs and the architecture tests; return it."""
    copy_to(folder)
    for part in ("deploy", "docs", "tests/architecture"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "secrets", "_build"))
    (folder / "tests" / "modules").mkdir()
    return folder
