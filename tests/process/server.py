"""The program as a process of its own, and what an operator can do to it."""

from __future__ import annotations

__all__ = ["APART", "READY_SECONDS", "Server", "environment_of", "run"]

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

READY_SECONDS = 60.0

APART = {f"{name.upper()}_DATABASE_URL": f"sqlite:///data/{name}.db" for name in ("orders", "inventory", "payments")}
"""Settings that give each module a file of its own: then every event travels over the bus, through outbox and inbox."""

_READY = re.compile(r"ready at (http://\S+)")
_KEPT = re.compile(r"(PATH|HOME|TMPDIR|LANG|LC_.*|PYTHON(?!PATH).*|COVERAGE_.*|VIRTUAL_ENV)\Z")


def environment_of(settings: Mapping[str, str]) -> dict[str, str]:
    """Return *settings* and the bare system beside them: nothing that the tests' own shell has set comes along."""
    return {name: value for name, value in os.environ.items() if _KEPT.match(name)} | dict(settings)


def run(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run one command of the program in *folder* to its end."""
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
    ``python -m app serve`` in *folder*, with *settings* as its environment; started as often as one likes.

    Every start picks a free port, so `url` is the present one. All starts share the folder, and with it the database.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.settings = {"HTTP_PORT": "0", **settings}
        self.url = ""
        self.ready_seconds = 0.0
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def database(self) -> Path | str:
        """Where it keeps everything: a file, or an address."""
        return self.settings.get("DATABASE_URL") or self.folder / "data" / "fulfilment.db"

    def database_of(self, module: str) -> Path | str:
        """Where *module* keeps everything: in a file of its own (`APART`), or in the one that they all share."""
        address = self.settings.get(f"{module.upper()}_DATABASE_URL")
        return self.database if address is None else self.folder / address.removeprefix("sqlite:///")

    def url_of(self, path: str) -> str:
        """Where *path* is answered at present."""
        return self.url + path

    @property
    def pid(self) -> int:
        """The process that runs now, or that ran last."""
        return self._running.pid

    @property
    def stderr(self) -> str:
        """What all its starts have written to stderr."""
        return (self.folder / "stderr.txt").read_text(encoding="utf-8")

    def start(self) -> Server:
        """Start it and wait until it says where it answers."""
        began = time.monotonic()
        self.launch()
        self.wait_until_ready()
        self.ready_seconds = time.monotonic() - began
        return self

    def wait_until_ready(self) -> None:
        """Wait until it says where it answers."""
        found = _READY.search(self.wait_for_line(lambda line: _READY.search(line) is not None))
        assert found is not None
        self.url = found[1]

    def launch(self) -> None:
        """Start it and wait for nothing."""
        self.end()
        self.lines = []
        with (self.folder / "stderr.txt").open("a", encoding="utf-8") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "app", "serve"],
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
        """Return the first line on stdout that *is_wanted*, of this start, read already or yet to come."""
        assert self._reader is not None
        seen = 0

        def found() -> bool:
            nonlocal seen
            while seen < len(self.lines) and not is_wanted(self.lines[seen]):
                seen += 1
            return seen < len(self.lines) or self._running.stdout is None or self._running.stdout.closed

        with self._news:
            self._news.wait_for(found, seconds)
            if seen < len(self.lines):
                return self.lines[seen]
        raise AssertionError(f"no such line in {seconds:g} s; stdout: {self.lines[-20:]}; stderr: {self.stderr}")

    def send(self, number: signal.Signals) -> None:
        """Send it the signal *number*."""
        self._running.send_signal(number)

    def kill(self) -> None:
        """End it without a word, and wait until it is gone."""
        self._running.kill()
        self.wait()

    def wait(self, seconds: float = 30.0) -> int:
        """Wait for its end; return its exit code."""
        code = self._running.wait(seconds)
        assert self._reader is not None
        self._reader.join()
        return code

    def end(self) -> None:
        """Leave nothing of it behind. Idempotent; touches no process but its own."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        if self._reader is not None:
            self._reader.join()

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "it was never started"
        return self._process

    def _read(self, process: subprocess.Popen[str], lines: list[str]) -> None:
        """Take what it writes, so that it never waits for us."""
        assert process.stdout is not None
        for line in process.stdout:
            with self._news:
                lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            process.stdout.close()
            self._news.notify_all()
