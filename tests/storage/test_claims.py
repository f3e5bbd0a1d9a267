"""Who may serve the modules of a database."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.storage.databases import ModuleClaimed, build_storage
from config.settings import Settings
from modules.registry import MODULES, load_module


async def test_a_start_that_finds_a_module_claimed_claims_none(tmp_path: Path) -> None:
    """The process tries again, or another one starts; the modules that it had claimed already are free."""
    settings = Settings(known_modules=MODULES, database_url=f"sqlite:///{tmp_path}/test.db")
    one = build_storage(settings, [load_module("payments")])
    every = build_storage(settings, [load_module(name) for name in ("orders", "inventory", "payments")])
    [claim] = one.claim()
    with pytest.raises(ModuleClaimed, match="another process serves payments from this file") as caught:
        every.claim()
    others = build_storage(settings, [load_module(name) for name in ("orders", "inventory")])
    for each in others.claim():
        each.close()
    claim.close()
    claims = every.claim()
    assert len(claims) == 3
    with pytest.raises(ModuleClaimed):
        one.claim()
    for each in claims:
        each.close()
    assert caught.value.detail
    for storage in (one, every, others):
        await storage.close()
