"""Run the command line with ``python -m app``."""

import os
import signal
import sys
from pathlib import Path


def _exit_if_hidden() -> None:
    """Exit with 2 and one line if a file of the current folder hides a package of the program: Python finds it first."""
    is_first = sys.path[0] in ("", os.getcwd()) and Path.cwd() != Path(__file__).parents[1]
    paths = [path for name in ("bus", "config", "modules") for path in (Path(name, "__init__.py"), Path(f"{name}.py"))]
    for path in paths:
        if is_first and path.exists():
            print(f"{path} in this folder hides a package of this program; type `fulfilment` for `python -m app`", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    if os.getpid() == 1:  # the kernel drops signals to the first process of a container for which it has no handler
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))

    _exit_if_hidden()
    from app.cli.main import main

    main()
