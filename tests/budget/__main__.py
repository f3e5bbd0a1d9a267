"""
Count what an order costs, and compare it with the budget: ``python -m tests.budget``.

With ``--write`` the result becomes the budget, and the tables of docs/explanation/scale.rst follow from it. Commit both
with the change that needs it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.budget import budget
from tests.budget.deployment import DEPLOYMENTS, count_orders
from tests.budget.scale_tables import PAGE, page_with_tables
from tests.postgres import PostgresServer


def main() -> int:
    """Return 1 if a count does not match the budget."""
    parser = argparse.ArgumentParser(prog="python -m tests.budget", description="Count what an order costs.")
    parser.add_argument("--write", action="store_true", help="make what was counted the budget")
    parser.add_argument("--count", nargs="+", choices=DEPLOYMENTS, help="only print what these deployments cost, as JSON")
    parser.add_argument("--postgres-url", default="", help="an empty database for --count")
    options = parser.parse_args()
    if options.count:
        print(json.dumps(count_orders(options.count, options.postgres_url)))
        return 0
    with_calls = sys.version_info[:2] == budget.CALLS_PYTHON
    if options.write and not with_calls:
        parser.error("the budget has the calls of Python {}.{}; run it with that".format(*budget.CALLS_PYTHON))
    found = _count_all()
    if options.write:
        budget.FILE.write_text(budget.text_of(found), encoding="utf-8")
        page = page_with_tables(PAGE.read_text(encoding="utf-8"), budget.read())
        PAGE.write_text(page, encoding="utf-8")
        return 0
    written = budget.read()
    lines = []
    for name, batches in found.items():
        for batch, counts in batches.items():
            print(f"{name}, batches of {batch}")
            for what, count in counts.items():
                print(f"    {what:<16} {count:>10g}    budget {written.get(name, {}).get(batch, {}).get(what, 0):g}")
            wanted = written.get(name, {}).get(batch, {})
            lines += budget.compare(name, batch, counts, wanted, with_calls=with_calls)
    print(*lines, sep="\n")
    return 1 if lines else 0


def _count_all() -> budget.Budget:
    folder = Path(tempfile.mkdtemp(prefix="budget-"))
    folder.chmod(0o755)  # for the user of the PostgreSQL server
    server = PostgresServer(folder).start()
    try:
        return budget.counted(list(DEPLOYMENTS), server.create_database())
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
