"""Run many seeds in several processes."""

from __future__ import annotations

__all__ = ["outcomes", "silence_logs"]

import logging
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from attrs import evolve
from loguru import logger

from tests.simulation.world.plan import draw_plan
from tests.simulation.world.run import Outcome, run_plan


def silence_logs() -> None:
    """Write no line of the simulated processes to the terminal."""
    logger.remove()
    logging.disable(logging.CRITICAL)


def run_seed(seed: int) -> Outcome:
    """Run *seed*; the outcome has the trace if the run has failed."""
    silence_logs()
    outcome = run_plan(draw_plan(seed))
    return outcome if outcome.failures else evolve(outcome, trace=())


def outcomes(seeds: Iterator[int], jobs: int, until: float) -> Iterator[Outcome]:
    """Run *seeds* in *jobs* processes, and yield the outcomes; begin no further one after *until*, a monotonic time."""
    with ProcessPoolExecutor(jobs, max_tasks_per_child=500) as pool:
        running: set[Future[Outcome]] = set()
        while True:
            while len(running) < 2 * jobs and time.monotonic() < until and (seed := next(seeds, None)) is not None:
                running.add(pool.submit(run_seed, seed))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()
