"""What the tools of those who read our files say to them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT
from tests.image.workshop import unpacked

DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="session")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked("prometheus", tmp_path_factory.mktemp("prometheus")) / "usr/bin/promtool"


def said(*command: str | Path, folder: Path = ROOT) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_prometheus_reads_its_configuration_and_the_alerts(promtool: Path) -> None:
    """By its own tool."""
    assert "11 rules found" in said(promtool, "check", "rules", DEPLOY / "prometheus/alerts.yaml")
    said(promtool, "check", "config", DEPLOY / "prometheus/prometheus.yaml")


def test_alerts_go_off_when_they_should_and_are_quiet_again(promtool: Path, tmp_path: Path) -> None:
    """On made-up series, by Prometheus' own engine."""
    shutil.copy(DEPLOY / "prometheus/alerts.yaml", tmp_path)
    shutil.copy(ROOT / "tests/image/alerts_test.yaml", tmp_path)
    said(promtool, "test", "rules", "alerts_test.yaml", folder=tmp_path)


@pytest.mark.parametrize(
    "command",
    [["hadolint", "Dockerfile"], ["shellcheck", "-x", "deploy/gather-rootfs", "deploy/secrets.sh", "deploy/postgres/databases.sh"]],
    ids=lambda command: command[0],
)
def test_the_dockerfile_and_the_scripts_are_tidy(command: Sequence[str]) -> None:
    """By the linters that their authors' readers use."""
    said(*command)
