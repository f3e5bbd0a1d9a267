"""Make the plan of a run that fails smaller, for as long as it fails in the same way."""

from __future__ import annotations

__all__ = ["shrunk"]

import re
from collections.abc import Callable, Iterator
from typing import Any

from attrs import evolve

from tests.simulation.world.plan import Plan
from tests.simulation.world.run import Outcome, run_plan

RUNS_MAX = 120
"""How many smaller plans are tried at most."""

_PARTS = ("customers", "faults", "poisons", "stock")


def kind_of(failure: str) -> str:
    """Return what *failure* has in common with those of other runs: its words without names and numbers."""
    return " ".join(re.findall(r"[A-Za-z]{2,}", re.sub(r"customer \d+|\(.*?\)|\[.*", "", failure))[:6])


def shrunk(outcome: Outcome, run: Callable[[Plan], Outcome] = run_plan) -> Outcome:
    """Return the outcome of the smallest plan found that has a failure of the same kind as the first one of *outcome*."""
    kind, tried = kind_of(outcome.failures[0]), 0
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for plan in _smaller(outcome.plan):
            if tried >= RUNS_MAX:
                return outcome
            tried += 1
            found = run(plan)
            if any(kind_of(failure) == kind for failure in found.failures):
                outcome, is_smaller = found, True
                break
    return outcome


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Yield plans that lack a part of *plan*: first all customers, faults or others, then a half of them, at last a single one."""
    for name in _PARTS:
        parts: tuple[Any, ...] = getattr(plan, name)
        length = len(parts)
        while length:
            for start in range(0, len(parts), length):
                rest = parts[:start] + parts[start + length :]
                if rest or name != "stock":
                    changes: dict[str, Any] = {name: rest}
                    yield evolve(plan, **changes)
            length //= 2
