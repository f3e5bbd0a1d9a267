"""A log line is one JSON object; it shows no secret, and writing it never fails anybody."""

from __future__ import annotations

import asyncio
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


class Terminal(io.StringIO):
    """Claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    """Leave no sink behind for the other tests."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logger.remove()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def out() -> io.StringIO:
    stream = io.StringIO()
    logs.setup("INFO", "json", stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]


def test_a_line_is_one_json_object(out: io.StringIO) -> None:
    """Time, level, logger and message come first, and whatever the caller bound comes after."""
    logger.bind(correlation_id="c-1").info("order is over", order_id="o-1", items=2)
    (line,) = lines(out)
    assert list(line) == ["time", "level", "logger", "message", "correlation_id", "order_id", "items"]
    assert (line["level"], line["logger"], line["message"]) == ("INFO", __name__, "order is over")
    assert (line["correlation_id"], line["order_id"], line["items"]) == ("c-1", "o-1", 2)


def test_time_is_rfc_3339_in_utc(out: io.StringIO) -> None:
    """Wherever the machine stands."""
    before = datetime.now(UTC)
    logger.info("now")
    said = lines(out)[0]["time"]
    assert RFC_3339_UTC.fullmatch(said)
    assert before - timedelta(milliseconds=1) <= datetime.fromisoformat(said) <= datetime.now(UTC)


def test_nobody_can_forge_the_head_of_a_line(out: io.StringIO) -> None:
    """A keyword that is named like one of ours does not take its place."""
    logger.info("true", time="never", level="LOUD", logger="nobody")
    (line,) = lines(out)
    assert (line["level"], line["logger"], line["message"]) == ("INFO", __name__, "true")
    assert RFC_3339_UTC.fullmatch(line["time"])


def test_what_is_below_the_level_is_not_written(out: io.StringIO) -> None:
    """And `enabled` says so beforehand, for those who would have to work for it."""
    logger.debug("not this")
    logger.warning("but this")
    assert [line["message"] for line in lines(out)] == ["but this"]
    assert [logs.enabled(level) for level in logs.LEVELS] == [False, False, True, True, True, True]


def log_in(password: str) -> float:
    return len(password) / 0


def test_an_exception_is_one_string_without_variables(out: io.StringIO) -> None:
    """Type, message and stack are there; what the variables held is not."""
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


class Mute:
    """Has no text."""

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
        (Mute(), "<Mute without text>"),
        ({1: "a"}, {"1": "a"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_value_finds_its_way_into_the_line(value: object, shown: object, out: io.StringIO) -> None:
    """What JSON has no form for goes in as text; no line is lost for it."""
    logger.info("look", value=value)
    assert lines(out)[0]["value"] == shown


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec=None)))
def test_no_text_can_break_a_line(text: str) -> None:
    """Line feeds, control characters and broken Unicode stay inside their string, in either format."""
    out = io.StringIO()
    logs.setup("INFO", "json", stream=out)
    logger.bind(text=text).info(text)
    (line,) = lines(out)
    assert (line["message"], line["text"]) == (text, text)
    logs.setup("INFO", "text", stream=Terminal())
    plain = io.StringIO()
    logs.setup("INFO", "text", stream=plain)
    logger.bind(text=text).info(text)
    assert plain.getvalue().count("\n") == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", plain.getvalue())


def test_secrets_are_blotted_out(out: io.StringIO, tmp_path: Path) -> None:
    """Wherever a secret turns up, in a message, a value or a stack, three stars stand in its place."""
    secret, quoted = "sk_live_123456", 'pass"word\\12'
    file = tmp_path / "log"
    for format in logs.FORMATS:
        stream = io.StringIO()
        logs.setup("INFO", format, file, stream, secrets=[secret, quoted, "a", ""])
        try:
            raise OSError(f"cannot reach postgresql://u:{secret}@db")
        except OSError:
            logger.exception("with {}", secret, url=f"u:{secret}", other=quoted)
        for text in stream.getvalue(), file.read_text():
            assert secret not in text
            assert "word" not in text
            assert text.count("***") >= 4


@pytest.mark.parametrize("name", ["aiohttp.server", "nats.aio", "asyncio"])
def test_the_standard_librarys_loggers_come_out_here(name: str, out: io.StringIO) -> None:
    """Under their own names and at their own levels, stack included; braces in them mean nothing."""
    logging.getLogger(name).info("said %s {brace}", "it")
    try:
        raise KeyError("x")
    except KeyError:
        logging.getLogger(name).exception("failed")
    logging.getLogger(name).debug("not this")
    first, second = lines(out)
    assert (first["logger"], first["level"], first["message"]) == (name, "INFO", "said it {brace}")
    assert (second["logger"], second["level"]) == (name, "ERROR")
    assert second["exception"].endswith("KeyError: 'x'")


def test_a_level_between_the_standard_ones_is_kept(out: io.StringIO) -> None:
    """A library may have invented its own."""
    logging.getLogger("odd").log(35, "between")
    assert lines(out)[0]["level"] == "Level 35"


def test_the_file_gets_json_whatever_the_terminal_gets(tmp_path: Path) -> None:
    """People read the one, machines the other; a further start goes on where the file ends."""
    file, stream = tmp_path / "app.log", io.StringIO()
    file.write_text('{"message": "from before"}\n')
    logs.setup("INFO", "text", file, stream)
    logger.info("hello", order_id="o-1")
    assert [json.loads(line)["message"] for line in file.read_text().splitlines()] == ["from before", "hello"]
    assert re.fullmatch(
        rf"\d\d:\d\d:\d\d\.\d\d\d INFO     {re.escape(__name__)}: hello order_id=o-1\n", stream.getvalue()
    )


def test_setting_up_again_replaces_what_was(tmp_path: Path) -> None:
    """No line comes twice, and the file before is closed."""
    first, second = io.StringIO(), io.StringIO()
    logs.setup("INFO", "json", tmp_path / "first.log", first)
    logs.setup("DEBUG", "json", tmp_path / "second.log", second)
    logger.debug("once")
    logging.getLogger("aiohttp").debug("and once")
    assert [line["message"] for line in lines(second)] == ["once", "and once"]
    assert first.getvalue() == (tmp_path / "first.log").read_text() == ""


def test_a_file_that_cannot_be_opened_is_said_at_once(out: io.StringIO, tmp_path: Path) -> None:
    """Whoever sets up hears of it; the log that was there goes on."""
    with pytest.raises(OSError, match="directory"):
        logs.setup("INFO", "json", tmp_path, io.StringIO())
    logger.info("still here")
    assert [line["message"] for line in lines(out)] == ["still here"]


def test_a_terminal_gets_colours_unless_it_asks_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR is honoured; a pipe gets none in any case."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain, piped = Terminal(), Terminal(), io.StringIO()
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


def test_the_stack_stands_below_its_line_in_text() -> None:
    """Readable, but without what would move the cursor."""
    stream = io.StringIO()
    logs.setup("INFO", "text", stream=stream)
    try:
        raise ValueError("red \x1b[31m")
    except ValueError:
        logger.exception("failed")
    head, *stack = stream.getvalue().splitlines()
    assert head.endswith(": failed")
    assert stack[0] == "Traceback (most recent call last):"
    assert stack[-1] == "ValueError: red \\x1b[31m"


def test_a_reader_that_has_gone_hurts_nobody() -> None:
    """The other end of stdout is closed (EPIPE): the line is lost, the caller goes on."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        logs.setup("INFO", "json", stream=stream)
        logger.info("heard")
        assert json.loads(os.read(reader, 10_000))["message"] == "heard"
        os.close(reader)
        logger.info("lost")
        logging.getLogger("aiohttp").error("lost as well")


def test_a_reader_that_does_not_read_hurts_nobody() -> None:
    """A pipe that is full and may not be waited for: lines are lost, the caller goes on."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "w") as stream:
        logs.setup("INFO", "json", stream=stream)
        for _ in range(200):
            logger.info("x" * 1000)
        assert json.loads(os.read(reader, 1_000_000).split(b"\n")[0])["level"] == "INFO"
        os.close(reader)


@pytest.mark.parametrize("format", logs.FORMATS)
def test_a_closed_stream_hurts_nobody(format: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Closed before or after; the file still gets its lines, and stderr is not flooded."""
    stream, file = io.StringIO(), tmp_path / "log"
    logs.setup("INFO", format, file, stream)
    stream.close()
    logger.info("one")
    logs.setup("INFO", format, file, stream)
    logger.info("two")
    assert [json.loads(line)["message"] for line in file.read_text().splitlines()] == ["one", "two"]
    assert capfd.readouterr().err == ""


def test_a_program_whose_reader_has_gone_still_ends_with_its_own_code() -> None:
    """Nothing stays in a buffer that the interpreter would fail to flush on its way out."""
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


class Counted(io.StringIO):
    """Counts how often it is written to."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


async def test_what_one_turn_of_the_loop_says_is_written_together() -> None:
    """A write gives the interpreter's lock away, so a turn costs one; trouble is written at once."""
    stream = Counted()
    logs.setup("INFO", "json", stream=stream)
    for number in range(100):
        logger.info("order is over", number=number)
    assert stream.writes == 0
    await asyncio.sleep(0)
    assert stream.writes == 1
    assert [line["number"] for line in lines(stream)] == list(range(100))
    logger.error("trouble")
    assert stream.writes == 2


@pytest.mark.parametrize("format", ["json", "text"])
@pytest.mark.parametrize("level", ["INFO", "WARNING"])
def test_what_is_said_past_loguru_looks_the_same(format: str, level: str, tmp_path: Path) -> None:
    """In both formats, on the stream and in the file, with secrets blotted out; and not at all where nobody wants it."""
    stream, file = io.StringIO(), tmp_path / "log"
    logs.setup(level, format, file, stream, secrets=["open-sesame"])
    said: dict[str, Any] = {"number": 1, "at": datetime(2026, 1, 1, tzinfo=UTC), "what": "open-sesame", "nothing": None}
    logger.info("order is over", **said)
    logs.log_fast(__name__, "order is over", **said)
    for text in stream.getvalue(), file.read_text():
        assert "open-sesame" not in text
        written = [re.sub(r"[\d:.TZ-]{12,}", "", line, count=1) for line in text.splitlines()]
        assert written == [] if level == "WARNING" else written[0] == written[1]
        assert len(written) == (0 if level == "WARNING" else 2)


def test_past_loguru_nothing_is_lost_when_nobody_has_set_it_up() -> None:
    """Or has taken away what was set up: it goes to whoever listens to loguru."""
    logs.setup("INFO", "json", stream=io.StringIO())
    logger.remove()
    heard: list[str] = []
    logger.add(heard.append, format="{name} {message} {extra}")
    logs.log_fast("app.bootstrap", "order is over", number=1)
    assert heard == ["app.bootstrap order is over {'number': 1}\n"]
