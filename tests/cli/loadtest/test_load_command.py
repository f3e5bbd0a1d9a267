"""The command: what it prints where, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli.loadtest import load
from tests.cli.loadtest.fake import FakeShop

ROOT = Path(__file__).resolve().parents[3]


async def started(*arguments: str) -> Process:
    """Start the command as a process of its own."""
    program = "from app.cli.loadtest import load; load()"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *arguments, cwd=ROOT, stdout=PIPE, stderr=PIPE
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--orders", "0"),
        ("--orders", "many"),
        ("--concurrency", "0"),
        ("--rate", "0"),
        ("--patience", "-1"),
        ("--url", "127.0.0.1:8080"),
        ("--url", "ftp://shop.example"),
        ("--url", "http://shop.example:port"),
        ("--speed", "9"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    """Exit code 2, and a line that names the option."""
    result = CliRunner().invoke(load, list(arguments))
    assert result.exit_code == 2
    assert arguments[0] in result.output


def test_help_says_what_the_numbers_mean() -> None:
    """Every option and every member of the JSON object is explained."""
    result = CliRunner().invoke(load, ["--help"])
    assert result.exit_code == 0
    for word in ("--orders", "--concurrency", "--url", "--rate", "completed_per_s", "complete_ms", "Exit codes"):
        assert word in result.output


@pytest.mark.process
async def test_a_good_run_ends_with_its_json_object_and_0(shop: FakeShop) -> None:
    """stdout holds the object and nothing else; the rest goes to stderr."""
    process = await started("--url", shop.url, "--orders", "250", "--concurrency", "8", "--rate", "2000")
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.count(b"\n") == 1
    result = json.loads(out)
    assert (result["orders"], result["accepted"], result["confirmed"], result["lost"]) == (250, 250, 250, 0)


@pytest.mark.process
async def test_a_shop_that_wants_a_key_is_measured_with_one(shop: FakeShop, tmp_path: Path) -> None:
    """From a file; without it, or with another, the run ends with 1 and the key is not shown."""
    shop.key = "0123456789abcdef"
    for name, key in ("right", f"{shop.key}\n"), ("wrong", "fedcba9876543210"):
        (tmp_path / name).write_text(key, encoding="utf-8")
    process = await started("--url", shop.url, "--orders", "60", "--key-file", str(tmp_path / "right"))
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out)["confirmed"] == 60
    process = await started("--url", shop.url, "--orders", "60", "--key-file", str(tmp_path / "wrong"))
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert b"401" in err
    assert b"fedcba" not in err


@pytest.mark.process
async def test_times_are_finer_than_a_millisecond(shop: FakeShop) -> None:
    """uvloop's own clock is not: it would make every percentile a whole number."""
    process = await started("--url", shop.url, "--orders", "100")
    out, _ = await process.communicate()
    result = json.loads(out)
    assert any(value % 1 for name in ("accept_ms", "complete_ms") for value in result[name].values())


@pytest.mark.process
async def test_a_lost_order_ends_with_1_and_still_reports(shop: FakeShop) -> None:
    """The numbers are worth most when something is wrong."""
    shop.fate = lambda number: "lose" if number == 3 else "confirm"
    process = await started("--url", shop.url, "--orders", "20", "--patience", "0.4")
    out, err = await process.communicate()
    assert process.returncode == 1
    assert json.loads(out.splitlines()[-1])["lost"] == 1
    assert b"1 accepted" in err


@pytest.mark.process
async def test_wrong_stock_ends_with_1_and_still_reports(shop: FakeShop) -> None:
    """Every order may have ended well, and the books be wrong all the same."""
    shop.leak = 2
    process = await started("--url", shop.url, "--orders", "20", "--patience", "0.4")
    out, err = await process.communicate()
    assert process.returncode == 1
    assert json.loads(out.splitlines()[-1])["confirmed"] == 20
    assert b"on_hand" in err


@pytest.mark.process
async def test_no_server_ends_with_3_and_one_line(unused_tcp_port: int) -> None:
    """No traceback for a server that is not there."""
    process = await started("--url", f"http://127.0.0.1:{unused_tcp_port}", "--orders", "20")
    out, err = await process.communicate()
    assert (process.returncode, out, err.count(b"\n")) == (3, b"", 1)
    assert b"out of reach" in err


@pytest.mark.process
async def test_ctrl_c_stops_the_placing_and_reports(shop: FakeShop) -> None:
    """What was accepted is followed to its end, and the run is as good as it was."""
    shop.looks = 1
    process = await started("--url", shop.url, "--orders", "1000000", "--concurrency", "4")
    await shop.busy.wait()
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert process.returncode == 0
    result = json.loads(out.splitlines()[-1])
    assert 50 <= result["accepted"] == result["confirmed"] < result["orders"] == 1_000_000
    assert b"Stopping" in err


@pytest.mark.process
async def test_a_second_ctrl_c_leaves_at_once(shop: FakeShop) -> None:
    """Nobody has to wait for orders that never end."""
    shop.fate = lambda number: "hold"
    process = await started("--url", shop.url, "--orders", "1000000", "--concurrency", "4", "--patience", "3600")
    await shop.busy.wait()
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert b"Stopping" in await process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, out) == (1, b"")
