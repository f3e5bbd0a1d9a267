"""
Measure what a large database costs: ``python -m tests.bench.flat --orders 1000000 --pairs 5``.

Without ``--unsent`` it compares a server on a database with so many confirmed orders with one on an empty database, in
pairs. With ``--unsent`` so many accepted orders have their events unsent in the outbox when the server starts; the time
until the outbox is empty and every order is confirmed is compared with that of as many events of new orders.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
import time
import urllib.request
from functools import partial
from pathlib import Path

from tests.bench.fill import fill
from tests.bench.serving import Run, Variant, cpu_seconds, measure, peak_mib, run_pairs
from tests.process.server import Server


def main() -> None:
    """Fill a database, and run the pairs."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flat", description="Measure what a large database costs.")
    parser.add_argument("--orders", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--load", type=int, default=6_000, help="orders that each run places")
    parser.add_argument("--unsent", action="store_true", help="measure how an old outbox is published")
    parser.add_argument("--file", type=Path, help="a file that tests.bench.fill has filled; it is used as it is")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        filled = options.file.absolute() if options.file else Path(folder) / "filled.db"
        if options.file is None:
            fill(filled, options.orders, is_unsent=options.unsent)
        if options.unsent:
            for number in range(options.pairs):
                print(f"run {number + 1}  {_drain(filled, options.orders)}", flush=True)
            return
        empty = Variant("empty", partial(_run, None, options.load))
        run_pairs(empty, Variant("filled", partial(_run, filled, options.load)), options.pairs)


def _run(file: Path | None, orders: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        path = file or Path(folder) / "empty.db"
        return measure(Path(folder), None, orders, DATABASE_URL=f"sqlite:///{path}")


def _drain(file: Path, orders: int) -> str:
    """Let a server publish the outbox in a copy of *file*; return how fast that was."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "copy.db"
        shutil.copy(file, path)
        server = Server(Path(folder), LOG_FORMAT="json", DATABASE_URL=f"sqlite:///{path}")
        try:
            began = time.monotonic()
            server.start()
            at_start = peak_mib(server.pid)
            while _metric(server.url, 'orders_total{status="confirmed"}') < orders:
                time.sleep(0.2)
            seconds = time.monotonic() - began
            cpu = cpu_seconds([server.pid]) / orders * 1e3
            peak = peak_mib(server.pid)
        finally:
            server.end()
    return (
        f"{orders} orders in {seconds:.1f} s, {orders / seconds:.0f} a second, CPU {cpu:.3f} ms an order,"
        f" ready after {server.ready_seconds:.2f} s, memory {at_start:.0f} MiB then, {peak:.0f} MiB at most"
    )


def _metric(url: str, name: str) -> float:
    """Return the value of the metric *name*, with its labels; 0 while it has none."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


if __name__ == "__main__":
    main()
