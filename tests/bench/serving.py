"""Run ``serve`` of any tree of the program, load it, and measure; and compare the runs of two kinds in pairs."""

from __future__ import annotations

__all__ = ["Run", "Variant", "cpu_seconds", "load", "measure", "peak_mib", "run_pairs"]

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from statistics import median
from typing import Any

from attrs import frozen

from tests.process.server import Server, environment_of


@frozen
class Run:
    """What one run has measured."""

    orders_per_second: float
    accept_p99_ms: float
    complete_p99_ms: float
    cpu_ms: float
    """Processor time of ``serve`` for an order, in milliseconds."""
    ready_seconds: float
    peak_mib: float
    """The largest memory of ``serve``, in MiB."""

    def __str__(self) -> str:
        return (
            f"{self.orders_per_second:6.0f} orders/s  CPU {self.cpu_ms:.3f} ms an order  p99 {self.accept_p99_ms:.0f} ms,"
            f" confirmed {self.complete_p99_ms:.0f} ms  ready {self.ready_seconds:.2f} s  peak {self.peak_mib:.0f} MiB"
        )


@frozen
class Variant:
    """One half of a pair: a *name*, and a function that makes a run in an empty folder."""

    name: str
    run: Callable[[], Run]


def measure(
    folder: Path,
    tree: Path | None,
    orders: int,
    *,
    connections: int = 64,
    rate: float = 0,
    beside: Callable[[str], AbstractContextManager[None]] | None = None,
    **settings: str,
) -> Run:
    """
    Start the program of *tree* (None: this one) in *folder*, place *orders*, and return what was measured.

    A *rate* in orders a second places them evenly. *settings* are its environment. 500 orders before are not counted.
    *beside* takes the address of the server; what it enters is there while the orders are placed.
    """
    server = Server(folder, **{"LOG_FORMAT": "json", **({} if tree is None else {"PYTHONPATH": str(tree)}), **settings})
    try:
        server.start()
        load(server.url, 500, "--concurrency", str(connections))
        with nullcontext() if beside is None else beside(server.url):
            before = cpu_seconds([server.pid])
            found = load(server.url, orders, *(["--rate", str(rate)] if rate else ["--concurrency", str(connections)]))
            cpu_ms = (cpu_seconds([server.pid]) - before) / orders * 1e3
        memory = peak_mib(server.pid)
    finally:
        server.end()
    accept, complete = found["accept_ms"]["p99"], found["complete_ms"]["p99"]
    return Run(orders / found["seconds"], accept, complete, cpu_ms, server.ready_seconds, memory)


def load(url: str, orders: int, *options: str) -> dict[str, Any]:
    """Place *orders* at *url* with this tree's ``python -m app load``; return what it prints."""
    command = [sys.executable, "-m", "app", "load", "--url", url, "--orders", str(orders), *options]
    done = subprocess.run(command, env=environment_of({}), capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert not found["lost"], found
    assert found["confirmed"] == orders, found
    return found


def run_pairs(first: Variant, second: Variant, pairs: int) -> None:
    """Run both variants *pairs* times in turn, each as often first as second; print all runs and the ratios."""
    found: dict[str, list[Run]] = {first.name: [], second.name: []}
    for number in range(pairs):
        for variant in (first, second) if number % 2 == 0 else (second, first):
            run = variant.run()
            found[variant.name].append(run)
            print(f"pair {number + 1}  {variant.name:24} {run}", flush=True)
    print(f"{second.name} to {first.name}: median of {pairs} ratios (smallest to largest)")
    figures: Mapping[str, Callable[[Run], float]] = {
        "orders a second": lambda run: run.orders_per_second,
        "processor time an order": lambda run: run.cpu_ms,
        "p99 of POST": lambda run: run.accept_p99_ms,
        "p99 of POST to confirmed": lambda run: run.complete_p99_ms,
        "start to ready": lambda run: run.ready_seconds,
        "peak memory": lambda run: run.peak_mib,
    }
    for name, figure in figures.items():
        ratios = [figure(b) / figure(a) for a, b in zip(found[first.name], found[second.name], strict=True)]
        print(f"{name:26} {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the processor time that the processes *pids* and their children have used; see proc(5)."""
    ticks = 0
    for pid in pids:
        ticks += sum(_times(pid))
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(OSError):  # it has ended, and its time counts as its parent's
                ticks += sum(_times(int(child))[:2])
    return ticks / float(os.sysconf("SC_CLK_TCK"))


def _times(pid: int) -> list[int]:
    """Return the time in user and in kernel mode of the process, and the same of its children that have ended."""
    return [int(each) for each in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]]


def peak_mib(pid: int) -> float:
    """Return the largest memory that the process *pid* has had, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
