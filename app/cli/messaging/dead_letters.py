"""``dead-letters``: list, group, show, replay and discard dead letters in the database, with or without a running server."""

from __future__ import annotations

__all__ = ["dead_letters"]

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import click

from app.cli import console

if TYPE_CHECKING:
    from app.messaging.dead_letters import DeadLetterStore, StoredDeadLetter

T = TypeVar("T")

PAGE = 200
GROUP_COLUMNS = ("count", "consumer", "subject", "error", "pattern", "last_seen", "example")
COLUMNS = ("id", "consumer", "subject", "error", "attempts", "replays", "last_seen")


@click.group("dead-letters", short_help="List, show, replay, discard dead letters.")
def dead_letters() -> None:
    """
    List, show, replay and discard dead letters: messages that a consumer could not process.

    \b
      python -m app dead-letters groups
      python -m app dead-letters list --consumer inventory --error failed
      python -m app dead-letters show ID
      python -m app dead-letters replay ID

    Works on the database that DATABASE_URL names, with or without a running server. A running server publishes the
    replayed messages within about a second, a stopped one after its next start.
    """


@dead_letters.command("list")
@click.option("--consumer", default=None, help="Only dead letters of this consumer, for example inventory-express.")
@click.option("--subject", default=None, help="Only dead letters with this subject, including its lane (.express).")
@click.option("--error", default=None, help="Only dead letters with this error code, for example failed.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="List at most this many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, in the format of the API.")
def list_(consumer: str | None, subject: str | None, error: str | None, limit: int, as_json: bool) -> None:
    """
    List dead letters, without archived ones (ORDERS_KEPT), which `show`, `replay` and `discard` still find by their ID.

    The options select dead letters exactly as those of `replay` do: list first what a replay would send.

    \b
      python -m app dead-letters list
      python -m app dead-letters list --consumer inventory --error failed --json

    Exit codes: 0 done, also if there are none; 2 wrong usage or configuration, or no consumer, subject or error of that
    name; 3 the database does not exist, is not migrated or is out of reach.
    """
    from app.web.endpoints.dead_letters import to_json

    async def fetch(dead_letter_store: DeadLetterStore) -> list[StoredDeadLetter]:
        found: list[StoredDeadLetter] = []
        while len(found) < limit:
            after = found[-1].dead_letter.id if found else None
            page = await dead_letter_store.list(consumer, subject, after, min(PAGE, limit - len(found)), error=error)
            found += page
            if not page:
                break
        return found

    rows = [to_json(stored) for stored in _with_dead_letter_store(fetch)]
    if not rows:
        _check_filters(consumer, subject, error)
    if as_json:
        console.print_json(rows)
    elif rows:
        click.echo(console.table(COLUMNS, [[str(row[column]) for column in COLUMNS] for row in rows]))
    else:
        click.echo("no dead letters")


@dead_letters.command(short_help="Count dead letters by their cause.")
@click.option("--consumer", default=None, help="Only dead letters of this consumer, for example inventory-express.")
@click.option("--subject", default=None, help="Only dead letters with this subject, including its lane (.express).")
@click.option("--error", default=None, help="Only dead letters with this error code, for example failed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, in the format of the API.")
def groups(consumer: str | None, subject: str | None, error: str | None, as_json: bool) -> None:
    """
    Count dead letters by their cause: one line for each consumer, subject, error and pattern of the detail.

    In the pattern, <id>, <time> and <n> stand for what differs from one dead letter to the next. `show EXAMPLE` prints one of
    them whole.

    Exit codes: 0 done, also if there are none; 2 wrong usage or configuration, or no consumer, subject or error of that name;
    3 the database does not exist, is not migrated or is out of reach.
    """
    from app.web.endpoints.dead_letters import group_to_json

    found = _with_dead_letter_store(lambda store: store.groups(consumer, subject, error))
    rows = [group_to_json(group) for group in found]
    if not rows:
        _check_filters(consumer, subject, error)
    if as_json:
        console.print_json(rows)
    elif rows:
        click.echo(console.table(GROUP_COLUMNS, [[str(row[column]) for column in GROUP_COLUMNS] for row in rows]))
    else:
        click.echo("no dead letters")


@dead_letters.command(short_help="Print one dead letter as JSON.")
@click.argument("id")
def show(id: str) -> None:
    """
    Print one dead letter as JSON, with its message and the reason for the failure.

    Exit codes: 0 done; 1 there is no such dead letter; 2 wrong usage or configuration; 3 the database is out of reach.
    """
    from app.web.endpoints.dead_letters import to_json

    stored = _with_dead_letter_store(lambda dead_letter_store: dead_letter_store.get(id))
    if stored is None:
        _fail([_unknown(id)])
        return
    console.print_json(to_json(stored))


@dead_letters.command(short_help="Publish dead letters again.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--consumer", default=None, help="Replay all dead letters of this consumer.")
@click.option(
    "--subject", default=None, help="Replay all dead letters with this subject, including its lane (.express)."
)
@click.option("--error", default=None, help="Replay all dead letters with this error code.")
@click.option(
    "--body",
    "body_file",
    type=click.File("rb"),
    help="File with the JSON body of the new message, in place of the stored one; - reads stdin. For one ID only.",
)
@click.option("--dry-run", is_flag=True, help="Print how many would be replayed, and replay none.")
def replay(
    ids: tuple[str, ...],
    consumer: str | None,
    subject: str | None,
    error: str | None,
    body_file: BinaryIO | None,
    dry_run: bool,
) -> None:
    """
    Publish dead letters again: those with the given IDs, or all that match the options.

    \b
      python -m app dead-letters replay ID ID
      python -m app dead-letters replay --consumer inventory --error failed --dry-run
      python -m app dead-letters show ID | jq .message.body > body.json
      python -m app dead-letters replay ID --body body.json

    Each dead letter becomes a new message with the old event. A consumer that has processed the event in the meantime
    recognises it and ignores it. An edited body must match the schema of the subject; the dead letter keeps both bodies.

    With DEAD_LETTER_ORDER=key, events of the same order wait behind a dead letter (error waits). They follow it by themselves.

    Exit codes: 0 done; 1 an ID is unknown, waits for another dead letter, or its consumer consumes nothing (the other dead letters
    are still replayed), or the body does not match its schema; 2 wrong usage or configuration, or no consumer, subject or error
    of that name; 3 the database does not exist, is not migrated or is out of reach.
    """
    has_filter = any(value is not None for value in (consumer, subject, error))
    if bool(ids) == has_filter:
        raise click.UsageError("give either IDs or at least one of --consumer, --subject and --error")
    if body_file is not None and len(ids) != 1:
        raise click.UsageError("--body is for one ID")
    if has_filter:
        matched, replayed = _with_dead_letter_store(
            lambda dead_letter_store: dead_letter_store.replay_many(
                consumer, subject, error, dry_run, audit=console.audited("replayDeadLetters")
            )
        )
        if not matched:
            _check_filters(consumer, subject, error)
        click.echo(f"{matched} would be replayed" if dry_run else f"{replayed} replayed")
        return

    body = None if body_file is None else body_file.read()

    async def send(dead_letter_store: DeadLetterStore) -> list[str]:
        from app.messaging.dead_letters import NotReplayable, WaitsForDeadLetter
        from bus.errors import Rejected

        failures = []
        for id in dict.fromkeys(ids):
            try:
                audit = console.audited("replayDeadLetter", id)
                if not await dead_letter_store.replay(id, dry_run, body=body, audit=audit):
                    failures.append(_unknown(id))
            except (NotReplayable, Rejected, WaitsForDeadLetter) as error:
                failures.append(f"{id} cannot be replayed: {error}")
        return failures

    failures = _with_dead_letter_store(send)
    count = len(dict.fromkeys(ids)) - len(failures)
    click.echo(f"{count} would be replayed" if dry_run else f"{count} replayed")
    _fail(failures)


@dead_letters.command(short_help="Delete dead letters permanently.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--consumer", default=None, help="Discard all dead letters of this consumer.")
@click.option(
    "--subject", default=None, help="Discard all dead letters with this subject, including its lane (.express)."
)
@click.option("--error", default=None, help="Discard all dead letters with this error code.")
@click.option("--dry-run", is_flag=True, help="Print how many would be discarded, and discard none.")
def discard(ids: tuple[str, ...], consumer: str | None, subject: str | None, error: str | None, dry_run: bool) -> None:
    """
    Delete dead letters permanently: those with the given IDs, or all that match the options.

    \b
      python -m app dead-letters discard ID ID
      python -m app dead-letters discard --consumer payments-webhooks --error wrong_id --dry-run

    Exit codes: 0 done; 1 an ID is unknown (the other dead letters are still deleted); 2 wrong usage or configuration, or no
    consumer, subject or error of that name; 3 the database does not exist, is not migrated or is out of reach.
    """
    has_filter = any(value is not None for value in (consumer, subject, error))
    if bool(ids) == has_filter:
        raise click.UsageError("give either IDs or at least one of --consumer, --subject and --error")
    if has_filter:
        matched, discarded = _with_dead_letter_store(
            lambda store: store.discard_many(consumer, subject, error, dry_run, audit=console.audited("discardDeadLetters"))
        )
        if not matched:
            _check_filters(consumer, subject, error)
        click.echo(f"{matched} would be discarded" if dry_run else f"{discarded} discarded")
        return

    async def delete(store: DeadLetterStore) -> list[str]:
        unknown = []
        for id in dict.fromkeys(ids):
            is_known = await store.get(id) if dry_run else await store.discard(id, audit=console.audited("discardDeadLetter", id))
            if not is_known:
                unknown.append(id)
        return unknown

    unknown = _with_dead_letter_store(delete)
    count = len(dict.fromkeys(ids)) - len(unknown)
    click.echo(f"{count} would be discarded" if dry_run else f"{count} discarded")
    _fail([_unknown(id) for id in unknown])


def _check_filters(consumer: str | None, subject: str | None, error: str | None) -> None:
    """End the process with one line if no dead letter can ever have one of these values, and name those it can have."""
    from app.messaging.consumers import subscriptions
    from app.messaging.dead_letters import ERRORS
    from app.messaging.event_registry import all_modules, build_registry
    from bus.subjects import EXPRESS, OUTBOX, UNROUTABLE

    modules = list(all_modules())
    contracts = build_registry(modules)
    consumers = {*subscriptions(modules, contracts), "payments-webhooks", *(module.name + suffix for module in modules for suffix in (OUTBOX, UNROUTABLE))}
    if consumer is not None and consumer not in consumers:
        console.exit_with(console.USAGE, f"--consumer: there is no consumer {consumer}; there are {', '.join(sorted(consumers))}")
    subjects = {contract.subject for contract in contracts}
    if subject is not None and subject.removesuffix(EXPRESS) not in subjects:
        console.exit_with(console.USAGE, f"--subject: there is no subject {subject}; there are {', '.join(sorted(subjects))}")
    if error is not None and error not in ERRORS:
        console.exit_with(console.USAGE, f"--error: there is no error {error}; there are {', '.join(sorted(ERRORS))}")


def _with_dead_letter_store(work: Callable[[DeadLetterStore], Awaitable[T]]) -> T:
    """Run *work* on the configured databases, then close them; end the process if they are out of reach."""
    from app.storage.errors import StorageUnavailable

    parts = console.stored_parts(console.settings())

    async def run() -> T:
        try:
            return await work(parts.dead_letters)
        finally:
            await parts.storage.close()

    try:
        return asyncio.run(run())
    except StorageUnavailable as error:
        console.exit_with(console.OUT_OF_REACH, error.detail)


def _unknown(id: str) -> str:
    return f"there is no dead letter {id}"


def _fail(lines: Sequence[str]) -> None:
    """Print *lines* on stderr and end the process with 1; do nothing without lines."""
    for line in lines:
        click.echo(f"fulfilment: {line}", err=True)
    if lines:
        sys.exit(console.FAILED)
