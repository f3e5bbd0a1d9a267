"""Signals that a test sends to a process, and waits until they have taken effect; the children of a process."""

from __future__ import annotations

__all__ = ["children_of", "is_running", "pause_process"]

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_PAUSE_SECONDS = 30.0


def pause_process(pid: int) -> None:
    """
    Stop the process *pid* with SIGSTOP, and return once every thread of it is stopped.

    The kernel hands the signal to one thread, and the others run on, and answer requests, until that one is scheduled:
    on a busy machine for milliseconds.
    """
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + _PAUSE_SECONDS
    while running := [state for state in _thread_states(pid) if state not in "TtZX"]:
        assert time.monotonic() < until, f"threads of {pid} still run: {running}"
        time.sleep(0.001)


def children_of(pid: int) -> list[int]:
    """Return the processes that *pid* has started and that have not ended."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            found += map(int, path.read_text().split())
    return [child for child in found if is_running(child)]


def is_running(pid: int) -> bool:
    """Return whether the process *pid* has not ended."""
    return any(state not in "ZX" for state in _thread_states(pid))


def _thread_states(pid: int) -> list[str]:
    """Return the state of each thread of *pid*, as proc(5) codes it: T stands for stopped, Z and X for ended."""
    states = []
    for path in Path(f"/proc/{pid}/task").glob("*"):
        try:
            # The name before the state is in parentheses, and may itself contain some.
            states.append((path / "stat").read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended meanwhile
    return states
