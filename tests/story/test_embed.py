"""The program on the page about embedding runs as it is printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT
from tests.process.server import environment_of
from tests.story.blocks import blocks_of, write


@pytest.mark.slow
@pytest.mark.process
def test_the_program_of_the_page_serves_and_ends(tmp_path: Path) -> None:
    """It needs no other preparation than an empty folder, also the second time."""
    [program] = [block for block in blocks_of(ROOT / "docs/howto/embed.rst") if block.file]
    write(program, tmp_path)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, program.file],
            cwd=tmp_path, env=environment_of({"PYTHONPATH": str(ROOT)}), capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"orders are accepted at http://127\.0\.0\.1:\d+/v1/orders\n", done.stdout)
        assert (tmp_path / "orders.db").is_file()
