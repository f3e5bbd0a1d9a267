"""One process from start to stop: what start needs, what it raises, and what it leaves behind when it raises."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import attrs
import pytest
from sqlalchemy import create_engine

from app import bootstrap
from app.application import Application, CannotListen
from app.cli.serve import StartFailed, _serve
from app.messaging.dead_letters import DeadLetterStore
from app.messaging.event_registry import all_modules, build_registry
from app.storage.clock_watch import ClockWatch
from app.storage.databases import DatabaseUnreachable, ModuleClaimed, Storage
from app.storage.errors import StorageUnavailable
from app.storage.migrations import NewerDatabase, NotMigrated
from config.settings import Settings
from modules.errors import ModuleError
from modules.registry import MODULES, load_module
from tests.postgres import PostgresServer

WORKERS = load_module("payments").workers


def settings(folder: Path, **more: Any) -> Settings:
    given: dict[str, Any] = {"database_url": f"sqlite:///{folder}/test.db", "http_port": 0, "shutdown_grace_s": 0.5}
    return Settings(known_modules=MODULES, **given | more)


async def test_start_needs_nothing_before_it(tmp_path: Path) -> None:
    """An empty folder is enough: the file is created, migrated and claimed, and the API answers."""
    application = Application(settings(tmp_path))
    address = await application.start()
    assert application.phase == "ready"
    with await asyncio.to_thread(urlopen, f"{address}/health") as answer:
        assert answer.status == 200
    await application.stop()
    phase: str = application.phase
    assert phase == "draining"


@pytest.mark.parametrize("step", [(ClockWatch, "start"), (DeadLetterStore, "free_keys")], ids=["clock", "dead letters"])
async def test_a_database_that_goes_out_of_reach_during_the_start_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[type, str]
) -> None:
    """As one that was out of reach before: the command ends with exit code 3."""

    async def fail(self: object) -> None:
        raise StorageUnavailable("it is gone")

    monkeypatch.setattr(*step, fail)
    with pytest.raises(DatabaseUnreachable, match="a database cannot be used"):
        await Application(settings(tmp_path)).start()


async def test_a_second_process_waits_for_the_first_and_takes_over(tmp_path: Path) -> None:
    """A restart may overlap; whatever stopped has given its claim up."""
    first, second = Application(settings(tmp_path)), Application(settings(tmp_path, shutdown_grace_s=20))
    await first.start()
    starting = asyncio.create_task(second.start())
    await asyncio.sleep(0.3)
    assert not starting.done()
    await first.stop()
    assert await starting
    await second.stop()


async def test_a_process_that_takes_over_does_not_wait_for_a_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claims are given up before the last spans are sent, which takes seconds where the collector is away."""
    first, second = Application(settings(tmp_path)), Application(settings(tmp_path))
    await first.start()
    claims: list[Any] = []
    monkeypatch.setattr("app.telemetry.otel.stop", lambda _: claims.extend(second.parts.storage.claim()))
    await first.stop()
    assert claims
    for claim in claims:
        claim.close()
    await second.parts.storage.close()


async def test_two_processes_never_serve_one_file(tmp_path: Path) -> None:
    """The second one gives up after SHUTDOWN_GRACE_S, and names the variable."""
    first, second = Application(settings(tmp_path)), Application(settings(tmp_path))
    await first.start()
    with pytest.raises(ModuleClaimed, match="DATABASE_URL: another process serves orders from this file; end that first"):
        await second.start()
    await first.stop()


@pytest.mark.slow
async def test_one_process_with_its_own_bus_serves_a_postgresql_database(tmp_path: Path, postgres: PostgresServer) -> None:
    """With BUS=memory the modules deliver locally and no other process receives their events: a second one is refused."""
    url = postgres.create_database()
    first, second = (Application(settings(tmp_path, database_url=url)) for _ in range(2))
    first.parts.storage.migrate()
    await first.start()
    with pytest.raises(ModuleClaimed, match="DATABASE_URL: another process serves modules from this database; end that first"):
        await second.start()
    await first.stop()
    again = Application(settings(tmp_path, database_url=url))
    await again.start()
    await again.stop()


@pytest.mark.slow
async def test_processes_on_nats_share_a_postgresql_database(tmp_path: Path, postgres: PostgresServer) -> None:
    """The broker delivers between them, so none of them claims the database."""
    given = {"database_url": postgres.create_database(), "bus": "nats", "nats_url": "nats://127.0.0.1:1"}
    first, second = (Application(settings(tmp_path, **given)) for _ in range(2))
    first.parts.storage.migrate()
    await first.start()
    await second.start()
    await second.stop()
    await first.stop()


async def test_a_cancelled_start_leaves_nothing_behind(tmp_path: Path) -> None:
    """While it waits for another process it can be given up at once."""
    first, second = Application(settings(tmp_path)), Application(settings(tmp_path, shutdown_grace_s=20))
    await first.start()
    starting = asyncio.create_task(second.start())
    await asyncio.sleep(0.3)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(starting, 30)
    await first.stop()


async def test_a_start_that_raises_gives_its_claim_up(tmp_path: Path) -> None:
    """The port is taken: what had started is stopped, and the file can be served by the next one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        application = Application(settings(tmp_path, http_port=taken.getsockname()[1]))
        with pytest.raises(OSError, match="in use"):
            await application.start()
    again = Application(settings(tmp_path))
    await again.start()
    await again.stop()


async def test_a_taken_port_and_every_other_error_of_the_system_have_a_line_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what concerns the listen address is reported as such; a refused file is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=rf"^cannot listen on 127\.0\.0\.1:{port}: .*in use"):
            await _serve(Application(settings(tmp_path, http_port=port)))
    application = Application(settings(tmp_path))
    monkeypatch.setattr(application.parts.storage.__class__, "claim", refuse)
    with pytest.raises(StartFailed, match=r"^cannot start: /data/x: Permission denied$"):
        await _serve(application)


def refuse(storage: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", "/data/x")


async def test_the_loop_runs_while_a_file_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal is noticed meanwhile; a start that is cancelled ends after the migration and releases its claim."""
    started, finish = threading.Event(), threading.Event()
    require_tables = Storage.require_tables

    def slowly(storage: Storage) -> None:
        started.set()
        assert finish.wait(30)
        require_tables(storage)

    monkeypatch.setattr(Storage, "require_tables", slowly)
    starting = asyncio.create_task(Application(settings(tmp_path)).start())
    assert await asyncio.to_thread(started.wait, 30)
    starting.cancel()
    done, _ = await asyncio.wait([starting], timeout=0.1)
    assert not done
    finish.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    monkeypatch.undo()
    again = Application(settings(tmp_path))
    await again.start()
    await again.stop()


async def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    """What a newer release has written is not this one's to serve."""
    application = Application(settings(tmp_path))
    application.parts.storage.migrate()
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE orders_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(NewerDatabase, match=r"orders.*9999"):
        await application.start()


async def test_a_shared_database_is_never_migrated_by_start(tmp_path: Path, postgres: PostgresServer) -> None:
    """Several processes use it; an operator decides when its tables change. Then start finds them."""
    url = postgres.create_database()
    application = Application(settings(tmp_path, database_url=url))
    with pytest.raises(NotMigrated, match="the tables of orders are not up to date; run `python -m app migrate` first"):
        await application.start()
    application = Application(settings(tmp_path, database_url=url))
    assert application.parts.storage.migrate() == list(MODULES)
    assert await application.start()
    await application.stop()


async def test_a_missing_migration_is_an_error_and_never_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column that the code has and the database has not is named at start, before any order meets it."""
    application = Application(settings(tmp_path))
    application.parts.storage.migrate()
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE orders_order DROP COLUMN shipping_address")
    with pytest.raises(ModuleError, match=r"^orders: the table orders_order has no column shipping_address; a migration has to"):
        application.parts.storage.migrate()
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE inventory_product")
        connection.exec_driver_sql("ALTER TABLE orders_order ADD COLUMN shipping_address JSON")
    engine.dispose()
    with pytest.raises(ModuleError, match=r"^inventory: there is no table inventory_product; a migration has to create it$"):
        await application.start()


async def test_a_module_whose_migration_names_an_old_edition_is_refused_by_name(tmp_path: Path) -> None:
    """Inbox, outbox, dead letters, heartbeat and audit are checked as the states are: the runtime uses all of them."""
    application = Application(settings(tmp_path))
    application.parts.storage.migrate()
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE inventory_audit RENAME TO away")
    with pytest.raises(ModuleError, match=r"^inventory: there is no table inventory_audit; a migration has to create it$"):
        application.parts.storage.migrate()
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO inventory_audit")
        connection.exec_driver_sql("DROP TABLE payments_heartbeat")
    with pytest.raises(ModuleError, match=r"^payments: there is no table payments_heartbeat; a migration has to create it$"):
        application.parts.storage.migrate()
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE orders_outbox")
        connection.exec_driver_sql("CREATE TABLE orders_outbox (id TEXT, event_id TEXT)")
    engine.dispose()
    with pytest.raises(ModuleError, match=r"^orders: the table orders_outbox has no column subject; a migration has to"):
        await application.start()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"workers": {**WORKERS, "payments-carrier": ()}}, "payments: nothing runs the worker payments-carrier; GATEWAYS in app/"),
        ({"workers": {}}, "payments: its descriptor does not name the worker payments-gateway"),
        ({"name": "trial"}, "trial: there is no migration in app/storage/migrations/versions/trial"),
        ({"tables": dict.fromkeys([Settings], next(iter(load_module("payments").tables.values())))}, "payments: Settings and payments_"),
    ],
)
def test_what_a_module_lacks_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], sentence: str
) -> None:
    """A worker that nothing runs, a module without a migration, a class that does not fit its table."""
    modules = [load_module("orders"), load_module("inventory"), attrs.evolve(load_module("payments"), **changes)]
    monkeypatch.setattr(bootstrap, "build_modules", lambda settings: modules)
    contracts = build_registry(all_modules())
    monkeypatch.setattr(bootstrap, "build_registry", lambda modules, retired: contracts)
    with pytest.raises(ModuleError, match=sentence):
        Application(settings(tmp_path))


async def test_a_running_process_watches_what_needs_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness becomes a metric, and a condition that holds is listed; a process in order lists nothing about itself."""
    monkeypatch.setattr("app.application.ATTENTION_SECONDS", 0.1)
    monkeypatch.setattr("app.application.count_open_cases", _seven_cases)
    application = Application(settings(tmp_path))
    await application.start()
    metrics = application.parts.metrics
    async with asyncio.timeout(20):
        while not application.attention.current or metrics.ready.value != 1:  # noqa: ASYNC110 - nothing signals a step
            await asyncio.sleep(0.01)
    found = {each.name: each.what for each in application.attention.current if each.name != "DiskLow"}
    assert found == {"PaymentsToSettle": "Payments that wait for a person: 7."}
    page = metrics.render().decode()
    assert 'health_check_failed{check="database:orders"} 0.0' in page
    assert 'database_disk_free_ratio{module="payments"} 0.' in page
    await application.stop()


async def _seven_cases(service: Any) -> int:
    return 7
