"""Runs of the simulation: every promise holds under the faults of each seed, and a seed decides all of its run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import in_parts
from tests.simulation.world.plan import draw_plan
from tests.simulation.world.run import run_plan

ROOT = Path(__file__).parents[2]

DELETES_A_STREAM = 348
EVERYDAY = (1, 3, 4, 5, 7, 9, 10, DELETES_A_STREAM)
"""Runs that take a second or two; 0 and 6 have 24 customers and two processes of each module."""

BY_DAY = (0, 2, 6, 8, 11, 12)
"""Those that the slow tests run, too; the others run at night."""

SEEDS = [
    pytest.param(seed, marks=() if seed in EVERYDAY else pytest.mark.slow if seed in BY_DAY else pytest.mark.night)
    for seed in (*range(24), DELETES_A_STREAM)
]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_promise_holds_under_the_faults_of_a_seed(seed: int) -> None:
    """Nothing is lost, charged twice or left over, and everything ends within its bound; ``--seed N --trace`` shows the run."""
    outcome = run_plan(draw_plan(seed))
    assert outcome.failures == (), f"python -m tests.simulation --seed {seed} --trace"


# 11 has two processes of each module.
@pytest.mark.parametrize("seed", in_parts([10, 8, 11], everyday=0, by_day=2))
def test_a_seed_has_the_same_trace_in_each_process(seed: int) -> None:
    """Byte for byte, whatever the order of sets is."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "--trace"]
    traces = [
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, check=True
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert traces[0].count(b"\n") > 20
    assert traces[0] == traces[1]
