"""Why a run could not be seen through, sorted by what the caller does next: bring up a server, or look into it."""

from __future__ import annotations

__all__ = ["Failed", "LoadError", "Unreachable"]

from collections.abc import Mapping
from typing import Any


class LoadError(Exception):
    """The run says nothing good about the server."""


class Unreachable(LoadError):
    """No server answered, so nothing was placed."""


class Failed(LoadError):
    """The server broke the run off, or did not keep its books; *result* is what was measured all the same."""

    def __init__(self, detail: str, result: Mapping[str, Any] | None = None) -> None:
        self.result = result
        super().__init__(detail)
