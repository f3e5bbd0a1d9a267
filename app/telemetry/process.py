"""Resource usage of this process as the Linux kernel reports it; None on other systems."""

from __future__ import annotations

__all__ = ["cpu_seconds", "resident_bytes", "started_at"]

import os
from pathlib import Path
from time import process_time

_STATM = Path("/proc/self/statm")


def resident_bytes() -> float | None:
    """Return the resident memory of the process."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def cpu_seconds() -> float:
    """Return the CPU time of the process, user and system."""
    return process_time()


def started_at() -> float | None:
    """Return the start time of the process in seconds since 1970."""
    try:
        boot = next(
            int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime ")
        )
        # The second field is the program's name in parentheses and may contain anything: count the fields after it.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return boot + ticks / os.sysconf("SC_CLK_TCK")
