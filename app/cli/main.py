"""
The command line: ``python -m app COMMAND``, or ``fulfilment COMMAND`` once the package is installed.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 a dependency out of reach at start.
"""

from __future__ import annotations

__all__ = ["main"]

import gc
import sys
from pkgutil import resolve_name
from typing import Any

import click

from app import installed_version
from app.cli import console
from config.environment import describe
from config.files import BadSetting
from config.settings import Settings
from modules.errors import ModuleError
from modules.registry import MODULES

GARBAGE_MIN = 50_000
"""
Allocations between two runs of the garbage collector.

Processing messages, requests and rows of the history leaves no reference cycles to collect. With the default of 700 a
third of the processor time of ``history verify`` is spent on looking for them.
"""


def _variables() -> str:
    lines = [f"  {variable.name:<24} {variable.help} [{variable.default or 'none'}]" for variable in describe(MODULES)]
    return "\b\nEnvironment:\n" + "\n".join(lines)


_IMPORTED_LATE = {
    "analytics": "app.cli.analytics:analytics",
    "audit": "app.cli.records.audit:audit",
    "contracts": "app.cli.messaging.contracts:contracts",
    "dead-letters": "app.cli.messaging.dead_letters:dead_letters",
    "history": "app.cli.records.history:history",
    "load": "app.cli.loadtest:load",
    "new": "app.cli.new:new",
    "orders": "app.cli.orders:orders",
    "payments": "app.cli.payments:payments",
    "republish": "app.cli.messaging.republish:republish",
    "topology": "app.cli.messaging.topology:topology",
}
"""The commands of other files by their names: a command starts without the imports of the others."""


class _Commands(click.Group):
    """
    Has the commands of this file, and imports those of other files when they are used.

    Ends the process with one line if a module is incomplete, whichever command finds that out.
    """

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), *_IMPORTED_LATE])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _IMPORTED_LATE:
            return super().get_command(context, name)
        found: click.Command = resolve_name(_IMPORTED_LATE[name])
        return found

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ModuleError as error:
            console.exit_with(console.USAGE, f"module {error}")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """
    An order-fulfilment backend: takes orders, reserves stock, charges payments.

    \b
      python -m app serve                then open http://127.0.0.1:8080/docs
      python -m app load --orders 1000   measure it, in a second terminal
      python -m app COMMAND --help       what a command does, its options, examples

    `fulfilment COMMAND` is the same program once the package is installed. Use it in a folder that has an app/ folder or
    a config.py of its own, which `python -m app` would import instead.

    Everything is configured with environment variables; `python -m app serve --help` lists them.

    Exit codes of every command: 0 done; 1 failed; 2 wrong usage or configuration; 3 the database, NATS, the payment
    provider or the server is out of reach.
    """
    gc.set_threshold(GARBAGE_MIN, 50, 100)


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"fulfilment {installed_version()}")
        context.exit()


main.params.append(
    click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_print_version,
        help="Print the version and exit.",
    )
)


@main.command(epilog=_variables(), short_help="Run the modules and their HTTP API.")
@click.option("--host", default=None, help="Address to listen on, instead of HTTP_HOST.")
@click.option("--port", default=None, help="Port to listen on, instead of HTTP_PORT.")
def serve(host: str | None, port: str | None) -> None:
    """
    Run the modules and their HTTP API until SIGTERM or SIGINT.

    \b
      python -m app serve                     all modules, SQLite in data/, port 8080
      python -m app serve --port 0            a free port, which the command prints
      BUS=nats MODULES=orders python -m app serve
                                              one module; the others run elsewhere

    Prints one line with the address and the process id when it is ready. Creates and migrates a SQLite database itself;
    run `migrate` first for a PostgreSQL database. The first signal lets it finish its work, for at most
    SHUTDOWN_DELAY_S and SHUTDOWN_GRACE_S seconds, and exit with 0; a second signal ends it at once (exit code 143 for
    SIGTERM, 130 for SIGINT).

    Exit codes: 0 ended by a signal; 1 failed; 2 wrong configuration; 3 the database is out of reach, not migrated or
    newer than this release, or the port is taken.
    """
    settings = console.settings(HTTP_HOST=host, HTTP_PORT=port)
    _set_up_logs(settings)
    from app.application import CannotListen
    from app.cli.serve import StartFailed, serve  # imported late: an invalid setting is reported in half the time

    application = console.application(settings)
    try:
        sys.exit(console.run_database_step(lambda: serve(application)))
    except CannotListen as error:
        console.exit_with(console.OUT_OF_REACH, str(error))
    except StartFailed as error:
        console.exit_with(console.FAILED, str(error))


@main.command(short_help="Migrate the database tables to this release.")
def migrate() -> None:
    """
    Migrate the database tables to what this release expects.

    \b
      DATABASE_URL=postgresql://user@host/db python -m app migrate

    Migrates the databases of all modules that MODULES names, and does nothing when they are up to date. Several processes
    may run it at the same time. Run it before you start a new release on PostgreSQL; `serve` migrates SQLite itself.

    Exit codes: 0 the tables are up to date; 2 wrong configuration; 3 a database is out of reach or newer than this
    release.
    """
    behind = console.run_database_step(console.parts(console.settings()).storage.migrate)
    click.echo(f"migrated: {', '.join(behind)}" if behind else "nothing to do: every table is up to date")


@main.command(short_help="Ask a running server whether it is healthy.")
@click.option(
    "--live", is_flag=True, help="Only check that the process answers (/livez); for the HEALTHCHECK of a container."
)
@click.option("--url", default=None, help="Address of the server; by default from HTTP_HOST and HTTP_PORT.")
def check(live: bool, url: str | None) -> None:
    """
    Ask a running server whether it is healthy: GET /health, or /livez with --live.

    \b
      python -m app check
      python -m app check --live --url http://127.0.0.1:8081

    Prints the JSON that the server answers.

    Exit codes: 0 healthy; 1 the server, its database or its bus is not; 2 wrong usage or configuration; 3 no server
    answers.
    """
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    from app.cli.http_client import base_url

    settings = console.settings()
    url = base_url(settings) if url is None else url
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter("must begin with http:// or https://", param_hint="--url")
    try:
        with urlopen(f"{url.rstrip('/')}{'/livez' if live else '/health'}", timeout=5) as response:  # noqa: S310
            click.echo(response.read().decode())
    except HTTPError as error:
        click.echo(error.read().decode(errors="replace"))
        sys.exit(console.FAILED)
    except (URLError, OSError) as error:
        console.exit_with(
            console.OUT_OF_REACH,
            f"no server answers at {url} ({getattr(error, 'reason', error)}): start it or correct --url",
        )


@main.command(short_help="Print the OpenAPI document of the HTTP API.")
def openapi() -> None:
    """
    Print the description of the HTTP API: OpenAPI 3.1, as JSON.

    Covers the modules that MODULES names; needs no running server. The same document is at /openapi.json.

    \b
      python -m app openapi > openapi.json
    """
    from app.bootstrap import build_modules, described_routes
    from app.web.spec import openapi as description

    modules = build_modules(console.settings())
    console.print_json(description.document(modules, installed_version(), described_routes(modules)))


@main.command(short_help="Print the AsyncAPI document of the events.")
def asyncapi() -> None:
    """
    Print the description of the events: AsyncAPI 3.0.0, as JSON.

    Covers the modules that MODULES names; needs no running server. The same document is at /asyncapi.json.

    \b
      python -m app asyncapi > asyncapi.json
    """
    from app.bootstrap import build_modules
    from app.messaging.event_registry import build_registry
    from app.web.spec import asyncapi as description
    from bus.errors import ContractError

    settings = console.settings()
    modules = build_modules(settings)
    try:
        document = description.document(modules, build_registry(modules, settings.retired_versions), installed_version())
    except ContractError as error:
        console.exit_with(console.USAGE, f"contract: {error}")
    except BadSetting as error:
        console.exit_with(console.USAGE, str(error))
    console.print_json(document)


@main.command(short_help="Print the version.")
def version() -> None:
    """Print the name and the version of the installed release."""
    click.echo(f"fulfilment {installed_version()}")


def _set_up_logs(settings: Settings, stream: Any = None) -> None:
    from app.telemetry import logs

    stream = sys.stdout if stream is None else stream
    try:
        logs.setup(settings.log_level, settings.log_format_on(stream), settings.log_file, stream, settings.secrets())
    except OSError as error:
        console.exit_with(console.USAGE, f"LOG_FILE: {error.strerror}")
