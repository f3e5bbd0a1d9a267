"""``analytics watch``: report to a URL when a rule on a projection holds, and when it no longer does."""

from __future__ import annotations

__all__ = ["watch"]

import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.cli import console
from app.cli.analytics.extra import require_extra
from config.settings import Settings

if TYPE_CHECKING:
    from app.analytics.watch.rules import Rule
    from app.analytics.watch.watcher import Watcher


@click.command(short_help="Report to a URL when a rule on a projection holds.")
@click.option(
    "--rule", "texts", multiple=True,
    help="PROJECTION.COLUMN < NUMBER [for 10m], a SELECT that answers true or false, or a name in --rules; repeatable.",
)
@click.option("--rules", "rules_file", default=None, help="TOML file with rules; without --rule all of them.")
@click.option("--url", default=None, help="Where to post, for rules without a URL of their own.")
@click.option("--every", default=30, show_default=True, type=click.IntRange(1, 86_400), help="Seconds between evaluations.")
@click.option("--once", is_flag=True, help="Evaluate once, deliver, and end: for cron.")
@click.option("--state", default=None, help="File with what is known of the rules; by default beside the DuckDB file.")
@click.option("--file", default=None, help="The DuckDB file, instead of ANALYTICS_FILE.")
def watch(
    texts: tuple[str, ...], rules_file: str | None, url: str | None, every: int, once: bool, state: str | None, file: str | None
) -> None:
    """
    Post JSON to a URL when a rule on a projection holds, and once more when it no longer does.

    \b
      python -m app analytics watch --rule "order_rate_anomaly.z < -3" --url http://127.0.0.1:9000/alerts
      python -m app analytics watch --rule "cancellations.orders > 50 for 10m" --url http://127.0.0.1:9000/alerts
      python -m app analytics watch --rules alerts.toml --url http://127.0.0.1:9000/alerts --once

    A message is sent again until its answer is 2xx, after a restart, too, and has the same id each time. What is known of the
    rules is kept, so a restart reports nothing twice. The tutorial "Count something new" shows the file with rules.

    Exit codes: 0 ended by a signal, or with --once everything is delivered; 1 the file or the state cannot be used, a rule is
    wrong, or with --once a message was not accepted; 2 wrong usage or configuration, or the packages of the extra are missing.
    """
    settings = console.settings(ANALYTICS_FILE=file)
    require_extra()
    from app.analytics.errors import AnalyticsError
    from app.analytics.watch.rules import BadRule

    try:
        rules = _rules(texts, rules_file, url)
    except BadRule as error:
        console.exit_with(console.USAGE, str(error))
    try:
        _watch(settings, rules, url, Path(state or f"{settings.analytics_file}.alerts.json"), None if once else every)
    except AnalyticsError as error:
        console.exit_with(console.FAILED, str(error))


def _rules(texts: tuple[str, ...], rules_file: str | None, url: str | None) -> list[Rule]:
    from app.analytics.watch.rules import BadRule, parse_rule, read_rules

    known = {} if rules_file is None else read_rules(Path(rules_file))
    rules = []
    for text in texts:
        rule = parse_rule(text) or known.get(text)
        if rule is None:
            names = ", ".join(known) or "none, because --rules is not given"
            raise BadRule(f"--rule: there is no rule {text!r}; known are {names}")
        rules.append(rule)
    rules = rules or list(known.values())
    if not rules:
        raise BadRule("--rule: give a rule, or a file with --rules")
    if url is not None and not url.startswith(("http://", "https://")):
        raise BadRule("--url: must begin with http:// or https://")
    if missing := [rule.name for rule in rules if rule.url is None and url is None]:
        raise BadRule(f"--url: is needed, because {missing[0]} has no url of its own")
    return rules


def _watch(settings: Settings, rules: list[Rule], url: str | None, state: Path, every: int | None) -> None:
    from app.analytics.projections.declaration import load
    from app.analytics.query import gathered
    from app.analytics.query_server import ask
    from app.analytics.watch.alerts import Alerts
    from app.analytics.watch.watcher import Watcher

    path, memory = Path(settings.analytics_file), settings.analytics_memory
    alerts = Alerts.open(state)
    try:
        watcher = Watcher(rules, load(), lambda sql, limit: gathered(ask(path, sql, limit=limit, memory=memory)), alerts, url)
        watcher.evaluate()  # a rule that is wrong ends the command at once
        if every is not None:
            _follow(watcher, every)
        elif not watcher.finish():
            console.exit_with(console.FAILED, f"{len(alerts.messages)} alert(s) not accepted; they are sent with the next call")
    finally:
        alerts.close()


def _follow(watcher: Watcher, every: int) -> None:
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    click.echo(f"watching {len(watcher.rules)} rule(s)")
    while not ended.is_set():
        watcher.step(time.monotonic())
        ended.wait(min(every, 1.0) if watcher.alerts.messages else every)
