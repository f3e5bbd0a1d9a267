"""
The main function of a worker process.

`app.web.workers.supervisor.HttpWorkers` starts it, and writes a pickled `Start` to its stdin. Messages over the channel,
beside those of `app.web.workers.commands` and `app.web.workers.metrics_report`::

    ["ready"]                   from the worker: it accepts connections
    ["drain", delay_seconds]    to the worker: drain (`app.web.server.Runner.drain`), and end
    ["reload", [key, ...]]      to the worker: reopen the log file, and accept only these API keys from now on

The worker ends when the channel closes. Signals of a terminal reach it, too; it leaves them to the process that started
it.
"""

from __future__ import annotations

__all__ = ["Start", "main"]

import asyncio
import gc
import os
import pickle
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from attrs import frozen

from app import installed_version
from app.runtime.states.state_reader import StateReader
from app.storage.databases import build_storage
from app.storage.module_store import ModuleStore
from app.telemetry import logs, otel
from app.telemetry.metrics import Metrics
from app.telemetry.otel.collector_settings import CollectorSettings
from app.web.access.gate import build_gate
from app.web.server import Runner
from app.web.workers.application import build_worker_application
from app.web.workers.channel import Channel, Message
from app.web.workers.commands import CommandClient
from app.web.workers.forwarding import Forwarder
from app.web.workers.metrics_report import REPORT_SECONDS, MetricsReport
from config.api_keys import ApiKey
from config.settings import Settings
from modules.module import Module
from modules.registry import load_module

BACKLOG = 1024
"""Connections that wait in the kernel to be accepted."""


@frozen
class Start:
    """What a worker needs to know."""

    settings: Settings
    api_keys: Mapping[str, ApiKey]
    """The keys that are accepted now; those of *settings* may be older."""
    module_options: Mapping[str, Mapping[str, Any]]
    """Keyword arguments of each module's factory, by the module's name."""
    listeners: tuple[int, ...]
    """Descriptors of the sockets that listen for clients."""
    channel: int
    """Descriptor of the connected socket to the process that started this one."""
    private_path: str
    """The Unix socket where that process answers the requests that are passed on."""
    log_format: str
    switch_seconds: float
    garbage_thresholds: tuple[int, int, int]


class _States(StateReader):
    """The states of one module, read from its database (`app.runtime.service.StateService`)."""

    def __init__(self, module: Module, store: ModuleStore) -> None:
        super().__init__(store)
        self.module = module


class _Worker:
    """A worker process that runs."""

    def __init__(self, start: Start) -> None:
        settings = start.settings
        self._start = start
        modules = [load_module(name, **start.module_options.get(name, {})) for name in settings.modules]
        self._storage = build_storage(settings, modules)
        self._metrics = Metrics()
        otel.start(CollectorSettings.of(settings), installed_version(), self._metrics, exports_metrics=False)
        self._gate = build_gate(settings)
        self._replace_keys(start.api_keys)
        self._stopping: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._channel = Channel(self._receive, _end_at_once)
        self._commands = CommandClient(self._channel)
        self._report = MetricsReport(self._metrics, self._channel.send)
        self._forwarder = Forwarder(start.private_path, self._report.report)
        services = [_States(module, self._storage.stores[module.name]) for module in modules]
        application = build_worker_application(
            services,
            self._commands.runner,
            self._forwarder,
            metrics=self._metrics,
            gate=self._gate,
            cors_origins=settings.cors_origins,
        )
        grace_seconds = max(1.0, settings.shutdown_grace_s / 4)
        self._web = Runner(application, settings.connections_max, shutdown_timeout=grace_seconds)

    async def run(self) -> None:
        """Answer requests until the other process sends that the worker is to drain."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self._channel, sock=socket.socket(fileno=self._start.channel))
        await self._web.setup()
        for descriptor in self._start.listeners:
            await web.SockSite(self._web, socket.socket(fileno=descriptor), backlog=BACKLOG).start()
        self._channel.send(["ready"])
        while not self._stopping.done():
            await asyncio.wait([self._stopping], timeout=REPORT_SECONDS)
            self._report.report()
        await self._web.drain(self._stopping.result())
        await self._web.cleanup()
        self._report.report()
        await self._forwarder.close()
        await self._storage.close()
        await asyncio.to_thread(otel.stop, self._metrics)
        self._channel.close()

    def _receive(self, message: Message) -> None:
        match message:
            case ["drain", delay_seconds]:
                if not self._stopping.done():
                    self._stopping.set_result(delay_seconds)
            case ["reload", keys]:
                logs.reopen()
                self._replace_keys({key[0]: ApiKey(*key) for key in keys})
            case _:
                self._commands.receive(message)

    def _replace_keys(self, keys: Mapping[str, ApiKey]) -> None:
        if not self._gate.authenticator.is_off:
            self._gate.authenticator.replace(keys)


def main() -> None:
    """Run a worker with the `Start` that stdin holds; return at once if the process that writes it was killed meanwhile."""
    try:
        start: Start = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by the process that started this one
    except (EOFError, pickle.UnpicklingError):
        return
    settings = start.settings
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logs.setup(settings.log_level, start.log_format, settings.log_file, sys.stdout, settings.secrets())
    sys.setswitchinterval(start.switch_seconds)
    gc.freeze()
    gc.set_threshold(*start.garbage_thresholds)

    async def run() -> None:
        await _Worker(start).run()

    try:
        import uvloop
    except ImportError:
        asyncio.run(run())
    else:
        uvloop.run(run())


def _end_at_once() -> None:
    """The process of the modules is gone: nothing can be answered any more, and its successor needs the port."""
    logs.wait_until_written()
    os._exit(0)
