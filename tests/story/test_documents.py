"""What the documents say about the program is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.cli.main import main
from app.runtime.errors import IdempotencyKeyReused, Overloaded
from app.storage.errors import CommitOutcomeUnknown, StorageUnavailable
from app.telemetry.metrics import Metrics
from tests.story.session import ROOT
from tests.story.tables import settings_table

README = (ROOT / "README.rst").read_text(encoding="utf-8")
REFERENCE = ROOT / "docs" / "reference"
LINK = re.compile(r"`[^`<]+ <([^>`]+)>`__?")
PATH = re.compile(r"``((?:app|bus|config|docs|modules|tests)/[\w./-]+)``")
REFUSED = re.compile(r'(?:ProblemError|Rejection|partial\(\s*ProblemError,|invalid_input)\(?\s*(?:\d{3},\s*)?"([a-z_]+)"')
DOCUMENTS = [path.relative_to(ROOT).as_posix() for path in (*sorted(ROOT.glob("*.rst")), *sorted((ROOT / "docs").rglob("*.rst")))]
COMMANDS = ("pip install . && python -m app serve", "pip install tox && tox")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_is_there(document: str) -> None:
    """A link that leads nowhere is worse than none."""
    text = (ROOT / document).read_text(encoding="utf-8")
    folder = (ROOT / document).parent
    linked = [target for target in LINK.findall(text) if "://" not in target]
    gone = [target for target in linked if not (folder / target).exists()]
    gone += [name for name in PATH.findall(text) if not (ROOT / name).exists()]
    assert not gone
    assert linked or document != "README.rst"


def test_the_two_commands_stand_in_the_readme_and_ci_runs_the_second() -> None:
    """Who has read the README has run what CI runs."""
    for command in COMMANDS:
        assert f"\n    {command}\n" in README
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"pip install .*\btox\n", ci)
    assert re.search(r'/tox" run "\$@"', ci), ".ci/run gives tox no environment of its own choosing"


def test_the_table_of_variables_is_what_the_program_reads() -> None:
    """Names, defaults and meanings are those of `config.settings.describe`."""
    assert settings_table() in _page("configuration")


def test_every_metric_is_in_the_reference() -> None:
    """Whoever builds a dashboard finds each name, and none that is not there."""
    families = set(re.findall(r"^# TYPE (\w+)", Metrics().render().decode(), re.MULTILINE))
    assert set(re.findall(r"^``(\w+)(?:\{[\w,]+\})?``$", _page("metrics"), re.MULTILINE)) == families


def test_every_command_is_in_the_reference() -> None:
    """Each command has its heading word there, and there is none beside them."""
    told = set(re.findall(r"^``([a-z-]+)[^`\n]*``\n    ", _page("commands"), re.MULTILINE))
    assert told == set(main.commands)


def test_every_problem_code_is_in_the_reference() -> None:
    """A client can look up each code that an answer may carry."""
    files = [*(ROOT / "app" / "web").rglob("*.py"), *(ROOT / "modules").glob("*/routes.py")]
    said = {code for path in files for code in REFUSED.findall(path.read_text(encoding="utf-8"))}
    said |= {StorageUnavailable.code, CommitOutcomeUnknown.code, Overloaded.code, IdempotencyKeyReused.code, "starting", "draining", "unavailable", "refused"}
    told = set(re.findall(r"^``([a-z_]+)``\n    ", _section(_page("http"), "Problem codes"), re.MULTILINE))
    assert said >= {"invalid_body", "order_not_found", "internal_error", "unauthorized"}, "the pattern finds them"
    assert told == said


def test_the_changelog_speaks_of_this_version() -> None:
    """Every release has its heading."""
    version = re.search(r"^version = (\S+)$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert re.search(rf"^{re.escape(version[1])}\b", Path(ROOT / "CHANGELOG.rst").read_text("utf-8"), re.MULTILINE)


def _page(name: str) -> str:
    """Return the reference page *name*."""
    return (REFERENCE / f"{name}.rst").read_text(encoding="utf-8")


def _section(text: str, title: str) -> str:
    """Return what stands under the heading *title*, up to the next one."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^[^\n]+\n-{{3,}}\n|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no section {title}"
    return found[1]
