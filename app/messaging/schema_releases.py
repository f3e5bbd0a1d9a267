"""The schemas of another release, from a folder or from a git ref; and what has become of them since."""

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
_IN_THE_HOUSE = re.compile(r"modules/[a-z_]+/schemas/[^/]+\.json")


class ReleaseNotFound(Exception):
    """There are no schemas where they were said to be; its message is one line."""


@frozen
class SchemaDiff:
    """What became of one subject. A *break* is a change that somebody does not survive and that nobody has declared."""

    subject: str
    compatibility: Compatibility
    said: str
    changes: tuple[Change, ...] = ()
    is_break: bool = False


def load_released(where: str) -> dict[str, Schema]:
    """
    Return the schemas by subject that lie in the folder *where*, or that the git ref *where* has.

    In a folder, any file named after a subject counts; in a checkout, and of a ref, only those of the modules.

    Raises:
        NoRelease: There is no such folder or ref, or nothing in it; or a file there is no JSON; or two are for one subject.
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
    system = folder / "modules"
    for path in sorted(system.glob("*/schemas/*.json") if system.is_dir() else folder.rglob("*.json")):
        if named := _FILE.fullmatch(path.name):
            yield named[1], str(path), path.read_bytes()


def _from_git(ref: str) -> Iterator[tuple[str, str, bytes]]:
    if ref.startswith("-"):
        raise ReleaseNotFound(f"{ref}: there is neither such a folder nor such a git ref")
    top = _git("rev-parse", "--show-toplevel", ref=ref).decode().strip()
    names = _git("-C", top, "ls-tree", "-r", "--name-only", "-z", ref, ref=ref).decode().split("\0")
    for name in filter(_IN_THE_HOUSE.fullmatch, names):
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
    Say what became of every subject from the release *old* to *new*.

    Whoever hears a subject is promised that it never changes in a way that he would not survive, in either direction:
    messages of both releases are on their way during an upgrade. A change that breaks this is a new version, beside the
    old one, with a migration or an upcast of *modules* that leads there.
    """
    steps: dict[tuple[str, int], str] = {}
    for module in modules:
        for upcast in module.upcasts:
            steps[upcast.event, upcast.to_version] = f"the upcast from v{upcast.from_version} declares it"
        for migration in module.dual_publishes:
            steps[migration.event, migration.to_version] = f"the migration from v{migration.from_version} declares it"
    return [_finding(subject, old, new, steps) for subject in sorted(old.keys() | new.keys(), key=version_of)]


def _finding(
    subject: str, old: Mapping[str, Schema], new: Mapping[str, Schema], steps: Mapping[tuple[str, int], str]
) -> SchemaDiff:
    event, version = version_of(subject)
    if subject not in new:
        return SchemaDiff(subject, Compatibility.NONE, "has gone: whoever hears it is left alone", is_break=True)
    if subject in old:
        changes = compare(old[subject], new[subject])
        found = overall(changes)
        said = "unchanged" if not changes else "changed"
        return SchemaDiff(subject, found, said, changes, is_break=found is not Compatibility.FULL)
    lower = max((v for e, v in map(version_of, {*old, *new}) if e == event and v < version), default=None)
    if lower is None:
        return SchemaDiff(subject, Compatibility.FULL, "a new event")
    before = subject_at(event, lower)
    changes = compare(new.get(before) or old[before], new[subject])
    declared = steps.get((event, version))
    said = f"a new version; {declared or 'no migration declares it'}"
    found = overall(changes)
    return SchemaDiff(subject, found, said, changes, is_break=declared is None and found is not Compatibility.FULL)
