"""Prometheus, Docker and shell files, checked with promtool, hadolint and shellcheck."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT
from tests.image.image_build import unpack_package

DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="session")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_package("prometheus", tmp_path_factory.mktemp("prometheus")) / "usr/bin/promtool"


def output_of(*command: str | Path, folder: Path = ROOT) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_promtool_accepts_the_configuration_and_the_alerts(promtool: Path) -> None:
    """`check config` and `check rules`."""
    alerts = DEPLOY / "prometheus/alerts.yaml"
    count = alerts.read_text(encoding="utf-8").count("- alert: ")
    assert f"{count} rules found" in output_of(promtool, "check", "rules", alerts)
    output_of(promtool, "check", "config", DEPLOY / "prometheus/prometheus.yaml")


def test_alerts_fire_and_resolve_as_expected(promtool: Path, tmp_path: Path) -> None:
    """`promtool test rules` on the series of alerts_test.yaml."""
    shutil.copy(DEPLOY / "prometheus/alerts.yaml", tmp_path)
    shutil.copy(ROOT / "tests/image/alerts_test.yaml", tmp_path)
    output_of(promtool, "test", "rules", "alerts_test.yaml", folder=tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "Dockerfile"],
        ["shellcheck", "-x", "deploy/gather-rootfs", "deploy/pin-base-image", "deploy/secrets.sh", "deploy/postgres/databases.sh",
         "deploy/analytics/define.sh", "deploy/analytics/publish.sh"],
    ],
    ids=lambda command: command[0],
)
def test_the_dockerfile_and_the_scripts_pass_their_linters(command: Sequence[str]) -> None:
    """hadolint and shellcheck report nothing."""
    output_of(*command)
