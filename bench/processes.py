"""Start the processes of a system, and read how much processor time they use."""

from __future__ import annotations

__all__ = ["Program", "cpu_seconds", "environment_of"]

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

READY_SECONDS = 60.0
END_SECONDS = 20.0

_INHERITED = re.compile(r"(PATH|HOME|TMPDIR|LANG|LC_.*)\Z")


def environment_of(settings: Mapping[str, str]) -> dict[str, str]:
    """Return *settings* plus the basic system variables; nothing else of this process is inherited."""
    return {name: value for name, value in os.environ.items() if _INHERITED.match(name)} | dict(settings)


class Program:
    """
    One process that runs in *folder* and writes its output to a file there, as a service does.

    It is ready once a line of its output contains *ready*, a regular expression; `found` is the first group of the match.
    """

    def __init__(self, name: str, command: Sequence[str | Path], folder: Path, ready: str, settings: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.found = ""
        self._ready = re.compile(ready)
        self._output = folder / f"{name}.log"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                list(command), cwd=folder, env=environment_of(settings), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        """
        Return once it is ready.

        Raises:
            RuntimeError: It has ended, or it is not ready within `READY_SECONDS`.
        """
        until = time.monotonic() + READY_SECONDS
        while not (match := self._ready.search(text := self._output.read_text(errors="replace"))):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.name} is not ready:\n{text[-3000:]}")
            time.sleep(0.02)
        self.found = match[1] if match.groups() else ""

    def wait(self) -> None:
        """
        Return once it has ended.

        Raises:
            RuntimeError: It has failed.
        """
        if self._process.wait(READY_SECONDS):
            raise RuntimeError(f"{self.name} has failed:\n{self._output.read_text(errors='replace')[-3000:]}")

    def end(self) -> None:
        """Terminate it, and kill it if that takes too long. Idempotent."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def cpu_seconds(pids: Sequence[int]) -> float:
    """
    Return the processor time that the processes *pids* and their descendants have used, those that have ended included.

    Source: proc(5), fields 14 to 17 of ``/proc/<pid>/stat``.
    """
    return sum(map(_ticks, pids)) / float(os.sysconf("SC_CLK_TCK"))


def _ticks(pid: int) -> int:
    try:
        ticks = sum(int(each) for each in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15])
    except OSError:  # it has just ended, and its time counts as its parent's
        return 0
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            ticks += sum(_ticks(int(child)) for child in children.read_text().split())
    return ticks
