"""
What an open console costs: ``python -m tests.bench.tabs --pairs 6``.

Both halves of a pair serve the working tree with an empty SQLite file, and place the same orders. In one of them ten tabs are
open: each has loaded a page, and follows its live part as a browser does. The results are those of `tests.bench`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread

from tests.bench.serving import Run, Variant, measure, run_pairs

LIVE = ("/console/live", "/console/orders/live", "/console/trouble/live", "/console/system/live")


@contextmanager
def open_tabs(url: str, count: int) -> Iterator[None]:
    """Keep *count* pages of the console at *url* open, the screens in turn, in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.tabs", "--follow", url, "--tabs", str(count)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        for _ in range(count):  # each prints a line once it has received its first event
            assert process.stdout.readline(), "a tab could not be opened"
        yield
        assert process.poll() is None, "a tab was closed"
    finally:
        process.kill()
        process.wait()


def follow(url: str, path: str) -> None:
    """Load the page, and read its live part until the process ends."""
    with urllib.request.urlopen(url + path.removesuffix("/live")) as page:
        page.read()
    request = urllib.request.Request(url + path, headers={"Accept": "text/event-stream"})
    with urllib.request.urlopen(request) as events:
        events.readline()
        sys.stdout.write("open\n")
        sys.stdout.flush()
        while events.readline():
            pass


def main() -> None:
    """Run the pairs, print each run, and at the end the ratios."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tabs", description="Measure what an open console costs.")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--orders", type=int, default=20_000)
    parser.add_argument("--tabs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0, help="orders a second; without it, as fast as possible")
    parser.add_argument("--follow", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.follow:
        for number in range(options.tabs):
            Thread(target=follow, args=(options.follow, LIVE[number % len(LIVE)])).start()
        return

    def run(tabs: int) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            beside = partial(open_tabs, count=tabs) if tabs else None
            return measure(Path(folder), None, options.orders, rate=options.rate, beside=beside)

    run_pairs(Variant("no tab", partial(run, 0)), Variant(f"{options.tabs} tabs", partial(run, options.tabs)), options.pairs)


if __name__ == "__main__":
    main()
