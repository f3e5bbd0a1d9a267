"""
What traces cost: ``python -m tests.bench.traces --pairs 6``.

Both halves of a pair serve the working tree with an empty SQLite file, and place the same orders. In one of them each request
begins a trace with probability ``--ratio``, and its spans are sent to a collector on this machine, which decodes nothing. The
results are those of `tests.bench`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.bench.serving import Run, Variant, measure, run_pairs


class _Taken(BaseHTTPRequestHandler):
    """Answers each POST with an empty message of protobuf: everything was taken."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def main() -> None:
    """Run the pairs, print each run, and at the end the ratios."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.traces", description="Measure what traces cost.")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--orders", type=int, default=6_000)
    parser.add_argument("--rate", type=float, default=0, help="orders a second; without it, as fast as possible")
    parser.add_argument("--ratio", type=float, default=None, help="the part of the requests that is traced; without it, the program's own")
    parser.add_argument("--collect", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.collect:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Taken)
        print(server.server_port, flush=True)
        server.serve_forever()
    collector = subprocess.Popen([sys.executable, "-m", "tests.bench.traces", "--collect"], stdout=subprocess.PIPE, text=True)
    try:
        assert collector.stdout is not None
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{int(collector.stdout.readline())}"}
        if options.ratio is not None:
            traced |= {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(options.ratio)}

        def run(settings: dict[str, Any]) -> Run:
            with tempfile.TemporaryDirectory() as folder:
                return measure(Path(folder), None, options.orders, rate=options.rate, **settings)

        run_pairs(Variant("off", partial(run, {})), Variant("traced", partial(run, traced)), options.pairs)
    finally:
        collector.kill()
        collector.wait()


if __name__ == "__main__":
    main()
