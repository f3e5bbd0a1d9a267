"""``contracts``: what is promised, what a change would break, and who still needs what."""

from __future__ import annotations

__all__ = ["contracts"]

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from app.released import Finding


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
    from app import cli
    from app.registry import everybody
    from app.released import NoRelease, findings, load_released
    from bus.contracts import united
    from bus.errors import ContractError

    modules = everybody()
    try:
        old = load_released(against)
        new = united(*(module.schemas for module in modules)) if schemas is None else load_released(schemas)
    except NoRelease as error:
        cli._stop(cli.USAGE, str(error))
    except ContractError as error:
        cli._stop(cli.USAGE, f"contract: {error}")
    found = findings(old, new, modules)
    broken = [each for each in found if each.is_break and not _is_enough(each, require)]
    if as_json:
        _print_json([_shown(each, each in broken) for each in found])
    else:
        for each in found:
            click.echo(_told(each, each in broken))
    if broken:
        subjects = ", ".join(each.subject for each in broken)
        cli._stop(cli.FAILED, f"broken: {subjects}; say it as a new version, with a migration that leads there")


def _is_enough(finding: Finding, require: str) -> bool:
    """Tell whether whoever *require* names survives; a subject that has gone leaves nobody."""
    found = finding.compatibility
    return bool(finding.changes) and {"backward": found.is_backward, "forward": found.is_forward}.get(require, False)


def _told(finding: Finding, is_broken: bool) -> str:
    lines = [f"{finding.subject}: {finding.compatibility.value}: {finding.said}{' (BREAKS)' if is_broken else ''}"]
    lines += [f"    {change.pointer or '/'}: {change.compatibility.value}: {change.why}" for change in finding.changes]
    return "\n".join(lines)


def _shown(finding: Finding, is_broken: bool) -> dict[str, Any]:
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


def _print_json(value: Any) -> None:
    import orjson

    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))
