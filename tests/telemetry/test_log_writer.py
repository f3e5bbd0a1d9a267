"""Logging never waits: what a destination does not take is dropped, counted, and reported once it takes lines again."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from loguru import logger

from app.telemetry import log_writer, logs
from app.telemetry.metrics import Metrics

LINE = "x" * 1000


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    yield
    logger.remove()


@pytest.fixture
def out(tmp_path: Path) -> Iterator[TextIO]:
    """A file in place of stdout."""
    with (tmp_path / "out").open("w") as stream:
        yield stream
        logger.remove()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that blocks its writer once it is full."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)  # a writer that still waits gets an error
    logger.remove()


def messages(file: Path) -> list[str]:
    logs.wait_until_written()
    return [json.loads(line)["message"] for line in file.read_text().splitlines()]


def dropped_on_the_page() -> float:
    page = Metrics().render().decode()
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith("log_lines_dropped_total "))


def test_a_pipe_without_a_reader_never_blocks_the_caller(pipe: tuple[int, int], tmp_path: Path) -> None:
    """Its queue is bounded; lines beyond it are counted, and a reader that comes back gets their number once."""
    reader, writer = pipe
    file = tmp_path / "log"
    with os.fdopen(writer, "w") as stream:
        logs.setup("INFO", "json", file, stream)
        count = 2 * log_writer.QUEUE_BYTES_MAX // len(LINE)
        began = time.monotonic()
        for number in range(count):
            logger.info(LINE, number=number)
            if number % 1000 == 0:  # the file keeps up, as it would between requests
                file_is_written = logs._sink is not None and logs._sink._file is not None and logs._sink._file.flush(5)
                assert file_is_written
        assert time.monotonic() - began < 5.0
        dropped = logs.dropped()
        assert count / 3 < dropped < count
        assert dropped_on_the_page() == dropped
        assert len(messages(file)) == count  # one destination does not hold up the other
        read = b""
        while read.count(b"\n") < count - dropped + 1:
            read += os.read(reader, 1 << 20)
        lines = [json.loads(line) for line in read.splitlines()]
        reported = [line for line in lines if line["message"] == "log lines were dropped"]
        assert [(line["level"], line["lines"]) for line in reported] == [("WARNING", dropped)]
        assert len(lines) - 1 == count - dropped
        logger.remove()


def test_the_log_ends_although_a_pipe_has_no_reader(pipe: tuple[int, int]) -> None:
    """A process that is to stop does not wait for a reader."""
    reader, writer = pipe
    with os.fdopen(writer, "w") as stream:
        logs.setup("INFO", "json", stream=stream)
        for _ in range(200):
            logger.info(LINE)
        began = time.monotonic()
        logger.remove()
        assert time.monotonic() - began < 3.0
        os.read(reader, 1 << 20)


def test_a_full_disk_is_reported_on_stdout_once(out: TextIO, tmp_path: Path) -> None:
    """The lines that the file refuses are counted; the other destination gets the reason, and what happens meanwhile."""
    logs.setup("INFO", "json", "/dev/full", out)
    for number in range(20):
        logger.info("order finished", number=number)
        logs.wait_until_written()
    reported = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    refused = [line for line in reported if line["message"] == "log lines cannot be written"]
    assert [(line["level"], line["destination"], line["reason"]) for line in refused] == [
        ("WARNING", "LOG_FILE", "No space left on device")
    ]
    assert len(reported) == 21
    assert logs.dropped() == 20


def moved(file: Path) -> None:
    file.rename(file.with_suffix(".1"))


def deleted(file: Path) -> None:
    file.unlink()


def replaced(file: Path) -> None:
    other = file.with_suffix(".new")
    other.touch()
    other.replace(file)


def folder_moved(file: Path) -> None:
    file.parent.rename(file.parent.with_name(f"moved {time.monotonic_ns()}"))
    file.parent.mkdir()


def truncated(file: Path) -> None:
    os.truncate(file, 0)


@pytest.mark.parametrize("rotate", [moved, deleted, replaced, folder_moved, truncated])
def test_a_rotated_file_is_opened_anew(rotate: Callable[[Path], None], out: TextIO, tmp_path: Path) -> None:
    """Without a signal: lines always go to the file that has the name now."""
    (tmp_path / "logs").mkdir()
    file = tmp_path / "logs" / "app.log"
    logs.setup("INFO", "json", file, out)
    logger.info("before")
    assert messages(file) == ["before"]
    for number in range(2):
        rotate(file)
        logger.info(f"after {number}")
        assert messages(file) == [f"after {number}"]


def test_reopen_lets_go_of_the_old_file_before_the_next_line(out: TextIO, tmp_path: Path) -> None:
    """A rotation may compress or delete it right after the signal."""
    file = tmp_path / "app.log"
    logs.setup("INFO", "json", file, out)
    file.rename(tmp_path / "app.log.1")
    logs.reopen()
    until = time.monotonic() + 5
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.001)
    assert file.read_bytes() == b""


def test_a_file_that_cannot_be_opened_anew_keeps_its_lines(out: TextIO, tmp_path: Path) -> None:
    """Its folder is gone: the open file takes the lines, and stdout reports it once."""
    (tmp_path / "logs").mkdir()
    file = tmp_path / "logs" / "app.log"
    logs.setup("INFO", "json", file, out)
    logger.info("before")
    logs.wait_until_written()
    (tmp_path / "logs").rename(tmp_path / "gone")
    for _ in range(3):
        logger.info("after")
        logs.wait_until_written()
    reported = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    reasons = [line["reason"] for line in reported if line["message"] == "log lines cannot be written"]
    assert reasons == ["cannot be reopened: No such file or directory"]
    assert messages(tmp_path / "gone" / "app.log") == ["before", "after", "after", "after"]
    (tmp_path / "gone").rename(tmp_path / "logs")
    logger.info("back")
    assert messages(file)[-1] == "back"


def test_the_file_is_readable_by_its_owner_only(out: TextIO, tmp_path: Path) -> None:
    """The umask does not matter; a file that exists keeps its mode."""
    before = os.umask(0)
    try:
        logs.setup("INFO", "json", tmp_path / "new.log", out)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.log").stat().st_mode) == 0o600


def test_a_line_after_one_that_was_cut_off_begins_a_line(pipe: tuple[int, int]) -> None:
    """A disk that fills up in the middle of a line spoils that line only."""
    reader, writer = pipe
    stream = log_writer.LogStream(writer)
    real, calls = os.write, 0

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return real(descriptor, bytes(data[:5]))
        if calls == 2:
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(log_writer.LinesRefused) as raised:
            stream.write(b"one line\ntwo\n")
        assert raised.value.lines == 2
        stream.write(b"three\n")
    os.close(writer)
    assert os.read(reader, 100) == b"one l\nthree\n"


# One writer, whose destination takes each piece when the test lets it


class Gate:
    """A destination that waits for a permit for each write, and refuses while it has a *reason* to."""

    name = "gate"

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.written: list[bytes] = []
        self.reason = ""

    def write(self, data: bytes) -> None:
        self.begun.release()
        assert self.permits.acquire(timeout=30)
        if self.reason:
            raise log_writer.LinesRefused(self.reason, data.count(b"\n"))
        self.written += data.splitlines()

    def reopen(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def refused() -> list[str]:
    return []


@pytest.fixture
def writer(gate: Gate, refused: list[str]) -> Iterator[log_writer.LogWriter]:
    writer = log_writer.LogWriter(gate, lambda count: b"dropped %d\n" % count, lambda destination, reason: refused.append(reason))
    yield writer
    gate.permits.release(1000)
    writer.stop()


def begin(writer: log_writer.LogWriter, gate: Gate, *lines: bytes) -> None:
    """Put *lines*, and return when the first of them is being written."""
    for line in lines:
        writer.put(line + b"\n", is_urgent=True)
    assert gate.begun.acquire(timeout=30)


def end(writer: log_writer.LogWriter, gate: Gate, writes: int = 1) -> None:
    """Let *writes* go on, and return when nothing is left."""
    gate.permits.release(writes)
    assert writer.flush(30)
    while gate.begun.acquire(blocking=False):
        pass


def test_lines_that_are_being_written_take_room_until_they_are(
    writer: log_writer.LogWriter, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no line that came meanwhile loses its own."""
    monkeypatch.setattr(log_writer, "QUEUE_BYTES_MAX", 100)
    begin(writer, gate, b"a" * 59)
    writer.put(b"b" * 39 + b"\n")
    writer.put(b"c\n")
    assert (writer.dropped, writer.flush(0)) == (1, False)
    gate.permits.release(2)
    assert gate.begun.acquire(timeout=30)
    assert gate.begun.acquire(timeout=30), "the line about the one that was dropped, and the second piece"
    writer.put(b"d" * 69 + b"\n")
    assert writer.dropped == 2, "the second piece still takes its room"
    end(writer, gate, 2)
    assert gate.written == [b"a" * 59, b"dropped 1", b"b" * 39, b"dropped 1"]


def test_each_dropped_line_is_reported_once(writer: log_writer.LogWriter, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first lines that are written after it."""
    monkeypatch.setattr(log_writer, "QUEUE_BYTES_MAX", 20)
    for dropped in 2, 3, 0, 1:
        begin(writer, gate, b"taken")
        for _ in range(dropped):
            writer.put(b"x" * 30)
        end(writer, gate, 2)
        gate.permits = threading.Semaphore(0)
    assert gate.written == [b"taken", b"dropped 2", b"taken", b"dropped 3", b"taken", b"taken", b"dropped 1"]


def test_a_reason_is_reported_each_time_that_a_destination_begins_to_refuse(
    writer: log_writer.LogWriter, gate: Gate, refused: list[str]
) -> None:
    """Once while it lasts, and again when it comes back."""
    for reason in "full", "full", "", "full", "gone":
        gate.reason = reason
        begin(writer, gate, b"line")
        gate.permits.release(2)
        assert writer.flush(30)
        gate.permits = threading.Semaphore(0)
        gate.begun = threading.Semaphore(0)
    assert refused == ["full", "full", "gone"]


def test_a_line_before_the_stop_is_written(writer: log_writer.LogWriter, gate: Gate) -> None:
    """Also one that was put while others were being written."""
    begin(writer, gate, b"first")
    writer.put(b"second\n")
    stopping = threading.Thread(target=writer.stop)
    stopping.start()
    while not writer._is_stopped:
        time.sleep(0.001)
    gate.permits.release(10)
    stopping.join(30)
    assert gate.written == [b"first", b"second"]


def test_a_file_that_is_reopened_leaves_no_descriptor(tmp_path: Path) -> None:
    """A process rotates its log for years."""
    file = log_writer.LogFile(tmp_path / "log")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        file.reopen()
    assert len(os.listdir("/proc/self/fd")) == before
    file.close()
