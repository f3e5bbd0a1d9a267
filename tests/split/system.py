"""The system with one or more processes per module, and NATS between them."""

from __future__ import annotations

__all__ = ["MODULES", "System"]

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.process.server import Server

MODULES = ("orders", "inventory", "payments")


class System:
    """
    Runs every module in *replicas* processes of its own, connected by the NATS servers at *nats_urls*.

    *databases* are the addresses of the databases by module, which replicas share. Without them each process has its own
    SQLite file, and a module has one process only. `url_of` picks a running process of the module at random, so a client
    can use the system like one server.
    """

    def __init__(
        self,
        folder: Path,
        nats_urls: Sequence[str],
        *,
        replicas: int = 1,
        databases: Mapping[str, str] | None = None,
        **settings: str,
    ) -> None:
        assert replicas == 1 or databases is not None, "replicas of a module need a shared database"
        self._databases = databases or {}
        self._rng = random.Random(0)
        self.down: set[Server] = set()
        self.servers: dict[str, list[Server]] = {}
        for module in MODULES:
            self.servers[module] = []
            for number in range(replicas):
                process_folder = folder / f"{module}-{number}"
                process_folder.mkdir(parents=True)
                server = Server(process_folder, BUS="nats", NATS_URL=",".join(nats_urls), MODULES=module, **settings)
                if databases is not None:
                    server.settings["DATABASE_URL"] = databases[module]
                self.servers[module].append(server)

    def __iter__(self) -> Iterator[Server]:
        return (server for servers in self.servers.values() for server in servers)

    def start(self) -> System:
        """Start all processes at the same time; return when every one is ready."""
        for server in self:
            server.launch()
        for server in self:
            server.wait_until_ready()
        return self

    def kill(self, server: Server) -> None:
        """Kill *server*; requests go to the other replicas until `restart`."""
        self.down.add(server)
        server.kill()

    def restart(self, server: Server) -> None:
        """Start *server* again in the same folder, with the same database."""
        server.start()
        self.down.discard(server)

    def end(self) -> None:
        """Kill all processes."""
        for server in self:
            server.end()

    def url_of(self, path: str) -> str:
        """Return the URL of *path* at a running process of its module."""
        return self._server_for(path).url + path

    def database_of(self, module: str) -> Path | str:
        """Return the database of *module*: a SQLite file or an address."""
        return self.servers[module][0].database

    @property
    def stderr(self) -> str:
        """What all processes have written to stderr."""
        return "".join(server.stderr for server in self)

    def _server_for(self, path: str) -> Server:
        name = next((module for module in MODULES if path.startswith(f"/v1/{module}")), "orders")
        up = [server for server in self.servers[name] if server not in self.down] or self.servers[name]
        return self._rng.choice(up)
