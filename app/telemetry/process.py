"""What the kernel knows about this process; None where it does not say (it is Linux that does)."""

from __future__ import annotations

__all__ = ["cpu_seconds", "resident_bytes", "started_at"]

import os
from pathlib import Path
from time import process_time

_STATM = Path("/proc/self/statm")


def resident_bytes() -> float | None:
    """Return how much memory the process occupies."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def cpu_seconds() -> float:
    """Return how much CPU time the process has spent, for itself and in the kernel."""
    return process_time()


def started_at() -> float | None:
    """Return when the process was started, in seconds since 1970."""
    try:
        boot = next(
            int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime ")
        )
        # The second field is the program's name in brackets, and may hold anything; count from behind it.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return boot + ticks / os.sysconf("SC_CLK_TCK")
