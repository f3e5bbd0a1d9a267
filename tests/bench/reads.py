"""
How fast an operator's questions are answered with a full database: ``python -m tests.bench.reads --orders 1000000``.

It fills a SQLite file, starts a server on it, and asks each question often, one at a time over one connection. With ``--rate``
orders are placed meanwhile. The overview is asked when its last answer, which requests share, is too old: each is a new one.
Each line has the median, the 99th percentile and the largest time, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import cycle, islice
from pathlib import Path
from urllib.parse import urlsplit

from app.web.operations.overview.overview import SHARED_SECONDS
from tests.bench.fill import fill
from tests.process.server import Server, environment_of

LISTS = ("/v1/orders?limit=50", "/v1/orders?limit=50&status=confirmed", "/console/orders")


def main() -> None:
    """Fill a database, ask, and print the times."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.reads", description="Measure how fast questions are answered.")
    parser.add_argument("--orders", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=500, help="how often each question is asked")
    parser.add_argument("--rate", type=float, default=0, help="orders a second that are placed meanwhile")
    parser.add_argument("--file", type=Path, help="a file that tests.bench.fill has filled; it is used as it is")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = options.file.absolute() if options.file else Path(folder) / "filled.db"
        if options.file is None:
            fill(file, options.orders)
        server = Server(Path(folder), LOG_FORMAT="json", DATABASE_URL=f"sqlite:///{file}")
        try:
            server.start()
            with _orders(server.url, options.rate):
                _ask_all(server.url, options.times)
        finally:
            server.end()


def _ask_all(url: str, times: int) -> None:
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "", address.port)

    def ask(path: str) -> bytes:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, (path, response.status, body)
        return body

    ids = [order["order_id"] for order in json.loads(ask("/v1/orders?limit=100"))["items"]]
    questions = {"/v1/overview": ["/v1/overview"], "/v1/orders/{id}/explain": [f"/v1/orders/{id}/explain" for id in ids]}
    for name, paths in (questions | {path: [path] for path in LISTS}).items():
        ask(paths[0])
        found = []
        for path in islice(cycle(paths), times):
            if path == "/v1/overview":
                time.sleep(2 * SHARED_SECONDS)
            began = time.perf_counter()
            ask(path)
            found.append((time.perf_counter() - began) * 1e3)
        found.sort()
        print(f"{name:56} p50 {found[times // 2]:7.1f}  p99 {found[times * 99 // 100]:7.1f}  max {found[-1]:7.1f} ms", flush=True)


@contextmanager
def _orders(url: str, rate: float) -> Iterator[None]:
    """Place orders at *rate* a second until the end, in a process of its own."""
    if not rate:
        yield
        return
    command = [sys.executable, "-m", "app", "load", "--url", url, "--orders", str(int(rate * 3600)), "--rate", str(rate)]
    process = subprocess.Popen(command, env=environment_of({}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        assert process.poll() is None, "app load has ended before the questions"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
