"""Real NATS servers for tests: one node or a cluster of three, which can be stopped, killed, paused and restarted."""

from __future__ import annotations

__all__ = ["NatsCluster", "NatsServer"]

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.signals import pause_process

_START_SECONDS = 60.0


class NatsServer:
    """
    One nats-server with JetStream; it stores messages under *directory*, and they survive every restart.

    *config* is added to its configuration: accounts, TLS, limits. *cluster* is the text of a cluster block. The server
    chooses a free port at its first start and keeps it. May be used as a context manager.

    *accounts* are for `account_urls`: so that many tests can use the server one after the other, each as if it were new.
    """

    def __init__(self, directory: Path, *, name: str = "n1", config: str = "", cluster: str = "", accounts: int = 0) -> None:
        self.directory = directory
        self.name = name
        self.port = 0
        self.monitor_port = 0
        self.config = config + _accounts_block(accounts)
        self._accounts = iter(range(accounts))
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def urls(self) -> tuple[str, ...]:
        return (self.url,)

    def account_urls(self) -> tuple[str, ...]:
        """Return the address with the user of an account that no test has used: nothing that is sent elsewhere gets there."""
        return _as_user(self.urls, next(self._accounts))

    @property
    def pid(self) -> int:
        assert self._process is not None, "it is not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Return what the server has written to its log so far."""
        return (self.directory / "log").read_text(errors="replace")

    def start(self, *, wait: bool = True) -> Self:
        """Start; if *wait*, return once clients are served."""
        assert not self.is_running, "it is running already"
        self.directory.mkdir(parents=True, exist_ok=True)
        for left in self.directory.glob("*.ports"):
            left.unlink()
        path = self.directory / "server.conf"
        path.write_text(
            f'server_name: "{self.name}"\n'
            f'host: "127.0.0.1"\nport: {self.port or -1}\nhttp: "127.0.0.1:{self.monitor_port or -1}"\n'
            f'ports_file_dir: "{self.directory}"\n'
            f'jetstream {{ store_dir: "{self.directory}" }}\n'
            f"{self._cluster}\n{self.config}\n"
        )
        with (self.directory / "log").open("ab") as log:
            program = Path(sys.executable).with_name("nats-server")
            self._process = subprocess.Popen([program, "-c", path], stdout=log, stderr=log)
        if wait:
            self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        """Return once clients are served and, in a cluster, a leader is elected that can create streams."""
        until = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            assert self.is_running, f"nats-server has ended:\n{self.log()[-2000:]}"
            assert time.monotonic() < until, f"nats-server is not ready:\n{self.log()[-2000:]}"
            time.sleep(0.01)

    def ask(self, path: str) -> Any:
        """Return the answer of the monitoring endpoint at *path*, such as ``/jsz?streams=true``."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor_port}{path}", timeout=10) as answer:
            return json.load(answer)

    def stop(self) -> None:
        """Terminate it, and wait until it has ended."""
        self._signal(signal.SIGTERM)
        self._wait()

    def kill(self) -> None:
        """Kill it, as a crash would."""
        self._signal(signal.SIGKILL)
        self._wait()

    def pause(self) -> None:
        """Make it hang: its connections stay open, and from the return on it does not answer."""
        pause_process(self.pid)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Start it again with the same port and messages; stop it first if it runs."""
        if self.is_running:
            self.stop()
        self.start()

    def close(self) -> None:
        """Kill it, even if it is paused."""
        if self.is_running:
            self.resume()
            self.kill()

    def __enter__(self) -> Self:
        return self if self.is_running else self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _is_ready(self) -> bool:
        try:
            if not self.port or not self.monitor_port:
                ports = json.loads((self.directory / f"nats-server_{self.pid}.ports").read_text())
                self.port, self.monitor_port = (int(ports[key][0].rpartition(":")[2]) for key in ("nats", "monitoring"))
            if self.ask("/healthz")["status"] != "ok":
                return False
            return not self._cluster or bool(self.ask("/jsz")["meta_cluster"].get("leader"))
        except (OSError, ValueError, KeyError, IndexError):
            return False

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def _wait(self) -> None:
        assert self._process is not None
        self._process.wait(_START_SECONDS)


class NatsCluster:
    """A cluster of three nodes, so that a stream can have three replicas; *accounts* are as those of `NatsServer`."""

    def __init__(self, directory: Path, *, nodes: int = 3, config: str = "", accounts: int = 0) -> None:
        ports = _free_ports(nodes)
        self._accounts = iter(range(accounts))
        routes = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in ports)
        self.nodes = [
            NatsServer(
                directory / f"n{number}",
                name=f"n{number}",
                config=config,
                accounts=accounts,
                cluster=f'cluster {{ name: "test", listen: "127.0.0.1:{port}", routes: [{routes}] }}',
            )
            for number, port in enumerate(ports, 1)
        ]

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(node.url for node in self.nodes)

    def account_urls(self) -> tuple[str, ...]:
        """Return the addresses of all nodes with the user of an account that no test has used."""
        return _as_user(self.urls, next(self._accounts))

    def node(self, name: str) -> NatsServer:
        """Return the node whose server name is *name*."""
        return next(node for node in self.nodes if node.name == name)

    def start(self) -> Self:
        for node in self.nodes:
            node.start(wait=False)
        for node in self.nodes:
            node.wait_until_ready()
        return self

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _accounts_block(count: int) -> str:
    """Return the configuration of *count* accounts with JetStream and one user each."""
    if not count:
        return ""
    accounts = (f"A{n} {{ jetstream: enabled, users: [{{ user: u{n}, password: p }}] }}" for n in range(count))
    return f"\naccounts {{ {', '.join(accounts)} }}"


def _as_user(urls: tuple[str, ...], account: int) -> tuple[str, ...]:
    return tuple(url.replace("://", f"://u{account}:p@") for url in urls)


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now; all are held at once, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
