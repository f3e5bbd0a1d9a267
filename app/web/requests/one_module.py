"""The parameter ``module``: it selects a process where one address serves several processes."""

from __future__ import annotations

__all__ = ["MODULE", "require_module"]

from collections.abc import Collection

from app.web.responses.problems import ProblemError
from modules.filters import Filter
from modules.registry import MODULES

MODULE = Filter(
    "module",
    {"type": "string", "enum": list(MODULES)},
    "Only what concerns this module. A process that does not run it answers 404; a reverse proxy in front of several"
    " processes needs the parameter to choose one.",
)


def require_module(name: str | None, running: Collection[str]) -> None:
    """
    Ensure that *name* is None or one of the modules that are *running* in this process.

    Raises:
        ProblemError: 404, another process runs the module.
    """
    if name is not None and name not in running:
        raise ProblemError(404, "not_found", "This process does not run that module.")
