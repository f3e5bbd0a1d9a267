"""Routes that come in one piece: what answers them, and their description."""

from __future__ import annotations

__all__ = ["Table"]

from attrs import frozen

from app.web.handler import Operation
from app.web.spec.components import Described


@frozen
class Table:
    """Operations beside those of the modules."""

    operations: tuple[Operation, ...]
    described: Described
