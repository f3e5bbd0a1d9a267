"""
Compare deployments on SQLite and on PostgreSQL: ``python -m tests.bench.databases one-sqlite one-postgres``.

Every round runs each deployment once, in the order given, with new processes and an empty database. The result is the
median of the ratios to the first deployment within a round: the speed of a machine changes from minute to minute, and both
halves of a pair see the same minute. A deployment is one of

- ``one-sqlite``, ``one-postgres``: one process with ``BUS=memory``;
- ``split-sqlite``, ``split-postgres``: a process for each module, a database for each module, and NATS;
- ``replicas-postgres``: the same with two processes for each module.

With ``--bursts`` all deployments run at the same time, each on its own database, and get their orders in turn. A pair then is
one or two seconds long, so the ratio of the processor times varies much less than with new processes; but the deployments share
the memory and the caches of the machine.

``one-postgres=/path/to/a/tree`` runs the program of another tree. The servers keep their own defaults; in particular every
commit waits for the disk. Two ``python -m app load`` send the orders; their connections are spread over the replicas, as a
load balancer would do it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from attrs import frozen

from tests.bench.serving import cpu_seconds
from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.process.server import Server, environment_of, run
from tests.split.system import MODULES, System

SENDERS = 2
DEPLOYMENTS = ("one-sqlite", "one-postgres", "split-sqlite", "split-postgres", "replicas-postgres")


@frozen
class Deployment:
    """Processes that serve, and the processes whose processor time is measured, by their part."""

    orders_urls: Sequence[str]
    inventory_urls: Sequence[str]
    parts: Mapping[str, Sequence[int]]


@frozen
class Measurement:
    """What one run has measured."""

    orders_per_second: float
    accept_p99_ms: float
    complete_p99_ms: float
    cpu_ms: Mapping[str, float]
    """Processor time of an order, in milliseconds, by part."""


def main() -> None:
    """Run the rounds, print each run, and at the end the medians."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.databases", description="Compare deployments on SQLite and on PostgreSQL.")
    parser.add_argument("deployments", nargs="+", help=f"{', '.join(DEPLOYMENTS)}; =TREE runs another tree")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--orders", type=int, default=6_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--bursts", action="store_true", help="run all deployments at once, and send the orders to one after the other")
    options = parser.parse_args()
    names: list[str] = options.deployments
    runs = (_bursts if options.bursts else _runs)(names, options.rounds, options.orders, options.connections)
    found: dict[str, list[Measurement]] = defaultdict(list)
    for number, name, each in runs:
        found[name].append(each)
        print(f"round {number + 1}  {name:24} {_text(each)}", flush=True)
    for name in names:
        speeds = [each.orders_per_second for each in found[name]]
        cpu = [sum(each.cpu_ms.values()) for each in found[name]]
        print(f"{name:24} {median(speeds):6.0f} orders/s, {_ratios(speeds, [each.orders_per_second for each in found[names[0]]])}")
        print(f"{'':24} {median(cpu):6.3f} ms of CPU an order, {_ratios(cpu, [sum(each.cpu_ms.values()) for each in found[names[0]]])}")


def _ratios(values: Sequence[float], base: Sequence[float]) -> str:
    ratios = sorted(value / first for value, first in zip(values, base, strict=True))
    quarter = len(ratios) // 4
    return f"{median(ratios):.2f} of the first ({ratios[0]:.2f} to {ratios[-1]:.2f}, half of them {ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f})"


def _text(run: Measurement) -> str:
    cpu = " ".join(f"{part} {value:.2f}" for part, value in run.cpu_ms.items())
    return (
        f"{run.orders_per_second:6.0f} orders/s  p99 {run.accept_p99_ms:.0f} ms, confirmed {run.complete_p99_ms:.0f} ms"
        f"  CPU ms an order: {cpu}"
    )


def _runs(names: Sequence[str], rounds: int, orders: int, connections: int) -> Iterator[tuple[int, str, Measurement]]:
    """Yield the number of each round, the deployment and what was measured, with new processes for each measurement."""
    for number in range(rounds):
        for name in names:
            with _started(name, connections) as deployment:
                yield number, name, _measure(deployment, orders, connections)


def _bursts(names: Sequence[str], rounds: int, orders: int, connections: int) -> Iterator[tuple[int, str, Measurement]]:
    """Yield the same with all processes started once; every second round begins with the last deployment."""
    with ExitStack() as stack:
        deployments = {name: stack.enter_context(_started(name, connections)) for name in names}
        for number in range(rounds):
            for name in names if number % 2 == 0 else reversed(names):
                yield number, name, _measure(deployments[name], orders, connections)


@contextmanager
def _started(name: str, connections: int) -> Iterator[Deployment]:
    kind, _, tree = name.partition("=")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with _running(kind, Path(folder), tree) as deployment:
            _send(deployment, 500, connections)  # everything is loaded and prepared
            yield deployment


def _measure(deployment: Deployment, orders: int, connections: int) -> Measurement:
    before = {part: cpu_seconds(pids) for part, pids in deployment.parts.items()}
    results = _send(deployment, orders, connections)
    cpu = {part: (cpu_seconds(pids) - before[part]) / orders * 1e3 for part, pids in deployment.parts.items()}
    return Measurement(
        orders / max(each["seconds"] for each in results),
        max(each["accept_ms"]["p99"] for each in results),
        max(each["complete_ms"]["p99"] for each in results),
        cpu,
    )


def _send(deployment: Deployment, orders: int, connections: int) -> list[dict[str, Any]]:
    """Place *orders* from several processes at once; return what each of them has printed."""
    senders = [
        subprocess.Popen(
            [
                sys.executable, "-m", "app", "load", "--orders", str(orders // SENDERS),
                "--concurrency", str(connections // SENDERS),
                "--url", deployment.orders_urls[0], *[f"--replica-url={url}" for url in deployment.orders_urls[1:]],
                "--inventory-url", deployment.inventory_urls[number % len(deployment.inventory_urls)],
            ],
            env=environment_of({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for number in range(SENDERS)
    ]  # fmt: skip
    results = [json.loads(sender.communicate()[0].splitlines()[-1]) for sender in senders]
    assert not any(result["lost"] for result in results), results
    return results


@contextmanager
def _running(kind: str, folder: Path, tree: str) -> Iterator[Deployment]:
    settings = {"LOG_FORMAT": "json"} | ({"PYTHONPATH": tree} if tree else {})
    topology, _, database = kind.partition("-")
    databases: dict[str, str] = {}
    parts: dict[str, list[int]] = {}
    with ExitStack() as stack:
        if database == "postgres":
            Path(folder).chmod(0o755)
            (folder / "postgres").mkdir()
            postgres = PostgresServer(folder / "postgres", settings={}).start()
            stack.callback(postgres.stop)
            databases = {module: postgres.create_database() for module in MODULES}
            parts["postgres"] = [postgres.pid]
        if topology == "one":
            server = Server(folder, **settings)
            if databases:
                server.settings["DATABASE_URL"] = databases["orders"]
                run(folder, "migrate", **server.settings)
            stack.callback(server.end)
            server.start()
            yield Deployment([server.url], [server.url], {"serve": [server.pid], **parts})
            return
        nats = stack.enter_context(NatsServer(folder / "nats"))
        parts["nats"] = [nats.pid]
        replicas = 2 if topology == "replicas" else 1
        system = System(folder, nats.urls, replicas=replicas, databases=databases or None, **settings)
        stack.callback(system.end)
        for server in system:
            if databases:
                run(server.folder, "migrate", **server.settings)
        system.start()
        parts = {module: [server.pid for server in system.servers[module]] for module in MODULES} | parts
        urls = {module: [server.url for server in system.servers[module]] for module in MODULES}
        yield Deployment(urls["orders"], urls["inventory"], parts)


if __name__ == "__main__":
    main()
