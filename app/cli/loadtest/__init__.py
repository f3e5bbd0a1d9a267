"""
Load test: place orders on a running server over HTTP, follow each order to its final state, and check the stock.

A run creates its own products and customers, named after a random run id, so it can share a server with other traffic
and still recognise its own orders. Three rules make the figures comparable. The end of an order is dated by the timestamps
of the server, not by the moment at which the load test polled (`report.Tally`). With a fixed rate, the time of an order
starts when the order was due, not when a connection was free for it (`order_sender.OrderSender`). A run succeeds only
if every accepted order has reached a final state and the stock of every product has dropped by exactly the quantity of
the confirmed orders.
"""

from __future__ import annotations

__all__ = ["Failed", "LoadError", "LoadOptions", "Progress", "Result", "Stop", "Unreachable", "load", "run_load_test"]

from app.cli.loadtest.command import load
from app.cli.loadtest.errors import Failed, LoadError, Unreachable
from app.cli.loadtest.order_sender import Stop
from app.cli.loadtest.report import Progress, Result
from app.cli.loadtest.run import LoadOptions, run_load_test
