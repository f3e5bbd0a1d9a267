"""The main job: run an application until somebody says stop."""

from __future__ import annotations

__all__ = ["CannotListen", "serve"]

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import click
from loguru import logger

from app.bootstrap import Application

SWITCH_SECONDS = 0.0003
"""
How long a thread may keep the interpreter to itself while another wants it.

Whoever talks to a database in a thread gives it up at each statement; with the default of 5 ms a busy event loop would
make it wait that long each time.
"""

GARBAGE_MIN = 50_000
"""Objects between two looks for garbage. What a message leaves behind is no cycle, and goes without anybody's looking."""


class CannotListen(Exception):
    """The address to listen on is taken, or not ours."""


def serve(application: Application) -> int:
    """
    Run *application* until SIGTERM or SIGINT; return the exit code.

    Raises:
        CannotListen: The address is taken, or not ours.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(GARBAGE_MIN, 50, 100)
    return _on_a_loop(_serve(application))


async def _serve(application: Application) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)  # the second time means now; nothing that was promised is lost by it
        stop.set()

    code = 0

    def broken(reason: int) -> None:
        nonlocal code
        code = reason
        stop.set()

    application.on_fatal = broken
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
    try:
        address = await application.start()
    except OSError as error:
        await application.stop()
        raise CannotListen(error.strerror or str(error)) from error
    click.echo(f"fulfilment is ready at {address}")
    logger.info("ready", address=address)
    await stop.wait()
    logger.info("stopping")
    try:
        async with asyncio.timeout(application.settings.shutdown_grace_s):
            await application.stop()
    except TimeoutError:
        logger.warning("not everything was finished in time; the rest is done at the next start")
        _flush_and_leave(code)
    logger.info("stopped")
    return code


def _flush_and_leave(code: int) -> None:
    """Leave without waiting for threads that did not end in time."""
    logger.remove()  # writes what is not written yet
    sys.stdout.flush()
    os._exit(code)


def _on_a_loop(main: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)
