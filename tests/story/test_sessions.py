"""The terminal sessions in the documents show what the program prints."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.nats import NatsServer
from tests.story.session import ROOT, Step, Terminal, masked, serving, steps_of

DOCUMENT = r"""
.. code-block:: console

    $ echo one \
        two
    one two
    $ KEPT=01a1fc96-df14-7617-a3bc-172e9d39542b
    $ echo $KEPT at 2026-11-21T05:31:48.373160Z
    01a1fc96-df14-7617-a3bc-172e9d39542b at 2026-11-21T05:31:48Z

Prose between them.

.. code-block:: console

    $ true
"""


@pytest.mark.process
@pytest.mark.parametrize("document", ["README.rst", pytest.param("docs/tutorial/first-orders.rst", marks=pytest.mark.slow)])
def test_each_command_of_a_session_prints_what_the_document_shows(document: str, tmp_path: Path) -> None:
    """The output of every command is the text below it; only ids, times and addresses differ."""
    start, *steps = steps_of((ROOT / document).read_text(encoding="utf-8"))
    assert start.environment is not None, "a session begins by starting the server"
    assert len(steps) >= 5
    with serving(tmp_path, start) as address:
        terminal, known_ids = Terminal(tmp_path, {start.shown_address: address}), dict[str, str]()
        for step in steps:
            terminal.repeat(step, known_ids)


@pytest.mark.process
@pytest.mark.slow
def test_each_command_of_the_session_with_three_processes_prints_what_the_document_shows(tmp_path: Path) -> None:
    """The servers of the document run side by side on a real NATS server, and every command prints the text below it."""
    steps = steps_of((ROOT / "docs" / "tutorial" / "three-processes.rst").read_text(encoding="utf-8"))
    starts = [step for step in steps if step.environment is not None]
    assert [step.environment["MODULES"] for step in starts if step.environment] == ["orders", "inventory", "payments"]
    with ExitStack() as stack:
        nats = stack.enter_context(NatsServer(tmp_path / "nats"))
        addresses = {
            step.shown_address: stack.enter_context(serving(tmp_path, step, NATS_URL=nats.url)) for step in starts
        }
        terminal, known_ids = Terminal(tmp_path, addresses, NATS_URL=nats.url), dict[str, str]()
        for step in steps:
            if step not in starts:
                terminal.repeat(step, known_ids)


def test_the_session_in_the_readme_shows_every_outcome_of_an_order() -> None:
    """Stock, an order, confirmed, out of stock, declined, cancelled and refunded, and a metric: the session has all of them."""
    shown = "\n".join(step.output for step in steps_of((ROOT / "README.rst").read_text(encoding="utf-8")))
    for word in (
        '"on_hand":100', '"status":"processing"', '"status": "confirmed"', "insufficient_stock", "payment_declined",
        '"reason": "requested"', '"status":"refunded"', "orders_total{",
    ):  # fmt: skip
        assert word in shown


def test_a_document_is_split_into_commands_and_outputs() -> None:
    """A command may have several lines, and its output ends where the next command begins or the block ends."""
    assert steps_of(DOCUMENT) == [
        Step("echo one \\\n    two", "one two"),
        Step("KEPT=01a1fc96-df14-7617-a3bc-172e9d39542b", ""),
        Step(
            "echo $KEPT at 2026-11-21T05:31:48.373160Z",
            "01a1fc96-df14-7617-a3bc-172e9d39542b at 2026-11-21T05:31:48Z",
        ),
        Step("true", ""),
    ]


def test_only_a_plain_get_is_repeated() -> None:
    """A command that changes something is run once."""
    assert Step("curl -s localhost:8080/v1/orders/1", "").is_query
    assert not Step("curl -s localhost:8080/v1/orders/1/cancel \\\n --json '{}'", "").is_query
    assert not Step("curl -s -X POST localhost:8080/v1/orders/1/cancel", "").is_query
    assert not Step("ORDER=$(curl -s localhost:8080/v1/orders --json '{}')", "").is_query


def test_a_terminal_keeps_its_variables_and_finds_a_wrong_output(tmp_path: Path) -> None:
    """Variables last from command to command; another output, or another id in place of a known one, fails."""
    terminal, known_ids = Terminal(tmp_path, {}), dict[str, str]()
    one, other = "01a1fc96-df14-7617-a3bc-172e9d39542b", "01a1fc96-e56f-704a-8f52-b19a7e3fbf31"
    for step in steps_of(DOCUMENT):
        terminal.repeat(step, known_ids)
    assert known_ids == {one: one}
    with pytest.raises(AssertionError, match="two"):
        terminal.repeat(Step("echo two", "three"), known_ids)
    with pytest.raises(AssertionError, match="was"):
        terminal.repeat(Step(f"echo {other}", one), known_ids)


def test_masking_keeps_everything_but_ids_times_and_addresses() -> None:
    """Ids, times and addresses are masked; the rest of the output is compared."""
    text = 'ready at http://127.0.0.1:4711 {"id":"01a1fc96-df14-7617-a3bc-172e9d39542b","at":"2026-11-21T05:31:48.37Z","n":7}'
    assert masked(text) == (
        'ready at http://<address> {"id":"<id>","at":"<time>","n":7}',
        ["01a1fc96-df14-7617-a3bc-172e9d39542b"],
    )
