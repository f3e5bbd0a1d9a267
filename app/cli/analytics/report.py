"""``analytics report``: the projections of a period as one page, or as JSON."""

from __future__ import annotations

__all__ = ["report"]

from datetime import UTC, datetime
from pathlib import Path

import click

from app.cli import console
from app.cli.analytics.extra import require_extra


@click.command(short_help="Write the projections of a period as one page.")
@click.option(
    "--since", default="7d", show_default=True, callback=console.parse_time, help=f"The begin: {console.TIME_FORMATS}."
)
@click.option("--until", default=None, callback=console.parse_time, help="The end, in the same formats; by default now.")
@click.option("--projection", "names", multiple=True, help="Only this projection; may be given several times.")
@click.option("--json", "is_json", is_flag=True, help="Write JSON, to stdout unless --output is given.")
@click.option("--output", default=None, help="File to write; - is stdout. By default report.html.")
@click.option("--file", default=None, help="The DuckDB file, instead of ANALYTICS_FILE.")
def report(
    since: datetime, until: datetime | None, names: tuple[str, ...], is_json: bool, output: str | None, file: str | None
) -> None:
    """
    Write the projections of a period as one HTML page with charts and tables, or as JSON.

    \b
      python -m app analytics report --since 7d --output report.html
      python -m app analytics report --since 2026-03-01 --until 2026-04-01 --json > march.json
      python -m app analytics report --projection funnel --json

    The page needs no network and no script. It has the windows that --since and --until touch, by the time at which each event
    happened, in UTC; minutes only for the last hours of a longer period. Works while `analytics run` writes the file, too.

    Exit codes: 0 done, also if there is no data; 1 the file cannot be used, or a projection is wrong; 2 wrong usage or
    configuration, an unknown projection, or the packages of the extra are missing.
    """
    settings = console.settings(ANALYTICS_FILE=file)
    until = until or datetime.now(UTC)
    if since >= until:
        raise click.BadParameter("must be before --until", param_hint="--since")
    require_extra()
    from app.analytics.errors import AnalyticsError
    from app.analytics.projections.declaration import UnknownProjection, find, load
    from app.analytics.query import gathered
    from app.analytics.query_server import ask
    from app.analytics.report.content import collect

    path = Path(settings.analytics_file)
    try:
        projections = load()
        chosen = [find(projections, name).name for name in dict.fromkeys(names)] or None
        collected = collect(
            lambda sql, limit: gathered(ask(path, sql, limit=limit, memory=settings.analytics_memory)),
            projections, since=since, until=until, names=chosen,
        )  # fmt: skip
    except UnknownProjection as error:
        console.exit_with(console.USAGE, f"--projection: {error}")
    except AnalyticsError as error:
        console.exit_with(console.FAILED, str(error))
    if is_json:
        import orjson

        from app.analytics.report.content import to_json

        text = orjson.dumps(to_json(collected), option=orjson.OPT_INDENT_2).decode()
    else:
        from app.analytics.report.page import page

        text = page(collected)
    _write(output or ("-" if is_json else "report.html"), text)
    if collected.is_empty:
        newest = collected.newest_at or "none"
        click.echo(f"fulfilment: no data for this period; the newest order in {path} was placed at: {newest}", err=True)


def _write(output: str, text: str) -> None:
    if output == "-":
        click.echo(text)
        return
    try:
        Path(output).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        console.exit_with(console.USAGE, f"--output: {output}: {error.strerror}")
    click.echo(f"written: {output}")
