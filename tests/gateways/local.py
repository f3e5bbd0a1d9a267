"""localstripe, an independent server that imitates Stripe, run as a process of its own."""

from __future__ import annotations

__all__ = ["API_KEY", "LocalStripe"]

import json
import subprocess
import sys
import urllib.parse
import urllib.request
from typing import Any

API_KEY = "sk_test_localstripe"

# The same as localstripe's own command, but on a free port, and without the file that all its processes share. Instead
# the process writes its state to a file of the test when it is terminated, and reads it at the next start.
_RUN = """
import os, pickle, socket, sys
from aiohttp import web
from localstripe import resources, server
resources.Store.dump_to_disk = lambda self: None
port, state_file = int(sys.argv[1]), sys.argv[2]
if state_file and os.path.exists(state_file):
    with open(state_file, "rb") as file:
        resources.store.update(pickle.load(file))
listening = socket.create_server(("127.0.0.1", port))
print(listening.getsockname()[1], flush=True)
web.run_app(server.app, sock=listening, print=None, access_log=None, shutdown_timeout=0.1)
if state_file:
    with open(state_file, "wb") as file:
        pickle.dump(resources.store, file)
"""


class LocalStripe:
    """A localstripe process that can be restarted at the same address; with a *state_file*, it keeps its state."""

    def __init__(self, state_file: str = "") -> None:
        self.port = 0
        self._state_file = state_file
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> LocalStripe:
        """Start the process; return once it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _RUN, str(self.port), self._state_file], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def stop(self) -> None:
        """Terminate the process and wait for its end; open connections are cut."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=20)
        self.kill()

    def kill(self) -> None:
        """Kill the process if it runs. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def request(self, path: str, **form: str) -> Any:
        """GET *path*, or POST *form* to it; return the JSON of the response, or None if the response is empty."""
        data = urllib.parse.urlencode(form).encode() if form else None
        request = urllib.request.Request(self.url + path, data, {"Authorization": f"Bearer {API_KEY}"})
        with urllib.request.urlopen(request, timeout=10) as response:
            text = response.read()
        return json.loads(text) if text else None

    def list_all(self, path: str) -> list[Any]:
        """Return all rows of the list at *path*."""
        rows: list[Any] = []
        while True:
            after = f"&starting_after={rows[-1]['id']}" if rows else ""
            page = self.request(f"{path}?limit=100{after}")
            rows += page["data"]
            if not page["has_more"]:
                return rows
