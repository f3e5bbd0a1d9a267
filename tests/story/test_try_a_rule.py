"""The commands of the page about trying a rule do what the page shows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.architecture.tree import copy_to
from tests.process.client import connecting
from tests.process.server import Server, environment_of
from tests.story.session import ROOT, Step, masked, steps_of

PAGE = ROOT / "docs" / "howto" / "history" / "try-a-rule.rst"


def _shown(output: str) -> str:
    """Return *output* without what differs in every run: ids, times, and how many transactions there were."""
    return re.sub(r"^\d+ transactions", "N transactions", masked(output)[0])


def _run(folder: Path, step: Step) -> str:
    done = subprocess.run(
        ["bash", "-c", step.command],
        cwd=folder, env=environment_of({"PYTHONPATH": str(folder)}), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == ("verify" in step.command), done.stderr
    return done.stdout.strip("\n")


@pytest.mark.slow
@pytest.mark.process
async def test_the_page_finds_the_order_that_its_rule_would_refuse(tmp_path: Path) -> None:
    """Orders from before the copy are not decided again; the one for twelve pieces is named."""
    copy, change, verify = steps_of(PAGE.read_text(encoding="utf-8"))
    folder = tmp_path / "rule"
    copy_to(folder)
    server = Server(folder).start()
    try:
        async with connecting() as make:
            client = make(server)
            await client.stock("A", 1_000)
            ids = []
            for quantity in (12, 1, 2, 12, 10):
                ids.append(await client.place({"A": quantity}))
                await client.wait_until_final(ids[-1])
                if len(ids) == 2:
                    _run(folder, copy)
    finally:
        server.end()
    _run(folder, change)
    found = _run(folder, verify)
    assert ids[3] in found
    assert not {id for id in ids if id != ids[3]} & {*re.findall(r"[0-9a-f-]{36}", found)}
    assert _shown(found) == _shown(verify.output)
