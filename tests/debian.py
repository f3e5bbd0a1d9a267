"""Programs of Debian packages that tests need."""

from __future__ import annotations

__all__ = ["require_programs", "run_command"]

import fcntl
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

STEP_SECONDS = 540.0


def require_programs(packages: Mapping[str, str]) -> None:
    """
    Install the Debian package of each missing program; *packages* are by program. Fail where that is impossible.

    Several processes may call it at once: one installs, the others wait.
    """
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    with (Path(tempfile.gettempdir()) / f"fulfilment-tests-apt-{os.geteuid()}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = sorted({package for program, package in packages.items() if shutil.which(program) is None})
        if not missing:
            return
        wanted = f"the Debian packages {', '.join(missing)} are missing, and cannot be installed here"
        if shutil.which("apt-get") is None:
            pytest.fail(f"{wanted}: there is no apt-get")
        if os.geteuid() != 0:
            pytest.fail(f"{wanted}: only root can: sudo apt-get install --no-install-recommends {' '.join(missing)}")
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        run_command(["apt-get", "update", "-qq"], env=environment)
        run_command(["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *missing], env=environment)


def run_command(command: Sequence[str | Path], **options: Any) -> str:
    """Run *command* and return its output; fail the test with the output if the command fails."""
    try:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False, timeout=STEP_SECONDS, **options,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"{shlex.join(map(str, command))} took longer than {STEP_SECONDS:g} s: {error.output}")
    if done.returncode != 0:
        pytest.fail(f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-6000:]}")
    return done.stdout
