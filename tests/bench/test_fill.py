"""The rows of a filled database are those of real orders, and the comparison of two versions runs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.fill import fill
from tests.process.client import connecting, eventually
from tests.process.server import Server, environment_of

pytestmark = pytest.mark.slow

ORDERS = 300


@pytest.mark.parametrize("is_unsent", [False, True], ids=["confirmed", "unsent"])
async def test_a_filled_database_serves_its_orders(tmp_path: Path, is_unsent: bool) -> None:
    """All are confirmed, each with its payment; those that waited are confirmed after the start."""
    path = tmp_path / "filled.db"
    await asyncio.to_thread(fill, path, ORDERS, is_unsent=is_unsent)
    server = Server(tmp_path, DATABASE_URL=f"sqlite:///{path}").start()
    try:
        async with connecting() as connect:
            client = connect(server)

            async def confirmed() -> list[str]:
                return [order["order_id"] for order in await client.list_all("/v1/orders?status=confirmed")]

            ids = await eventually(confirmed, lambda found: len(found) == ORDERS + 1)
            assert (await client.get(f"/v1/payments/{ids[-1]}"))["status"] == "captured"
    finally:
        server.end()


@pytest.mark.night
def test_two_versions_are_compared_in_pairs() -> None:
    """The command prints each run and the median of each ratio."""
    command = [sys.executable, "-m", "tests.bench", ".", ".", "--pairs", "1", "--orders", "100"]
    done = subprocess.run(command, env=environment_of({}), capture_output=True, text=True, check=True)
    assert done.stdout.count("orders/s") == 2
    assert "processor time an order" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["reads", "--orders", "300", "--times", "3", "--rate", "5"], "/v1/orders/{id}/explain "),
        pytest.param(
            ["traces", "--pairs", "1", "--orders", "200", "--ratio", "1"], "processor time an order ", marks=pytest.mark.night
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_other_measurements_print_their_figures(arguments: list[str], expected: str) -> None:
    """Both end, and print a line with what they have measured."""
    command = [sys.executable, "-m", f"tests.bench.{arguments[0]}", *arguments[1:]]
    done = subprocess.run(command, env=environment_of({}), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert any(line.startswith(expected) for line in done.stdout.splitlines()), done.stdout
