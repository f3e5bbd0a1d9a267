"""The `load` command: its options, its output and its exit codes."""

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
from tests.cli.loadtest.fake_server import FakeServer

ROOT = Path(__file__).resolve().parents[3]


async def started(*arguments: str) -> Process:
    """Start the command as a separate process."""
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
        ("--url", "ftp://server.example"),
        ("--url", "http://server.example:port"),
        ("--speed", "9"),
    ],
    ids=" ".join,
)
def test_an_invalid_option_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    """Exit code 2 and a message that names the option."""
    result = CliRunner().invoke(load, list(arguments))
    assert result.exit_code == 2
    assert arguments[0] in result.output


def test_the_help_explains_every_figure() -> None:
    """It names the options, the members of the JSON object and the exit codes."""
    result = CliRunner().invoke(load, ["--help"])
    assert result.exit_code == 0
    for word in ("--orders", "--concurrency", "--url", "--rate", "completed_per_s", "complete_ms", "Exit codes"):
        assert word in result.output


@pytest.mark.process
async def test_a_successful_run_prints_its_json_object_and_exits_with_0(server: FakeServer) -> None:
    """stdout contains the object only; everything else goes to stderr."""
    process = await started("--url", server.url, "--orders", "250", "--concurrency", "8", "--rate", "2000")
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.count(b"\n") == 1
    result = json.loads(out)
    assert (result["orders"], result["accepted"], result["confirmed"], result["lost"]) == (250, 250, 250, 0)


@pytest.mark.slow
@pytest.mark.process
async def test_a_server_with_authentication_is_measured_with_an_api_key(server: FakeServer, tmp_path: Path) -> None:
    """The key comes from a file; with a wrong key the run ends with 1, and the key is not printed."""
    server.key = "0123456789abcdef"
    for name, key in ("right", f"{server.key}\n"), ("wrong", "fedcba9876543210"):
        (tmp_path / name).write_text(key, encoding="utf-8")
    process = await started("--url", server.url, "--orders", "60", "--key-file", str(tmp_path / "right"))
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out)["confirmed"] == 60
    process = await started("--url", server.url, "--orders", "60", "--key-file", str(tmp_path / "wrong"))
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert b"401" in err
    assert b"fedcba" not in err


@pytest.mark.slow
@pytest.mark.process
async def test_times_are_finer_than_a_millisecond(server: FakeServer) -> None:
    """uvloop's clock is not: it would make every percentile an integer."""
    process = await started("--url", server.url, "--orders", "100")
    out, _ = await process.communicate()
    result = json.loads(out)
    assert any(value % 1 for name in ("accept_ms", "complete_ms") for value in result[name].values())


@pytest.mark.slow
@pytest.mark.process
async def test_a_run_with_a_lost_order_exits_with_1_and_prints_its_result(server: FakeServer) -> None:
    """The figures are needed most when something is wrong."""
    server.behaviour = lambda number: "lose" if number == 3 else "confirm"
    process = await started("--url", server.url, "--orders", "20", "--patience", "0.4")
    out, err = await process.communicate()
    assert process.returncode == 1
    assert json.loads(out.splitlines()[-1])["lost"] == 1
    assert b"1 accepted" in err


@pytest.mark.slow
@pytest.mark.process
async def test_a_run_with_wrong_stock_exits_with_1_and_prints_its_result(server: FakeServer) -> None:
    """The stock may be wrong although every order has ended."""
    server.missing_stock = 2
    process = await started("--url", server.url, "--orders", "20", "--patience", "0.4")
    out, err = await process.communicate()
    assert process.returncode == 1
    assert json.loads(out.splitlines()[-1])["confirmed"] == 20
    assert b"on_hand" in err


@pytest.mark.process
async def test_without_a_server_the_command_exits_with_3_and_one_line(unused_tcp_port: int) -> None:
    """A server that is out of reach causes no traceback."""
    process = await started("--url", f"http://127.0.0.1:{unused_tcp_port}", "--orders", "20")
    out, err = await process.communicate()
    assert (process.returncode, out, err.count(b"\n")) == (3, b"", 1)
    assert b"out of reach" in err


@pytest.mark.slow
@pytest.mark.process
async def test_ctrl_c_stops_the_sending_and_prints_the_result(server: FakeServer) -> None:
    """The accepted orders are followed to their end, and the run succeeds."""
    server.open_polls = 1
    process = await started("--url", server.url, "--orders", "1000000", "--concurrency", "4")
    await server.many_posts.wait()
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert process.returncode == 0
    result = json.loads(out.splitlines()[-1])
    assert 50 <= result["accepted"] == result["confirmed"] < result["orders"] == 1_000_000
    assert b"Stopping" in err


@pytest.mark.slow
@pytest.mark.process
async def test_a_second_ctrl_c_ends_the_command_at_once(server: FakeServer) -> None:
    """It does not wait for orders that never end."""
    server.behaviour = lambda number: "hold"
    process = await started("--url", server.url, "--orders", "1000000", "--concurrency", "4", "--patience", "3600")
    await server.many_posts.wait()
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert b"Stopping" in await process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, out) == (1, b"")
