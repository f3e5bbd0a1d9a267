"""A log line is one JSON object without secrets, and logging never raises."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger

from app.telemetry import logs

RFC_3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class Stream(io.StringIO):
    """A stream in memory that is read once all lines so far are written."""

    def getvalue(self) -> str:
        logs.wait_until_written()
        return super().getvalue()


class Terminal(Stream):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Remove all sinks and handlers after the test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logger.remove()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def out() -> Stream:
    stream = Stream()
    logs.setup("INFO", "json", stream=stream)
    return stream


def text_of(file: Path) -> str:
    """Return what *file* holds once all lines so far are written."""
    logs.wait_until_written()
    return file.read_text()


def lines(stream: Stream) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]


def test_a_line_is_one_json_object(out: Stream) -> None:
    """Time, level, logger and message come first, then the fields that the caller bound."""
    logger.bind(correlation_id="c-1").info("order finished", order_id="o-1", items=2)
    (line,) = lines(out)
    assert list(line) == ["time", "level", "logger", "message", "correlation_id", "order_id", "items"]
    assert (line["level"], line["logger"], line["message"]) == ("INFO", __name__, "order finished")
    assert (line["correlation_id"], line["order_id"], line["items"]) == ("c-1", "o-1", 2)


def test_time_is_rfc_3339_in_utc(out: Stream) -> None:
    """The time zone of the machine does not matter."""
    before = datetime.now(UTC)
    logger.info("now")
    time = lines(out)[0]["time"]
    assert RFC_3339_UTC.fullmatch(time)
    assert before - timedelta(milliseconds=1) <= datetime.fromisoformat(time) <= datetime.now(UTC)


def test_a_field_cannot_replace_the_fixed_members_of_a_line(out: Stream) -> None:
    """This holds for every name of a keyword."""
    logger.info("true", time="never", level="LOUD", logger="forged")
    (line,) = lines(out)
    assert (line["level"], line["logger"], line["message"]) == ("INFO", __name__, "true")
    assert RFC_3339_UTC.fullmatch(line["time"])


def test_a_record_below_the_level_is_not_written(out: Stream) -> None:
    """`enabled` reports it beforehand, for callers that would have to build its fields."""
    logger.debug("not this")
    logger.warning("but this")
    assert [line["message"] for line in lines(out)] == ["but this"]
    assert [logs.enabled(level) for level in logs.LEVELS] == [False, False, True, True, True, True]


def log_in(password: str) -> float:
    return len(password) / 0


def test_an_exception_is_one_string_without_the_values_of_variables(out: Stream) -> None:
    """It has the type, the message and the stack."""
    password = "".join(["hunter2", "-", "hunter2"])
    try:
        log_in(password)
    except ZeroDivisionError:
        logger.exception("handling failed", order_id="o-1")
    (line,) = lines(out)
    assert "hunter2-hunter2" not in out.getvalue()
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ZeroDivisionError: division by zero")
    assert "log_in" in line["exception"]
    assert line["order_id"] == "o-1"


class WithoutText:
    """A value whose ``__str__`` fails."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        (Path("/tmp/x"), "/tmp/x"),
        (2**70, str(2**70)),
        ("\ud800", "\ud800"),
        (float("nan"), None),
        (WithoutText(), "<WithoutText without text>"),
        ({1: "a"}, {"1": "a"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_value_can_be_logged(value: object, shown: object, out: Stream) -> None:
    """A value that JSON has no form for is written as text; no line is lost."""
    logger.info("look", value=value)
    assert lines(out)[0]["value"] == shown


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec=None)))
def test_no_text_can_break_a_line(text: str) -> None:
    """Line feeds, control characters and invalid Unicode stay inside their string, in both formats."""
    out = Stream()
    logs.setup("INFO", "json", stream=out)
    logger.bind(text=text).info(text)
    (line,) = lines(out)
    assert (line["message"], line["text"]) == (text, text)
    logs.setup("INFO", "text", stream=Terminal())
    plain = Stream()
    logs.setup("INFO", "text", stream=plain)
    logger.bind(text=text).info(text)
    assert plain.getvalue().count("\n") == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", plain.getvalue())


def test_secrets_are_redacted(out: Stream, tmp_path: Path) -> None:
    """In a message, a value or a stack, three stars replace each occurrence."""
    secret, quoted = "sk_live_123456", 'pass"word\\12'
    file = tmp_path / "log"
    for format in logs.FORMATS:
        stream = Stream()
        logs.setup("INFO", format, file, stream, secrets=[secret, quoted, "a", ""])
        try:
            raise OSError(f"cannot reach postgresql://u:{secret}@db")
        except OSError:
            logger.exception("with {}", secret, url=f"u:{secret}", other=quoted)
        for text in stream.getvalue(), text_of(file):
            assert secret not in text
            assert "word" not in text
            assert text.count("***") >= 4


@pytest.mark.parametrize(
    ("secrets", "text", "shown"),
    [
        (["secret"], "a secret here", "a *** here"),
        (["short"], "too short here", "too short here"),
        (["secret", "secret-of-another"], "a secret-of-another here", "a *** here"),
        (["secret-of-another", "secret"], "a secret-of-another here", "a *** here"),
        (["secret", "of-another"], "of-another secret", "*** ***"),
    ],
)
@pytest.mark.parametrize("is_late", [False, True])
def test_a_secret_is_redacted_whole(secrets: list[str], text: str, shown: str, is_late: bool) -> None:
    """From six characters on, also where a shorter secret is a part of it, in plain lines, and if it is known only later."""
    stream = Stream()
    logs.setup("INFO", "json", stream=stream, secrets=secrets[:1] if is_late else secrets)
    if is_late:
        logs.redact(secrets[1:])
    logger.info(text)
    logs.print_line(text)
    line, plain = stream.getvalue().splitlines()
    assert (json.loads(line)["message"], plain) == (shown, shown)


def test_each_moment_has_its_own_second_and_six_digits(out: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of a second is kept while it lasts, and no longer."""
    moments = [(10, 0), (10, 5_000), (10, 999_999_999), (11, 1_000_000), (9, 120_000)]
    for seconds, nanoseconds in moments:
        monkeypatch.setattr("app.telemetry.log_sink.time.time_ns", lambda now=seconds * 10**9 + nanoseconds: now)
        logger.info("now")
    assert [line["time"][17:] for line in lines(out)] == ["10.000000Z", "10.000005Z", "10.999999Z", "11.001000Z", "09.000120Z"]


@pytest.mark.parametrize("name", ["aiohttp.server", "nats.aio", "asyncio"])
def test_records_of_the_standard_library_are_written(name: str, out: Stream) -> None:
    """Under their own names and levels, with their stack; braces in them have no meaning."""
    logging.getLogger(name).info("with %s {brace}", "it")
    try:
        raise KeyError("x")
    except KeyError:
        logging.getLogger(name).exception("failed")
    logging.getLogger(name).debug("not this")
    first, second = lines(out)
    assert (first["logger"], first["level"], first["message"]) == (name, "INFO", "with it {brace}")
    assert (second["logger"], second["level"]) == (name, "ERROR")
    assert second["exception"].endswith("KeyError: 'x'")


def test_a_level_between_the_standard_ones_is_kept(out: Stream) -> None:
    """A library may define its own."""
    logging.getLogger("odd").log(35, "between")
    assert lines(out)[0]["level"] == "Level 35"


def test_the_file_contains_json_in_both_formats(tmp_path: Path) -> None:
    """It is for programs; the next start appends to it."""
    file, stream = tmp_path / "app.log", Stream()
    file.write_text('{"message": "from before"}\n')
    logs.setup("INFO", "text", file, stream)
    logger.info("hello", order_id="o-1")
    assert [json.loads(line)["message"] for line in text_of(file).splitlines()] == ["from before", "hello"]
    assert re.fullmatch(
        rf"\d\d:\d\d:\d\d\.\d\d\d INFO     {re.escape(__name__)}: hello order_id=o-1\n", stream.getvalue()
    )


def test_a_second_setup_replaces_the_first(tmp_path: Path) -> None:
    """No line is written twice, and the first file is closed."""
    first, second = Stream(), Stream()
    logs.setup("INFO", "json", tmp_path / "first.log", first)
    logs.setup("DEBUG", "json", tmp_path / "second.log", second)
    logger.debug("once")
    logging.getLogger("aiohttp").debug("and once")
    assert [line["message"] for line in lines(second)] == ["once", "and once"]
    assert first.getvalue() == text_of(tmp_path / "first.log") == ""


def test_setup_raises_if_the_file_cannot_be_opened(out: Stream, tmp_path: Path) -> None:
    """The log that was set up before goes on."""
    with pytest.raises(OSError, match="directory"):
        logs.setup("INFO", "json", tmp_path, Stream())
    logger.info("still here")
    assert [line["message"] for line in lines(out)] == ["still here"]


def test_a_terminal_gets_colours_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets none in any case."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain, piped = Terminal(), Terminal(), Stream()
    logs.setup("INFO", "text", stream=coloured)
    logger.error("x", a=1)
    monkeypatch.setenv("NO_COLOR", "1")
    logs.setup("INFO", "text", stream=plain)
    logger.error("x", a=1)
    monkeypatch.delenv("NO_COLOR")
    logs.setup("INFO", "text", stream=piped)
    logger.error("x", a=1)
    assert "\x1b[31mERROR" in coloured.getvalue()
    assert "\x1b" not in plain.getvalue() + piped.getvalue()


def test_the_stack_is_below_its_line_in_text_format() -> None:
    """Readable, but without control characters that could move the cursor."""
    stream = Stream()
    logs.setup("INFO", "text", stream=stream)
    try:
        raise ValueError("red \x1b[31m")
    except ValueError:
        logger.exception("failed")
    head, *stack = stream.getvalue().splitlines()
    assert head.endswith(": failed")
    assert stack[0] == "Traceback (most recent call last):"
    assert stack[-1] == "ValueError: red \\x1b[31m"


def test_logging_to_a_pipe_without_a_reader_does_not_raise() -> None:
    """The other end of stdout is closed (EPIPE): the line is lost."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        logs.setup("INFO", "json", stream=stream)
        logger.info("read")
        assert json.loads(os.read(reader, 10_000))["message"] == "read"
        os.close(reader)
        logger.info("lost")
        logging.getLogger("aiohttp").error("lost as well")


def test_logging_to_a_full_non_blocking_pipe_does_not_raise() -> None:
    """Lines are lost; the caller does not wait."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "w") as stream:
        logs.setup("INFO", "json", stream=stream)
        for _ in range(200):
            logger.info("x" * 1000)
        assert json.loads(os.read(reader, 1_000_000).split(b"\n")[0])["level"] == "INFO"
        os.close(reader)


@pytest.mark.parametrize("format", logs.FORMATS)
def test_logging_to_a_closed_stream_does_not_raise(format: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Closed before or after the setup; the file still gets its lines, and nothing is written to stderr."""
    stream, file = Stream(), tmp_path / "log"
    logs.setup("INFO", format, file, stream)
    stream.close()
    logger.info("one")
    logs.setup("INFO", format, file, stream)
    logger.info("two")
    logger.remove()
    assert [json.loads(line)["message"] for line in text_of(file).splitlines()] == [
        *("one", "log lines cannot be written"),
        *("two", "log lines cannot be written"),
    ]
    assert capfd.readouterr().err == ""


def test_a_program_whose_stdout_is_closed_exits_with_its_own_code() -> None:
    """Nothing is left in a buffer that the interpreter would fail to flush at exit."""
    code = """
        import os, sys
        from loguru import logger
        from app.telemetry import logs
        logs.setup("INFO", "json")
        sys.stdin.readline()
        logger.info("lost")
        sys.exit(7)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(b"go\n", timeout=60)
    assert (process.returncode, err) == (7, b"")


class CountingStream(Stream):
    """A stream that counts its writes."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


def test_lines_that_are_logged_together_are_written_together() -> None:
    """Each write makes the event loop share the interpreter once more; an error is written without waiting for others."""
    stream = CountingStream()
    logs.setup("INFO", "json", stream=stream)
    for number in range(100):
        logger.info("order finished", number=number)
    assert [line["number"] for line in lines(stream)] == list(range(100))
    assert stream.writes < 10


@pytest.mark.parametrize("format", ["json", "text"])
@pytest.mark.parametrize("level", ["INFO", "WARNING"])
def test_log_fast_writes_the_same_line_as_loguru(format: str, level: str, tmp_path: Path) -> None:
    """In both formats, on the stream and in the file, with secrets redacted; nothing below the level."""
    stream, file = Stream(), tmp_path / "log"
    logs.setup(level, format, file, stream, secrets=["open-sesame"])
    fields: dict[str, Any] = {"number": 1, "at": datetime(2026, 1, 1, tzinfo=UTC), "what": "open-sesame", "nothing": None}
    logger.info("order finished", **fields)
    logs.log_fast(__name__, "order finished", **fields)
    for text in stream.getvalue(), text_of(file):
        assert "open-sesame" not in text
        written = [re.sub(r"[\d:.TZ-]{12,}", "", line, count=1) for line in text.splitlines()]
        assert written == [] if level == "WARNING" else written[0] == written[1]
        assert len(written) == (0 if level == "WARNING" else 2)


def test_log_fast_uses_loguru_without_a_setup() -> None:
    """Also after the sink was removed: every sink of loguru gets the message."""
    logs.setup("INFO", "json", stream=Stream())
    logger.remove()
    written: list[str] = []
    logger.add(written.append, format="{name} {message} {extra}")
    logs.log_fast("app.bootstrap", "order finished", number=1)
    assert written == ["app.bootstrap order finished {'number': 1}\n"]
