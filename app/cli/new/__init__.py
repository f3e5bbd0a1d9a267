"""``new``: write the skeleton of a module, and the files that follow from the list of modules; in a source checkout only."""

from __future__ import annotations

__all__ = ["new"]

import re
import runpy
from itertools import groupby
from pathlib import Path
from string import Template

import click

from app.cli import console
from app.cli.new.attention import alert_rules, with_alerts_table, with_condition_panels
from app.cli.new.settings_table import with_settings_table
from config.environment import example_env
from modules.registry import MODULES, NAME

_ROOT = Path(__file__).resolve().parents[3]
_TEMPLATES = Path(__file__).with_name("templates")
_CHECKOUT = ("setup.cfg", "tests", "deploy/nats/write_accounts.py")
"""Found in a source checkout and in no installed distribution."""

_FILES = {
    "__init__.py": "modules/$name/__init__.py",
    "events.py": "modules/$name/events.py",
    "state.py": "modules/$name/state.py",
    "decide.py": "modules/$name/decide.py",
    "routes.py": "modules/$name/routes.py",
    "event.json": "modules/$name/schemas/$name.registered.v1.json",
    "item.json": "modules/$name/schemas/http/${Name}Item.json",
    "item_request.json": "modules/$name/schemas/http/${Name}ItemRequest.json",
    "migration.py": "app/storage/migrations/versions/$name/0001_first_tables.py",
    "test_decide.py": "tests/modules/test_${name}_decide.py",
}

_CONFIGURATION = "docs/reference/configuration.rst"
_DASHBOARD = "deploy/grafana/dashboards/fulfilment.json"
_ALERTS_PAGE = "docs/howto/deploy.rst"

_NEXT = """\
Next:
  1. Register it: add "{name}" to MODULES in modules/registry.py.
  2. Write the files that follow from that list:
     python -m app new documents && python -m app analytics sql --output deploy/analytics/sql
  3. Try it: python -m pytest tests/modules/test_{name}_decide.py && python -m app serve
  4. Replace Item by what the module is for; docs/howto/write-a-module.rst explains each file."""


@click.group(short_help="Write the skeleton of a module.")
def new() -> None:
    """Write the skeleton of a module, and the files that follow from the list of modules; in a source checkout only."""


@new.command(short_help="Write the skeleton of a module.")
@click.argument("name")
def module(name: str) -> None:
    """
    Write the skeleton of the module NAME: package, schemas, first migration and a test.

    \b
      python -m app new module shipping

    NAME has 2 to 24 of the letters a-z. Prints the files that it wrote and the next steps. It overwrites nothing.

    Exit codes: 0 written; 2 NAME is not allowed, a file exists already, or this is not a source checkout.
    """
    _require_checkout()
    if not NAME.fullmatch(name):
        raise click.BadParameter("must be 2 to 24 of the letters a-z", param_hint="NAME")
    names = {"name": name, "Name": name.capitalize(), "edition": str(_edition())}
    files = {source: _ROOT / Template(target).substitute(names) for source, target in _FILES.items()}
    for path in (_ROOT / "modules" / name, _ROOT / "modules" / f"{name}.py", *files.values()):
        if path.exists():
            console.exit_with(console.USAGE, f"{path.relative_to(_ROOT)} exists already; nothing was written")
    for source, path in files.items():
        template = Template((_TEMPLATES / f"{source}.tmpl").read_text(encoding="utf-8"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_with_sorted_imports(template.substitute(names)), encoding="utf-8")
        click.echo(f"wrote {path.relative_to(_ROOT)}")
    click.echo(_NEXT.format(name=name))


@new.command(short_help="Write the files that follow from the list of modules.")
def documents() -> None:
    """
    Write the files that follow from the list of modules and from the conditions of alerts, where they are out of date.

    \b
      config/example.env                every variable with its default
      docs/reference/configuration.rst  the table of variables
      docs/reference/catalogue.rst      every event
      deploy/nats/accounts.conf         the permissions of each module at NATS
      deploy/prometheus/alerts.yaml     the alerts, from app/telemetry/attention
      deploy/grafana/dashboards/        their panels
      docs/howto/deploy.rst             the table of alerts

    Exit codes: 0 done; 2 a module is incomplete, or this is not a source checkout.
    """
    from app.messaging.event_catalogue import page
    from app.messaging.event_registry import all_modules, build_registry

    _require_checkout()
    modules = all_modules()
    accounts = runpy.run_path(str(_ROOT / "deploy/nats/write_accounts.py"))["accounts"]()
    for path, text in {
        "config/example.env": example_env(MODULES),
        _CONFIGURATION: with_settings_table((_ROOT / _CONFIGURATION).read_text(encoding="utf-8")),
        "docs/reference/catalogue.rst": page(modules, build_registry(modules)),
        "deploy/nats/accounts.conf": accounts,
        "deploy/prometheus/alerts.yaml": alert_rules(),
        _DASHBOARD: with_condition_panels((_ROOT / _DASHBOARD).read_text(encoding="utf-8")),
        _ALERTS_PAGE: with_alerts_table((_ROOT / _ALERTS_PAGE).read_text(encoding="utf-8")),
    }.items():
        file = _ROOT / path
        if file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            click.echo(f"wrote {path}")


def _require_checkout() -> None:
    if not all((_ROOT / name).exists() for name in _CHECKOUT):
        console.exit_with(console.USAGE, "this needs a source checkout; an installed distribution is not changed")


def _edition() -> int:
    from app.storage.migrations.common import EDITIONS

    return len(EDITIONS)


def _with_sorted_imports(text: str) -> str:
    """Sort each run of lines that import from ``modules``; where the module's own lines belong depends on its name."""
    runs = groupby(text.splitlines(keepends=True), key=lambda line: bool(re.match(r"from modules\.", line)))
    return "".join(line for is_import, lines in runs for line in (sorted(lines) if is_import else lines))
