"""Errors of module descriptors."""

from __future__ import annotations

__all__ = ["ModuleError"]


class ModuleError(Exception):
    """A module is incomplete or contradicts itself; the text is one line that begins with the module's name."""
