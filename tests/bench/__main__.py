"""
Compare the speed of two versions of the program: ``python -m tests.bench REF_A REF_B --pairs 6``.

Both git refs are checked out into temporary worktrees. Each run starts ``serve`` with an empty SQLite file, or with the
settings of ``--set``, and places orders with this tree's ``python -m app load``. The results are medians of the ratios
within a pair, and their spread: the speed of a machine changes from minute to minute, and both halves of a pair see the
same minute. Believe the processor time rather than the orders a second where something else runs beside.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.bench.serving import Run, Variant, measure, run_pairs

_ROOT = Path(__file__).parents[2]


def main() -> None:
    """Run the pairs, print each run, and at the end the ratios."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Compare two versions of the program.")
    parser.add_argument("refs", nargs=2, metavar="REF", help="a commit, branch or tag; . is the working tree as it is")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--orders", type=int, default=6_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0, help="orders a second; without it, as fast as possible")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a variable of serve's environment")
    options = parser.parse_args()
    settings = dict(each.split("=", 1) for each in options.set)
    with _trees(options.refs) as trees:

        def run(tree: Path) -> Run:
            with tempfile.TemporaryDirectory() as folder:
                return measure(
                    Path(folder), tree, options.orders, connections=options.connections, rate=options.rate, **settings
                )

        first, second = (Variant(name, partial(run, tree)) for name, tree in trees.items())
        run_pairs(first, second, options.pairs)


@contextmanager
def _trees(refs: list[str]) -> Iterator[dict[str, Path]]:
    """Check out *refs*; yield their folders by a name for each, the first one first."""
    trees: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, ref in zip(("a", "b"), refs, strict=True):
                tree = Path(folder) / name
                if ref == ".":
                    tree = _ROOT
                else:
                    _git("worktree", "add", "--quiet", "--detach", str(tree), ref)
                trees[f"{name}={ref}"] = tree
            yield trees
        finally:
            for tree in trees.values():
                if tree != _ROOT:
                    _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=_ROOT, check=True)


if __name__ == "__main__":
    main()
