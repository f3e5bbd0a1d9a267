"""``analytics``: write the events of all modules to a DuckDB file, and query it."""

from __future__ import annotations

__all__ = ["analytics"]

import click

from app.cli.analytics.query import query
from app.cli.analytics.report import report
from app.cli.analytics.run import run
from app.cli.analytics.sql import sql
from app.cli.analytics.watch import watch


@click.group(short_help="Write all events to a DuckDB file, and query it.")
def analytics() -> None:
    """
    Write the events of all modules to a DuckDB file, and query it.

    \b
      python -m app analytics run
      python -m app analytics query "SELECT count(*) FROM orders_created"
      python -m app analytics report --since 7d
      python -m app analytics watch --rule "order_rate_anomaly.z < -3" --url http://127.0.0.1:9000/alerts

    Needs the packages of the extra: pip install 'fulfilment[analytics]'.
    """


analytics.add_command(query)
analytics.add_command(report)
analytics.add_command(run)
analytics.add_command(sql)
analytics.add_command(watch)
