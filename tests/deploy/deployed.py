"""The modules that the files below deploy/ run: a module is registered first; its deployment is written by hand."""

from __future__ import annotations

__all__ = ["MODULES"]

MODULES = ("orders", "inventory", "payments")
