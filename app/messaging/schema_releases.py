"""Load the event schemas of a release from a folder or a git ref, and compare two releases."""

from __future__ import annotations

__all__ = ["ReleaseNotFound", "SchemaDiff", "diffs", "load_released"]

import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from attrs import frozen

from bus.contracts.compatibility import Change, Compatibility, compare, overall
from bus.contracts.registry import merge_schemas
from bus.contracts.schemas import Schema
from bus.contracts.versions import subject_at, version_of
from bus.errors import ContractError
from modules.module import Module

_FILE = re.compile(r"(?:.*/)?([a-z][a-z_]*\.[a-z][a-z_]*\.v[1-9][0-9]*)\.json")
_MODULE_SCHEMA = re.compile(r"modules/[a-z_]+/schemas/[^/]+\.json")


class ReleaseNotFound(Exception):
    """There are no readable schemas in the given folder or git ref. The message is one line."""


@frozen
class SchemaDiff:
    """
    What changed in the schema of one subject.

    It is a break if the change is incompatible and no dual publishing or upcast declares it.
    """

    subject: str
    compatibility: Compatibility
    summary: str
    changes: tuple[Change, ...] = ()
    is_break: bool = False


def load_released(where: str) -> dict[str, Schema]:
    """
    Return the schemas, by subject, of the folder or git ref *where*.

    In a folder, every file that is named after a subject counts; in a checkout or a git ref, only those of the modules.

    Raises:
        ReleaseNotFound: There is no such folder or ref, it has no schemas, a file is not JSON, or two files have the same
            subject.
    """
    folder = Path(where)
    texts = _from_folder(folder) if folder.is_dir() else _from_git(where)
    try:
        found = merge_schemas(*({subject: _parsed(name, text)} for subject, name, text in texts))
    except ContractError as error:
        raise ReleaseNotFound(f"{where}: {error}") from None
    if not found:
        raise ReleaseNotFound(f"{where}: there is no schema in it")
    return found


def _from_folder(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    modules = folder / "modules"
    for path in sorted(modules.glob("*/schemas/*.json") if modules.is_dir() else folder.rglob("*.json")):
        if named := _FILE.fullmatch(path.name):
            yield named[1], str(path), path.read_bytes()


def _from_git(ref: str) -> Iterator[tuple[str, str, bytes]]:
    if ref.startswith("-"):
        raise ReleaseNotFound(f"{ref}: there is neither such a folder nor such a git ref")
    top = _git("rev-parse", "--show-toplevel", ref=ref).decode().strip()
    names = _git("-C", top, "ls-tree", "-r", "--name-only", "-z", ref, ref=ref).decode().split("\0")
    for name in filter(_MODULE_SCHEMA.fullmatch, names):
        if named := _FILE.fullmatch(name):
            yield named[1], name, _git("-C", top, "show", f"{ref}:{name}", ref=ref)


def _git(*arguments: str, ref: str) -> bytes:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)  # noqa: S603, S607
    except OSError:
        raise ReleaseNotFound(f"{ref}: there is no such folder, and git is not installed") from None
    if done.returncode != 0:
        raise ReleaseNotFound(f"{ref}: there is neither such a folder nor such a git ref")
    return done.stdout


def _parsed(name: str, text: bytes) -> Schema:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise ReleaseNotFound(f"{name}: not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ReleaseNotFound(f"{name}: not a schema: not an object")
    return schema


def diffs(old: Mapping[str, Schema], new: Mapping[str, Schema], modules: Iterable[Module]) -> list[SchemaDiff]:
    """
    Return what changed in each subject from the release *old* to the release *new*.

    A consumer relies on a subject to stay compatible in both directions, because messages of both releases are in flight
    during an upgrade. An incompatible change needs a new version in addition to the old one, and a dual publishing or an upcast of
    *modules* that leads to it.
    """
    declarations: dict[tuple[str, int], str] = {}
    for module in modules:
        for upcast in module.upcasts:
            declarations[upcast.event, upcast.to_version] = f"the upcast from v{upcast.from_version} declares it"
        for dual_publish in module.dual_publishes:
            declarations[dual_publish.event, dual_publish.to_version] = (
                f"the dual publishing from v{dual_publish.from_version} declares it"
            )
    return [_diff(subject, old, new, declarations) for subject in sorted(old.keys() | new.keys(), key=version_of)]


def _diff(
    subject: str, old: Mapping[str, Schema], new: Mapping[str, Schema], declarations: Mapping[tuple[str, int], str]
) -> SchemaDiff:
    event, version = version_of(subject)
    if subject not in new:
        return SchemaDiff(subject, Compatibility.NONE, "removed: its consumers receive nothing any more", is_break=True)
    if subject in old:
        changes = compare(old[subject], new[subject])
        found = overall(changes)
        summary = "unchanged" if not changes else "changed"
        return SchemaDiff(subject, found, summary, changes, is_break=found is not Compatibility.FULL)
    lower = max((v for e, v in map(version_of, {*old, *new}) if e == event and v < version), default=None)
    if lower is None:
        return SchemaDiff(subject, Compatibility.FULL, "a new event")
    previous = subject_at(event, lower)
    changes = compare(new.get(previous) or old[previous], new[subject])
    declared = declarations.get((event, version))
    summary = f"a new version; {declared or 'no dual publishing or upcast declares it'}"
    found = overall(changes)
    return SchemaDiff(subject, found, summary, changes, is_break=declared is None and found is not Compatibility.FULL)
