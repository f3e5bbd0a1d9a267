"""``analytics sql``: print the events and the projections as SQL for RisingWave."""

from __future__ import annotations

__all__ = ["sql"]

from pathlib import Path

import click

from app.cli import console
from app.cli.analytics.extra import require_extra


@click.command(short_help="Print events and projections as SQL for RisingWave.")
@click.option("--output", default=None, help="Folder for sources.sql, events.sql and projections.sql, instead of stdout.")
def sql(output: str | None) -> None:
    """
    Print the tables of the events and the projections as SQL for RisingWave, where one machine is not enough.

    \b
      python -m app analytics sql
      python -m app analytics sql --output deploy/analytics/sql

    Made from the schemas of the events and the files of the projections; needs no database. A projection whose SQL is not
    translated is named on stderr and in projections.sql, and left out. Needs the packages of the extra: pip install
    'fulfilment[risingwave]'.

    Exit codes: 0 done; 1 a projection was left out, or a file cannot be written; 2 wrong usage, or the packages of the extra are
    missing.
    """
    require_extra("risingwave")
    from app.analytics.errors import AnalyticsError
    from app.analytics.event_tables import event_tables
    from app.analytics.projections.declaration import load
    from app.analytics.projections.risingwave.script import script
    from app.messaging.event_registry import build_registry

    try:
        made = script(event_tables(build_registry(())), load())
        for name, text in made.parts.items():
            if output is None:
                click.echo(text)
            else:
                Path(output).mkdir(parents=True, exist_ok=True)
                (Path(output) / f"{name}.sql").write_text(text, encoding="utf-8")
    except AnalyticsError as error:
        console.exit_with(console.FAILED, str(error))
    except OSError as error:
        console.exit_with(console.FAILED, f"--output: {error}")
    if made.left_out:
        console.exit_with(console.FAILED, "; ".join(made.left_out.values()))
