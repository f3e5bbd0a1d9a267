"""The history of a run: every published event once, after its cause; decided again, it leads to the states that are stored."""

from __future__ import annotations

__all__ = ["history_failures"]

from collections import Counter
from pathlib import Path

import orjson

from app.gateways.gateway_request import answer_id
from app.runtime.replay.report import Report
from app.runtime.replay.run import create_state_tables, replay
from app.runtime.replay.source import DatabaseHistory
from app.storage.archive.history_content import HistoryEvent
from app.storage.archive.history_reader import HistoryReader
from app.storage.module_store import ModuleStore
from app.storage.sql.database import Database
from bus.subjects import original_subject
from tests.simulation.disk.faults import forget, put_on_disk
from tests.simulation.world.plan import MODULES
from tests.simulation.world.process import contracts_of_all
from tests.simulation.world.scope import Scope
from tests.simulation.world.world import World

_CHANGES = ("orders.created", "orders.confirmed", "orders.cancelled")
_SENT = "SELECT event_id, subject FROM {}_outbox WHERE id = event_id OR versions IS NULL"


async def history_failures(world: World) -> None:
    """Check the histories of all modules, and note each failure in *world*."""
    by_file: dict[Path, list[str]] = {}
    for module in MODULES:
        by_file.setdefault(world.file_of(module), []).append(module)
    databases = {path: Database(f"sqlite:///{path}") for path in by_file}
    for database in databases.values():
        put_on_disk(database, Scope("checks", lambda point: None), lambda: None)
    stores = {module: ModuleStore(world.modules[module], databases[path]) for path, found in by_file.items() for module in found}
    try:
        for path, found in by_file.items():
            await _check_events(world, databases[path], {module: stores[module] for module in found})
        if world.plan.decides_again:
            _decide_again(world, databases, stores, by_file)
    finally:
        for database in databases.values():
            forget(database)


async def _check_events(world: World, database: Database, stores: dict[str, ModuleStore]) -> None:
    """Check that each event of one file is in its history once, and comes after its cause."""
    events: list[HistoryEvent] = []
    async for page in HistoryReader({name: (database, store.history) for name, store in stores.items()}).events():
        events += page
    published = {event.event_id: event for event in events}
    if len(published) != len(events):
        world.fail("I5: an event is in the history twice")
    for module in stores:
        for event_id, subject in world.read(module, _SENT.format(module)):
            if event_id not in published and ".replay." not in subject:
                world.fail(f"I6: {original_subject(subject)} was sent, and is not in the history of {module}")
    seen: set[str] = set()
    for event in events:
        if event.cause_id in published and event.cause_id not in seen:
            world.fail(f"the history has {event.subject} of {world.label(event.key)} before its cause")
        seen.add(event.event_id)
    if "orders" in stores:
        found = Counter((event.key, event.subject.rsplit(".v", 1)[0]) for event in events)
        shown = Counter(
            (order_id, entry["event"])
            for order_id, timeline in world.read("orders", "SELECT order_id, timeline FROM orders_order")
            for entry in orjson.loads(timeline)
        )
        for change in _CHANGES:
            differ = {key: n for key, n in found.items() if key[1] == change} != {key: n for key, n in shown.items() if key[1] == change}
            if differ:
                world.fail(f"I5: the history and the timelines of the orders differ in {change}")


def _decide_again(
    world: World, databases: dict[Path, Database], stores: dict[str, ModuleStore], by_file: dict[Path, list[str]]
) -> None:
    """Decide the histories again; what follows and the states at the end must be the same."""
    modules = [world.modules[module] for module in MODULES]
    target = Database(f"sqlite:///{world.folder / 'again.db'}")
    create_state_tables(target.engine, modules)
    histories = [DatabaseHistory(databases[path], {module: stores[module] for module in found}) for path, found in by_file.items()]
    report = Report(5)
    replay(modules, stores, histories, target, contracts_of_all(), report, answer_id)
    target.engine.dispose()
    if not report.is_equal:
        world.fail(f"the history leads to other states: {report.differences} {report.ends} {report.other_states} {report.stopped}")
