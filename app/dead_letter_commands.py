"""``dead-letters``: look at what no try could deliver, send it again, throw it away; in the database, server or not."""

from __future__ import annotations

__all__ = ["dead_letters"]

import click


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at dead letters, send them again, throw them away."""
