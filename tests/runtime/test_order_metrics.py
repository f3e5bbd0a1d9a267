"""What is counted about orders and payments."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from app.runtime.order_metrics import CASES_MAX, count_open_cases
from modules.filters import Condition
from modules.payments.state import Payment
from modules.registry import load_module


async def test_open_cases_are_the_payments_that_the_list_shows_as_such() -> None:
    """The condition is that of ``needs_settling=true``, which an index serves; states that it lets through wrongly do not count."""
    asked: list[Any] = []

    async def search(cls: type, conditions: Sequence[Condition], **page: Any) -> Any:
        asked.append((cls, [(each.filter.name, each.values) for each in conditions], page["limit"]))
        return [SimpleNamespace(is_open_case=True), SimpleNamespace(is_open_case=False)], None

    service: Any = SimpleNamespace(module=load_module("payments"), search=search)
    assert await count_open_cases(service) == 1
    assert asked == [(Payment, [("needs_settling", ("true",))], CASES_MAX)]
