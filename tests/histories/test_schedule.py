"""A seed decides the schedules of the faults, and nothing else does."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tests.histories.schedule import BROKER, DATABASE, Step, schedules

PROCESSES = 6
STEPS = 200


def found(seed: int, turns: Iterable[int] = (0, 1) * STEPS) -> list[list[Step]]:
    """Return the steps of both schedules of *seed*; *turns* has the numbers of the schedule that each next step is taken from."""
    both = schedules(random.Random(seed), PROCESSES, ack_wait_seconds=3, partition_seconds_max=8)
    steps: list[list[Step]] = [[], []]
    for number in turns:
        steps[number].append(next(both[number]))
    return steps


def test_two_schedules_of_one_seed_are_equal() -> None:
    """Also when the two run at other speeds than before; other seeds have other schedules."""
    first = found(7)
    assert found(7) == first
    assert found(7, [1] * STEPS + [0] * STEPS) == first
    assert found(7, random.Random(0).sample([0, 1] * STEPS, 2 * STEPS)) == first
    assert found(8) != first


def test_the_two_schedules_have_no_target_in_common() -> None:
    """Each process and each server has faults, of one schedule only."""
    for seed in range(20):
        first, second = ({step.target for step in steps} for steps in found(seed))
        assert not first & second
        assert first | second == {*range(PROCESSES), BROKER, DATABASE}


def test_every_kind_of_fault_comes() -> None:
    """Each has the values that it needs, and no time is negative or endless."""
    steps = [step for both in found(1) for step in both]
    assert {step.name for step in steps} == {"kill", "pause", "partition", "clock", "kill server"}
    for step in steps:
        assert bool(step.links) == (step.fault.name != "NONE") == (step.name == "partition")
        assert (step.target in (BROKER, DATABASE)) == (step.name == "kill server")
        assert 0 <= step.seconds <= 8
        assert 0.5 <= step.rest_seconds <= 3
    assert len({step.fault for step in steps}) == 6
    assert all(step.seconds > 3 for step in steps if step.name == "pause")
