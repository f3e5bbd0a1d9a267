"""The JetStream adapter passes the second half of the contract suite on one real server."""

from __future__ import annotations

from tests.bus.contract import TriesContract


class TestTries(TriesContract):
    """Tries, time and closing on one node."""
