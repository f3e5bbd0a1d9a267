"""
Measure a running server: place orders over HTTP, follow each to its end, and hold the stock against what was said.

A run brings its own products and customers, named after a fresh id, so that it can share a server with anything else
and knows its own orders again. Three things make its numbers honest: an end is dated by the server's own stamps and
not by when the generator happened to look (`report.Tally`); with a rate an order's time runs from when it was due, not
from when there was a connection for it (`placing.Placing`); and a run is only good when every accepted order has ended
and every product has given up exactly what was confirmed.
"""

from __future__ import annotations

__all__ = ["Failed", "LoadError", "Progress", "Result", "Stop", "Unreachable", "load", "run_load_test"]

from app.cli.loadtest.command import load
from app.cli.loadtest.errors import Failed, LoadError, Unreachable
from app.cli.loadtest.order_sender import Stop
from app.cli.loadtest.report import Progress, Result
from app.cli.loadtest.run import run_load_test
