"""The comparison in ``bench`` stays usable: its command line, its client, its table, and the names that it replaces."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from bench.__main__ import PAGE, main
from bench.environments import Unavailable
from bench.guarantees import GUARANTEES
from bench.load import send
from bench.measure import Load, Measurement, Pair, measure
from bench.processes import Program, cpu_seconds
from bench.report import replace_section, row_of, section, table
from bench.systems import RIVALS, System, ours, systems
from tests.architecture.tree import ROOT

ORDERS = Measurement(
    orders=100, orders_per_second=50.0, p99_ms=12.0, failed=0, own_cpu_ms=0.5, server_cpu_ms=0.25
)
"""A run of a system with a NATS server."""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_help_names_what_can_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` needs nothing of the other systems."""
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    output = capsys.readouterr().out
    assert "guarantees" in output
    assert "--rounds" in output


def test_the_list_names_every_system_and_every_guarantee(capsys: pytest.CaptureFixture[str]) -> None:
    """The names are those that the command takes."""
    assert main(["list"]) == 0
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith(" ")}
    assert names == {*systems(), *GUARANTEES}


@pytest.mark.parametrize("what", ["systems", "guarantees"])
def test_an_unknown_name_is_refused_with_the_known_ones(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is installed and nothing is started before the names are checked."""
    assert main([what, "sqlight"]) == 2
    assert "sqlight; one of: " in capsys.readouterr().err


def test_a_system_that_cannot_be_installed_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends the command only if it was asked for by name."""

    def prepare() -> None:
        raise Unavailable("there is no compiler")

    missing = System("go", "Go", ours, prepare)
    monkeypatch.setattr("bench.__main__.systems", lambda: {"sqlite": System("sqlite", "ours", ours), "go": missing})
    assert main(["systems", "go"]) == 1
    assert "go is left out: there is no compiler" in capsys.readouterr().err


@pytest.mark.slow
def test_every_replaced_function_exists() -> None:
    """A function that is renamed must be renamed in ``bench.guarantees``, too; it would keep the guarantee otherwise."""
    done = run_python("from bench.guarantees import GUARANTEES, replace; replace(GUARANTEES)")
    assert done.returncode == 0, done.stderr


def test_a_replaced_function_that_does_not_exist_is_reported() -> None:
    """The check above can fail."""
    code = "from bench.guarantees import *; p = ('app.clock:SystemClock.sundial', lambda f: f)"
    done = run_python(f"{code}; GUARANTEES['x'] = Guarantee('x', (p,)); replace(['x'])")
    assert "has no attribute 'sundial'" in done.stderr


def test_a_row_shows_the_median_and_the_spread() -> None:
    """Speed and processor time are compared within a pair, the servers of the system included."""
    slow = Measurement(orders=10, orders_per_second=5.0, p99_ms=120.0, failed=0, own_cpu_ms=1.5, server_cpu_ms=0.0)
    rows = [row_of("ours", [ORDERS], []), row_of("theirs", [slow, slow], [Pair(ORDERS, slow), Pair(slow, slow)])]
    assert rows[1].cells == (
        "theirs", "5 (5 to 5)", "0.55 (0.10 to 1.00)", "1.50", "", "1.50 (1.00 to 2.00)", "120 (120 to 120)"
    )  # fmt: skip
    lines = table(rows).splitlines()
    assert lines[0] == lines[2] == lines[-1]
    assert lines[3].split() == ["ours", "50", "(50", "to", "50)", "1", "0.50", "0.25", "1", "12", "(12", "to", "12)"]


@pytest.mark.parametrize("what", ["systems", "guarantees"])
def test_the_page_has_a_place_for_each_table(what: str) -> None:
    """``--write`` replaces that part of the page and nothing else."""
    page = PAGE.read_text(encoding="utf-8")
    text = replace_section(page, what, "the table")
    assert section(what, "the table") in text
    assert replace_section(text, what, re.split(rf"\.\. {what}: (?:begin|end)", page)[1].strip()) == page


def test_a_page_without_the_place_is_refused() -> None:
    """A table is never written to the wrong page."""
    with pytest.raises(ValueError, match="no section"):
        replace_section("Title\n=====\n", "systems", "the table")


@pytest.mark.parametrize("path", sorted(RIVALS.glob("*.txt")), ids=lambda path: path.name)
def test_every_requirement_is_pinned(path: Path) -> None:
    """A table names versions; another run must install the same."""
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in path.read_text().splitlines())


async def test_the_client_counts_answers_of_success_and_others() -> None:
    """It keeps its connections, and a refusal is no accepted order."""
    requests = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None
            assert b"SKU-" in await reader.readexactly(int(length[1]))
            requests += 1
            status = b"202 Accepted" if requests % 2 else b"503 Unavailable"
            writer.write(b"HTTP/1.1 %s\r\ncontent-length: 2\r\n\r\n{}" % status)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):  # the client has closed the connection
            await answer(reader, writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        result = await send(f"http://127.0.0.1:{port}", 2, 0.1)
    assert result.accepted + result.failed == requests >= 2
    assert abs(result.accepted - result.failed) <= 1
    assert 0 < result.p50_ms <= result.p99_ms


def test_the_processor_time_of_children_counts(tmp_path: Path) -> None:
    """A system may start further processes, such as HTTP workers."""
    work = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint('ready at http://x', flush=True)\nsys.stdin.read()"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {work!r}], stdin=subprocess.PIPE).wait()"
    program = Program("parent", [sys.executable, "-c", code], tmp_path, r"ready at (\S+)", {})
    try:
        program.wait_until_ready()
        assert program.found == "http://x"
        assert cpu_seconds([program.pid]) >= 0.25
    finally:
        program.end()


def test_a_program_that_ends_too_early_is_reported_with_its_output(tmp_path: Path) -> None:
    """The reason stands in its output."""
    program = Program("broken", [sys.executable, "-c", "raise SystemExit('no database')"], tmp_path, "ready", {})
    with pytest.raises(RuntimeError, match="no database"):
        program.wait_until_ready()


@pytest.mark.slow
@pytest.mark.parametrize("names", [(), tuple(GUARANTEES)], ids=["as it is", "without any guarantee"])
def test_this_program_is_measured_end_to_end(names: tuple[str, ...]) -> None:
    """A real server, a second of orders from a client process, all of them confirmed; also with everything left out."""
    system = System("ours", "ours", partial(ours, program=("-m", "bench.guarantees", *names)))
    found = measure(system, Load("python", 8, 1))
    assert found.failed == 0
    assert found.orders > 0
    assert found.orders_per_second > 0
    assert 0 < found.own_cpu_ms < 100
    assert found.server_cpu_ms == 0
