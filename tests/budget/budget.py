"""The budget file: what one order may cost in each deployment, and how what was counted compares with it."""

from __future__ import annotations

__all__ = ["CALLS_PYTHON", "FILE", "Budget", "compare", "counted", "read", "text_of"]

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.budget.deployment import BATCHES, Counts
from tests.process.server import environment_of

FILE = Path(__file__).with_name("budget.toml")

CALLS_PYTHON = (3, 12)
"""The Python whose function calls are compared: others compile the same code to other calls. All else is compared on each."""

CALLS = ("calls", "library_calls")

LOWER_BELOW = 0.9
"""A count under this share of its budget is to be written down, so that the gain stays."""

TOLERANCES: Mapping[str, tuple[float, float]] = {
    # name: calls an order, and share of the budget
    "calls": (0.5, 0.0),  # whether the thread that writes the log waits at that moment costs a call or two in a round
    "library_calls": (1.0, 0.05),  # the same, and another version of a library has other functions inside
    "disk_bytes": (0.0, 0.1),  # ids are random: the pages that they belong to are full at different moments
    "wire_bytes": (0.0, 0.02),  # the numbers of transactions become longer; on a busy machine 1.2 % more was seen once
}
"""What may differ between two counts of the same code; whatever is not here is the same each time."""

SERVER_TOLERANCE = 0.01
"""The same for ``calls`` on a database server, whose answer may arrive in several pieces."""

_HEAD = """\
# What one order may cost, from its POST until it is confirmed, when 32 orders arrive at once and when one does.
# tests/budget/test_budget.py counts and compares. After an intended change, write the file again and commit it with the
# change:
#
#     python -m tests.budget --write
#
# calls are those of the project's own functions and those that they make; library_calls are all others. They are
# those of CPython 3.12 and compared on it alone. CONTRIBUTING.rst explains how to read a difference.
"""

Budget = dict[str, dict[int, Counts]]


def read() -> Budget:
    """Return the budget: what an order may cost, by deployment and batch."""
    tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: {int(batch): counts for batch, counts in table.items()} for name, table in tables.items()}


def text_of(budget: Budget) -> str:
    """Return the text of the budget file for *budget*."""
    tables = [
        "\n".join([f"[{name}.{batch}]", *(f"{what} = {count:g}" for what, count in _rounded(counts).items())])
        for name, batches in budget.items()
        for batch, counts in sorted(batches.items())
    ]
    return "\n\n".join([_HEAD.rstrip("\n"), *tables]) + "\n"


def counted(deployments: Sequence[str], postgres_url: str = "") -> Budget:
    """Count in a process of its own, so that nothing else that runs in this one counts."""
    command = [sys.executable, "-m", "tests.budget", "--count", *deployments, "--postgres-url", postgres_url]
    environment = environment_of({"PYTHONHASHSEED": "0"})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    return {name: {batch: found[name][str(batch)] for batch in BATCHES} for name in deployments}


def compare(name: str, batch: int, found: Mapping[str, float], budget: Mapping[str, float], *, with_calls: bool) -> list[str]:
    """Return one line for each count of deployment *name* that does not match the *budget*."""
    lines = []
    for what in sorted(found.keys() | budget.keys()):
        if what in CALLS and not with_calls:
            continue
        was, now = budget.get(what, 0.0), found.get(what, 0.0)
        more, share = TOLERANCES.get(what, (0.0, 0.0))
        if what == "calls" and "round_trips" in found:
            share = max(share, SERVER_TOLERANCE)
        where = f"{name}, batches of {batch}: {what} of an order"
        if now > was + max(more, was * share) + 0.0015:  # both are rounded
            lines.append(f"{where}: {was:g} -> {now:g}, {now - was:+g} more than the budget")
        elif now < was * LOWER_BELOW - more:
            lines.append(f"{where}: {was:g} -> {now:g}, {now - was:+g}: lower the budget")
    return lines


def _rounded(counts: Mapping[str, float]) -> dict[str, float]:
    """Return *counts* without digits that differ between two counts of the same code."""
    return {
        what: round(count) if what in ("disk_bytes", "library_calls", "wire_bytes") else round(count, 3)
        for what, count in sorted(counts.items())
    }
