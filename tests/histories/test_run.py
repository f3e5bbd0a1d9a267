"""A short run of the real system under faults; ``python -m tests.histories`` makes long ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.histories import checks
from tests.histories.clients import History
from tests.histories.linearizability import Operation
from tests.histories.run import run
from tests.postgres import PostgresServer

SECONDS = float(os.environ.get("HISTORY_SECONDS", "2"))
SEED = 13
"""Has one kill, and one link whose answers do not come, in so short a run."""


@pytest.fixture
def running_postgres(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """The server of all tests, which the run may kill."""
    yield postgres
    postgres.start()


@pytest.mark.process
@pytest.mark.slow
async def test_the_history_of_a_short_run_is_correct(tmp_path: Path, running_postgres: PostgresServer) -> None:
    """Two replicas of each module, with kills and partitions: every promise of the API holds, and the money is right."""
    history = await run(tmp_path, running_postgres, seed=SEED, seconds=SECONDS)
    assert history.accepted


def test_each_kind_of_object_is_checked() -> None:
    """An error of a key, an order, a counter and a product that is sold is found; without one there is no error."""

    def op(name: str, reply: object, start: float = 0.0, value: object = None) -> Operation:
        return Operation(name=name, value=value, reply=reply, start=start, end=start + 1)

    history = History()
    assert checks.history_errors(history) == []
    history.keys["k"] = [op("post", ("accepted", "o-1", False), 0), op("post", ("accepted", "o-2", False), 2)]
    history.orders["o-1"] = [op("read", ("confirmed", None), 0), op("read", ("reserved", None), 2)]
    history.stock["CNT-1"] = [op("read", 9)]
    history.stock["SKU-1"] = [op("read", (41, 0, 41))]
    history.unexpected.append("GET /v1/orders/o-1: 500")
    errors = checks.history_errors(history)
    assert [error.split(":")[0] for error in errors] == [
        *("GET /v1/orders/o-1", "key k", "order o-1", "product CNT-1", "not within 40 and 40"),
    ]


def test_money_that_differs_from_the_orders_is_found() -> None:
    """Charged twice, not charged, refunded in part, and charged without an order; what was charged and refunded is right."""

    class Books:
        def captured(self) -> dict[str, list[int]]:
            return {"twice": [100, 100], "part": [100], "gone": [100], "undone": [100], "paid": [100]}

        def refunded(self) -> dict[str, list[int]]:
            return {"part": [50], "undone": [100]}

    def order(order_id: str, status: str) -> dict[str, object]:
        return {"order_id": order_id, "status": status, "items": [{"quantity": 1}], "total": None}

    orders = [order(each, "confirmed") for each in ("twice", "free", "paid")]
    orders += [order(each, "cancelled") for each in ("part", "undone", "never")]
    errors = checks.money_errors(Books(), orders)
    assert len(errors) == 4
    for wrong in ("gone", "twice", "free", "part"):
        assert any(f"{wrong}" in error for error in errors)
