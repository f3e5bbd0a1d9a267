"""What a process answers, or why it gives no answer."""

from __future__ import annotations

__all__ = ["ApiAnswer", "ModuleUnreachable", "ProcessAnswer"]

from collections.abc import Mapping
from typing import Any

from attrs import frozen


class ModuleUnreachable(Exception):
    """
    The process of *module* gives no answer; *reason* is half a sentence for an operator, without addresses.

    A request that changes something may have taken effect nevertheless, unless the reason is that it could not connect.
    """

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(f"{module}: {reason}")
        self.module = module
        self.reason = reason


@frozen
class ApiAnswer:
    """The answer of an endpoint."""

    status: int
    headers: Mapping[str, str]
    body: Any
    """The decoded JSON, problem documents included; None if there is none."""

    @property
    def is_success(self) -> bool:
        """The status is 2xx."""
        return 200 <= self.status < 300


@frozen
class ProcessAnswer:
    """What the process that runs *modules* has answered; None if it is out of reach, and *unreachable* gives the reason."""

    modules: tuple[str, ...]
    answer: ApiAnswer | None
    unreachable: ModuleUnreachable | None = None
