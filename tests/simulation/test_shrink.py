"""The reduction of a run that fails."""

from __future__ import annotations

from collections import Counter

from tests.simulation.shrink import kind_of, shrunk
from tests.simulation.world.plan import Plan, draw_plan
from tests.simulation.world.run import Outcome


def test_a_failure_is_reduced_to_the_customers_and_faults_that_it_needs() -> None:
    """What is left fails in the same way; other failures do not count."""
    plan = next(plan for plan in map(draw_plan, range(100)) if len(plan.customers) > 7 and len(plan.faults) > 3)
    needed, fault = plan.customers[4].name, plan.faults[1]

    def run(plan: Plan) -> Outcome:
        names = [customer.name for customer in plan.customers]
        is_failure = needed in names and fault in plan.faults
        failures = (f"I2: {needed} is charged 2 times",) if is_failure else ("I3: another failure",)
        return Outcome(plan, failures, Counter(), (), len(names))

    smallest = shrunk(run(plan), run)
    assert [customer.name for customer in smallest.plan.customers] == [needed]
    assert smallest.plan.faults == (fault,)
    assert smallest.failures == (f"I2: {needed} is charged 2 times",)


def test_failures_of_one_kind_differ_in_names_and_numbers_only() -> None:
    """So a reduced run shows the failure that was looked for."""
    assert kind_of("I2: customer 3 is charged 2 times") == kind_of("I2: customer 11 is charged 3 times")
    assert kind_of("I2: customer 3 is charged 2 times") != kind_of("I4: customer 3 is confirmed for 100")
