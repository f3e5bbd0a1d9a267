"""
How many examples Hypothesis tries of each property: an eighth, or all of them if EXAMPLES is ``all``.

``tox`` looks for what is broken often; ``tox -e night`` looks for the rest.
"""

from __future__ import annotations

__all__ = ["SHARE", "examples", "load_profile"]

import os

from hypothesis import settings

SHARE = 1 if os.environ.get("EXAMPLES") == "all" else 8
LEAST = 5


def examples(most: int) -> int:
    """Return how many examples to try of a property that gets *most* with all of them."""
    return max(min(most, LEAST), most // SHARE)


def load_profile() -> None:
    """Let properties without a number of their own get a share of Hypothesis's default, too."""
    default = settings.get_current_profile_name()
    settings.register_profile("share", settings.get_profile(default), max_examples=examples(settings().max_examples))
    settings.load_profile("share")
