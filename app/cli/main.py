"""
The commands.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 a dependency out of reach at start.
"""

from __future__ import annotations

__all__ = ["main"]

import sys
from typing import Any

import click

from app.cli import console
from config.settings import Settings, describe


def _variables() -> str:
    lines = [f"  {variable.name:<24} {variable.help} [{variable.default or 'none'}]" for variable in describe()]
    return "\b\nEnvironment:\n" + "\n".join(lines)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """
    Take orders, hold stock, take money: an order-fulfilment backend.

    \b
    Start it with `python -m app serve`, then open http://127.0.0.1:8080/docs.
    Everything is set by environment variables; `python -m app serve --help` lists them.
    """


@main.command(epilog=_variables())
def serve() -> None:
    """
    Run the modules and their HTTP API until SIGTERM or SIGINT.

    Prints one line with the address once it is ready. A SQLite database is made and migrated by itself; a PostgreSQL one
    wants `migrate` first. The first signal lets it finish what is in hand (SHUTDOWN_GRACE_S at most) and end with 0; a
    second one ends it at once.
    """
    settings = console.settings()
    _logs(settings)
    from app.cli.serve import CannotListen, serve  # not before: a bad value is refused in half the time

    application = console.application(settings)
    console.run_database_step(application.claim)
    console.run_database_step(application.require_tables)
    try:
        sys.exit(serve(application))
    except CannotListen as error:
        console.exit_with(console.OUT_OF_REACH, f"cannot listen on {settings.http_host}:{settings.http_port}: {error}")


@main.command()
def migrate() -> None:
    """Bring the database's tables to what this release expects. Harmless when they are."""
    behind = console.run_database_step(console.application(console.settings()).migrate)
    click.echo(f"migrated: {', '.join(behind)}" if behind else "nothing to do: every table is up to date")


@main.command()
@click.option("--live", is_flag=True, help="Ask only whether the process lives; for a container's HEALTHCHECK.")
@click.option("--url", default=None, help="Where the server is; by default HTTP_HOST and HTTP_PORT say.")
def check(live: bool, url: str | None) -> None:
    """
    Ask a running server whether it and what it needs are well.

    Exits with 0 when they are, 1 when not, and 3 when nobody answers.
    """
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    from app.cli.http_client import base_url

    settings = console.settings()
    url = base_url(settings) if url is None else url
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter("must begin with http:// or https://", param_hint="--url")
    try:
        with urlopen(f"{url.rstrip('/')}{'/livez' if live else '/health'}", timeout=5) as answer:  # noqa: S310
            click.echo(answer.read().decode())
    except HTTPError as error:
        click.echo(error.read().decode(errors="replace"))
        sys.exit(console.FAILED)
    except (URLError, OSError) as error:
        console.exit_with(console.OUT_OF_REACH, f"nobody answers at {url}: {getattr(error, 'reason', error)}")


@main.command()
def openapi() -> None:
    """Print the HTTP API's description (OpenAPI 3.1, JSON)."""
    from app.bootstrap import build_modules, installed_version
    from app.web.endpoints import dead_letters
    from app.web.endpoints import stripe_webhook as webhooks
    from app.web.endpoints.contracts import DESCRIPTION as CONTRACTS
    from app.web.spec import openapi as description

    modules = build_modules(console.settings())
    extra = [dead_letters.DESCRIPTION, CONTRACTS]
    if any(module.name == "payments" for module in modules):
        extra.append(webhooks.DESCRIPTION)
    document = description.document(modules, installed_version(), extra)
    console.print_json(document)


@main.command()
def asyncapi() -> None:
    """Print the events' description (AsyncAPI 3.0.0, JSON)."""
    from app.bootstrap import build_modules, installed_version
    from app.messaging.event_registry import build_registry
    from app.web.spec import asyncapi as description
    from bus.errors import ContractError

    modules = build_modules(console.settings())
    try:
        document = description.document(modules, build_registry(modules), installed_version())
    except ContractError as error:
        console.exit_with(console.USAGE, f"contract: {error}")
    console.print_json(document)


@main.command()
def version() -> None:
    """Print the version."""
    from app.bootstrap import installed_version

    click.echo(f"fulfilment {installed_version()}")


def _logs(settings: Settings, stream: Any = None) -> None:
    from app.telemetry import logs

    stream = sys.stdout if stream is None else stream
    try:
        logs.setup(settings.log_level, settings.log_format_on(stream), settings.log_file, stream, settings.secrets())
    except OSError as error:
        console.exit_with(console.USAGE, f"LOG_FILE: {error.strerror}")


def _register() -> None:
    from app.cli.contracts import contracts
    from app.cli.dead_letters import dead_letters
    from app.cli.loadtest import load as load_command
    from app.cli.reconcile import payments
    from app.cli.republish import republish
    from app.cli.topology import topology

    for command in (contracts, dead_letters, load_command, payments, republish, topology):
        main.add_command(command)


_register()
