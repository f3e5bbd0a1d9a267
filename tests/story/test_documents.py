"""What the documents say about the program is true."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from click import Context

from app.cli.main import main
from app.cli.new.settings_table import settings_table
from app.runtime.service import IdempotencyKeyReused, Overloaded
from app.storage.errors import CommitOutcomeUnknown, StorageUnavailable
from app.telemetry.metrics import Metrics
from tests.story.session import ROOT

README = (ROOT / "README.rst").read_text(encoding="utf-8")
README_LINES_MAX = 220
REFERENCE = ROOT / "docs" / "reference"
DOCUMENTS = [
    path.relative_to(ROOT).as_posix() for path in (*sorted(ROOT.glob("*.rst")), *sorted((ROOT / "docs").rglob("*.rst")))
]
FOLDER_ENTRIES_MAX = 12
LINK = re.compile(r"`[^`<]+ <([^>`]+)>`__?")
PATH = re.compile(r"``((?:app|bus|config|deploy|docs|modules|tests)/[\w./-]+)``")
CREATED = ("deploy/secrets",)
"""Paths that a command creates: a fresh clone has none of them."""
CODE = re.compile(r'(?:ProblemError|Rejection|partial\(\s*ProblemError,|invalid_input)\(?\s*(?:\d{3},\s*)?"([a-z_]+)"')
CHANGELOG_SECTION = re.compile(r"^([0-9]+\.[0-9]+\.[0-9]+), (\S+)\n-+$", re.MULTILINE)
IMAGE_TAG = re.compile(r"(?:\bfulfilment(?::|, newTag: )|image\.version=\")([0-9][\w.]*)")

QUOTED = (
    ("docs/howto/operate.rst", "the database is out of reach"),
    ("docs/howto/operate.rst", "circuit breaker"),
    ("docs/howto/operate.rst", "cannot listen"),
    ("docs/howto/operate.rst", "newer than this release"),
    ("docs/howto/operate-on-nats.rst", "dead letter"),
    ("docs/howto/operate-on-nats.rst", "does not take messages"),
    ("docs/reference/commands.rst", "as planned"),
)
COMMANDS = ("pip install . && python -m app serve", "pip install tox && tox")


def missing_files(text: str, exists: Callable[[str], bool], links_exist: Callable[[str], bool]) -> list[str]:
    """Return the files that *text* links to or names and that do not exist."""
    missing = [target for target in LINK.findall(text) if "://" not in target and not links_exist(target)]
    named = [name for name in PATH.findall(text) if not name.startswith(CREATED)]
    return missing + [name for name in named if not exists(name)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_exists(document: str) -> None:
    """No link and no path in a document leads nowhere."""
    text = (ROOT / document).read_text(encoding="utf-8")
    folder = (ROOT / document).parent
    missing = missing_files(text, lambda name: (ROOT / name).exists(), lambda target: (folder / target).exists())
    assert missing == []
    assert LINK.search(text) or document != "README.rst"


def test_a_missing_file_is_found() -> None:
    """The check of files can fail, for a link and for a path."""
    text = "`here <README.rst>`__ ``app/nowhere.py`` `there <gone.rst>`__ ``deploy/secrets/key`` `out <https://a.b>`__"
    assert missing_files(text, lambda name: False, lambda target: target == "README.rst") == [
        "gone.rst",
        "app/nowhere.py",
    ]


def test_the_readme_is_short() -> None:
    """A README that is read to its end has fewer than 220 lines."""
    assert len(README.splitlines()) < README_LINES_MAX


def test_no_folder_of_documents_has_more_entries_than_a_reader_can_survey() -> None:
    """A folder below docs has 12 entries at most."""
    folders = [ROOT / "docs", *(path for path in (ROOT / "docs").iterdir() if path.is_dir() and path.name != "_build")]
    assert [folder.name for folder in folders if len(list(folder.iterdir())) > FOLDER_ENTRIES_MAX] == []


def test_the_readme_has_the_two_commands_and_ci_runs_the_second() -> None:
    """A developer who follows the README runs what CI runs."""
    for command in COMMANDS:
        assert f"\n    {command}\n" in README
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"pip install .*\btox\n", ci)
    assert re.search(r'/tox" run "\$@"', ci), ".ci/run gives tox no environment of its own choosing"


def test_the_table_of_variables_is_what_the_program_reads() -> None:
    """Names, defaults and meanings in the reference are those of `config.environment.describe`."""
    assert settings_table() in _page("configuration")


def test_every_metric_is_in_the_reference() -> None:
    """The reference lists every metric, and no other."""
    families = set(re.findall(r"^# TYPE (\w+)", Metrics().render().decode(), re.MULTILINE))
    assert set(re.findall(r"^``(\w+)(?:\{[\w,]+\})?``$", _page("metrics"), re.MULTILINE)) == families


def test_every_command_is_in_the_reference() -> None:
    """The reference lists every command, and no other."""
    documented = set(re.findall(r"^``([a-z-]+)[^`\n]*``\n    ", _page("commands"), re.MULTILINE))
    assert documented == set(main.list_commands(Context(main)))


def test_every_problem_code_is_in_the_reference() -> None:
    """The reference lists every code that an answer may have, and no other."""
    files = [*(ROOT / "app" / "web").rglob("*.py"), *(ROOT / "modules").glob("*/routes.py")]
    codes = {code for path in files for code in CODE.findall(path.read_text(encoding="utf-8"))}
    codes |= {error.code for error in (StorageUnavailable, CommitOutcomeUnknown, Overloaded, IdempotencyKeyReused)}
    codes |= {"starting", "draining", "unavailable", "refused"}
    documented = set(re.findall(r"^``([a-z_]+)``\n    ", _section(_page("http"), "Problem codes"), re.MULTILINE))
    assert codes >= {"invalid_body", "order_not_found", "internal_error", "unauthorized"}, "the pattern finds them"
    assert documented == codes


@pytest.mark.parametrize(("document", "text"), QUOTED)
def test_every_log_text_that_a_document_quotes_is_in_the_code(document: str, text: str) -> None:
    """An operator who searches the log for a quoted text finds it."""
    assert text in " ".join((ROOT / document).read_text(encoding="utf-8").split())
    sources = [path for top in ("app", "bus") for path in (ROOT / top).rglob("*.py")]
    assert any(text in path.read_text(encoding="utf-8") for path in sources)


def test_the_version_is_the_same_everywhere() -> None:
    """In setup.cfg, in the newest section of the changelog and in every image tag; a version in development ends in .dev0."""
    version, *_ = re.findall(r"^version = (\S+)$", (ROOT / "setup.cfg").read_text("utf-8"), re.MULTILINE)
    (newest, date), *released = CHANGELOG_SECTION.findall((ROOT / "CHANGELOG.rst").read_text("utf-8"))
    assert version == (f"{newest}.dev0" if date == "unreleased" else newest)
    assert [name for name, date in released if date == "unreleased"] == []
    tagged = [ROOT / name for name in ("Dockerfile", "deploy/compose.yaml", "deploy/kubernetes/kustomization.yaml", "docs/howto/deploy.rst")]
    tags = {path.name: set(IMAGE_TAG.findall(path.read_text("utf-8"))) for path in tagged}
    assert tags == {path.name: {version} for path in tagged}
    kept = {path.name for path in (ROOT / "tests/contracts/released").iterdir()}
    assert kept == {name for name, _ in released}, "the schemas of each release"


def _page(name: str) -> str:
    """Return the reference page *name*."""
    return (REFERENCE / f"{name}.rst").read_text(encoding="utf-8")


def _section(text: str, title: str) -> str:
    """Return the text below the heading *title*, up to the next heading."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^[^\n]+\n-{{3,}}\n|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no section {title}"
    return found[1]
