"""A stall is logged when it begins and when it ends, not at each look."""

from __future__ import annotations

from loguru import logger

from app.telemetry.attention.stall_log import StallLog


def test_each_stall_is_logged_once_until_it_ends() -> None:
    lines: list[str] = []
    sink = logger.add(lambda text: lines.append(text.strip()), format="{level} {message} {extra[what]}", level="INFO")
    try:
        log = StallLog()
        for stalls in [[], ["a waits (for 60 s)"], ["a waits (for 65 s)", "b refuses"], ["b refuses"], []]:
            log.report(stalls)
    finally:
        logger.remove(sink)
    assert lines == [
        "WARNING work makes no progress a waits (for 60 s)",
        "WARNING work makes no progress b refuses",
        "INFO work makes progress again a waits",
        "INFO work makes progress again b refuses",
    ]
