"""Everything that waits, listens or writes."""

from __future__ import annotations

__all__ = ["installed_version"]

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("fulfilment")
    except PackageNotFoundError:
        return "0+checkout"
