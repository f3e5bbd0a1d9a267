"""Orders: the list with its filters, and the page of one order."""

from __future__ import annotations

__all__ = ["SCREEN", "build"]

from app.web.console.screens.orders.listing import SCREEN, build
