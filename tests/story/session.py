"""
Read the terminal sessions of a document, and repeat them.

A session consists of ``console`` blocks: a line after ``$ `` is a command, and the lines below it are its output. What
differs in every run (ids, times, ports) is masked before two outputs are compared. An id that a document shows twice
must be one id in reality, too.
"""

from __future__ import annotations

__all__ = ["Step", "Terminal", "masked", "serving", "steps_of"]

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).parents[2]
ATTEMPTS_MAX = 150
"""How often a query is repeated until its output is the shown one; each starts a process, so this is seconds."""

_BLOCK = re.compile(r"^\.\. code-block:: console\n\n((?:(?:    .*)?\n)+)", re.MULTILINE)
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_PROCESS = re.compile(r"\(process [0-9]+\)")
_ADDRESS = re.compile(r"(?:localhost|127\.0\.0\.1):\d+")
_SERVE = re.compile(r"(?P<environment>(?:[A-Z_]+=\S+ )*)python -m app serve")
_QUERY = re.compile(r"curl (?!.*(?:--json|-X|-d )).*", re.DOTALL)


@frozen
class Step:
    """A command, and the output that the document shows for it."""

    command: str
    output: str

    @property
    def is_query(self) -> bool:
        """True if repeating the command changes nothing."""
        return _QUERY.match(self.command) is not None

    @property
    def shown_address(self) -> str:
        """The address of the server that the command starts, as the document's clients use it."""
        return f"localhost:{(self.environment or {}).get('HTTP_PORT', '8080')}"

    @property
    def environment(self) -> dict[str, str] | None:
        """The variables that the command starts a server with; None if it starts none."""
        serve = _SERVE.fullmatch(self.command)
        return None if serve is None else dict(word.split("=", 1) for word in shlex.split(serve["environment"]))


def steps_of(text: str) -> list[Step]:
    """Return every command of the document *text* with its output, in order."""
    steps: list[Step] = []
    for block in _BLOCK.findall(text):
        lines = [line[4:] for line in block.rstrip("\n").split("\n")]
        command: list[str] = []
        output: list[str] = []
        is_command = False
        for line in lines:
            if line.startswith("$ "):
                if command:
                    steps.append(Step("\n".join(command), "\n".join(output).strip("\n")))
                command, output = [line[2:]], []
            elif is_command:
                command.append(line)
            else:
                output.append(line)
            is_command = (line.startswith("$ ") or is_command) and line.endswith("\\")
        if command:
            steps.append(Step("\n".join(command), "\n".join(output).strip("\n")))
    return steps


def masked(output: str) -> tuple[str, list[str]]:
    """Return *output* without what differs in every run, and the ids that were in it."""
    stable = _PROCESS.sub("(process <id>)", _ADDRESS.sub("<address>", _TIME.sub("<time>", output)))
    return _ID.sub("<id>", stable), _ID.findall(output)


class Terminal:
    """A shell that keeps its variables from one command to the next."""

    def __init__(self, folder: Path, addresses: Mapping[str, str], **environment: str) -> None:
        """Run commands in *folder* with *environment*; *addresses* maps each address of the document to the real one."""
        self._folder = folder
        self._addresses = addresses
        self._environment = os.environ | environment
        self._variables = folder / "variables.sh"
        self._variables.touch()

    def run(self, command: str) -> str:
        """Run *command*, with the real servers' addresses in place of the document's; return its output."""
        for shown, address in self._addresses.items():
            command = command.replace(shown, address)
        script = f"set -a; . {self._variables}\n{command}\nexport -p > {self._variables}\n"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-c", script],
            cwd=self._folder,
            env=self._environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout.strip("\n")

    def repeat(self, step: Step, known_ids: dict[str, str]) -> None:
        """
        Run *step* and compare the outputs; repeat a query until its output is the shown one, `ATTEMPTS_MAX` times at most.

        *known_ids* maps the document's ids to the real ones; it grows.
        """
        shown, shown_ids = masked(step.output)
        for _ in range(ATTEMPTS_MAX if step.is_query else 1):
            output = self.run(step.command)
            found, ids = masked(output)
            if found == shown:
                break
        assert found == shown, f"$ {step.command}\n{output}"
        for shown_id, id in zip(shown_ids, ids, strict=True):
            known = known_ids.setdefault(shown_id, id)
            assert known == id, f"$ {step.command}\n{shown_id} was {known}, is {id}"


@contextmanager
def serving(folder: Path, step: Step, **more: str) -> Iterator[str]:
    """
    Start the server of *step* on a free port; enter with its address once it has printed the output of *step*.

    *more* is added to the environment that *step* sets.
    """
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "HOME", "TMPDIR")}
    server = subprocess.Popen(
        [sys.executable, "-m", "app", "serve"],
        cwd=folder,
        env=environment | (step.environment or {}) | more | {"HTTP_PORT": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        lines = []
        for line in server.stdout:
            lines.append(line.rstrip("\n"))
            if masked(lines[-1])[0] == masked(step.output)[0]:
                break
        else:
            raise AssertionError("the server ended with:\n" + "\n".join(lines))
        address = _ADDRESS.search(lines[-1])
        assert address is not None
        yield address[0]
    finally:
        server.terminate()
        code = server.wait(30)
        server.stdout.close()
    assert code == 0, "SIGTERM did not end the server with 0"
