from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.app.stand import Stand, stand_at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the test's database lies."""
    return tmp_path / "test.db"


@pytest.fixture
async def stand(path: Path) -> AsyncIterator[Stand]:
    """A stand on the machine's clock."""
    async with stand_at(path) as stand:
        yield stand
