"""
Write log lines in a thread of their own, so that a slow or full destination never stops the caller.

A pipe that nothing reads blocks the write, and a disk that is full refuses it. Each destination therefore has one thread
and one bounded queue. A line that finds the queue full, or that the destination refuses, is dropped and counted; the
first write that succeeds afterwards is followed by one line with the number of dropped lines.
"""

from __future__ import annotations

__all__ = [
    "LINGER_SECONDS",
    "QUEUE_BYTES_MAX",
    "Destination",
    "LinesRefused",
    "LogFile",
    "LogStream",
    "LogWriter",
    "destination_of",
]

import os
import threading
from collections.abc import Callable
from select import POLLOUT, poll
from typing import Protocol, TextIO

QUEUE_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of lines that wait for one destination at most; further lines are dropped."""

LINGER_SECONDS = 0.02
"""
How long a line that is not urgent may wait for others.

Each write makes the writer's thread and the event loop take turns with the interpreter; a busy loop has 50 turns a second
instead of one for each of its iterations.
"""

_STOP_SECONDS = 1.0
_CHUNK_BYTES = 64 * 1024
_POLL_MS = 200


class LinesRefused(Exception):
    """A destination has not taken all lines: the reason, and how many lines are lost."""

    def __init__(self, reason: str, lines: int) -> None:
        self.reason = reason
        self.lines = lines
        super().__init__(reason)


class Destination(Protocol):
    """Where lines go. All its methods are called by the writer's thread, and may block."""

    @property
    def name(self) -> str:
        """The name of the destination in log lines about it."""

    def write(self, data: bytes) -> None:
        """
        Write all of *data*.

        Raises:
            LinesRefused: Not all of it could be written.
        """

    def reopen(self) -> None:
        """
        Reopen the file of this name if the destination is one.

        Raises:
            LinesRefused: That is not possible; the destination stays as it was.
        """

    def close(self) -> None:
        """Close what this object has opened. Idempotent."""


class LogWriter:
    """
    The queue and the thread of one *destination*.

    *dropped_line* returns the line that reports how many lines were dropped. *on_refused* is called, in the writer's thread,
    with the reason when the destination begins to refuse lines.
    """

    def __init__(
        self,
        destination: Destination,
        dropped_line: Callable[[int], bytes],
        on_refused: Callable[[Destination, str], None],
    ) -> None:
        self.dropped = 0
        """Lines that were dropped so far."""
        self._destination = destination
        self._dropped_line = dropped_line
        self._on_refused = on_refused
        self._lines: list[bytes] = []
        self._bytes = 0
        self._lock = threading.Lock()
        self._has_lines = threading.Event()
        self._is_urgent = threading.Event()
        self._written = threading.Condition(self._lock)
        self._is_writing = self._is_reopened = self._is_stopped = False
        self._reported = 0
        self._refused = ""
        self._thread = threading.Thread(target=self._run, name=f"log writer of {destination.name}", daemon=True)
        self._thread.start()

    def put(self, line: bytes, is_urgent: bool = False) -> None:
        """Queue *line*, or drop it if the queue is full; never blocks. An urgent line is written at once."""
        with self._lock:
            if self._bytes + len(line) > QUEUE_BYTES_MAX:
                self.dropped += 1
                return
            self._bytes += len(line)
            self._lines.append(line)
            is_first = len(self._lines) == 1
        if is_first:
            self._has_lines.set()
        if is_urgent:
            self._is_urgent.set()

    def reopen(self) -> None:
        """Let the destination reopen its file, before the next line is written."""
        self._is_reopened = True
        self._is_urgent.set()
        self._has_lines.set()

    def flush(self, seconds: float) -> bool:
        """Wait until the lines that were put are written, for up to *seconds*; return whether they are."""
        self._is_urgent.set()
        with self._written:
            return self._written.wait_for(lambda: not self._lines and not self._is_writing, seconds)

    def stop(self) -> None:
        """Write what waits and end the thread; a destination that blocks is left behind after a second."""
        self._is_stopped = True
        self._is_urgent.set()
        self._has_lines.set()
        self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            self._destination.close()

    def _run(self) -> None:
        while True:
            self._has_lines.wait()
            self._is_urgent.wait(LINGER_SECONDS)
            self._is_urgent.clear()
            self._has_lines.clear()  # before the lines are taken: a line put from now on sets it again
            is_last = self._is_stopped
            self._step()
            if is_last:
                return

    def _step(self) -> None:
        """Write the lines that wait. Until they are written they count as queued, because they take memory."""
        with self._lock:
            lines, self._lines = self._lines, []
            self._is_writing = True
        try:
            if self._is_reopened:
                self._is_reopened = False
                self._attempt(self._destination.reopen)
            if lines and self._write(b"".join(lines)):
                self._refused = ""
                if (unreported := self.dropped - self._reported) and self._write(self._dropped_line(unreported)):
                    self._reported += unreported
        finally:
            with self._written:
                self._bytes -= sum(map(len, lines))
                self._is_writing = False
                self._written.notify_all()

    def _write(self, data: bytes) -> bool:
        return self._attempt(lambda: self._destination.write(data))

    def _attempt(self, step: Callable[[], None]) -> bool:
        """Do *step* and return whether it succeeds; report why it does not, unless that is known."""
        try:
            step()
            return True
        except LinesRefused as error:
            with self._lock:
                self.dropped += error.lines
            if error.reason != self._refused:
                self._refused = error.reason
                self._on_refused(self._destination, error.reason)
            return False


class LogStream:
    """A descriptor that another part of the process owns, such as stdout."""

    name = "stdout"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_torn = False

    def write(self, data: bytes) -> None:
        # After a line that was cut off, a line feed keeps the next line whole.
        rest = memoryview(b"\n" + data if self._is_torn else data)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest[:_CHUNK_BYTES]) :]
                except BlockingIOError:  # wait, as a descriptor that blocks does
                    waiting = poll()
                    waiting.register(self._descriptor, POLLOUT)
                    waiting.poll(_POLL_MS)
            self._is_torn = False
        except OSError as error:
            self._is_torn = 0 < len(rest) < len(data) and data[-len(rest) - 1 :][:1] != b"\n"
            raise LinesRefused(error.strerror or str(error), bytes(rest).count(b"\n")) from None

    def reopen(self) -> None:
        """Do nothing: the descriptor has no name."""

    def close(self) -> None:
        """Do nothing: the owner closes the descriptor."""


class LogFile:
    """
    A file that is appended to, and reopened when its name leads to another file or to none.

    Only its owner may read it: it holds names, addresses and order numbers.

    Raises:
        OSError: It cannot be opened.
    """

    name = "LOG_FILE"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.abspath(path)  # the working directory may change
        self._open()

    def write(self, data: bytes) -> None:
        try:
            if not self._is_current():
                self.reopen()
        except LinesRefused:
            self._stream.write(data)  # lines in a file without a name are better than none
            raise
        self._stream.write(data)

    def reopen(self) -> None:
        before = self._descriptor
        try:
            self._open()
        except OSError as error:
            raise LinesRefused(f"cannot be reopened: {error.strerror}", 0) from None
        os.close(before)

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._stream = LogStream(self._descriptor)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False
        except OSError:  # the folder cannot be searched now: the open file still takes lines
            return True


class _TextStream:
    """A stream without a descriptor, as tests and embedding programs pass it."""

    name = "the stream"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> None:
        try:
            self._stream.write(data.decode())
            self._stream.flush()
        except (OSError, ValueError) as error:
            raise LinesRefused(str(error), data.count(b"\n")) from None

    def reopen(self) -> None:
        """Do nothing: the stream has no name."""

    def close(self) -> None:
        """Do nothing: the owner closes the stream."""


def destination_of(stream: TextIO) -> Destination:
    """Return *stream* as a destination that bypasses its buffer, so that a line that fails does not stay in it."""
    try:
        stream.flush()
        return LogStream(stream.fileno())
    except (OSError, ValueError):  # in memory only, or closed already
        return _TextStream(stream)
