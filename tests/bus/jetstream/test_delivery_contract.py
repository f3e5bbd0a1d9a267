"""The JetStream adapter passes the first half of the contract suite on one real server."""

from __future__ import annotations

from tests.bus.contract import DeliveryContract


class TestDelivery(DeliveryContract):
    """Publishing, groups and acknowledgement on one node."""
