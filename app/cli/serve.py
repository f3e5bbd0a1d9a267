"""Run an application until a signal or a fatal error stops it."""

from __future__ import annotations

__all__ = ["StartFailed", "serve"]

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from loguru import logger

from app.application import Application, CannotListen
from app.telemetry import logs
from config.environment import load
from config.files import BadSetting

SWITCH_SECONDS = 0.0003
"""
The switch interval of the interpreter: how long a thread keeps it while another thread waits for it.

A thread that executes database statements releases the interpreter at each statement. With the default of 5 ms it would
wait that long for a busy event loop each time.
"""


class StartFailed(Exception):
    """The operating system refuses something that the start needs; the message names it and the reason."""


def serve(application: Application) -> int:
    """
    Run *application* until SIGTERM or SIGINT; return the exit code.

    Raises:
        StartFailed: The operating system refuses something that the start needs.
        CannotListen, DatabaseUnreachable, NotMigrated, NewerDatabase, ModuleError: As for `Application.start`.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()
    return _run_in_event_loop(_serve(application))


async def _serve(application: Application) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            # The second signal ends the process at once; everything accepted is already committed.
            os._exit(128 + number)
        stop.set()

    code = 0

    def on_fatal(exit_code: int) -> None:
        nonlocal code
        code = exit_code
        stop.set()

    application.on_fatal = on_fatal
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    reloads: set[asyncio.Task[None]] = set()

    def on_hangup() -> None:
        reload = loop.create_task(_reload(application, reloading))
        reloads.add(reload)
        reload.add_done_callback(reloads.discard)

    reloading = asyncio.Lock()
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    starting, stopping = asyncio.create_task(application.start()), asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()  # has no effect on a task that is done
    try:
        address = await starting
    except asyncio.CancelledError:
        return code
    except CannotListen:
        raise
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        raise StartFailed(f"cannot start: {what}{error.strerror or error}") from error
    finally:
        stopping.cancel()
    logs.print_line(f"fulfilment is ready at {address} (process {os.getpid()})")
    logger.info("ready", address=address, process=os.getpid())
    await stop.wait()
    logger.info("stopping")
    try:
        async with asyncio.timeout(application.settings.shutdown_delay_s + application.settings.shutdown_grace_s):
            await application.stop()
    except TimeoutError:
        logger.warning("shutdown grace period is over; unfinished work continues at the next start")
        _flush_and_exit(code)
    logger.info("stopped")
    return code


async def _reload(application: Application, reloading: asyncio.Lock) -> None:
    """
    Reopen the log file and read the environment's files again; log what is wrong with them. Nothing else changes.

    One reload after the other. A thread reads: a file on a file system that does not answer must not stop the event loop.
    """
    logs.reopen()
    before = application.settings
    # The address may come from the command line, and cannot change meanwhile.
    address = {"HTTP_HOST": before.http_host, "HTTP_PORT": str(before.http_port)}
    async with reloading:
        try:
            settings = await asyncio.to_thread(load, {**os.environ, **address}, before.known_modules)
        except BadSetting as error:
            logger.error("the configuration is wrong, and the one before stays in use", detail=str(error))
            return
        logs.redact(settings.secrets())
        application.reload(settings)


def _flush_and_exit(code: int) -> None:
    """Exit without waiting for threads that have not ended in time."""
    logger.remove()  # writes the buffered log lines
    sys.stdout.flush()
    os._exit(code)


def _run_in_event_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run *main* with uvloop where it is installed, else with asyncio."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)
