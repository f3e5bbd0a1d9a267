"""
Install what the other systems need: a virtual environment of PyPI for each, and the Go programs.

Everything goes to ``.bench`` in the project's folder, and stays there for the next run.
"""

from __future__ import annotations

__all__ = ["ROOT", "Unavailable", "go_program", "python_of", "versions_of"]

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_RIVALS = Path(__file__).with_name("rivals")
_FOLDER = ROOT / ".bench"
_GO_SOURCES = "src/github.com/nats-io/nats.go", "src/github.com/mattn/go-sqlite3"
_GO_PACKAGES = "golang-github-nats-io-go-nats-dev golang-github-mattn-go-sqlite3-dev libsqlite3-dev gcc"


class Unavailable(Exception):
    """A system cannot be installed here; the text gives the reason."""


@cache
def python_of(name: str) -> Path:
    """
    Return the Python of the virtual environment *name*, with the packages that ``rivals/<name>.txt`` pins.

    Raises:
        Unavailable: The packages cannot be installed.
    """
    requirements = _RIVALS / f"{name}.txt"
    folder = _FOLDER / name
    python, mark = folder / "bin" / "python", folder / "installed"
    wanted = f"{sys.version}\n{requirements.read_text()}"
    if not mark.is_file() or mark.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", folder])
        _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements])
        mark.write_text(wanted)
    return python


@cache
def go_program() -> Path:
    """
    Return the Go service, built with the compiler that PyPI has.

    Its two libraries come from Debian's packages, or from the folder that ``GOPATH`` names.

    Raises:
        Unavailable: The libraries or a C compiler are missing.
    """
    sources = Path(os.environ.get("GOPATH", "/usr/share/gocode"))
    if not all((sources / each).is_dir() for each in _GO_SOURCES) or not shutil.which("gcc"):
        raise Unavailable(f"the sources of its libraries are not in {sources}: apt-get install {_GO_PACKAGES}")
    go = python_of("go").with_name("go")
    text = (_RIVALS / "saga.go").read_bytes()
    program = _FOLDER / "go" / f"saga-{hashlib.sha256(text).hexdigest()[:12]}"
    if not program.is_file():
        settings = {"GO111MODULE": "off", "GOPATH": str(sources), "GOCACHE": str(_FOLDER / "go-cache"), "GOTOOLCHAIN": "local"}
        _run([go, "build", "-tags", "libsqlite3", "-o", program, _RIVALS / "saga.go"], settings)
    return program


def versions_of(name: str, *packages: str) -> str:
    """Return *packages* with their versions, as ``rivals/<name>.txt`` pins them."""
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", (_RIVALS / f"{name}.txt").read_text(), re.MULTILINE))
    return ", ".join(f"{package} {pinned[package]}" for package in packages)


def _run(command: Sequence[str | Path], settings: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, env={**os.environ, **(settings or {})}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{Path(command[0]).name} has failed: {(done.stderr or done.stdout)[-1500:]}")
