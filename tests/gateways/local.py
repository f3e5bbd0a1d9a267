"""localstripe, somebody else's look-alike of Stripe, as a process of its own."""

from __future__ import annotations

__all__ = ["API_KEY", "LocalStripe"]

import json
import subprocess
import sys
import urllib.parse
import urllib.request
from typing import Any

API_KEY = "sk_test_of_nobody"

# What its own command does, on a port of its choosing. What it knows stays in memory, not in a file for everybody; asked
# to end, it writes that down for the next start.
_RUN = """
import os, pickle, socket, sys
from aiohttp import web
from localstripe import resources, server
resources.Store.dump_to_disk = lambda self: None
port, kept = int(sys.argv[1]), sys.argv[2]
if kept and os.path.exists(kept):
    with open(kept, "rb") as file:
        resources.store.update(pickle.load(file))
listening = socket.create_server(("127.0.0.1", port))
print(listening.getsockname()[1], flush=True)
web.run_app(server.app, sock=listening, print=None, access_log=None, shutdown_timeout=0.1)
if kept:
    with open(kept, "wb") as file:
        pickle.dump(resources.store, file)
"""


class LocalStripe:
    """Start it, stop it, start it again at the same address; with *kept*, a file, it remembers."""

    def __init__(self, kept: str = "") -> None:
        self.port = 0
        self._kept = kept
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> LocalStripe:
        """Start it; return once it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _RUN, str(self.port), self._kept], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def stop(self) -> None:
        """Ask it to end, and wait until it has; who is connected is cut off."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=20)
        self.end()

    def end(self) -> None:
        """Leave nothing of it behind. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def ask(self, path: str, **form: str) -> Any:
        """GET *path*, or POST *form* to it; return the JSON of the answer, or None where it has none."""
        data = urllib.parse.urlencode(form).encode() if form else None
        request = urllib.request.Request(self.url + path, data, {"Authorization": f"Bearer {API_KEY}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def rows(self, path: str) -> list[Any]:
        """Return everything in the list at *path*."""
        found: list[Any] = []
        while True:
            after = f"&starting_after={found[-1]['id']}" if found else ""
            page = self.ask(f"{path}?limit=100{after}")
            found += page["data"]
            if not page["has_more"]:
                return found
