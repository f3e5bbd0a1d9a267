"""One run: the system in six processes on NATS and PostgreSQL, clients that record, faults by a seed, checks at the end."""

from __future__ import annotations

__all__ = ["Failed", "run"]

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from tests.gateways.fault import FaultyStripe
from tests.gateways.local import API_KEY
from tests.histories.checks import COUNTED_STOCK, PRICE, history_errors, money_errors
from tests.histories.clients import COUNTED, SOLD, History, Shop
from tests.histories.links.cable import Cable
from tests.histories.links.link import Link, connect_port
from tests.histories.nemesis import Nemesis
from tests.histories.schedule import BROKER, DATABASE, schedules
from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.process.client import Client
from tests.process.server import Server
from tests.process.server import run as run_command
from tests.split.invariants import check_system
from tests.split.system import MODULES, System

ACK_WAIT_SECONDS = 3
CLIENTS = 4
PARTITION_SECONDS_MAX = 8.0
SETTLE_SECONDS = 120.0


class Failed(AssertionError):
    """The history, the money or the stored events are wrong; the message has one line for each error."""


class LinkedSystem(System):
    """The system with a link between each process and each of its servers; the checks use no link."""

    def database_of(self, module: str) -> str:
        """Return the address of the database of *module* itself."""
        return self._databases[module]


async def run(
    folder: Path,
    postgres: PostgresServer,
    *,
    seed: int,
    seconds: float,
    write: Callable[[str], None] = print,
    loses_packets: bool = False,
) -> History:
    """
    Run the system for *seconds* under the faults of *seed*, wait until it is idle, and check everything.

    The seed decides the faults and how long each one lasts, and what the clients choose; how six processes are scheduled it
    does not decide. Run a seed that has failed several times. The data stays in *folder*. With *loses_packets* a partition loses
    packets on network interfaces of its own; otherwise a proxy holds the data back.

    Raises:
        Failed: A check has failed; an invariant of the final state raises AssertionError.
    """
    write(f"seed {seed}")
    rng = random.Random(seed)
    history = History()
    async with AsyncExitStack() as stack:
        broker = stack.enter_context(NatsServer(folder / "nats"))
        stripe = await FaultyStripe(webhook_secret="whsec_test").start()
        stack.push_async_callback(stripe.stop)
        system = LinkedSystem(
            folder / "system",
            broker.urls,
            replicas=2,
            databases={module: postgres.create_database() for module in MODULES},
            NATS_ACK_WAIT_S=str(ACK_WAIT_SECONDS),
            PAYMENT_GATEWAY="stripe",
            STRIPE_API_KEY=API_KEY,
            STRIPE_API_BASE=stripe.url,
            STRIPE_WEBHOOK_SECRET="whsec_test",
        )
        stack.callback(_keep_logs, system)
        stack.callback(system.end)
        commands = folder / "commands"
        commands.mkdir()
        await _command(commands, system, "migrate")
        cables = [stack.enter_context(Cable(number)) for number in range(2 * len([*system]))] if loses_packets else []
        links = {server: await _linked(server, broker, postgres, cables) for server in system}
        for each in (link for found in links.values() for link in found.values()):
            stack.push_async_callback(each.close)
        await asyncio.to_thread(system.start)
        client = Client(system)
        stack.push_async_callback(client.close)
        for product_id, count in _first_stock().items():
            await client.stock(product_id, count, PRICE)

        began = time.monotonic()
        nemesis = Nemesis(
            system,
            links,
            {BROKER: broker, DATABASE: postgres},
            schedules(
                random.Random(rng.random()),
                len(links),
                ack_wait_seconds=ACK_WAIT_SECONDS,
                partition_seconds_max=min(PARTITION_SECONDS_MAX, seconds / 2),
            ),
            lambda line: write(f"{time.monotonic() - began:8.3f} {line}"),
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(nemesis.run(began + seconds))
            for number in range(CLIENTS):
                shop = Shop(client, history, random.Random(rng.random()), f"{seed}-{number}")
                group.create_task(shop.run(began + seconds))

        reader = Shop(client, history, rng, "end")
        for product_id in (*COUNTED, *SOLD):
            await reader.read_stock(product_id)
        write(f"{history.count} operations, {len(history.accepted)} orders, {dict(history.answers)}, faults {dict(nemesis.done)}")
        if errors := history_errors(history):
            raise Failed("\n".join(errors))
        orders = await check_system(
            client, system, broker, history.accepted, _stock_of(history),
            lost_responses_max=history.unanswered_keys, seconds=SETTLE_SECONDS,
        )
        if errors := money_errors(stripe, orders):
            raise Failed("\n".join(errors))
        await _command(commands, system, "history", "verify")
    return history


def _keep_logs(system: System) -> None:
    """Write what each process has logged since its latest start into its folder."""
    for server in system:
        (server.folder / "log.jsonl").write_text("\n".join(server.lines), encoding="utf-8")


async def _linked(server: Server, broker: NatsServer, postgres: PostgresServer, cables: list[Cable]) -> Mapping[str, Link]:
    """Let *server* use links of its own to NATS and PostgreSQL, over two of *cables* if there are any; return the links."""
    socket_path = str(postgres.folder / ".s.PGSQL.5432")
    to_nats = await Link(partial(connect_port, broker.port), cable=cables.pop() if cables else None).start()
    connect = partial(asyncio.open_unix_connection, socket_path)
    to_postgres = await Link(connect, cable=cables.pop() if cables else None).start()
    database = server.settings["DATABASE_URL"].partition("?")[0].rpartition("/")[2]
    server.settings["NATS_URL"] = f"nats://{to_nats.host}:{to_nats.port}"
    server.settings["DATABASE_URL"] = f"postgresql://postgres@{to_postgres.host}:{to_postgres.port}/{database}"
    return {BROKER: to_nats, DATABASE: to_postgres}


async def _command(folder: Path, system: System, *arguments: str) -> None:
    """Run a command in one process for the databases of all modules: its start takes longer than its work."""
    databases = {f"{module.upper()}_DATABASE_URL": str(system.database_of(module)) for module in MODULES}
    done = await asyncio.to_thread(run_command, folder, *arguments, **databases)
    if done.returncode:
        raise Failed(f"{' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")


def _first_stock() -> Mapping[str, int]:
    return SOLD | dict.fromkeys(COUNTED, COUNTED_STOCK)


def _stock_of(history: History) -> Mapping[str, int]:
    """
    Return the stock that each product has had in all: the first one and what was added.

    A restock that was never answered, by a client that has repeated it, cannot be in a balance.
    """
    found = {}
    for product_id, initial in _first_stock().items():
        restocks = [each for each in history.stock[product_id] if each.name == "restock"]
        if all(each.is_known for each in restocks):
            found[product_id] = initial + sum(each.value for each in restocks)
    return found
