"""
Words that do not belong into this project: private metaphors, and persons in the place of processes.

A reader who knows outbox, inbox, unit of work, consumer and dead letter must need no glossary. The list has the words
that the project used to speak in; it cannot prove good prose, it only keeps these words from coming back.
"""

from __future__ import annotations

import ast
import re
from contextlib import suppress
from pathlib import Path

import pytest

from tests.architecture.tree import PACKAGES, ROOT, TOOLS, is_source, name_of, parsed, python_files

FORBIDDEN = {
    "a person for a process": "whoever|whomever|somebody|nobody|everybody|anybody|someone|himself",
    "a queue as a waiting room": "waiting room|seats?|seated|sits?|guests?",
    "a message as mail": "parcels?|letter ?box(?:es)?|envelopes?|mail",
    "a module as a house": "door plates?|doorplate|the house|houses",
    "delivery as a way": "short way|long way|short ways",
    "recovery as a patrol": "strays?|patrols?(?!-)|patrolled",
    "decisions as verdicts": "verdicts?",
    "a transaction as a ride": "rides? along|rides|riders?",
    "consuming as hearing": "hears|hearers?|overhears?|overheard",
    "storing as laying down": "lays down|laid down|lay down",
    "handing out": "hands? out|handed out",
    "forwarding as handing": "hands? through|handed through",
    "deferring as giving way": "gives? way|gave way|given way",
    "publishing as saying": "(?:is|are|was|were|be|been) said|speakers?",
    "reporting as speech": "says (?:so|why|it|what|how|when|where|which|once)|say (?:so|why)|told|tells|so to speak",
    "idioms": "in peace|heeds?|heeded|all the same|for good|goes? along|becomes? of|anyhow|rightly|way of an order|troubles?",
    "lasting as outliving": "outlives?|outlived",
    "old words": "old news|made[- ]up|turns? away|turned away|answerable|founded|daily bread|passed over",
}

OLD_NAMES = {
    *("buried", "envelope", "guest", "heard", "hear", "hears", "house", "letterbox", "overheard", "parcel", "patrol"),
    *("ride", "rider", "said", "saying", "says", "seat", "sits", "speaker", "stray"),
    *("trouble", "verdict", "whoever"),
}
"""Words that no name in Python contains; prose may use some of them in their ordinary meaning."""

CONTRACTS = re.compile(
    r'(?:<module>|[a-z]+|`|")-strays\b|patrol-[a-z<]+|put_aside|is_said|e-?mail|"hears"|name: nobody|"nobody"|``nobody``'
    r'|/console/trouble\b|"trouble"|\bTrouble\b'
)
"""Names of durables, labels, JSON members, system users and a screen, which do not follow the project's words."""

EXAMPLE = re.compile("parcels?|parcel_id", re.IGNORECASE)
"""The domain of the example in tests/contracts: a depot that sends parcels."""

SUFFIXES = {".cfg", ".conf", ".css", ".env", ".go", ".html", ".ini", ".js", ".json", ".lua", ".py", ".rst", ".sh", ".toml", ".yaml", ".yml", ".mako", ""}
SKIPPED = (
    *("app/web/console/static/htmx", "app/web/console/static/uplot", "app/web/spec/ui/swagger-ui"),
    *("tests/contracts/asyncapi", "tests/contracts/released", "tests/contracts/golden"),
)

PATTERN = re.compile("|".join(rf"\b(?:{words})\b" for words in FORBIDDEN.values()), re.IGNORECASE)


def written() -> list[Path]:
    """Return every text file of the project."""
    top = [path for path in ROOT.iterdir() if path.is_file()]
    folders = [ROOT / name for name in (".ci", *TOOLS, "app", "bus", "config", "deploy", "docs", "modules", "tests")]
    found = [*top, *(path for folder in folders for path in folder.rglob("*") if path.is_file())]
    return sorted(
        path
        for path in found
        if path.suffix in SUFFIXES
        and (is_source(path) or path.parent.name == ".ci")
        and not name_of(path).startswith(SKIPPED)
        and "_build" not in path.parts
    )


def forbidden(name: str, text: str) -> list[str]:
    """Return the forbidden words of *text*, each with its line."""
    if name == "tests/architecture/test_words.py":
        return []
    if name == "CHANGELOG.rst":  # entries of releases before 0.2.0 stay as they were written
        text = text.partition("\n0.1.0")[0]
    if not PATTERN.search(text.replace("_", " ")):
        return []
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        rest = CONTRACTS.sub("", line)
        if name.startswith("tests/contracts/"):
            rest = EXAMPLE.sub("", rest)
        found += [f"{name}:{number}: {match[0]}" for match in PATTERN.finditer(rest.replace("_", " "))]
    return found


def old_names(tree: ast.Module) -> set[str]:
    """Return the names that *tree* defines and that contain a word of `OLD_NAMES`; names of tests are prose."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                found.add(name)
    return {name for name in found if not name.startswith("test_") and words(CONTRACTS.sub("", name)) & OLD_NAMES}


def words(name: str) -> set[str]:
    """Return the words of a name in small letters: ``_sendAll``, ``SEND_ALL`` and ``send_all`` have send and all."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)}


def test_no_name_contains_an_old_word() -> None:
    """A name is a standard term of the field."""
    paths = list(python_files(*PACKAGES, *TOOLS, "tests", "deploy"))
    assert len(paths) > 300
    # Only a file with such a word somewhere in it is parsed.
    may_have_one = re.compile("|".join(sorted(OLD_NAMES)), re.IGNORECASE)
    found = {}
    for path in paths:
        if may_have_one.search(path.read_text(encoding="utf-8")):
            allowed = {"parcel_id"} if name_of(path).startswith("tests/contracts/") else set()
            found[name_of(path)] = old_names(parsed(path)) - allowed
    assert {name: names for name, names in found.items() if names} == {}


def test_an_old_name_is_reported() -> None:
    """The check can fail, for functions, classes, arguments, variables and attributes; a label in a string is allowed."""
    code = "def hear_all(seat): self._verdict = said = 1\nclass ParcelQueue: ...\ndef test_what_is_said(): outcome = 'put_aside'"
    assert old_names(ast.parse(code)) == {"hear_all", "seat", "_verdict", "said", "ParcelQueue"}


def test_no_file_contains_a_private_word() -> None:
    """The project is written in the terms of its field."""
    found = []
    for path in written():
        with suppress(UnicodeDecodeError):
            found += forbidden(name_of(path), path.read_text(encoding="utf-8"))
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "# whoever carries it notes that it has arrived",
        "def test_nobody_sits_in_the_waiting_room() -> None:",
        "The relay publishes the parcel.",
        "The bus hands out a message.",
        "Everybody who SITS when a pass begins",
        "what rides along with the next transaction",
        "readiness says why, and the log tells what has become of it",
    ],
)
def test_a_private_word_is_reported(line: str) -> None:
    """The check can fail: in prose and in names, in upper and in lower case."""
    assert forbidden("app/example.py", line) != []


@pytest.mark.parametrize(
    "line",
    ['DURABLE = "orders-strays"', 'outcome="put_aside"', "The relay marks the row.", "situation, hearing-impaired"],
)
def test_a_contract_or_a_plain_word_is_allowed(line: str) -> None:
    """Names of durables and labels are contracts, and whole words are compared."""
    assert forbidden("app/example.py", line) == []
