"""The house in parts: one process per module, or several, each with its own database, and NATS between them."""

from __future__ import annotations

__all__ = ["MODULES", "System"]

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.process.server import Server

MODULES = ("orders", "inventory", "payments")


class System:
    """
    Every module as *replicas* processes of its own, speaking through *nats_urls*.

    *databases* are the addresses of databases that replicas can share, by module; without them each process keeps a
    file, and there can be only one of a module. `url_of` picks one of those that are up, at random where there are
    several, so a client may take the house for one server.
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
        assert replicas == 1 or databases is not None, "replicas of a module share its database"
        self._databases = databases or {}
        self._rng = random.Random(0)
        self.down: set[Server] = set()
        self.parts: dict[str, list[Server]] = {}
        for module in MODULES:
            self.parts[module] = []
            for number in range(replicas):
                home = folder / f"{module}-{number}"
                home.mkdir(parents=True)
                server = Server(home, BUS="nats", NATS_URL=",".join(nats_urls), MODULES=module, **settings)
                if databases is not None:
                    server.settings["DATABASE_URL"] = databases[module]
                self.parts[module].append(server)

    def __iter__(self) -> Iterator[Server]:
        return (server for servers in self.parts.values() for server in servers)

    def start(self) -> System:
        """Start all of them at once; return when each says that it is ready."""
        for server in self:
            server.launch()
        for server in self:
            server.wait_until_ready()
        return self

    def kill(self, server: Server) -> None:
        """End *server* without a word; nobody asks it until it is back."""
        self.down.add(server)
        server.kill()

    def revive(self, server: Server) -> None:
        """Start *server* again, on what it left behind."""
        server.start()
        self.down.discard(server)

    def end(self) -> None:
        """Leave nothing behind."""
        for server in self:
            server.end()

    def url_of(self, path: str) -> str:
        """Where *path* is answered at present."""
        return self._part_for(path).url + path

    def database_of(self, module: str) -> Path | str:
        """Where *module* keeps everything."""
        return self.parts[module][0].database

    @property
    def stderr(self) -> str:
        """What all of them have written to stderr."""
        return "".join(server.stderr for server in self)

    def _part_for(self, path: str) -> Server:
        found = next((module for module in MODULES if path.startswith(f"/v1/{module}")), "orders")
        up = [server for server in self.parts[found] if server not in self.down] or self.parts[found]
        return self._rng.choice(up)
