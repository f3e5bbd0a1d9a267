"""Run the command line with ``python -m app``."""

import os
import signal
import sys
from pathlib import Path


def _exit_if_hidden() -> None:
    """Exit with 2 and one line if a file of the folder that Python searches first hides a package of the program."""
    first, own = Path(sys.path[0]), Path(__file__).parents[1]  # the current folder, unless Python has the option -P
    for path in (Path(each) for name in ("bus", "config", "modules") for each in (f"{name}/__init__.py", f"{name}.py")):
        if first != own and (first / path).exists():
            print(f"{path} in this folder hides a package of this program; type `fulfilment` for `python -m app`", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    if os.getpid() == 1:  # the kernel drops signals to the first process of a container for which it has no handler
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))

    _exit_if_hidden()
    from app.cli.main import main

    main()
