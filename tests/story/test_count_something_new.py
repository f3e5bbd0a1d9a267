"""The page on counting something new, followed to the letter in a copy of the repository."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.analytics.watch.receiver import Receiver
from tests.architecture.tree import ROOT, copy_to
from tests.process.client import connecting
from tests.process.server import Server, environment_of
from tests.story.blocks import blocks_of, write

pytestmark = [pytest.mark.process, pytest.mark.slow]

BLOCKS = blocks_of(ROOT / "docs/tutorial/count-something-new.rst")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A server in the place of the one that the page posts to."""
    running = Receiver()
    yield running
    running.close()


def _run(command: str, folder: Path, receiver: Receiver) -> str:
    command = command.replace("http://127.0.0.1:9000/alerts", receiver.url).replace("http://127.0.0.1:9000/silence", receiver.url)
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=environment_of({"PYTHONPATH": str(folder)}), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def test_the_projection_of_the_page_is_counted_tested_reported_and_watched(tmp_path: Path, receiver: Receiver) -> None:
    """Two orders without an address are collected; the alert for more than one is posted."""
    folder = tmp_path / "repository"
    copy_to(folder)
    shutil.rmtree(folder / "tests", ignore_errors=True)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    server = Server(folder).start()
    try:
        async with connecting() as make:
            client = make(server)
            await client.stock("A", 1_000)
            for _ in range(2):
                await client.wait_until_final(await client.place({"A": 1}))
    finally:
        server.end()
    printed = []
    for block in BLOCKS:
        if block.language == "bash":
            printed.append(_run(block.text, folder, receiver))
        elif block.file:
            write(block, folder)
    assert "2" in printed[0]
    assert "2 passed" in printed[1], "in DuckDB, and with the SQL for RisingWave"
    assert "CREATE MATERIALIZED VIEW IF NOT EXISTS collected_orders AS" in (folder / "deploy/analytics/sql/projections.sql").read_text()
    reported = json.loads(printed[3].partition("\n")[2])
    (projection,) = reported["projections"]
    assert projection["sums"] == [{"collected": 2, "shipped": 0, "orders": 2, "collected_share": 1.0}]
    assert "Collected orders" in (folder / "report.html").read_text()
    assert [message["rule"] for message in receiver.received] == ["collected_orders.collected > 1"]
