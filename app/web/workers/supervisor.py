"""Start the HTTP workers, restart those that end, and stop them."""

from __future__ import annotations

__all__ = ["HttpWorkers", "WorkerFailed"]

import asyncio
import gc
import json
import os
import pickle
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copyreg import pickle as register_reducer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
from aiohttp import web
from loguru import logger

from app.runtime.service import ModuleService
from app.telemetry.metrics import Metrics
from app.web.server import Runner
from app.web.workers.channel import Channel, Message
from app.web.workers.commands import CommandServer
from app.web.workers.metrics_report import add_report
from app.web.workers.process import Start
from bus.tasks import cancel_tasks
from config.api_keys import ApiKey
from config.settings import Settings

START_SECONDS = 30.0
"""A worker that does not accept connections after this has failed."""

END_SECONDS = 1.0
"""A worker that does not accept connections and has not ended after this is killed."""

RESTART_SECONDS = 0.1
"""Pause before a worker that has ended is started again; it doubles with each one that ends before it is ready."""

RESTART_SECONDS_MAX = 10.0

_CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from app.web.workers.process import main; main()"


def _read_only(mapping: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(mapping)


register_reducer(MappingProxyType, lambda mapping: (_read_only, (dict(mapping),)))  # settings hold some


class WorkerFailed(Exception):
    """A worker cannot be started, or ended before it accepted connections; then its log lines give the reason."""


class HttpWorkers:
    """
    The HTTP workers of this process, which submit to *services*.

    *module_options* are the keyword arguments of each module's factory, by the module's name. What the workers count is
    added to *metrics*.
    """

    def __init__(
        self,
        settings: Settings,
        services: Sequence[ModuleService],
        module_options: Mapping[str, Mapping[str, Any]],
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._services = services
        self._module_options = {name: dict(options) for name, options in module_options.items()}
        self._metrics = metrics
        self._api_keys = settings.api_keys
        self._folder: Path | None = None
        self._listeners: list[int] = []
        self._workers: dict[int, _Worker] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, private: Runner) -> list[Any]:
        """
        Answer through *private* what workers pass on, and start the workers; return the addresses where they listen.

        Raises:
            WorkerFailed: A worker does not start, or the private socket cannot be created.
            OSError: The address is taken, or is not one of this machine.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="fulfilment-"))  # only its owner may enter it
        try:
            await web.UnixSite(private, str(self._private_path)).start()
        except OSError as error:
            what = f"a socket cannot be created in {tempfile.gettempdir()}, which TMPDIR chooses"
            raise WorkerFailed(f"{what}: {error.strerror or error}") from error
        loop = asyncio.get_running_loop()
        bound = await loop.create_server(
            asyncio.Protocol, self._settings.http_host, self._settings.http_port, start_serving=False, reuse_address=True
        )
        addresses = [each.getsockname() for each in bound.sockets]
        self._listeners = [os.dup(each.fileno()) for each in bound.sockets]
        bound.close()
        for number in range(self._settings.http_workers):
            self._workers[number] = await self._start_one()
        for number, worker in self._workers.items():
            if not await worker.is_accepting(START_SECONDS):
                raise WorkerFailed(f"an HTTP worker does not start (exit code {await worker.end()})")
            self._tasks.append(asyncio.create_task(self._keep_running(number, worker), name=f"HTTP worker {number}"))
        return addresses

    def reload(self, api_keys: Mapping[str, ApiKey]) -> None:
        """Let all workers reopen the log file and accept only *api_keys* from now on, those that start later too."""
        self._api_keys = api_keys
        for worker in self._workers.values():
            worker.channel.send(["reload", [attrs.astuple(key) for key in api_keys.values()]])

    async def drain(self, delay_seconds: float, seconds: float) -> None:
        """
        Let all workers drain (`app.web.server.Runner.drain`), and return once they have ended.

        A worker that has not ended *seconds* after the delay is killed. Idempotent.
        """
        await cancel_tasks(self._tasks)
        for worker in self._workers.values():
            worker.channel.send(["drain", delay_seconds])
        for descriptor in self._listeners:
            os.close(descriptor)
        self._listeners = []
        ends = [asyncio.ensure_future(worker.process.wait()) for worker in self._workers.values()]
        if ends:
            await asyncio.wait(ends, timeout=delay_seconds + seconds)
        for worker in self._workers.values():
            if worker.process.returncode is None:
                logger.warning("an HTTP worker did not end in time", process=worker.process.pid)
                await worker.end(0.0)
            worker.channel.close()
        self._workers = {}
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _private_path(self) -> Path:
        assert self._folder is not None
        return self._folder / "modules.sock"

    async def _start_one(self) -> _Worker:
        """
        Start one worker.

        Raises:
            WorkerFailed: The operating system refuses it.
        """
        worker = _Worker(self._services, self._metrics)
        try:
            await self._spawn(worker)
        except BaseException as error:  # also a cancellation: a worker whose channel closes ends
            worker.channel.close()
            if isinstance(error, OSError):
                raise WorkerFailed(f"an HTTP worker cannot be started: {error.strerror or error}") from error
            raise
        return worker

    async def _spawn(self, worker: _Worker) -> None:
        own, other = socket.socketpair()
        with other:
            await asyncio.get_running_loop().create_connection(lambda: worker.channel, sock=own)
            start = Start(
                self._settings, self._api_keys, self._module_options, tuple(self._listeners), other.fileno(), str(self._private_path),
                self._settings.log_format_on(sys.stdout), sys.getswitchinterval(), gc.get_threshold(),
            )  # fmt: skip
            worker.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", _CODE, json.dumps(sys.path)),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=(*self._listeners, other.fileno()),
            )
        assert worker.process.stdin is not None
        worker.process.stdin.write(pickle.dumps(start))
        worker.process.stdin.close()

    async def _keep_running(self, number: int, worker: _Worker) -> None:
        pause = RESTART_SECONDS
        while True:
            code = await worker.process.wait()
            logger.error("an HTTP worker ended; another one starts", exit_code=code, process=worker.process.pid)
            is_accepting = False
            while not is_accepting:
                await asyncio.sleep(pause)
                pause = min(2 * pause, RESTART_SECONDS_MAX)
                try:
                    worker = self._workers[number] = await self._start_one()
                except WorkerFailed as error:
                    logger.error(str(error))
                    continue
                is_accepting = await worker.is_accepting(START_SECONDS)
                if not is_accepting:
                    code = await worker.end()
                    logger.error("an HTTP worker does not start", exit_code=code, process=worker.process.pid)
            pause = RESTART_SECONDS


class _Worker:
    """A worker process, as the process of the modules sees it."""

    process: asyncio.subprocess.Process

    def __init__(self, services: Sequence[ModuleService], metrics: Metrics) -> None:
        self._metrics = metrics
        self._ready = asyncio.Event()
        self.channel = Channel(self._receive, self._ready.set)
        self._commands = CommandServer(services, self.channel)
        self._has_begun = False

    async def is_accepting(self, seconds: float) -> bool:
        """Wait until the worker accepts connections or has ended, for up to *seconds*; return whether it does."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        return self._has_begun

    async def end(self, seconds: float = END_SECONDS) -> int:
        """
        Return the process's exit code; kill it if it has not ended after *seconds*.

        A process that has just ended must not be killed: Python 3.11 then loses its exit code.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self.process.wait()
        with suppress(ProcessLookupError):
            self.process.kill()
        return await self.process.wait()

    def _receive(self, message: Message) -> None:
        match message[0]:
            case "command":
                self._commands.receive(message)
            case "metrics":
                add_report(message, self._metrics)
            case "ready":
                self._has_begun = True
                self._ready.set()
