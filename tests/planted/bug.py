"""A planted bug: one small change of one file."""

from __future__ import annotations

__all__ = ["Bug"]

from attrs import frozen


@frozen
class Bug:
    """A change of one file: *before*, which occurs in it exactly once, becomes *after*."""

    name: str
    path: str
    before: str
    after: str
    tests: tuple[str, ...]
    """Files and folders of tests, beside the simulation, in which it is looked for."""
