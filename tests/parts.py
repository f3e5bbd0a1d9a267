"""Divide the parameters of a test among the parts of the suite: everyday, by day (marked slow) and at night."""

from __future__ import annotations

__all__ = ["in_parts"]

from collections import Counter
from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import pytest


def in_parts(values: Iterable[Any], everyday: int = 1, by_day: float = inf, group: Callable[[Any], Any] = lambda _: None) -> list[Any]:
    """
    Return *values* as parameters: of each *group* the first *everyday* have no mark, the rest of the first *by_day* are slow.

    All others run at night. A tuple is a row of several parameters.
    """
    seen: Counter[Any] = Counter()
    found = []
    for value in values:
        number = seen[group(value)]
        seen[group(value)] += 1
        marks = () if number < everyday else pytest.mark.slow if number < by_day else pytest.mark.night
        found.append(pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marks))
    return found
