"""What the documents show is what a new user gets."""

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
@pytest.mark.parametrize("document", ["README.rst", "docs/tutorial/first-orders.rst"])
def test_a_session_gives_the_answers_that_the_document_shows(document: str, tmp_path: Path) -> None:
    """Each command, typed as it stands there, answers what stands below it; only ids and moments differ."""
    start, *steps = steps_of((ROOT / document).read_text(encoding="utf-8"))
    assert start.environment is not None, "a session begins by starting the server"
    assert len(steps) >= 5
    with serving(tmp_path, start) as address:
        terminal, known = Terminal(tmp_path, {start.shown_address: address}), dict[str, str]()
        for step in steps:
            terminal.repeat(step, known)


@pytest.mark.process
@pytest.mark.slow
def test_three_processes_give_the_answers_that_the_document_shows(tmp_path: Path) -> None:
    """What the document starts runs side by side on a real NATS, and every command answers what stands below it."""
    steps = steps_of((ROOT / "docs" / "tutorial" / "three-processes.rst").read_text(encoding="utf-8"))
    starts = [step for step in steps if step.environment is not None]
    assert [step.environment["MODULES"] for step in starts if step.environment] == ["orders", "inventory", "payments"]
    with ExitStack() as stack:
        nats = stack.enter_context(NatsServer(tmp_path / "nats"))
        addresses = {
            step.shown_address: stack.enter_context(serving(tmp_path, step, NATS_URL=nats.url)) for step in starts
        }
        terminal, known = Terminal(tmp_path, addresses, NATS_URL=nats.url), dict[str, str]()
        for step in steps:
            if step not in starts:
                terminal.repeat(step, known)


def test_the_readme_tells_the_whole_story() -> None:
    """Stock, an order, confirmed, out of stock, declined, cancelled and refunded, and a metric: all of it is shown."""
    shown = "\n".join(step.answer for step in steps_of((ROOT / "README.rst").read_text(encoding="utf-8")))
    for word in (
        '"on_hand":100', '"status":"processing"', '"status": "confirmed"', "insufficient_stock", "payment_declined",
        '"reason": "requested"', '"status":"refunded"', "orders_total{",
    ):  # fmt: skip
        assert word in shown


def test_a_document_is_read_as_it_would_be_typed() -> None:
    """A command may run over several lines, and its answer ends where the next command or the block does."""
    assert steps_of(DOCUMENT) == [
        Step("echo one \\\n    two", "one two"),
        Step("KEPT=01a1fc96-df14-7617-a3bc-172e9d39542b", ""),
        Step(
            "echo $KEPT at 2026-11-21T05:31:48.373160Z",
            "01a1fc96-df14-7617-a3bc-172e9d39542b at 2026-11-21T05:31:48Z",
        ),
        Step("true", ""),
    ]


def test_only_a_plain_get_is_asked_again() -> None:
    """What changes something is typed once."""
    assert Step("curl -s localhost:8080/v1/orders/1", "").is_question
    assert not Step("curl -s localhost:8080/v1/orders/1/cancel \\\n --json '{}'", "").is_question
    assert not Step("curl -s -X POST localhost:8080/v1/orders/1/cancel", "").is_question
    assert not Step("ORDER=$(curl -s localhost:8080/v1/orders --json '{}')", "").is_question


def test_a_terminal_remembers_and_a_wrong_answer_is_found(tmp_path: Path) -> None:
    """Variables last; another answer, or another id in the place of a known one, fails."""
    terminal, known = Terminal(tmp_path, {}), dict[str, str]()
    one, other = "01a1fc96-df14-7617-a3bc-172e9d39542b", "01a1fc96-e56f-704a-8f52-b19a7e3fbf31"
    for step in steps_of(DOCUMENT):
        terminal.repeat(step, known)
    assert known == {one: one}
    with pytest.raises(AssertionError, match="two"):
        terminal.repeat(Step("echo two", "three"), known)
    with pytest.raises(AssertionError, match="was"):
        terminal.repeat(Step(f"echo {other}", one), known)


def test_masking_leaves_what_is_told() -> None:
    """Ids, moments and addresses go; everything else stays to be compared."""
    text = 'ready at http://127.0.0.1:4711 {"id":"01a1fc96-df14-7617-a3bc-172e9d39542b","at":"2026-11-21T05:31:48.37Z","n":7}'
    assert masked(text) == (
        'ready at http://<address> {"id":"<id>","at":"<moment>","n":7}',
        ["01a1fc96-df14-7617-a3bc-172e9d39542b"],
    )
