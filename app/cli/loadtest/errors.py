"""Why a load test failed, sorted by what the caller does next: start a server, or examine the one that is running."""

from __future__ import annotations

__all__ = ["Failed", "LoadError", "Unreachable"]

from collections.abc import Mapping
from typing import Any


class LoadError(Exception):
    """The load test did not succeed; the message is one line."""


class Unreachable(LoadError):
    """No server answered, so no order was placed."""


class Failed(LoadError):
    """
    The server ended the run with an error, or its stock does not match the confirmed orders.

    *result* is what was measured up to then, or None where no order was placed.
    """

    def __init__(self, detail: str, result: Mapping[str, Any] | None = None) -> None:
        self.result = result
        super().__init__(detail)
