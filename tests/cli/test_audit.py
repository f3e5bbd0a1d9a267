"""The `audit` command, without a running server."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli.main import main
from app.web.spec.dead_letters import DESCRIPTION


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migrated database without any change in its audit."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/test.db")
    assert run("migrate").exit_code == 0


def test_an_operation_that_does_not_exist_is_an_error(database: None) -> None:
    """A misspelled name is not the same as no change; the sentence names the operations that there are."""
    result = run("audit", "list", "--action", "setProdukt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--action: there is no operation setProdukt; there are " in result.stderr
    known = result.stderr.rpartition("there are ")[2].strip().split(", ")
    assert {"setProduct", "cancelOrder", "replayDeadLetters", "importProducts"} <= {*known}
    assert "placeOrder" not in known
    changes = {each["operationId"] for path in DESCRIPTION.paths.values() for method, each in path.items() if method != "get"}
    assert changes
    assert changes <= {*known}, "every change of dead letters is audited under its name"
    for name in known:
        assert run("audit", "list", "--action", name).exit_code == 0
