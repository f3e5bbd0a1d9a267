"""Show the progress of a run on stderr: a progress bar on a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

__all__ = ["Bar", "Lines", "display"]

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

from app.cli.loadtest.report import Progress

LINE_SECONDS = 5.0


class Bar:
    """A bar that fills with the placed orders, and the number of orders that are known to have ended."""

    def __init__(self, orders: int, stream: TextIO) -> None:
        self._bar = tqdm(total=orders, unit="order", unit_scale=False, file=stream, dynamic_ncols=True, desc="load")

    def __call__(self, progress: Progress) -> None:
        self._bar.n = progress.placed
        counts = f"seen confirmed {progress.confirmed}, cancelled {progress.cancelled}"
        self._bar.set_postfix_str(counts, refresh=True)

    def close(self) -> None:
        """Leave the bar on the screen and move the cursor to the next line."""
        self._bar.close()


class Lines:
    """Print one line every `LINE_SECONDS` of the run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next_line_at = LINE_SECONDS

    def __call__(self, progress: Progress) -> None:
        if progress.seconds < self._next_line_at:
            return
        self._next_line_at = progress.seconds - progress.seconds % LINE_SECONDS + LINE_SECONDS
        line = (
            f"{progress.seconds:.0f} s: placed {progress.placed} of {progress.orders}, seen confirmed {progress.confirmed},"
            f" cancelled {progress.cancelled}, {progress.placed_per_s:.0f} orders/s"
        )
        print(line, file=self._stream, flush=True)


@contextmanager
def display(orders: int) -> Iterator[Callable[[Progress], None]]:
    """Yield the callback that shows progress on stderr: a `Bar` if stderr is a terminal, else `Lines`."""
    if not sys.stderr.isatty():
        yield Lines(sys.stderr)
        return
    bar = Bar(orders, sys.stderr)
    try:
        yield bar
    finally:
        bar.close()
