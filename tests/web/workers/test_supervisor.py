"""Starting workers: what can go wrong is an error of the start, and leaves no process, socket or folder behind."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from app.telemetry.metrics import Metrics
from app.web import Authenticator, Gate, Runner
from app.web.application import GATE, STATIC_HANDLERS, TELEMETRY
from app.web.workers import HttpWorkers, supervisor
from app.web.workers.supervisor import WorkerFailed
from config.environment import load
from modules.registry import MODULES
from tests.signals import children_of, is_running

READY = (
    "import json, os, pickle, sys, time; sys.path[:] = json.loads(sys.argv[1]); start = pickle.load(sys.stdin.buffer);"
    r' os.write(start.channel, b"\x00\x00\x00\x0b" + b"[[\"ready\"]]"); time.sleep(600)'
)
"""A worker that accepts connections and ignores every message."""


@pytest.fixture
async def private() -> AsyncIterator[Runner]:
    """The server of the process that runs the modules, without any route."""
    app = web.Application()
    app[TELEMETRY], app[GATE], app[STATIC_HANDLERS] = Metrics(), Gate(Authenticator(None)), {}
    runner = Runner(app, is_private=True)
    await runner.setup()
    yield runner
    await runner.cleanup()


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files; its path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="w") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


@pytest.fixture
def workers(folder: Path, tmp_path: Path) -> HttpWorkers:
    settings = load({"HTTP_PORT": "0", "HTTP_WORKERS": "2", "DATABASE_URL": f"sqlite:///{tmp_path}/x.db"}, MODULES)
    return HttpWorkers(settings, [], {}, Metrics())


async def test_a_worker_that_ends_at_its_start_fails_the_start(
    private: Runner, workers: HttpWorkers, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """The error names the exit code; afterwards nothing is left."""
    monkeypatch.setattr(supervisor, "_CODE", "raise SystemExit(7)")
    before, descriptors = children_of(os.getpid()), len(os.listdir("/proc/self/fd"))
    with pytest.raises(WorkerFailed, match="exit code 7"):
        await workers.start(private)
    await workers.drain(0.0, 5.0)
    assert children_of(os.getpid()) == before
    assert os.listdir(folder) == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # the private socket, which its runner closes


@pytest.mark.slow
async def test_a_worker_that_does_not_end_in_time_is_killed(
    private: Runner, workers: HttpWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts connections and ignores every message."""
    monkeypatch.setattr(supervisor, "_CODE", READY)
    before = children_of(os.getpid())
    await workers.start(private)
    children = [pid for pid in children_of(os.getpid()) if pid not in before]
    assert len(children) == 2
    await workers.drain(0.0, 0.1)
    assert not any(map(is_running, children))


@pytest.mark.slow
async def test_a_folder_for_sockets_with_a_long_path_is_an_error(
    private: Runner, workers: HttpWorkers, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """The path of a Unix socket has about 100 characters."""
    deep = folder / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(WorkerFailed, match="TMPDIR"):
        await workers.start(private)
    await workers.drain(0.0, 1.0)
    assert os.listdir(deep) == []


@pytest.mark.slow
async def test_a_worker_that_cannot_be_started_again_is_tried_again(
    private: Runner, workers: HttpWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operating system may refuse a process for a while; the others go on meanwhile."""
    monkeypatch.setattr(supervisor, "_CODE", READY)
    monkeypatch.setattr(supervisor, "RESTART_SECONDS", 0.01)
    before = children_of(os.getpid())
    await workers.start(private)
    first, second = (pid for pid in children_of(os.getpid()) if pid not in before)
    refusals = 2
    start = asyncio.create_subprocess_exec

    async def refuse(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await start(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    os.kill(first, signal.SIGKILL)
    found: list[int] = [first]
    async with asyncio.timeout(30):
        while first in found or len(found) < 2:
            await asyncio.sleep(0.01)
            found = [pid for pid in children_of(os.getpid()) if pid not in before]
    assert (refusals, second in found) == (0, True)
    await workers.drain(0.0, 0.1)
    assert not any(map(is_running, found))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", pickle.dumps({"a": "start"})[:-4]], ids=["nothing", "a part"])
def test_a_worker_whose_parent_is_killed_before_it_has_sent_the_start_ends_silently(sent: bytes) -> None:
    """No traceback among the log lines of the next process: the worker has nothing to report."""
    command = [sys.executable, "-c", "from app.web.workers.process import main; main()"]
    done = subprocess.run(command, input=sent, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
