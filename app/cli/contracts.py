"""``contracts``: what is promised, what a change would break, and who still needs what."""

from __future__ import annotations

__all__ = ["contracts"]

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from app.cli import console
from config.settings import MODULES

if TYPE_CHECKING:
    from app.messaging.schema_releases import SchemaDiff
    from config.settings import Settings


@click.group()
def contracts() -> None:
    """Look at the events that are promised to others, and at what a change of them would do."""


@contracts.command()
@click.option("--against", required=True, metavar="REF|FOLDER", help="The release that others rely on: a git ref or a folder.")
@click.option("--schemas", default=None, metavar="REF|FOLDER", help="What is to be released; by default this program's own.")
@click.option(
    "--require",
    type=click.Choice(["full", "backward", "forward"]),
    default="full",
    show_default=True,
    help="Who has to survive a change of a subject: old and new readers, or those of one side.",
)
@click.option("--json", "as_json", is_flag=True, help="As one JSON array.")
def check(against: str, schemas: str | None, require: str, as_json: bool) -> None:
    """
    Compare the schemas with those of another release, and say what each change does to those who rely on them.

    backward: who reads by the new schema can read what was written by the old one. forward: who reads by the old one can
    read what is written by the new one. full: both. Exits with 1 when a change breaks somebody and no migration declares
    it, and with 2 when there is nothing to compare with.
    """
    from app.messaging.event_registry import all_modules
    from app.messaging.schema_releases import ReleaseNotFound, diffs, load_released
    from bus.contracts.registry import merge_schemas
    from bus.errors import ContractError

    modules = all_modules()
    try:
        old = load_released(against)
        new = merge_schemas(*(module.schemas for module in modules)) if schemas is None else load_released(schemas)
    except ReleaseNotFound as error:
        console.exit_with(console.USAGE, str(error))
    except ContractError as error:
        console.exit_with(console.USAGE, f"contract: {error}")
    found = diffs(old, new, modules)
    broken = [each for each in found if each.is_break and not _is_enough(each, require)]
    if as_json:
        console.print_json([_shown(each, each in broken) for each in found])
    else:
        for each in found:
            click.echo(_told(each, each in broken))
    if broken:
        subjects = ", ".join(each.subject for each in broken)
        console.exit_with(console.FAILED, f"broken: {subjects}; say it as a new version, with a migration that leads there")


@contracts.command()
@click.argument("subject", required=False)
@click.option("--url", default=None, help="Where the server is; by default HTTP_HOST and HTTP_PORT say.")
@console.with_key
@click.option("--json", "as_json", is_flag=True, help="As one JSON array, as the API shows them.")
def status(subject: str | None, url: str | None, key: str | None, as_json: bool) -> None:
    """
    Ask a running server who still needs which version of which event.

    Where one address stands for several processes, each of them is asked, and their numbers are added up.

    With SUBJECT, such as orders.created.v1, it says whether that may be dropped: exits with 0 when nobody listens who does
    not hear a newer version too, and nothing is waiting to be handled; with 1, and the reasons, as long as it is not so.
    Exits with 2 when nobody knows the subject, and with 3 when nobody answers.
    """
    from app.cli.http_client import RequestFailed

    try:
        found = _asked(console.settings(), url, key)
    except RequestFailed as error:
        console.exit_with(console.OUT_OF_REACH, str(error))
    if subject is not None:
        found = [each for each in found if each["subject"] == subject]
        if not found:
            console.exit_with(console.USAGE, f"nobody there knows {subject}")
    if as_json:
        console.print_json(found)
    else:
        for each in found:
            click.echo(_used(each))
    if subject is not None and not found[0]["safe_to_drop"]:
        console.exit_with(console.FAILED, f"{subject} may not be dropped: {'; '.join(found[0]['reasons'])}")


def _asked(settings: Settings, url: str | None, key: str | None) -> list[dict[str, Any]]:
    """Return how every version is used, by what the server says, or each of those that one address stands for."""
    from app.cli.http_client import RequestFailed, get_json

    try:
        found: list[dict[str, Any]] = get_json("/v1/contracts", settings, url, key)["items"]
    except RequestFailed as error:
        if error.code != "module_needed":
            raise
        views = [get_json(f"/v1/contracts?module={module}", settings, url, key)["items"] for module in MODULES]
        return _united(chain.from_iterable(views))
    return found


def _united(usages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put together what several processes say of the same versions; what one of them objects to may not be dropped."""
    found: dict[str, dict[str, Any]] = {}
    for usage in usages:
        known = found.setdefault(usage["subject"], usage)
        if known is usage:
            continue
        known["published"] += usage["published"]
        for consumer, outcomes in usage["handled"].items():
            known["handled"][consumer] = dict(Counter(known["handled"].get(consumer, {})) + Counter(outcomes))
        # They ask the same bus, a moment apart.
        listeners = {each["consumer"]: each for each in (*known["listeners"], *usage["listeners"])}
        known["listeners"] = list(listeners.values())
        known["reasons"] = list(dict.fromkeys((*known["reasons"], *usage["reasons"])))
        known["safe_to_drop"] = known["safe_to_drop"] and usage["safe_to_drop"]
    return sorted(found.values(), key=lambda each: (each["event"], each["version"]))


def _used(usage: dict[str, Any]) -> str:
    how = "newest" if usage["is_newest"] else f"said beside since {usage['since']}" if usage["is_said"] else "said no more"
    lines = [f"{usage['subject']}: {how}; {'safe to drop' if usage['safe_to_drop'] else 'needed'}"]
    lines += [f"    heard by {each['consumer']}, {each['pending']} pending" for each in usage["listeners"]]
    lines += [f"    {reason}" for reason in usage["reasons"] if not usage["is_newest"]]
    counts = ", ".join(
        f"{consumer} {outcome} {count}"
        for consumer, outcomes in sorted(usage["handled"].items())
        for outcome, count in sorted(outcomes.items())
    )
    lines.append(f"    since start: published {usage['published']}{'; ' if counts else ''}{counts}")
    return "\n".join(lines)


@contracts.command()
def catalogue() -> None:
    """Print the catalogue of events, the page of the documents that bears its name (reStructuredText)."""
    from app.messaging.event_catalogue import page
    from app.messaging.event_registry import all_modules, build_registry

    modules = all_modules()
    click.echo(page(modules, build_registry(modules)), nl=False)


def _is_enough(finding: SchemaDiff, require: str) -> bool:
    """Tell whether whoever *require* names survives; a subject that has gone leaves nobody."""
    found = finding.compatibility
    return bool(finding.changes) and {"backward": found.is_backward, "forward": found.is_forward}.get(require, False)


def _told(finding: SchemaDiff, is_broken: bool) -> str:
    lines = [f"{finding.subject}: {finding.compatibility.value}: {finding.said}{' (BREAKS)' if is_broken else ''}"]
    lines += [f"    {change.pointer or '/'}: {change.compatibility.value}: {change.why}" for change in finding.changes]
    return "\n".join(lines)


def _shown(finding: SchemaDiff, is_broken: bool) -> dict[str, Any]:
    return {
        "subject": finding.subject,
        "compatibility": finding.compatibility.value,
        "detail": finding.said,
        "breaks": is_broken,
        "changes": [
            {"pointer": change.pointer, "compatibility": change.compatibility.value, "detail": change.why}
            for change in finding.changes
        ],
    }
