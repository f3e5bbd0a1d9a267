"""``dead-letters``: look at what no try could deliver, send it again, throw it away; in the database, server or not."""

from __future__ import annotations

__all__ = ["dead_letters"]

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import click

from app.cli import console

if TYPE_CHECKING:
    from app.messaging.dead_letters import DeadLetterStore, StoredDeadLetter

T = TypeVar("T")

PAGE = 200
COLUMNS = ("id", "consumer", "subject", "error", "attempts", "replays", "last_seen")


@click.group("dead-letters")
def dead_letters() -> None:
    """
    Look at dead letters, send them again, throw them away.

    Works on the database that DATABASE_URL names, whether a server is running on it or not: a running one sends what is
    replayed within a second or so, any other one when it starts.
    """


@dead_letters.command("list")
@click.option("--consumer", default=None, help="Only those of this consumer, for instance inventory-express.")
@click.option("--subject", default=None, help="Only those under this subject, lane included.")
@click.option("--error", default=None, help="Only those with this error code, for instance failed.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON array, as the API shows them.")
def list_(consumer: str | None, subject: str | None, error: str | None, limit: int, as_json: bool) -> None:
    """List dead letters; narrowed as `replay` is, to look first at what it would send."""
    from app.web.endpoints.dead_letters import to_json

    async def look(dead_letter_store: DeadLetterStore) -> list[StoredDeadLetter]:
        found: list[StoredDeadLetter] = []
        while len(found) < limit:
            after = found[-1].dead_letter.id if found else None
            page = await dead_letter_store.list(consumer, subject, after, min(PAGE, limit - len(found)), error=error)
            found += page
            if not page:
                break
        return found

    letters = [to_json(kept) for kept in _at_the_dead_letter_store(look)]
    if as_json:
        console.print_json(letters)
    elif letters:
        click.echo(console.table(COLUMNS, [[str(dead_letter[column]) for column in COLUMNS] for dead_letter in letters]))
    else:
        click.echo("no dead letters")


@dead_letters.command()
@click.argument("id")
def show(id: str) -> None:
    """Show one dead letter whole, as JSON. Exits with 1 when there is no such letter."""
    from app.web.endpoints.dead_letters import to_json

    kept = _at_the_dead_letter_store(lambda dead_letter_store: dead_letter_store.get(id))
    if kept is None:
        _fail([_unknown(id)])
        return
    console.print_json(to_json(kept))


@dead_letters.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--consumer", default=None, help="All of this consumer.")
@click.option("--subject", default=None, help="All under this subject, lane included.")
@click.option("--error", default=None, help="All with this error code.")
@click.option("--dry-run", is_flag=True, help="Say how many would go, and send none.")
def replay(ids: tuple[str, ...], consumer: str | None, subject: str | None, error: str | None, dry_run: bool) -> None:
    """
    Send dead letters again: those named, or all that fit the options.

    Each goes as a new message that carries the old event, so that whoever has handled it meanwhile knows it again. Exits
    with 1 when an id is unknown or nobody hears that letter's consumer; the other letters named go all the same.
    """
    fits = any(wanted is not None for wanted in (consumer, subject, error))
    if bool(ids) == fits:
        raise click.UsageError("name the letters, or say which with --consumer, --subject or --error; one of the two")
    if fits:
        matched, replayed = _at_the_dead_letter_store(lambda dead_letter_store: dead_letter_store.replay_many(consumer, subject, error, dry_run))
        click.echo(f"{matched} would be replayed" if dry_run else f"{replayed} replayed")
        return

    async def send(dead_letter_store: DeadLetterStore) -> list[str]:
        from app.messaging.dead_letters import NotReplayable

        troubles = []
        for id in dict.fromkeys(ids):
            try:
                if not await dead_letter_store.replay(id, dry_run):
                    troubles.append(_unknown(id))
            except NotReplayable as error:
                troubles.append(f"{id} cannot be replayed: {error}")
        return troubles

    troubles = _at_the_dead_letter_store(send)
    count = len(dict.fromkeys(ids)) - len(troubles)
    click.echo(f"{count} would be replayed" if dry_run else f"{count} replayed")
    _fail(troubles)


@dead_letters.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def discard(ids: tuple[str, ...]) -> None:
    """Throw dead letters away for good. Exits with 1 when an id is unknown; the others are gone all the same."""

    async def throw(dead_letter_store: DeadLetterStore) -> list[str]:
        return [id for id in dict.fromkeys(ids) if not await dead_letter_store.discard(id)]

    unknown = _at_the_dead_letter_store(throw)
    click.echo(f"{len(dict.fromkeys(ids)) - len(unknown)} discarded")
    _fail([_unknown(id) for id in unknown])


def _at_the_dead_letter_store(work: Callable[[DeadLetterStore], Awaitable[T]]) -> T:
    """Do *work* on the databases that the environment names, and close them; end the program where they are away."""
    from app.storage.errors import StorageUnavailable

    application = console.application(console.settings())
    console.run_database_step(application.require_tables)

    async def there() -> T:
        try:
            return await work(application.dead_letters)
        finally:
            for database in application.databases.values():
                await database.close()

    try:
        return asyncio.run(there())
    except StorageUnavailable as error:
        console.exit_with(console.OUT_OF_REACH, error.detail)


def _unknown(id: str) -> str:
    return f"there is no dead letter {id}"


def _fail(lines: Sequence[str]) -> None:
    """Say *lines* on stderr and end with 1, if there are any."""
    for line in lines:
        click.echo(f"fulfilment: {line}", err=True)
    if lines:
        sys.exit(console.FAILED)
