"""``topology``: what the broker has to hold and what HTTP answers; offline, or compared with the server, or applied to it."""

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


class _OnStderr(logging.Handler):
    """For the operator who waits: what is being waited for, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"fulfilment: {record.getMessage()}", err=True)


_on_stderr = _OnStderr()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.option("--apply", "is_to_apply", is_flag=True, help="Make NATS agree: create what is missing, change what differs.")
@click.option("--check", "is_to_check", is_flag=True, help="Say where NATS differs, and exit with 1 if it does.")
def topology(as_json: bool, is_to_apply: bool, is_to_check: bool) -> None:
    """
    Show streams, subjects, consumers and HTTP routes of the modules that MODULES names.

    Without an option it asks nobody. --check and --apply connect to NATS_URL and exit with 3 when it is out of reach; a
    cluster that chooses its leader just then is asked again for half a minute.
    Applying deletes nothing: what the server will not change in place is named, stays, and makes the exit code 1.
    """
    from app.bootstrap import build_modules
    from app.messaging.consumers import planned_topology

    if is_to_apply + is_to_check + as_json > 1:
        raise click.UsageError("--json, --apply and --check exclude each other")
    settings = console.settings()
    modules = build_modules(settings)
    planned = planned_topology(modules)
    if is_to_apply:
        _apply(settings, planned)
    elif is_to_check:
        _check(settings, planned)
    elif as_json:
        console.print_json(_shown(modules, planned, settings))
    else:
        click.echo("\n\n".join(_tables(_shown(modules, planned, settings))))


def _check(settings: Settings, planned: Topology) -> None:
    from bus.jetstream.admin.provisioning import diff

    lines = _at_nats(
        settings,
        lambda js: diff(js, planned, replicas=settings.nats_replicas, ack_wait_seconds=settings.nats_ack_wait_s),
    )
    click.echo("\n".join(lines) or "as planned")
    if lines:
        sys.exit(console.FAILED)


def _apply(settings: Settings, planned: Topology) -> None:
    from bus.jetstream.admin.provisioning import apply

    changes = _at_nats(
        settings,
        lambda js: apply(js, planned, replicas=settings.nats_replicas, ack_wait_seconds=settings.nats_ack_wait_s),
    )
    for change in changes:
        click.echo(f"fulfilment: {change.line}" if change.is_refused else change.line, err=change.is_refused)
    if any(change.is_refused for change in changes):
        sys.exit(console.FAILED)
    if not changes:
        click.echo("nothing to do: everything is as planned")


def _at_nats(settings: Settings, work: Callable[[JetStreamContext], Awaitable[T]]) -> T:
    """Do *work* at the server; end the program in one line where that is out of reach or says no."""
    from nats.errors import Error

    from app.messaging.nats_session import BrokerOutOfReach, jetstream
    from bus.jetstream.admin.provisioning import UNAVAILABLE_ERRORS

    for name in "bus", "stamina":
        logging.getLogger(name).addHandler(logging.NullHandler())  # one line says it, and that line is ours
    logging.getLogger("bus.jetstream.admin.provisioning").addHandler(_on_stderr)

    async def there() -> T:
        async with jetstream(settings) as js:
            return await work(js)

    try:
        return asyncio.run(there())
    except BrokerOutOfReach as error:
        console.exit_with(console.OUT_OF_REACH, str(error))
    except UNAVAILABLE_ERRORS as error:
        console.exit_with(console.OUT_OF_REACH, f"JetStream does not answer: {str(error) or type(error).__name__}")
    except Error as error:
        console.exit_with(console.FAILED, f"NATS says no: {error}")


def _shown(modules: Sequence[Module], planned: Topology, settings: Settings) -> dict[str, Any]:
    """Return all of it as plain data; nothing here asks a server."""
    from bus.jetstream.admin.configs import stream_config
    from bus.jetstream.admin.provisioning import planned_config
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
            {"module": module.name, "method": getattr(route, "method", "GET"), "path": route.path, "summary": route.summary}
            for module in modules
            for route in module.routes
        ],
    }


def _subjects(modules: Sequence[Module], planned: Topology) -> Iterator[dict[str, Any]]:
    from bus.contracts.versions import subject_at
    from bus.subjects import subject_of

    for module in modules:
        beside = (subject_at(migration.event, migration.from_version) for migration in module.dual_publishes)
        for subject in (*map(subject_of, module.publishes), *beside):
            heard_by = sorted(each.name for each in planned.consumers if subject in each.subjects)
            yield {"subject": subject, "said_by": module.name, "heard_by": heard_by}


def _tables(shown: dict[str, Any]) -> Iterator[str]:
    yield console.table(
        ("stream", "keeps", "retention", "discard", "max age", "dedup", "replicas"),
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
            for stream in shown["streams"]
        ],
    )
    yield console.table(
        ("subject", "said by", "heard by"),
        [(each["subject"], each["said_by"], ", ".join(each["heard_by"]) or "-") for each in shown["subjects"]],
    )
    rows = []
    for each in shown["consumers"]:
        first, *others = _heard(each["hears"])
        tries = str(each["max_deliver"]) if each["max_deliver"] > 0 else "for ever"
        wait = f"{each['ack_wait_seconds']:g} s"
        rows.append((each["name"], each["stream"], wait, tries, str(each["max_ack_pending"]), first))
        rows += [("", "", "", "", "", other) for other in others]
    yield console.table(("consumer", "stream", "ack wait", "max deliver", "pending max", "hears"), rows)
    yield console.table(
        ("module", "route", "", "does"),
        [(each["module"], each["method"], each["path"], each["summary"]) for each in shown["routes"]],
    )


def _heard(subjects: Sequence[str]) -> list[str]:
    """Return *subjects* for reading: replays, which mirror the others, on one line."""
    from bus.replay_subjects import original_subject

    plain = [subject for subject in subjects if original_subject(subject) == subject]
    replayed = [original_subject(subject) for subject in subjects if original_subject(subject) != subject]
    if replayed:
        example = next(subject for subject in subjects if original_subject(subject) != subject)
        plain.append(f"{example.removesuffix(original_subject(example))}* ({len(replayed)} replays)")
    return plain
