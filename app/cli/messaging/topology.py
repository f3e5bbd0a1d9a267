"""``topology``: print the planned streams, consumers and routes, compare them with NATS, or apply them to NATS."""

from __future__ import annotations

__all__ = ["topology"]

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from app.cli import console

if TYPE_CHECKING:
    from nats.js import JetStreamContext

    from bus.jetstream.admin.topology import Topology
    from config.settings import Settings
    from modules.module import Module

T = TypeVar("T")


class _StderrHandler(logging.Handler):
    """Prints log records on stderr, so that the operator sees what the command waits for."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"fulfilment: {record.getMessage()}", err=True)


_stderr_handler = _StderrHandler()


@click.command(short_help="Show, check or apply the NATS topology.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--apply",
    "has_apply",
    is_flag=True,
    help="Create missing streams and consumers in NATS, and update those that differ.",
)
@click.option(
    "--check",
    "has_check",
    is_flag=True,
    help="Print the differences between the plan and NATS; exit with 1 if there are any.",
)
def topology(as_json: bool, has_apply: bool, has_check: bool) -> None:
    """
    Show the streams, subjects, consumers and HTTP routes of the modules that MODULES names.

    \b
      python -m app topology                    print the plan; contacts no server
      BUS=nats python -m app topology --check   compare the plan with NATS
      BUS=nats python -m app topology --apply   create and update streams and consumers

    --check and --apply connect to NATS_URL. While a cluster elects its leader, they retry for half a minute. --apply
    deletes nothing. A setting that NATS cannot change in place is printed and stays as it is.

    Exit codes: 0 done, or no differences; 1 there are differences, or NATS refused a change; 2 wrong usage or
    configuration; 3 NATS is out of reach.
    """
    from app.bootstrap import build_modules
    from app.messaging.consumers import planned_topology

    if has_apply + has_check + as_json > 1:
        raise click.UsageError("--json, --apply and --check exclude each other")
    settings = console.settings()
    modules = build_modules(settings)
    planned = planned_topology(modules)
    if has_apply:
        _apply(settings, planned)
    elif has_check:
        _check(settings, planned)
    elif as_json:
        console.print_json(_plan_json(modules, planned, settings))
    else:
        click.echo("\n\n".join(_tables(_plan_json(modules, planned, settings))))


def _check(settings: Settings, planned: Topology) -> None:
    from bus.jetstream.admin.provisioning import diff

    lines = _with_jetstream(
        settings,
        lambda js: diff(js, planned, replicas=settings.nats_replicas, ack_wait_seconds=settings.nats_ack_wait_s),
    )
    click.echo("\n".join(lines) or "as planned")
    if lines:
        sys.exit(console.FAILED)


def _apply(settings: Settings, planned: Topology) -> None:
    from bus.jetstream.admin.provisioning import apply

    changes = _with_jetstream(
        settings,
        lambda js: apply(js, planned, replicas=settings.nats_replicas, ack_wait_seconds=settings.nats_ack_wait_s),
    )
    for change in changes:
        click.echo(f"fulfilment: {change.line}" if change.is_refused else change.line, err=change.is_refused)
    if any(change.is_refused for change in changes):
        sys.exit(console.FAILED)
    if not changes:
        click.echo("nothing to do: everything is as planned")


def _with_jetstream(settings: Settings, work: Callable[[JetStreamContext], Awaitable[T]]) -> T:
    """Run *work* with a JetStream connection; end the process with one line if NATS is out of reach or refuses."""
    from nats.errors import Error

    from app.messaging.nats_session import BrokerOutOfReach, jetstream
    from bus.jetstream.admin.provisioning import UNAVAILABLE_ERRORS

    for name in "bus", "stamina":
        logging.getLogger(name).addHandler(logging.NullHandler())  # the command prints the one error line itself
    logging.getLogger("bus.jetstream.admin.provisioning").addHandler(_stderr_handler)

    async def run() -> T:
        async with jetstream(settings) as js:
            return await work(js)

    try:
        return asyncio.run(run())
    except BrokerOutOfReach as error:
        console.exit_with(console.OUT_OF_REACH, str(error))
    except UNAVAILABLE_ERRORS as error:
        console.exit_with(console.OUT_OF_REACH, f"JetStream does not answer: {str(error) or type(error).__name__}")
    except Error as error:
        console.exit_with(console.FAILED, f"NATS refused the request: {error}")


def _plan_json(modules: Sequence[Module], planned: Topology, settings: Settings) -> dict[str, Any]:
    """Return the plan as JSON values; contacts no server."""
    from bus.jetstream.admin.configs import planned_config, stream_config
    from bus.port import DEDUP_SECONDS

    streams = [
        stream_config(each, replicas=settings.nats_replicas, dedup_seconds=DEDUP_SECONDS) for each in planned.streams
    ]
    consumers = [(each, planned_config(each, ack_wait_seconds=settings.nats_ack_wait_s)) for each in planned.consumers]
    return {
        "streams": [
            {
                "name": stream.name,
                "subjects": stream.subjects,
                "retention": str(stream.retention.value) if stream.retention else None,
                "discard": str(stream.discard.value) if stream.discard else None,
                "max_age_seconds": stream.max_age,
                "duplicate_window_seconds": stream.duplicate_window,
                "replicas": stream.num_replicas,
            }
            for stream in streams
        ],
        "subjects": list(_subjects(modules, planned)),
        "consumers": [
            {
                "name": each.name,
                "stream": each.stream,
                "ack_wait_seconds": config.ack_wait,
                "max_deliver": config.max_deliver,
                "max_ack_pending": config.max_ack_pending,
                "hears": list(each.subjects),
            }
            for each, config in consumers
        ],
        "routes": [
            {
                "module": module.name,
                "method": getattr(route, "method", "GET"),
                "path": route.path,
                "summary": route.summary,
            }
            for module in modules
            for route in module.routes
        ],
    }


def _subjects(modules: Sequence[Module], planned: Topology) -> Iterator[dict[str, Any]]:
    from bus.contracts.versions import subject_at
    from bus.subjects import subject_of

    for module in modules:
        older = (subject_at(dual.event, dual.from_version) for dual in module.dual_publishes)
        for subject in (*map(subject_of, module.publishes), *older):
            consumers = sorted(each.name for each in planned.consumers if subject in each.subjects)
            yield {"subject": subject, "said_by": module.name, "heard_by": consumers}


def _tables(plan: dict[str, Any]) -> Iterator[str]:
    yield console.table(
        ("stream", "subjects", "retention", "discard", "max age", "dedup", "replicas"),
        [
            (
                stream["name"],
                ", ".join(stream["subjects"]),
                stream["retention"],
                stream["discard"],
                f"{stream['max_age_seconds'] / 3600:g} h",
                f"{stream['duplicate_window_seconds']:g} s",
                str(stream["replicas"]),
            )
            for stream in plan["streams"]
        ],
    )
    yield console.table(
        ("subject", "producer", "consumers"),
        [(each["subject"], each["said_by"], ", ".join(each["heard_by"]) or "-") for each in plan["subjects"]],
    )
    rows = []
    for each in plan["consumers"]:
        first, *others = _subject_lines(each["hears"])
        max_deliver = str(each["max_deliver"]) if each["max_deliver"] > 0 else "unlimited"
        wait = f"{each['ack_wait_seconds']:g} s"
        rows.append((each["name"], each["stream"], wait, max_deliver, str(each["max_ack_pending"]), first))
        rows += [("", "", "", "", "", other) for other in others]
    yield console.table(("consumer", "stream", "ack wait", "max deliver", "max pending", "subjects"), rows)
    yield console.table(
        ("module", "route", "", "does"),
        [(each["module"], each["method"], each["path"], each["summary"]) for each in plan["routes"]],
    )


def _subject_lines(subjects: Sequence[str]) -> list[str]:
    """Return *subjects* for the table, with all replay subjects, which mirror the others, in one line."""
    from bus.subjects import original_subject

    plain = [subject for subject in subjects if original_subject(subject) == subject]
    replayed = [original_subject(subject) for subject in subjects if original_subject(subject) != subject]
    if replayed:
        example = next(subject for subject in subjects if original_subject(subject) != subject)
        plain.append(f"{example.removesuffix(original_subject(example))}* ({len(replayed)} replays)")
    return plain
