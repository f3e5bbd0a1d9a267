"""The packages that the analytics need and the rest of the program does not."""

from __future__ import annotations

__all__ = ["require_extra"]

from importlib.util import find_spec

from app.cli import console

_EXTRAS = {"analytics": ("duckdb", "pyarrow"), "risingwave": ("sqlglot",)}


def require_extra(extra: str = "analytics") -> None:
    """End the process with one line if a package of *extra* is missing."""
    missing = [name for name in _EXTRAS[extra] if find_spec(name) is None]
    if missing:
        console.exit_with(console.USAGE, f"{' and '.join(missing)}: not installed: pip install 'fulfilment[{extra}]'")
