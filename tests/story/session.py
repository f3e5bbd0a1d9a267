"""
Terminal sessions in a document, and a terminal to repeat them in.

A session is a ``console`` block: lines after ``$ `` are typed, the lines below each are its answer. What is another
every time (ids, moments, the port) is masked before two answers are compared; an id that a document shows twice must
be one id in reality, too.
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
TRIES_MAX = 150
"""How often a question is put until its answer is the shown one; each takes a process, so this is seconds."""

_BLOCK = re.compile(r"^\.\. code-block:: console\n\n((?:(?:    .*)?\n)+)", re.MULTILINE)
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_ADDRESS = re.compile(r"(?:localhost|127\.0\.0\.1):\d+")
_SERVE = re.compile(r"(?P<environment>(?:[A-Z_]+=\S+ )*)python -m app serve")
_QUESTION = re.compile(r"curl (?!.*(?:--json|-X|-d )).*", re.DOTALL)


@frozen
class Step:
    """What is typed, and what the document says that comes back."""

    typed: str
    answer: str

    @property
    def is_question(self) -> bool:
        """True where asking again changes nothing."""
        return _QUESTION.match(self.typed) is not None

    @property
    def shown_address(self) -> str:
        """Where a server that it starts answers, as a client would type it."""
        return f"localhost:{(self.environment or {}).get('HTTP_PORT', '8080')}"

    @property
    def environment(self) -> dict[str, str] | None:
        """The variables that a server is started with; None where none is started."""
        serve = _SERVE.fullmatch(self.typed)
        return None if serve is None else dict(word.split("=", 1) for word in shlex.split(serve["environment"]))


def steps_of(text: str) -> list[Step]:
    """Return everything that is typed in the document *text*, in its order."""
    steps: list[Step] = []
    for block in _BLOCK.findall(text):
        lines = [line[4:] for line in block.rstrip("\n").split("\n")]
        typed: list[str] = []
        answer: list[str] = []
        is_typing = False
        for line in lines:
            if line.startswith("$ "):
                if typed:
                    steps.append(Step("\n".join(typed), "\n".join(answer).strip("\n")))
                typed, answer = [line[2:]], []
            elif is_typing:
                typed.append(line)
            else:
                answer.append(line)
            is_typing = (line.startswith("$ ") or is_typing) and line.endswith("\\")
        if typed:
            steps.append(Step("\n".join(typed), "\n".join(answer).strip("\n")))
    return steps


def masked(answer: str) -> tuple[str, list[str]]:
    """Return *answer* without what is another every time, and the ids that were in it."""
    plain = _ADDRESS.sub("<address>", _MOMENT.sub("<moment>", answer))
    return _ID.sub("<id>", plain), _ID.findall(answer)


class Terminal:
    """A shell that remembers its variables from one command to the next."""

    def __init__(self, folder: Path, addresses: Mapping[str, str], **environment: str) -> None:
        """Type in *folder*, with *environment* set; *addresses* are the document's, each with what it is here."""
        self._folder = folder
        self._addresses = addresses
        self._environment = os.environ | environment
        self._variables = folder / "variables.sh"
        self._variables.touch()

    def type(self, command: str) -> str:
        """Run *command*, with our servers' addresses in the place of the document's; return what it prints."""
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

    def repeat(self, step: Step, known: dict[str, str]) -> None:
        """
        Do *step*, and compare; a question is put again until its answer is the shown one, `TRIES_MAX` times at most.

        *known* are the document's ids and what they are here; it grows.
        """
        shown, shown_ids = masked(step.answer)
        for _ in range(TRIES_MAX if step.is_question else 1):
            answer = self.type(step.typed)
            found, ids = masked(answer)
            if found == shown:
                break
        assert found == shown, f"$ {step.typed}\n{answer}"
        for shown_id, id in zip(shown_ids, ids, strict=True):
            assert known.setdefault(shown_id, id) == id, f"$ {step.typed}\n{shown_id} was {known[shown_id]}, is {id}"


@contextmanager
def serving(folder: Path, step: Step, **more: str) -> Iterator[str]:
    """
    Start the server as *step* says, on a free port; enter with its address once it has said what *step* shows.

    *more* is set in its environment, beside what *step* sets.
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
            if masked(lines[-1])[0] == masked(step.answer)[0]:
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
