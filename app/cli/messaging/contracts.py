"""``contracts``: compare event schemas with a release, show which consumers use which version, print the catalogue."""

from __future__ import annotations

__all__ = ["contracts"]

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from app.cli import console
from modules.registry import MODULES

if TYPE_CHECKING:
    from app.messaging.schema_releases import SchemaDiff
    from config.settings import Settings


@click.group(short_help="Check event schemas and version usage.")
def contracts() -> None:
    """Check event schemas against a release, and see which event versions are still in use."""


@contracts.command(short_help="Compare the schemas with a release.")
@click.option(
    "--against", required=True, metavar="REF|FOLDER", help="The release to compare with: a git ref or a folder."
)
@click.option(
    "--schemas", default=None, metavar="REF|FOLDER", help="The schemas to check; by default those of this program."
)
@click.option(
    "--require",
    type=click.Choice(["full", "backward", "forward"]),
    default="full",
    show_default=True,
    help="The compatibility that every changed schema needs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def check(against: str, schemas: str | None, require: str, as_json: bool) -> None:
    """
    Compare the event schemas with those of a release, and classify every change.

    \b
      python -m app contracts check --against v0.2.0
      python -m app contracts check --against tests/contracts/released/0.2.0

    \b
      backward  a consumer with the new schema reads events that were written with the old one
      forward   a consumer with the old schema reads events that are written with the new one
      full      both; a change that is not full is marked BREAKS, unless --require demands less

    A breaking change needs a new version of the subject, with a dual publishing or an upcast that leads to it.

    Exit codes: 0 nothing breaks; 1 a change breaks consumers and no dual publishing or upcast declares it; 2 wrong usage, or
    there are no schemas to compare with.
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
    changes = diffs(old, new, modules)
    broken = [each for each in changes if each.is_break and not _satisfies(each, require)]
    if as_json:
        console.print_json([_to_json(each, each in broken) for each in changes])
    else:
        for each in changes:
            click.echo(_to_text(each, each in broken))
    if broken:
        subjects = ", ".join(each.subject for each in broken)
        console.exit_with(
            console.FAILED,
            f"broken: {subjects}; publish the change as a new version, with a dual publishing or an upcast that leads to it",
        )


@contracts.command(short_help="Show which versions are still in use.")
@click.argument("subject", required=False)
@click.option("--url", default=None, help="Address of the server; by default from HTTP_HOST and HTTP_PORT.")
@console.with_key
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, in the format of the API.")
def status(subject: str | None, url: str | None, key: str | None, as_json: bool) -> None:
    """
    Ask a running server which consumers still use which version of which event.

    \b
      python -m app contracts status                     every version
      python -m app contracts status orders.created.v1   may this version be dropped?

    Behind a reverse proxy for several processes, the command asks each module and adds up the counts.

    A version may be dropped when every consumer of it also consumes a newer version, and no message of it is pending.

    Exit codes: 0 done; with SUBJECT, the version may be dropped; 1 it may not, for the printed reasons; 2 wrong usage or
    an unknown subject; 3 the server does not answer.
    """
    from app.cli.http_client import RequestFailed

    try:
        usages = _fetch_usages(console.settings(), url, key)
    except RequestFailed as error:
        console.exit_with(console.OUT_OF_REACH, str(error))
    if subject is not None:
        usages = [each for each in usages if each["subject"] == subject]
        if not usages:
            console.exit_with(
                console.USAGE, f"{subject} is unknown to the server; `contracts status` lists the known subjects"
            )
    if as_json:
        console.print_json(usages)
    else:
        for each in usages:
            click.echo(_usage_text(each))
    if subject is not None and not usages[0]["safe_to_drop"]:
        console.exit_with(console.FAILED, f"{subject} may not be dropped: {'; '.join(usages[0]['reasons'])}")


def _fetch_usages(settings: Settings, url: str | None, key: str | None) -> list[dict[str, Any]]:
    """Return the usage of every version, from one server or, behind a reverse proxy, from that of each module."""
    from app.cli.http_client import RequestFailed, get_json

    try:
        usages: list[dict[str, Any]] = get_json("/v1/contracts", settings, url, key)["items"]
    except RequestFailed as error:
        if error.code != "module_needed":
            raise
        views = {module: get_json(f"/v1/contracts?module={module}", settings, url, key)["items"] for module in MODULES}
        return _merge(views)
    return usages


def _merge(views: Mapping[str, Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """
    Merge the usages that several processes report, by module; a version may be dropped only if every process agrees.

    Whether a version is retired, and whether it is published, is what its producer reports.
    """
    merged: dict[str, dict[str, Any]] = {}
    reports = [(module, usage) for module, usages in views.items() for usage in usages]
    for _, usage in sorted(reports, key=lambda report: report[0] != report[1]["said_by"]):
        known = merged.setdefault(usage["subject"], usage)
        if known is usage:
            continue
        known["published"] += usage["published"]
        for consumer, outcomes in usage["handled"].items():
            known["handled"][consumer] = dict(Counter(known["handled"].get(consumer, {})) + Counter(outcomes))
        # All processes ask the same bus, one after the other.
        listeners = {each["consumer"]: each for each in (*known["listeners"], *usage["listeners"])}
        known["listeners"] = list(listeners.values())
        known["reasons"] = list(dict.fromkeys((*known["reasons"], *usage["reasons"])))
        known["safe_to_drop"] = known["safe_to_drop"] and usage["safe_to_drop"]
    return sorted(merged.values(), key=lambda each: (each["event"], each["version"]))


def _usage_text(usage: dict[str, Any]) -> str:
    if usage["is_newest"]:
        state = "newest"
    elif usage["is_said"]:
        state = f"{'retired, but still ' if usage.get('retired') else ''}published beside the newest since {usage['since']}"
    else:
        state = "retired, no longer published" if usage.get("retired") else "no longer published"
    lines = [f"{usage['subject']}: {state}; {'safe to drop' if usage['safe_to_drop'] else 'needed'}"]
    lines += [f"    consumed by {each['consumer']}, {each['pending']} pending" for each in usage["listeners"]]
    lines += [f"    {reason}" for reason in usage["reasons"] if not usage["is_newest"]]
    counts = ", ".join(
        f"{consumer} {outcome} {count}"
        for consumer, outcomes in sorted(usage["handled"].items())
        for outcome, count in sorted(outcomes.items())
    )
    lines.append(f"    since start: published {usage['published']}{'; ' if counts else ''}{counts}")
    return "\n".join(lines)


@contracts.command(short_help="Print the catalogue of events.")
def catalogue() -> None:
    """
    Print the catalogue of events, in reStructuredText.

    It names the producer, the consumers, the members and an example of every event version.

    \b
      python -m app contracts catalogue > docs/reference/catalogue.rst
    """
    from app.messaging.event_catalogue import page
    from app.messaging.event_registry import all_modules, build_registry

    modules = all_modules()
    click.echo(page(modules, build_registry(modules)), nl=False)


def _satisfies(diff: SchemaDiff, require: str) -> bool:
    """Return True if *diff* has the compatibility *require*; a removed subject never has."""
    found = diff.compatibility
    return bool(diff.changes) and {"backward": found.is_backward, "forward": found.is_forward}.get(require, False)


def _to_text(diff: SchemaDiff, is_broken: bool) -> str:
    lines = [f"{diff.subject}: {diff.compatibility.value}: {diff.summary}{' (BREAKS)' if is_broken else ''}"]
    lines += [f"    {change.pointer or '/'}: {change.compatibility.value}: {change.why}" for change in diff.changes]
    return "\n".join(lines)


def _to_json(diff: SchemaDiff, is_broken: bool) -> dict[str, Any]:
    return {
        "subject": diff.subject,
        "compatibility": diff.compatibility.value,
        "detail": diff.summary,
        "breaks": is_broken,
        "changes": [
            {"pointer": change.pointer, "compatibility": change.compatibility.value, "detail": change.why}
            for change in diff.changes
        ],
    }
