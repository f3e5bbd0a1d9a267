"""Run the program as a separate process, and send it signals, as an operator does."""

from __future__ import annotations

__all__ = ["READY_SECONDS", "SEPARATE_DATABASES", "Server", "environment_of", "run"]

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

READY_SECONDS = 60.0

SEPARATE_DATABASES = {
    f"{name.upper()}_DATABASE_URL": f"sqlite:///data/{name}.db" for name in ("orders", "inventory", "payments")
}
"""Settings that give each module its own SQLite file: every event then goes through outbox, bus and inbox."""

_ROOT = Path(__file__).parents[2]
_READY = re.compile(r"ready at (http://\S+)")
_INHERITED = re.compile(r"(PATH|HOME|TMPDIR|LANG|LC_.*|PYTHON.*|COVERAGE_.*|VIRTUAL_ENV)\Z")


def environment_of(settings: Mapping[str, str]) -> dict[str, str]:
    """
    Return *settings* plus the basic system variables; no other variable of the test process is inherited.

    The program is the one beside these tests, whichever tree is installed.
    """
    inherited = {name: value for name, value in os.environ.items() if _INHERITED.match(name)}
    return inherited | {"PYTHONPATH": str(_ROOT)} | dict(settings)


def run(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run one command of the program in *folder* and wait for its end."""
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=folder,
        env=environment_of(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
        check=False,
    )


class Server:
    """
    ``python -m app serve`` in *folder*, with *settings* as its environment; can be started several times.

    Every start picks a free port, and `url` is the address of the latest start. All starts share the folder and with it
    the database.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.settings = {"HTTP_PORT": "0", **settings}
        self.program: Sequence[str] = ("-m", "app")
        """What Python runs, before the arguments of the program."""
        self.url = ""
        self.ready_seconds = 0.0
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def database(self) -> Path | str:
        """The database of the server: a SQLite file or an address."""
        return self.settings.get("DATABASE_URL") or self.folder / "data" / "fulfilment.db"

    def database_of(self, module: str) -> Path | str:
        """Return the database of *module*: its own file (`SEPARATE_DATABASES`), or the one that all modules share."""
        address = self.settings.get(f"{module.upper()}_DATABASE_URL")
        return self.database if address is None else self.folder / address.removeprefix("sqlite:///")

    def url_of(self, path: str) -> str:
        """Return the URL of *path* at the latest start."""
        return self.url + path

    @property
    def pid(self) -> int:
        """The id of the latest process."""
        return self._running.pid

    @property
    def stderr(self) -> str:
        """What all starts together have written to stderr."""
        return (self.folder / "stderr.txt").read_text(encoding="utf-8")

    def start(self) -> Server:
        """Start the process and wait until it prints its address."""
        began = time.monotonic()
        self.launch()
        self.wait_until_ready()
        self.ready_seconds = time.monotonic() - began
        return self

    def wait_until_ready(self) -> None:
        """Wait until the process prints its address."""
        match = _READY.search(self.wait_for_line(lambda line: _READY.search(line) is not None))
        assert match is not None
        self.url = match[1]

    def launch(self) -> None:
        """Start the process without waiting until it is ready."""
        self.end()
        self.lines = []
        with (self.folder / "stderr.txt").open("a", encoding="utf-8") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-u", *self.program, "serve"],
                cwd=self.folder,
                env=environment_of(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self._process = process
        self._reader = threading.Thread(target=self._read, args=(process, self.lines), daemon=True)
        self._reader.start()

    def wait_for_line(self, is_wanted: Callable[[str], bool], seconds: float = READY_SECONDS) -> str:
        """Return the first stdout line of the latest start that *is_wanted*; wait for it up to *seconds*."""
        assert self._reader is not None
        seen = 0

        def is_done() -> bool:
            nonlocal seen
            while seen < len(self.lines) and not is_wanted(self.lines[seen]):
                seen += 1
            return seen < len(self.lines) or self._running.stdout is None or self._running.stdout.closed

        with self._changed:
            self._changed.wait_for(is_done, seconds)
            if seen < len(self.lines):
                return self.lines[seen]
        raise AssertionError(f"no such line in {seconds:g} s; stdout: {self.lines[-20:]}; stderr: {self.stderr}")

    def send(self, number: signal.Signals) -> None:
        """Send the signal *number* to the process."""
        self._running.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL and wait until the process has ended."""
        self._running.kill()
        self.wait()

    def wait(self, seconds: float = 30.0) -> int:
        """Wait until the process has ended; return its exit code."""
        code = self._running.wait(seconds)
        assert self._reader is not None
        self._reader.join()
        return code

    def end(self) -> None:
        """Kill the process if it is running. Idempotent."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        if self._reader is not None:
            self._reader.join()

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "the server was never started"
        return self._process

    def _read(self, process: subprocess.Popen[str], lines: list[str]) -> None:
        """Read the stdout of the process, so that its pipe never fills up."""
        assert process.stdout is not None
        for line in process.stdout:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            process.stdout.close()
            self._changed.notify_all()
