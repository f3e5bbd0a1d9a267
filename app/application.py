"""Run one process: start its parts, answer for their health, and stop them in order."""

from __future__ import annotations

__all__ = ["Application", "CannotListen"]

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeVar

from aiohttp import web
from attrs import fields
from loguru import logger

from app.bootstrap import build_parts, build_web, build_workers
from app.messaging.consumers import subscriptions
from app.runtime.order_metrics import count_open_cases
from app.storage.databases import DatabaseUnreachable, ModuleClaimed
from app.storage.errors import StorageUnavailable
from app.storage.sql.dialect import ExclusiveAccess
from app.telemetry import otel
from app.telemetry.attention.stall_log import StallLog
from app.web.access.gate import build_gate
from app.web.endpoints.health import BUS, CLOCK, OK, RETIRED, TOPOLOGY, WORK, ReadinessMetrics
from app.web.workers import WorkerFailed
from bus.errors import BrokerUnreachable
from bus.port import Clock
from bus.tasks import cancel_tasks, seconds_to_tick
from config.settings import Settings

T = TypeVar("T")

FLUSH_SECONDS = 0.25
"""Work that waits for the next transaction of its database waits no longer than this before it gets one of its own."""

CLAIM_RETRY_SECONDS = 0.1

CLAIM_CHECK_SECONDS = 5.0
"""The interval at which the claims of the databases are renewed; the restart of a database server ends them."""

STALL_CHECK_SECONDS = 5.0
"""The interval at which stalled work is looked for, to be logged."""

ATTENTION_SECONDS = 5.0
"""The interval at which the process checks what needs attention."""


class CannotListen(OSError):
    """
    The listen address is taken or is not one of this machine, or an HTTP worker does not start.

    The message names what and the reason.
    """


class Application:
    """
    One process: the modules that its settings name, their bus, gateways and HTTP API.

    `start` returns once it answers requests; `stop` finishes what is in flight. It serves once: after `stop`, make a new
    one. `phase` and `checks` are what the probes show (`app.web.endpoints.health.Health`). docs/howto/embed.rst shows it inside another
    program.
    """

    phase: Literal["starting", "ready", "draining"] = "starting"
    on_fatal: Callable[[int], None] = staticmethod(lambda code: None)
    """Called with the exit code when a loop has ended that only a restart of the process brings back."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        """
        Build the parts; nothing runs yet.

        Raises:
            DatabaseConfigError: A database cannot be opened.
            ContractError: Schemas and classes contradict each other.
            ModuleError: A module is incomplete.
            BadSetting: RETIRED_VERSIONS names what cannot be retired.
        """
        self.settings = settings
        self.parts = build_parts(settings, clock)
        self._gate = build_gate(settings)
        self._web = build_web(self.parts, self, self._gate)
        self._workers = build_workers(self.parts)
        self._tasks: list[asyncio.Task[None]] = []
        self._consuming: list[asyncio.Task[None]] = []
        self._claims: list[ExclusiveAccess] = []
        self.attention = self.parts.attention
        """What needs the attention of an operator, as of the last `ATTENTION_SECONDS`."""
        self._readiness = ReadinessMetrics(self, self.parts.metrics)

    async def start(self) -> str:
        """
        Claim the modules' databases, migrate SQLite files, start every part, and return the address of the HTTP API.

        A PostgreSQL database is checked, not migrated: ``migrate`` does that. With ``BUS=nats`` it is not claimed either,
        since several processes may share it. Another process that has the claim is waited for, SHUTDOWN_GRACE_S at most,
        because a restart may overlap. What has started is stopped again when this raises or is cancelled; a migration
        that has begun is finished first. The event loop is never blocked.

        Raises:
            DatabaseUnreachable: A database cannot be used, or another process serves a module from it.
            NotMigrated: A PostgreSQL database is behind this release.
            NewerDatabase: A database was written by a newer release.
            ModuleError: A module lacks a table or a column, because a migration is missing.
            CannotListen: The port is taken, or the address is not one of this machine.
        """
        try:
            await self._claim()
            await _in_thread(self.parts.storage.require_tables)  # a migration of a large file takes long
            await self._prepare()
            return await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _claim(self) -> None:
        deadline: float | None = None
        while True:
            try:
                self._claims = await _in_thread(self.parts.storage.claim)
                return
            except ModuleClaimed as error:
                now = self.parts.clock.monotonic()
                if deadline is None:
                    deadline = now + self.settings.shutdown_grace_s
                    logger.warning(f"{error.detail}; waiting for it to end", seconds=self.settings.shutdown_grace_s)
                elif now >= deadline:
                    raise
            await self.parts.clock.sleep(CLAIM_RETRY_SECONDS)

    async def _prepare(self) -> None:
        """
        Look for a jump of the clock before any timer is looked for, and free the keys that dead letters no longer hold.

        Raises:
            DatabaseUnreachable: A database went out of reach since its tables were checked.
        """
        try:
            await self.parts.clock_watch.start()
            await self.parts.dead_letters.free_keys()
        except StorageUnavailable as error:
            raise DatabaseUnreachable(f"a database cannot be used: {error.detail}") from error

    async def _start(self) -> str:
        parts = self.parts
        consumers = parts.consumers()
        self._run(parts.bus.run(), "bus")
        for consumer, subjects in subscriptions(parts.modules, parts.contracts).items():
            subscription = await parts.bus.bus.subscribe(consumer, subjects)
            self._run(consumers[consumer](subscription), f"consumer {consumer}")
            self._consuming.append(self._tasks[-1])
        for name, runner in parts.runtime.runners.items():
            self._run(runner.run(), f"runner of {name}")
            self._run(parts.runtime.relays[name].run(), f"relay of {name}")
        for name, archiver in parts.archivers.items():
            self._run(archiver.run(), f"archiver of {name}")
        self._run(self._flush(), "flush")
        self._run(self._log_stalls(), "stall log")
        self._run(self._watch_conditions(), "attention")
        self._run(self._renew_claims(), "claims")
        self._run(parts.clock_watch.run(), "clock watch")
        self._run(parts.reader_watches.run(), "reader watch")
        self._run(parts.loss_repair.run(), "loss repair")
        await self._web.setup()
        try:
            addresses = await self._listen()
        except OSError as error:
            address = f"{self.settings.http_host}:{self.settings.http_port}"
            raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from error
        except WorkerFailed as error:
            raise CannotListen(str(error)) from error
        self.phase = "ready"
        host, port = addresses[0][:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def _listen(self) -> Sequence[Any]:
        if self.settings.http_workers:
            return await self._workers.start(self._web)
        await web.TCPSite(self._web, self.settings.http_host, self.settings.http_port, backlog=1024).start()
        return self._web.addresses

    async def stop(self) -> None:
        """
        Answer the requests that were accepted, finish what is in flight, and record how far the relays came.

        For SHUTDOWN_DELAY_S readiness answers 503 while requests are still taken. After that, each step takes a quarter of
        SHUTDOWN_GRACE_S at most; what is not done then is done after the next start.
        """
        is_ready = self.phase == "ready"
        self.phase = "draining"
        parts, seconds = self.parts, self.settings.shutdown_grace_s / 4
        delay_seconds = self.settings.shutdown_delay_s if is_ready else 0.0
        if self.settings.http_workers:
            await self._workers.drain(delay_seconds, seconds)
        else:
            await self._web.drain(delay_seconds)
        await self._web.cleanup()
        await parts.module_api.close()
        await cancel_tasks(self._consuming)
        for gateway in parts.gateways.values():
            for worker in gateway.workers.values():
                await worker.drain(seconds)
                await worker.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(runner.drain() for runner in parts.runtime.runners.values()))
        for relay in parts.runtime.relays.values():
            with suppress(StorageUnavailable):  # the marks are lost; the events are published again after the next start
                await relay.stop()
        await cancel_tasks(self._tasks)
        await parts.bus.bus.close(0.5)
        await parts.storage.close()
        for claim in self._claims:
            claim.close()
        await asyncio.to_thread(otel.stop, parts.metrics)  # last: a process that waits for the claims does not wait for a collector

    def reload(self, settings: Settings) -> None:
        """
        Accept the API keys of *settings* from now on, and use its module key; what else has changed in them is logged, and needs a new start.

        The NATS password and certificates need no reload: their files are read again at each connection.
        """
        names = [field.name for field in fields(Settings) if field.eq and field.name not in ("module_key", "nats_password")]
        if changed := [name for name in names if getattr(settings, name) != getattr(self.settings, name)]:
            variables = ", ".join(name.upper().lstrip("_") for name in changed)
            logger.warning("files of the configuration have changed that are read at a start only; restart", variables=variables)
        if not self._gate.authenticator.is_off:
            self._gate.authenticator.replace(settings.api_keys)
        self._workers.reload(settings.api_keys)
        self.parts.module_api.replace_key(settings.module_key)
        logger.info("the files of the configuration were read again", api_keys=len(settings.api_keys))

    async def checks(self) -> Mapping[str, str]:
        """Ask the bus, the gateways and each module's database; return ``ok`` or what is wrong (`Health.checks`)."""
        bus = self.parts.bus.bus
        found = {BUS: OK if bus.is_connected else "unavailable"}
        if bus.problems:
            found[TOPOLOGY] = "; ".join(bus.problems)
        if stalls := self.stalls():
            found[WORK] = "; ".join(stalls)
        if kept := self.parts.bus.kept_versions():
            found[RETIRED] = kept
        if problem := self.parts.clock_watch.problem:
            found[CLOCK] = problem
        for gateway in self.parts.gateways.values():
            found |= gateway.operations.checks()
        for name, store in self.parts.storage.stores.items():
            try:
                await store.database.check()
                found[f"database:{name}"] = "refused" if store.database.is_refused else OK
            except StorageUnavailable:
                found[f"database:{name}"] = store.database.problem or "unavailable"
        return found

    def stalls(self) -> list[str]:
        """Return what has made no progress for WORK_STALLED_S although work waits, one line each."""
        parts, limit = self.parts, self.settings.work_stalled_s
        waiting = {f"the outbox of {name} waits for the bus": each.waiting_seconds() for name, each in parts.runtime.relays.items()}
        waiting |= {f"{name} finishes no batch": each.waiting_seconds() for name, each in parts.runtime.runners.items()}
        return [*(f"{what} (for {s:.0f} s)" for what, s in waiting.items() if s >= limit), *parts.bus.stalls()]

    def _run(self, loop: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(loop, name=name)
        task.add_done_callback(self._on_task_done)
        self._tasks.append(task)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """Report a loop that has raised: a bug, or a broker that was never reached. A restart of the process deals with it."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, BrokerUnreachable):
            logger.critical("the bus is out of reach; the process stops", detail=str(error))
            self.on_fatal(3)
            return
        logger.opt(exception=error).critical("a loop ended; the process stops", loop=task.get_name())
        self.on_fatal(1)

    async def _renew_claims(self) -> None:
        """Renew the claims; stop the process when another one has got a claim that was lost: its events do not come here."""
        while True:
            await self.parts.clock.sleep(CLAIM_CHECK_SECONDS)
            with suppress(Exception):  # out of reach: the checks of the databases report it
                if not all([await _in_thread(claim.renew) for claim in self._claims]):
                    logger.critical("another process serves the modules of this database; this one stops")
                    self.on_fatal(3)
                    return

    async def _log_stalls(self) -> None:
        log, interval = StallLog(), min(STALL_CHECK_SECONDS, self.settings.work_stalled_s / 3)
        while True:
            await self.parts.clock.sleep(interval)
            log.report(self.stalls())

    async def _watch_conditions(self) -> None:
        while True:
            await self.parts.clock.sleep(ATTENTION_SECONDS)
            await self._readiness.sample()
            if (payments := self.parts.runtime.runners.get("payments")) is not None:
                with suppress(StorageUnavailable):  # the number stays as it was
                    self.parts.metrics.payments_to_settle.set(await count_open_cases(payments))
            self.attention.step(self.parts.clock.now())

    async def _flush(self) -> None:
        while True:
            for database in self.parts.storage.databases.values():
                with suppress(StorageUnavailable):
                    await database.flush()
            await self.parts.clock.sleep(seconds_to_tick(self.parts.clock.monotonic(), FLUSH_SECONDS))


async def _in_thread(call: Callable[[], T]) -> T:
    """Call *call* in a thread; when cancelled, wait for its end first, so that nothing it uses is closed under it."""
    running = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
