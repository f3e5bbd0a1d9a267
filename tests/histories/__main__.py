"""
Check the history of the real system under faults: ``python -m tests.histories --seed 7 --minutes 5``.

Without ``--seed`` each run has a new one. The first line of a run names it, and a run that fails keeps its folder with the logs
of all processes. Ends with 1 if a run has failed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.histories.links.cable import Cable, CableRefused
from tests.histories.run import run
from tests.postgres import PostgresServer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.histories", description=(__doc__ or "").partition("\n\n")[0].strip())
    parser.add_argument("--seed", type=int, help="the seed of the first run; the next ones count up")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to go on, checks included")
    parser.add_argument("--run-seconds", type=float, default=60.0, help="how long the faults of one run last")
    parser.add_argument(
        "--namespaces", action="store_true",
        help="let partitions lose packets, on network interfaces that lead to namespaces of their own; needs root and iproute2",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.namespaces:
        try:
            Cable(0).__enter__().close()
        except CableRefused as error:
            parser.error(f"--namespaces: {error}")
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    until = time.monotonic() + 60 * arguments.minutes
    failed = []
    while True:
        if not one_run(seed, arguments.run_seconds, loses_packets=arguments.namespaces):
            failed.append(seed)
        seed += 1
        if time.monotonic() >= until:
            break
    print(f"failed seeds: {failed}" if failed else "every run is correct")
    return 1 if failed else 0


def one_run(seed: int, seconds: float, *, loses_packets: bool = False) -> bool:
    """Run one seed in a new folder; return whether every check holds. The folder is kept if not."""
    folder = Path(tempfile.mkdtemp(prefix="histories-"))
    folder.chmod(0o755)
    (folder / "postgres").mkdir()
    postgres = PostgresServer(folder / "postgres").start()
    try:
        asyncio.run(
            run(folder, postgres, seed=seed, seconds=seconds, write=lambda line: print(line, flush=True), loses_packets=loses_packets)
        )
    except Exception:
        traceback.print_exc()
        print(f"seed {seed} has failed; its logs are in {folder}", flush=True)
        return False
    finally:
        postgres.stop()
    shutil.rmtree(folder)
    return True


if __name__ == "__main__":
    sys.exit(main())
