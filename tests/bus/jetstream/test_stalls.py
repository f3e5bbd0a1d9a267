"""A consumer that has messages to deliver and delivers none is stalled after a while; one that makes progress is not."""

from __future__ import annotations

from bus.jetstream.admin.server_config import ServerConfig
from bus.jetstream.admin.stalls import StallDetector

LABEL = "consumer inventory on ORDERS"


class Looks:
    """A detector with a limit of 60 s, and looks ten seconds apart."""

    def __init__(self) -> None:
        self.now = 0.0
        self.detector = StallDetector(lambda: self.now, 60)

    def look(self, pending: int, delivered: int, until: str = "") -> list[str]:
        self.now += 10
        info = {"num_pending": pending, "delivered": {"consumer_seq": delivered}, "paused": bool(until)}
        self.detector.observe(LABEL, ServerConfig({"pause_until": until}, info))
        return list(self.detector.stalls)


def test_a_consumer_that_delivers_nothing_is_reported_after_the_limit() -> None:
    looks = Looks()
    assert [looks.look(5, 7) for _ in range(6)] == [[]] * 6
    assert looks.look(5, 7) == [f"{LABEL} delivers none of 5 messages (for 60 s)"]
    assert looks.look(5, 8) == []  # it delivers again


def test_a_long_backlog_that_shrinks_is_no_stall() -> None:
    looks = Looks()
    assert all(looks.look(100_000 - n, n) == [] for n in range(100))


def test_a_consumer_without_messages_is_never_stalled() -> None:
    looks = Looks()
    assert all(looks.look(0, 7) == [] for _ in range(100))


def test_a_pause_is_reported_even_without_messages() -> None:
    looks = Looks()
    found = [looks.look(0, 7, "2030-01-01T00:00:00Z") for _ in range(8)]
    assert found[-1] == [f"{LABEL} is paused until 2030-01-01T00:00:00Z (for 70 s)"]
    assert looks.look(0, 7) == []
