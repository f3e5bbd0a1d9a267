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

# What its own command does, on a port of its choosing; and what it knows stays in memory, not in a file for everybody.
_RUN = """
import socket, sys
from aiohttp import web
from localstripe import resources, server
resources.Store.dump_to_disk = lambda self: None
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print(listening.getsockname()[1], flush=True)
web.run_app(server.app, sock=listening, print=None, access_log=None)
"""


class LocalStripe:
    """Start it, kill it, start it again at the same address (then it has forgotten everything)."""

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> LocalStripe:
        """Start it; return once it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _RUN, str(self.port)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

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
